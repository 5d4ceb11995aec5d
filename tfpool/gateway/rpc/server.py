"""The gRPC server: the port, its limits and TLS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from tfpool.settings import GatewaySettings


class RpcServer:
    """Serves generic handlers until :meth:`stop`."""

    def __init__(self, settings: GatewaySettings, handlers: Iterable[Any]) -> None:
        options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.max_send_message_length", -1),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT, which other gateways may share."""
        self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Refuse what comes, and end once what is under way has its answer, or after ``seconds``."""
        await self._server.stop(seconds)
