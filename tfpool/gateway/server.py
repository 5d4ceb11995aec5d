"""The HTTP server: listens on a socket, with TLS or without, and looks after its connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

from tfpool.descriptors import raise_limit
from tfpool.gateway.app import App
from tfpool.gateway.protocol import Connection
from tfpool.gateway.tls import server_context
from tfpool.settings import GatewaySettings
from tfpool.telemetry import log

BACKLOG = 4096
MAX_CONNECTIONS = 1 << 16
HANDSHAKE_SECONDS = 10.0
HALF_SECONDS = 1.0
"""How long a server that ends waits for the rest of a request that has begun to arrive."""
_SPARE_DESCRIPTORS = 256
_SWEEP_SECONDS = 1.0


class HttpServer:
    """Serves an application until :meth:`stop`.

    ``connections`` are those that are open, at most ``most``; ``answers[n]`` counts the answers with a status of n00.
    ``now`` is the time (monotonic seconds) of the last look at the connections, a second ago at most.
    """

    def __init__(self, app: App, settings: GatewaySettings) -> None:
        self.app = app
        self.settings = settings
        self.budget = app.budget
        self.connections: set[Connection] = set()
        self.most = min(raise_limit() - _SPARE_DESCRIPTORS, MAX_CONNECTIONS)
        self.answers = [0] * 6
        self.now = time.monotonic()
        self.ending = False
        self.loop: asyncio.AbstractEventLoop
        self._log = log.get("gateway")

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT, which other gateways may share. Raises InvalidArgument for TLS files that are not."""
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._complain)
        context = server_context(self.settings)
        self._listener = await self.loop.create_server(
            lambda: Connection(self),
            sock=_bound(address),
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=None if context is None else HANDSHAKE_SECONDS,
        )
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def stop(self, seconds: float) -> None:
        """Take no more connections; close each once it has its answer, or after ``seconds``."""
        self.ending = True
        self._listener.close()
        begun = time.monotonic()
        while self.connections and time.monotonic() < begun + seconds:
            late = time.monotonic() > begun + HALF_SECONDS
            for connection in tuple(self.connections):
                connection.end(late)
            await asyncio.sleep(0.02)
        self._sweeper.cancel()
        for connection in tuple(self.connections):
            connection.abort()

    def answered(self, status: int) -> None:
        """An answer is on its way."""
        self.answers[status // 100] += 1

    def failed(self, error: Exception) -> None:
        """An answer broke off."""
        self._log.error("answer.failed", error=error)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)
        before, self.now = self.now, time.monotonic()
        for connection in tuple(self.connections):
            connection.sweep(before)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the loop has to say: who breaks a handshake off, or hangs up, is no concern."""
        error = context.get("exception")
        if isinstance(error, ssl.SSLError | ConnectionError | TimeoutError):
            self._log.debug("connection.failed", error=error)
        else:
            self._log.error("loop.failed", what=context.get("message", ""), error=error)


def _bound(address: str) -> socket.socket:
    """A socket that is bound there."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(where)
    return sock
