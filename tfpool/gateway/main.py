"""The gateway's story: connect to the pool, listen, serve until told to end, let everybody have their answers.

One process, one event loop; several of them share the ports. It speaks to the pool through the client like anybody
else, and knows neither TensorFlow nor ZeroMQ.
"""

from __future__ import annotations

import asyncio
import socket

import uvloop

from tfpool.client.aio import AsyncClient
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.health import Health
from tfpool.gateway.rpc.server import RpcServer
from tfpool.gateway.server import HttpServer, listener
from tfpool.gateway.serving import Gateway
from tfpool.settings import Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Control, pack, unpack

DRAIN_SECONDS = 5.0


def run(sock: socket.socket, settings: Settings) -> None:
    """Serve until the supervisor says so, or closes ``sock``."""
    server = settings.server
    log.configure("gateway", server.log_level, server.log_format)
    uvloop.run(_serve(Doorbell(sock, blocking=False), settings))


async def _serve(bell: Doorbell, settings: Settings) -> None:
    server = settings.server
    async with AsyncClient(server.listen[0], admin=server.admin_listen, timeout=settings.gateway.timeout_s) as client:
        gateway = Gateway(settings, client)
        http, rpc = _http(gateway), _rpc(gateway)
        if server.http is not None:
            await http.start(listener(server.http))
        if server.grpc is not None:
            await rpc.start(server.grpc)
        bell.ring(pack([Control.UP]))
        await _told_to_end(bell)
        gateway.draining = True
        await asyncio.gather(http.stop(DRAIN_SECONDS), rpc.stop(DRAIN_SECONDS))


def _http(gateway: Gateway) -> HttpServer:
    routes = (*Health(gateway).routes(),)
    settings = gateway.settings.gateway
    return HttpServer(App(settings, Keeper(settings), routes), settings)


def _rpc(gateway: Gateway) -> RpcServer:
    return RpcServer(gateway.settings.gateway, ())


async def _told_to_end(bell: Doorbell) -> None:
    """Returns when the supervisor says DRAIN, or is gone."""
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    def hear() -> None:
        try:
            while (heard := bell.hear()) is not None:
                if unpack(heard[0])[0] == Control.DRAIN:
                    raise EOFError
        except EOFError:
            loop.remove_reader(bell.fileno())
            if not told.done():
                told.set_result(None)

    loop.add_reader(bell.fileno(), hear)
    await told
