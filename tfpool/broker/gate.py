"""Who gets in over tcp: CURVE keys, and a list of those that are let in.

ZeroMQ asks at each handshake, over its authentication protocol (ZAP, ZeroMQ RFC 27), and only that handshake waits for
the answer. The key that a connection was let in with is a property of every message that comes over it, and is looked
up again each time: one that is taken off the list is refused from then on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import zmq
from zmq.utils import z85

from tfpool.errors import PermissionDenied, TfpoolError, Unauthenticated
from tfpool.keys import Authorized, Role, read_authorized, read_server_keys
from tfpool.telemetry import log

ENDPOINT = "inproc://zeromq.zap.01"
LOOK_SECONDS = 1.0
LOG_SECONDS = 1.0
MAX_ANSWERED_AT_ONCE = 32
_KEY = "X-Key"
_NOBLOCK = int(zmq.NOBLOCK)

Ask = Callable[[Callable[[], Any], Callable[["Future[Any]"], None]], None]
Mark = tuple[int, ...]
Seen = tuple[Mark, dict[bytes, Authorized] | TfpoolError] | None


class Gate:
    """``curve_key`` and ``authorized`` are the paths of the server's key and of the list; the list is read again when
    it changes, and one that cannot be read changes nothing. Raises a TfpoolError where the server's key cannot be read.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], curve_key: str, authorized: str) -> None:
        self._log = log.get("gate")
        self._secret = read_server_keys(curve_key).secret
        self._path = authorized
        self._mark: Mark | None = None
        self._allowed: dict[bytes, Authorized] = {}
        self._refused, self._last_refused = 0, ("", "")
        self._next_look = self._next_log = 0.0
        self._looking = False
        self._take(_look(self._path, None))  # when it cannot be read, nobody gets in until it can
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def guard(self, sock: zmq.Socket[bytes], role: Role) -> None:
        """Have a socket that is not bound yet let in only those who may act as ``role``."""
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        sock.setsockopt(zmq.ZAP_DOMAIN, role.value.encode())
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer, nobody

    def hear(self) -> None:
        """Answer handshakes, at most 32 of those that wait."""
        for _ in range(MAX_ANSWERED_AT_ONCE):
            try:
                peer, empty, version, request, domain, address, _, _, *credentials = self.socket.recv_multipart(
                    _NOBLOCK
                )
            except zmq.Again:
                return
            key = z85.encode(credentials[0]) if len(credentials) == 1 else b""
            try:
                name = self._admit(key, Role(domain.decode())).name.encode()
                verdict = [b"200", b"OK", name, _property(_KEY.encode(), key)]
            except TfpoolError as error:
                verdict = [b"400", b"Refused", b"", b""]
                self._refused, self._last_refused = self._refused + 1, (address.decode(errors="replace"), error.message)
            self.socket.send_multipart([peer, empty, version, request, *verdict], _NOBLOCK)

    def check(self, frame: zmq.Frame, role: Role) -> None:
        """Whether who sent this may still act as ``role``. Raises Unauthenticated, PermissionDenied."""
        self._admit(str(frame.get(_KEY)).encode(), role)

    def step(self, now: float, ask: Ask) -> None:
        """Have the list looked at, each second; ``ask`` runs a job elsewhere and hands its future on.

        Who was refused is logged here, a line a second at most: a flood of strangers must not flood the log.
        """
        if self._refused and now >= self._next_log:
            address, why = self._last_refused
            self._log.warning("key.refused", address=address, why=why, refused=self._refused)
            self._refused, self._next_log = 0, now + LOG_SECONDS
        if now >= self._next_look and not self._looking:
            self._looking = True
            self._next_look = now + LOOK_SECONDS
            ask(partial(_look, self._path, self._mark), self._looked)

    def _looked(self, looked: Future[Seen]) -> None:
        self._looking = False
        self._take(looked.result())

    def _take(self, seen: Seen) -> None:
        if seen is None:
            return
        self._mark, found = seen
        if isinstance(found, TfpoolError):
            self._log.error("keys.unreadable", error=found.message, holding=len(self._allowed))
        else:
            self._allowed = found
            self._log.info("keys.read", path=self._path, keys=len(found))

    def _admit(self, key: bytes, role: Role) -> Authorized:
        known = self._allowed.get(key)
        if known is None:
            raise Unauthenticated("this key is not among the server's authorized_keys")
        if role is Role.ADMIN is not known.role:
            raise PermissionDenied(f"{known.name} has the role {known.role.value}, expected {role.value}")
        return known

    def close(self) -> None:
        self.socket.close()


def _look(path: str, known: Mark | None) -> Seen:
    """The list, or what is wrong with it; None when it is as it was."""
    try:
        status = os.stat(path)
        mark: Mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except (OSError, ValueError):
        mark = ()
    if mark == known:
        return None
    try:
        return mark, read_authorized(path)
    except TfpoolError as error:
        return mark, error


def _property(name: bytes, value: bytes) -> bytes:
    """A property of a connection, as ZMTP writes it."""
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
