"""Pools with a gateway, for tests: addresses that are free, and an HTTP client that says exactly what it is told."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tfpool.testing.fake_worker import until

_PATIENCE = 20.0


def free_address() -> str:
    """A loopback address that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def await_front(address: str) -> None:
    """Return when somebody listens there. Raises AssertionError."""

    def listens() -> bool:
        host, _, port = address.rpartition(":")
        with suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return True
        return False

    until(listens, _PATIENCE, f"nobody listens at {address}")


class Answer(NamedTuple):
    """What came back; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Web:
    """One kept connection to a gateway."""

    def __init__(self, address: str, token: str = "") -> None:
        self._connection = http.client.HTTPConnection(address, timeout=_PATIENCE)
        self._token = token

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; a body is sent as it is."""
        sent = {"authorization": f"Bearer {self._token}"} if self._token else {}
        self._connection.request(method, path, body, {**sent, **(headers or {})})
        response = self._connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, value: Any = None, **headers: str) -> Answer:
        """POST ``value`` as JSON, or as it is where it is bytes."""
        body = value if isinstance(value, bytes) else json.dumps(value)
        return self.ask("POST", path, body, headers)

    def close(self) -> None:
        self._connection.close()
