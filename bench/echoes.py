"""The floors of the gateway: an ASGI and a gRPC server that answer every request with the same bytes."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import uvicorn
import uvloop

from bench import fleet
from bench.children import Channel, Child
from bench.fleet import Fleet, Loop, Tally, Window
from bench.processes import cpu_seconds

_METHOD = "/bench.Echo/Echo"


class Echo:
    """A server in a process of its own; ``kind`` is http or grpc, ``answer`` what it says."""

    def __init__(self, kind: str, answer: bytes) -> None:
        self._child = Child(serve, kind, base64.b64encode(answer).decode())
        try:
            self.address: str = self._child.hear()
        except BaseException:
            self._child.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def serve(channel: Channel, kind: str, answer: str) -> None:
    """The echo's child: says its address, and serves."""
    uvloop.run((_http if kind == "http" else _grpc)(channel, base64.b64decode(answer)))


async def _http(channel: Channel, answer: bytes) -> None:
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(answer))]

    async def app(
        scope: Any, receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    sock = socket.create_server(("127.0.0.1", 0))
    channel.say(f"127.0.0.1:{sock.getsockname()[1]}")
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    await uvicorn.Server(config).serve([sock])


async def _grpc(channel: Channel, answer: bytes) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return answer

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel.say(f"127.0.0.1:{port}")
    await server.wait_for_termination()


# -- load ----------------------------------------------------------------------------------------------------------


def calls(label: str, pid: int, address: str, request: bytes, method: str = _METHOD) -> Fleet:
    """A fleet of one process that keeps unary calls under way, and counts the answers; ``pid`` serves them."""
    encoded = base64.b64encode(request).decode()
    return Fleet(label, lambda: {"server": cpu_seconds(pid)}, load, address, method, encoded)


def load(channel: Channel, address: str, method: str, request: str) -> None:
    """A fleet's child."""
    body = base64.b64decode(request)

    @contextmanager
    def prepare(index: int) -> Iterator[Loop]:
        yield lambda window: asyncio.run(_closed(address, method, body, window))

    fleet.run(channel, 1, prepare)


async def _closed(address: str, method: str, body: bytes, window: Window) -> Tally:
    latencies: list[float] = []
    marks = [0.0, 0.0]
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(method)

        async def lane() -> None:
            now = time.monotonic()
            while now < window.end:
                sent = now
                await call(body)
                now = time.monotonic()
                if sent >= window.begin:
                    latencies.append(now - sent)
                else:
                    marks[:] = now, time.process_time()

        await asyncio.gather(*(lane() for _ in range(window.in_flight)))
    begun, cpu = marks
    return Tally(len(latencies), time.monotonic() - begun, time.process_time() - cpu, latencies)
