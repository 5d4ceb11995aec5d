"""The floors of the gateway: an ASGI and a gRPC server that answer every request with the same bytes."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvicorn
import uvloop

from bench.children import Channel, Child

METHOD = "/bench.Echo/Echo"


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
    if kind == "http":
        uvloop.run(_http(channel, base64.b64decode(answer)))
    else:
        asyncio.run(_grpc(channel, base64.b64decode(answer)))


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
