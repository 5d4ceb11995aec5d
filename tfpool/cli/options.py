"""What commands share: options, the kinds of their values, and the way to the pool."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tfpool.errors import InvalidArgument, Unavailable
from tfpool.settings import check_model_name, default_endpoint, normalize_endpoint

if TYPE_CHECKING:
    from tfpool.client.sync import Client

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

PROBE_SECONDS = 3.0


class ModelRef(NamedTuple):
    """``MODEL`` or ``MODEL:VERSION``."""

    name: str
    version: int | None


class ModelRefType(click.ParamType):
    """Reads a :class:`ModelRef`."""

    name = "model[:version]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ModelRef:
        if isinstance(value, ModelRef):
            return value
        name, colon, version = str(value).partition(":")
        try:
            check_model_name(name)
        except InvalidArgument as error:
            self.fail(f"model name: {error.message}", param, ctx)
        if not colon:
            return ModelRef(name, None)
        if not re.fullmatch(r"[1-9]\d{0,17}", version, re.ASCII):
            self.fail(f"got version {version!r}, expected a whole number from 1, as in {name}:3", param, ctx)
        return ModelRef(name, int(version))


class NamedPath(click.ParamType):
    """Reads ``NAME=PATH`` into a pair."""

    def __init__(self, path: str) -> None:
        self.name = f"name={path}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value[0], value[1]
        name, equals, path = str(value).partition("=")
        if not (name and equals and path):
            self.fail(f"got {value!r}, expected {self.name.upper()}", param, ctx)
        return name, path


class Seconds(click.ParamType):
    """Reads a time-out."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 86400:
            self.fail(f"got {value!r}, expected seconds from 0 to 86400", param, ctx)
        return seconds


MODEL_REF = ModelRefType()
SECONDS = Seconds()

connect_option: Option[Any] = click.option(
    "--connect", metavar="ENDPOINT", help="The pool: ipc://PATH or tcp://HOST:PORT.  [env: TFPOOL_ENDPOINT]"
)
admin_option: Option[Any] = click.option(
    "--admin", metavar="ENDPOINT", help="The pool's admin endpoint.  [env: TFPOOL_ADMIN]"
)
json_option: Option[Any] = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def timeout_option(default: float) -> Option[Any]:
    """``--timeout``, in seconds."""
    help_text = "Give up after this many seconds."
    return click.option("--timeout", type=SECONDS, default=default, show_default=True, metavar="S", help=help_text)


def open_client(connect: str | None, admin: str | None = None, *, probe: bool = True) -> Client:
    """A client of the pool that is meant.

    Raises Unavailable at once where nothing listens, rather than at the first call's deadline; not without ``probe``.
    """
    endpoint = normalize_endpoint(connect or os.environ.get("TFPOOL_ENDPOINT") or default_endpoint())
    if probe and not listens(endpoint):
        raise Unavailable(f"no pool listens on {endpoint}; start one with 'tfpool serve', or say --connect")
    from tfpool.client.sync import Client

    return Client(connect, admin=admin)


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
