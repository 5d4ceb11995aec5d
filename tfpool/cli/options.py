"""What commands share: options, the kinds of their values, and the way to the pool."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tfpool.addresses import default_endpoint, normalize_endpoint
from tfpool.errors import InvalidArgument, Unavailable
from tfpool.settings import check_model_name

if TYPE_CHECKING:
    from tfpool.client.sync import Client

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

PROBE_SECONDS = 3.0
_STEP_SECONDS = 0.02
_KEYS = "tfpool.keys"


class ModelRef(NamedTuple):
    """``MODEL`` or ``MODEL:VERSION``."""

    name: str
    version: int | None


def model_ref(text: str) -> ModelRef:
    """Reads ``MODEL[:VERSION]``."""
    name, colon, version = text.partition(":")
    try:
        check_model_name(name)
    except InvalidArgument as error:
        raise click.BadParameter(f"model name: {error.message}") from None
    if not colon:
        return ModelRef(name, None)
    if not re.fullmatch(r"[1-9]\d{0,17}", version, re.ASCII):
        raise click.BadParameter(f"got version {version!r}, expected a whole number from 1, as in {name}:3")
    return ModelRef(name, int(version))


def named_path(text: str) -> tuple[str, str]:
    """Reads ``NAME=PATH``."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.BadParameter(f"got {text!r}, expected NAME=PATH")
    return name, path


def seconds(text: str) -> float:
    """Reads a time-out."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise click.BadParameter(f"got {text!r}, expected seconds from 0 to 86400")
    return value


def connect_option(command: F) -> F:
    """``--connect``, and ``--keys``, which goes to :func:`open_client` without a word of the command's."""
    connect = click.option(
        "--connect", metavar="ENDPOINT", help="The pool: ipc://PATH or tcp://HOST:PORT.  [env: TFPOOL_ENDPOINT]"
    )
    keys = click.option(
        "--keys",
        metavar="FILE",
        expose_value=False,
        callback=_keep_keys,
        help="Your key file, for tcp endpoints that ask for keys.  [env: TFPOOL_KEYS]",
    )
    return connect(keys(command))


def _keep_keys(context: click.Context, _: click.Parameter, path: str | None) -> None:
    context.meta[_KEYS] = path


admin_option: Option[Any] = click.option(
    "--admin", metavar="ENDPOINT", help="The pool's admin endpoint.  [env: TFPOOL_ADMIN]"
)
json_option: Option[Any] = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def timeout_option(default: float | None, shown: str | None = None) -> Option[Any]:
    """``--timeout``, in seconds; ``shown`` says what a default of None means."""
    help_text = "Give up after this many seconds."
    return click.option(
        "--timeout", type=seconds, default=default, show_default=shown or True, metavar="S", help=help_text
    )


def open_client(connect: str | None, admin: str | None = None, *, probe: bool = True) -> Client:
    """A client of the pool that is meant.

    Raises Unavailable at once where nothing listens, rather than at the first call's deadline; not without
    ``probe``.
    """
    endpoint = normalize_endpoint(connect or os.environ.get("TFPOOL_ENDPOINT") or default_endpoint())
    if probe and not _answers(endpoint):
        raise Unavailable(f"no pool listens on {endpoint}; start one with 'tfpool serve', or say --connect")
    from tfpool.client.sync import Client

    context = click.get_current_context(silent=True)
    return Client(connect, admin=admin, keys=context.meta.get(_KEYS) if context else None)


def _answers(endpoint: str) -> bool:
    """Whether a pool listens, or does within :data:`PROBE_SECONDS` because its broker is being replaced."""
    give_up = time.monotonic() + PROBE_SECONDS
    while not listens(endpoint):
        if time.monotonic() > give_up or not _claimed(endpoint):
            return False
        time.sleep(_STEP_SECONDS)
    return True


def _claimed(endpoint: str) -> bool:
    """Whether the supervisor of a pool on this host holds the lock of an ipc endpoint."""
    if not endpoint.startswith("ipc://"):
        return False
    try:
        with open(endpoint.removeprefix("ipc://") + ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def listens(endpoint: str) -> bool:
    """Whether something accepts connections on a normalized endpoint."""
    scheme, _, address = endpoint.partition("://")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(PROBE_SECONDS)
                sock.connect(address)
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
    except OSError:
        return False
    return True
