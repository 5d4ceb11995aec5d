"""The gateway as an ASGI application: a request's way from its path to a handler and back.

The route is remembered by its path, the body read within its limits, the caller known by its token. The request of who
hangs up is cancelled.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from tfpool.errors import TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.http import Headers, HttpError, Request, Response, Route, refusal
from tfpool.settings import GatewaySettings
from tfpool.telemetry import log

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COMPRESSED_FROM = 16 << 10
_WATCHED_AFTER = 0.1
_KEPT_PATHS = 8192
_Found = tuple[Route, tuple[str | None, ...]]


class App:
    """Answers HTTP by ``routes``, of which the first that matches counts."""

    def __init__(self, settings: GatewaySettings, keeper: Keeper, routes: Iterable[Route]) -> None:
        self._settings = settings
        self._keeper = keeper
        self._routes = tuple(routes)
        self._found: dict[tuple[str, bytes], _Found] = {}
        self._open: dict[asyncio.Task[Any], tuple[float, Receive]] = {}
        self._log = log.get("gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        headers: Headers = scope["headers"]
        try:
            response = await self._answer(method, scope, headers, receive)
        except (TfpoolError, HttpError) as error:
            response = refusal(error)
        except Exception as error:
            self._log.error("request.failed", method=method, path=scope["path"][:200], error=error)
            response = refusal(HttpError(500, f"{type(error).__name__}: {error}"))
        await _send(response, headers, self._cors(headers), send)

    async def _answer(self, method: str, scope: Scope, headers: Headers, receive: Receive) -> Response:
        raw: bytes = scope["raw_path"]
        found = self._found.get((method, raw))
        if found is None:
            if method == "OPTIONS":
                return self._preflight(headers)
            found = self._find("GET" if method == "HEAD" else method, raw)
            if len(self._found) >= _KEPT_PATHS:
                self._found.clear()
            self._found[(method, raw)] = found
        route, names = found
        access = self._keeper.check(headers, route.access)
        event = await receive()
        body: bytes = event.get("body", b"")
        if event.get("more_body") or len(body) > self._settings.max_body:
            body = await self._rest(body, headers, receive)
        request = Request(method, raw.decode("latin-1"), scope["query_string"], headers, body, access)
        if body and (packed := request.header(b"content-encoding")):
            request.body = _unpacked(body, packed, self._settings.max_body)
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = (time.monotonic(), receive)
        try:
            return await route.handler(request, *names)
        finally:
            self._open.pop(task, None)

    async def _rest(self, body: bytes, headers: Headers, receive: Receive) -> bytes:
        """A body that comes in several pieces. Raises HttpError for one that is too long, or whose sender has gone."""
        most = self._settings.max_body
        said = next((value for name, value in headers if name == b"content-length"), b"0")
        if said.isdigit() and int(said) > most:
            raise _too_long(int(said), most)
        pieces, size, more = [body], len(body), True
        while more:
            if size > most:
                raise _too_long(size, most)
            event = await receive()
            if event["type"] == "http.disconnect":
                raise HttpError(400, "the connection was closed before the body was complete")
            pieces.append(event.get("body", b""))
            size += len(pieces[-1])
            more = event.get("more_body", False)
        if size > most:
            raise _too_long(size, most)
        return b"".join(pieces)

    def _find(self, method: str, raw: bytes) -> _Found:
        """Raises HttpError for a path that is not there, or not with this method."""
        path = raw.decode("latin-1")
        others = set()
        for route in self._routes:
            names = route.match(path)
            if names is not None:
                if route.method == method:
                    return route, names
                others.add(route.method)
        if path.startswith("/v1/"):
            raise HttpError(400, f"Malformed request: {method} {path}")
        if others:
            allowed = ", ".join(sorted(others))
            raise HttpError(405, f"{path}: got {method}, expected {allowed}", ((b"allow", allowed.encode()),))
        raise HttpError(404, f"there is nothing at {path}; see /openapi.json")

    # -- other origins -----------------------------------------------------------------------------------------

    def _cors(self, headers: Headers) -> Headers:
        allowed = self._settings.cors_origins
        if allowed:
            origin = next((value for name, value in headers if name == b"origin"), b"")
            if origin and ("*" in allowed or origin.decode("latin-1") in allowed):
                return ((b"access-control-allow-origin", origin), (b"vary", b"origin"))
        return ()

    def _preflight(self, headers: Headers) -> Response:
        if not self._cors(headers):
            raise HttpError(403, "pages of other origins may not call this server: see cors_origins")
        return Response(
            status=204,
            headers=(
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", b"authorization, content-type, inference-header-content-length"),
                (b"access-control-max-age", b"600"),
            ),
        )

    # -- who hangs up ------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Cancel the requests whose callers have gone; runs until it is cancelled.

        Listening for that costs a task, so only requests that take long are listened to.
        """
        watched: dict[asyncio.Task[Any], asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(_WATCHED_AFTER)
                late = time.monotonic() - _WATCHED_AFTER
                watched = {task: watch for task, watch in watched.items() if not watch.done()}
                for task, (began, receive) in list(self._open.items()):
                    if began < late and task not in watched:
                        watched[task] = asyncio.create_task(_cancel_when_gone(task, receive))
        finally:
            for watch in watched.values():
                watch.cancel()


async def _cancel_when_gone(task: asyncio.Task[Any], receive: Receive) -> None:
    event = await receive()
    if event["type"] == "http.disconnect" and not task.done():
        task.cancel()


async def _send(response: Response, asked: Headers, more: Headers, send: Send) -> None:
    body, headers = response.body, response.headers
    if not isinstance(body, bytes):
        await send({"type": "http.response.start", "status": response.status, "headers": [*headers, *more]})
        async for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    if len(body) >= COMPRESSED_FROM and headers[:1] and headers[0][1].startswith((b"application/json", b"text/")):
        accepted = next((value for name, value in asked if name == b"accept-encoding"), b"")
        if b"gzip" in accepted:
            body = _packed(body)
            headers = (*headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": response.status, "headers": [*headers, length, *more]})
    await send({"type": "http.response.body", "body": body})


def _packed(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def _unpacked(body: bytes, encoding: bytes, most: int) -> bytes:
    """Raises HttpError for another encoding, a body that is broken, or too long."""
    if encoding.lower() in (b"identity", b""):
        return body
    if encoding.lower() not in (b"gzip", b"deflate"):
        said = encoding[:40].decode("latin-1")
        raise HttpError(415, f"content-encoding: got {said!r}, expected gzip, deflate or none")
    unpacker = zlib.decompressobj(47)  # either kind, by its header
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise HttpError(400, f"the body is not what its content-encoding says: {error}") from None
    if len(found) > most:
        raise _too_long(len(found), most)
    if not unpacker.eof:
        raise HttpError(400, "the body is cut off: its compressed data do not end")
    return found


def _too_long(size: int, most: int) -> HttpError:
    return HttpError(413, f"the body is too long: got {size} bytes or more, expected at most {most}")
