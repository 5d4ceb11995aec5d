"""The ports of the gateways: held by the supervisor for as long as the pool runs, so that nobody else gets them between
two lives of a gateway, and each gateway listens on the same."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import replace

from tfpool.addresses import check_gateway, default_directory, normalize_endpoint
from tfpool.errors import FailedPrecondition, InvalidArgument
from tfpool.settings import ServerSettings, Settings

_NEEDED = ("httptools", "uvloop", "orjson", "grpc", "prometheus_client")


class Ports:
    """Holds sockets that are bound and do not listen."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def claim(self, settings: Settings) -> Settings:
        """The settings with ports instead of zeros, and with an ipc endpoint that the gateways can use.

        Raises FailedPrecondition where something else listens there, InvalidArgument for an address that cannot be
        bound, or would be exposed, and where the gateway's packages are not installed.
        """
        server = settings.server
        if server.http is None and server.grpc is None:
            return settings
        if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
            raise InvalidArgument(f"HTTP and gRPC need {', '.join(missing)}: pip install 'tfpool[gateway]'")
        from tfpool.gateway.access import check_files

        for address in (server.http, server.grpc):
            if address is not None:
                check_gateway(address, server.insecure, settings.gateway.tokens is not None)
        check_files(settings.gateway)
        server = replace(
            _reachable(server),
            http=None if server.http is None else self._hold("http", server.http),
            grpc=None if server.grpc is None else self._hold("grpc", server.grpc),
        )
        return replace(settings, server=server)

    def release(self) -> None:
        for sock in self._held:
            sock.close()
        self._held.clear()

    def _hold(self, what: str, address: str) -> str:
        host, _, port = address.rpartition(":")
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            if port != "0":
                with socket.socket(family, kind, protocol) as probe:  # one that shares the port with nobody
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(where)
                    probe.listen(1)
            sock = socket.socket(family, kind, protocol)
            self._held.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind(where)  # without SO_REUSEADDR no probe of another pool gets past it
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # another program's connections linger
                sock.bind(where)
        except OSError as error:
            self.release()
            kind_of = FailedPrecondition if error.errno == 98 else InvalidArgument
            raise kind_of(f"{what} = {address}: {error.strerror or error}") from None
        return f"{host}:{sock.getsockname()[1]}"


def _reachable(server: ServerSettings) -> ServerSettings:
    """With an ipc endpoint first: the gateways have no keys for tcp."""
    own = [endpoint for endpoint in server.listen if endpoint.startswith("ipc://")]
    others = tuple(endpoint for endpoint in server.listen if endpoint not in own)
    own = own or [normalize_endpoint(f"ipc://{default_directory()}/gateway")]
    return replace(server, listen=(*own, *others))
