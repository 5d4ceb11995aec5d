"""The HTTP server: uvicorn with the sockets, limits and TLS of the settings."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn

from tfpool.gateway.app import App
from tfpool.settings import GatewaySettings

BACKLOG = 4096


class HttpServer:
    """Serves an application until :meth:`stop`."""

    def __init__(self, app: App, settings: GatewaySettings) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type]  # it is handed to call_later
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=settings.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
        )
        self._server = _Server(config)
        self._app = app

    async def start(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup(sockets=[sock])
        self._tasks = [asyncio.create_task(self._server.main_loop()), asyncio.create_task(self._app.watch())]

    async def stop(self, seconds: float) -> None:
        """Take no more connections; close each once it has its answer, or after ``seconds``."""
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = max(1, int(seconds))
        await self._server.shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Server(uvicorn.Server):
    """One that leaves signals to the supervisor."""

    def capture_signals(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        return nullcontext()


def listener(address: str) -> socket.socket:
    """A bound socket of HOST:PORT that other gateways may share."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(where)
    return sock
