"""The gateway's story: connect to the pool, listen, serve until told to end, let everybody have their answers.

One process, one event loop; several of them share the ports. It speaks to the pool through the client like anybody
else, and knows neither TensorFlow nor ZeroMQ.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import uvloop

from tfpool.client.aio import AsyncClient
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.board import Board, Post
from tfpool.gateway.console.front import Console
from tfpool.gateway.health import Health
from tfpool.gateway.metrics import Metrics
from tfpool.gateway.oip.rest import OpenInference
from tfpool.gateway.oip.rpc import InferenceService
from tfpool.gateway.openapi import OpenApi
from tfpool.gateway.rpc.server import RpcServer
from tfpool.gateway.rpc.services import services
from tfpool.gateway.server import HttpServer
from tfpool.gateway.serving import Gateway
from tfpool.gateway.tfs.rest import Rest
from tfpool.gateway.traces import open_traces
from tfpool.settings import Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Control, pack, unpack

DRAIN_SECONDS = 5.0


def run(sock: socket.socket, settings: Settings, board: Board, slot: int) -> None:
    """Serve until the supervisor says so, or closes ``sock``; what is counted goes into a ``slot`` of the ``board``."""
    server = settings.server
    log.configure("gateway", server.log_level, server.log_format)
    uvloop.run(_serve(Doorbell(sock, blocking=False), settings, board, slot))


async def _serve(bell: Doorbell, settings: Settings, board: Board, slot: int) -> None:
    server, traces = settings.server, open_traces(settings.gateway)
    async with AsyncClient(server.listen[0], admin=server.admin_listen, timeout=settings.gateway.timeout_s) as client:
        gateway = Gateway(settings, client, traces)
        post = Post(board, slot, gateway.meters)
        posting = asyncio.create_task(post.run())
        keeper = Keeper(settings.gateway, server.http)
        fronts: list[HttpServer | RpcServer] = []
        if server.http is not None:
            fronts.append(_http(gateway, keeper, post))
            await fronts[-1].start(server.http)
        if server.grpc is not None:
            fronts.append(_rpc(gateway, keeper))
            await fronts[-1].start(server.grpc)
        bell.ring(pack([Control.UP]))
        await _told_to_end(bell)
        gateway.draining = True
        await asyncio.gather(*(front.stop(DRAIN_SECONDS) for front in fronts))
        posting.cancel()
        with suppress(asyncio.CancelledError):
            await posting
    if traces is not None:
        traces.close()


def _http(gateway: Gateway, keeper: Keeper, post: Post) -> HttpServer:
    serving = (Rest(gateway), OpenInference(gateway))
    watching = (Health(gateway), Metrics(gateway, post), Console(gateway), OpenApi())
    routes = [route for room in (*serving, *watching) for route in room.routes()]
    settings = gateway.settings.gateway
    server = HttpServer(App(settings, keeper, routes), settings)
    server.answers = gateway.meters.responses
    gateway.meters.gauges["connections"] = lambda: len(server.connections)
    return server


def _rpc(gateway: Gateway, keeper: Keeper) -> RpcServer:
    methods = services(gateway, keeper, InferenceService(gateway).methods())
    return RpcServer(gateway.settings.gateway, methods)


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
