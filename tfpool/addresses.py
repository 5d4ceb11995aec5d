"""Where a pool listens, as people write it: ipc and tcp endpoints, and the HOST:PORT of its gateways."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address

from tfpool.errors import InvalidArgument

MAX_IPC_BYTES = 107
_TCP = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s\[\]:/@]+):(\d{1,5})", re.ASCII)


def default_directory() -> str:
    """The private directory of this user's default endpoints; it is not created here."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return os.path.join(runtime, "tfpool")
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"tfpool-{os.getuid()}")


def default_endpoint() -> str:
    """Where clients reach the pool when nobody says otherwise."""
    return normalize_endpoint(f"ipc://{default_directory()}/pool")


def normalize_endpoint(text: str) -> str:
    """``ipc://`` with an absolute path (``~`` and relative paths are resolved), or a checked ``tcp://HOST:PORT``.

    Raises InvalidArgument for another scheme, a bad port, and a path longer than the kernel allows.
    """
    if text.startswith("ipc://") and len(text) > len("ipc://") and "\0" not in text:
        path = os.path.abspath(os.path.expanduser(text.removeprefix("ipc://")))
        size = len(os.fsencode(path))
        if size > MAX_IPC_BYTES:
            raise InvalidArgument(f"ipc path: got {size} bytes, expected at most {MAX_IPC_BYTES}: {path}")
        return f"ipc://{path}"
    found = _TCP.fullmatch(text)
    if found and 0 < int(found[2]) < 65536:
        return text
    raise InvalidArgument(f"got {text[:200]!r}, expected ipc://PATH or tcp://HOST:PORT")


def admin_endpoint_for(endpoint: str) -> str:
    """The admin endpoint beside a normalized ipc endpoint.

    Raises InvalidArgument for tcp, whose admin endpoint has to be said.
    """
    if not endpoint.startswith("ipc://"):
        raise InvalidArgument(f"the admin endpoint of {endpoint} is not known; say it (--admin, or TFPOOL_ADMIN)")
    return normalize_endpoint(f"{endpoint}-admin")


def check_exposure(endpoint: str, insecure: bool, encrypted: bool = False) -> None:
    """Raises InvalidArgument for a tcp endpoint that other hosts can reach, unless ``encrypted`` or ``insecure``."""
    found = _TCP.fullmatch(endpoint)
    if found and not insecure and not encrypted and not is_loopback(found[1]):
        raise InvalidArgument(
            f"{endpoint} can be reached from other hosts, without encryption or authentication; "
            "listen on loopback, use keys (tfpool keygen; curve_key, authorized_keys), "
            "or pass --insecure (insecure = true) on a trusted network"
        )


def normalize_address(value: str) -> str:
    """A checked HOST:PORT; port 0 is any that is free, and a port alone is one of 127.0.0.1. Raises InvalidArgument."""
    text = f"127.0.0.1:{value}" if value.isascii() and value.isdigit() else value
    found = _TCP.fullmatch(f"tcp://{text}")
    if found and int(found[2]) < 65536:
        return text
    raise InvalidArgument(f"got {value[:200]!r}, expected HOST:PORT such as 127.0.0.1:8501")


def check_gateway(address: str, insecure: bool, tokens: bool) -> None:
    """Raises InvalidArgument for an HTTP or gRPC address that other hosts can reach, unless there are ``tokens``, or it
    is ``insecure``."""
    if not (insecure or tokens or is_loopback(address.rpartition(":")[0])):
        raise InvalidArgument(
            f"{address} can be reached from other hosts, by anybody: listen on loopback, ask for tokens "
            "(--tokens, [gateway] tokens), or pass --insecure (insecure = true) on a trusted network"
        )


def is_loopback(host: str) -> bool:
    """Whether only this host can reach an address; ``[::1]`` with or without its brackets."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
