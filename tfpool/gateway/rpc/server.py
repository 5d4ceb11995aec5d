"""The gRPC server: the port, its limits and TLS."""

from __future__ import annotations

from pathlib import Path

import grpc

from tfpool.errors import InvalidArgument
from tfpool.gateway.rpc.methods import Methods
from tfpool.settings import GatewaySettings


class RpcServer:
    """Serves methods until :meth:`stop`."""

    def __init__(self, settings: GatewaySettings, methods: Methods) -> None:
        options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_idle_ms", round(settings.idle_s * 1000)),
            ("grpc.server_handshake_timeout_ms", round(settings.read_s * 1000)),
        ]
        self._settings = settings
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((methods,))

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT, which other gateways may share. Raises InvalidArgument for TLS files that are none."""
        if self._settings.tls_cert is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, _credentials(self._settings))
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Refuse what comes, and end once what is under way has its answer, or after ``seconds``."""
        await self._server.stop(seconds)


def _credentials(settings: GatewaySettings) -> grpc.ServerCredentials:
    key, cert, authority = (_read(path) for path in (settings.tls_key, settings.tls_cert, settings.tls_client_ca))
    return grpc.ssl_server_credentials([(key, cert)], authority, require_client_auth=authority is not None)


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
