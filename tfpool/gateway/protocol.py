"""One connection of HTTP/1.1: bytes become requests, answers become bytes, in the order they were asked for.

The parser (llhttp) refuses what could be read in two ways. Here are the limits: how long a head may be, how long a
request may take to arrive, how long an answer may lie unread. Nobody has a timer: the server sweeps its connections.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

import httptools

from tfpool.errors import TfpoolError, Unavailable
from tfpool.gateway.app import Found, too_long
from tfpool.gateway.http import HttpError, Request, Response, refusal
from tfpool.gateway.lines import CONTINUE, LAST, chunk, head, target

if TYPE_CHECKING:
    from tfpool.gateway.server import HttpServer

MAX_URL = 8 << 10
MAX_HEAD = 64 << 10
MAX_HEADERS = 100
MAX_WAITING = 64
"""Requests that wait for the one before them on their connection."""
LINGER_SECONDS = 2.0
SLOWEST = 16 << 10
"""Bytes a second that somebody has to take of an answer, once that has waited for them."""
_SKIPPED = _JOINED = 64 << 10
_TOLD = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"))
_REFUSALS = (TfpoolError, HttpError)


class _Turn(NamedTuple):
    """A request that is complete, or the answer to one that is refused. ``nbytes`` are held for it."""

    asked: Request | Response
    found: Found | None
    packed: bytes
    bodiless: bool
    keep: bool
    nbytes: int


class Connection(asyncio.Protocol):
    """Reads on while a request is answered, for that is how a caller who hangs up is noticed.

    ``_deaf``: what comes is not for us any more. ``_raw``: the bytes of a body that the parser does not know of.
    """

    __slots__ = (
        "_barren", "_began", "_body", "_busy", "_chunked", "_deaf", "_expects", "_fed", "_found", "_headers", "_held",
        "_hosts", "_keep", "_length", "_lingering", "_method", "_packed", "_parser", "_path", "_paused", "_progress",
        "_query", "_raw", "_reading", "_refused", "_server", "_since", "_size", "_started", "_stopped", "_task",
        "_transport", "_unsent", "_url", "_waiting", "_writable",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[_Turn] = deque()
        self._writable: asyncio.Future[None] | None = None
        self._since = self._began = server.now
        self._reading = self._busy = self._stopped = self._deaf = self._lingering = False
        self._paused = 0.0
        self._unsent = self._held = self._progress = self._barren = self._fed = 0
        self._body: list[bytes] = []
        self.on_message_begin()
        self._reading = False

    # -- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if len(self._server.connections) < self._server.most:
            self._server.connections.add(self)
        else:
            self._deaf = True
            self._give(refusal(Unavailable("this server has too many connections", 1.0)), keep=False)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.budget.give(self._held + self._unsent)
        self._waiting.clear()
        self._body.clear()
        self._deaf = True
        self._parser = None  # they hold each other
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._fed = len(data)
        before = self._progress
        try:
            if self._raw is None:
                self._parser.feed_data(data)
            else:
                self._take_raw(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = httptools.HttpRequestParser(self)
            self.data_received(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            why = error.__context__
            self._refuse(why if isinstance(why, _REFUSALS) else HttpError(400, f"this is no HTTP/1.1: {error}"))
        except _REFUSALS as error:
            self._refuse(error)
        if self._progress != before:
            self._barren = 0
        else:
            self._barren += self._fed
            if self._barren > MAX_HEAD:
                self._refuse(_head_too_long())

    def end(self) -> None:
        """Close it, once what has begun is answered."""
        if not (self._busy or self._reading):
            self._transport.close()

    def abort(self) -> None:
        """Close it now."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Notice what has taken too long at ``now``, which may be a little while ago."""
        settings = self._server.settings
        if self._lingering:
            if now - self._since > LINGER_SECONDS:
                self._transport.abort()
        elif self._paused:
            waited = now - self._paused
            if waited > settings.read_s and self._unsent - self._transport.get_write_buffer_size() < waited * SLOWEST:
                self._reset()
        elif self._reading and not self._deaf:
            if now - self._began > settings.read_s:
                self._refuse(HttpError(408, f"the request did not arrive within {settings.read_s:g} s"))
        elif not self._busy and now - self._since > settings.idle_s:
            self._transport.close()

    # -- a request arrives: called by the parser ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._deaf:
            raise HttpError(400, "the connection is about to close")
        self._reading = True
        self._began = self._server.now
        self._url = self._expects = self._packed = b""
        self._method = ""
        self._headers: list[tuple[bytes, bytes]] = []
        self._hosts = self._length = self._size = 0
        self._chunked = self._started = False
        self._raw: int | None = None
        self._refused: Response | None = None

    def on_url(self, part: bytes) -> None:
        self._url += part
        if len(self._url) > MAX_URL:
            raise HttpError(414, f"the URL is too long: expected at most {MAX_URL} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._started:
            return  # a trailer
        name = name.lower()
        self._headers.append((name, value))
        if name in _TOLD:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"host":
                self._hosts += 1
            elif name == b"content-encoding":
                self._packed = value.strip()
            elif name == b"expect":
                self._expects = value.strip().lower()
            elif value.strip().lower() == b"chunked":
                self._chunked = True
            else:
                said = value[:40].decode("latin-1")
                raise HttpError(501, f"transfer-encoding: got {said!r}, expected chunked or none")

    def on_headers_complete(self) -> None:
        self._progress += 1
        self._started = True
        version = self._check_head()
        server = self._server
        try:
            self._found = server.app.admit(self._method, self._path, self._headers)
            if self._length > server.settings.max_body:
                raise too_long(self._length, server.settings.max_body)
            if self._expects and self._expects != b"100-continue":
                raise HttpError(417, f"expect: got {self._expects[:40].decode('latin-1')!r}, expected 100-continue")
        except _REFUSALS as error:
            if self._chunked or self._expects or self._length > _SKIPPED:
                raise  # without waiting for a body that nobody wants
            self._refused = server.app.refused(error, self._headers)
        if self._expects and version == "1.1" and not self._busy:
            self._transport.write(CONTINUE)

    def _check_head(self) -> str:
        """The version of HTTP. Raises HttpError for a head that no route could make good."""
        parser, headers = self._parser, self._headers
        if len(headers) > MAX_HEADERS:
            raise HttpError(431, f"got {len(headers)} headers, expected at most {MAX_HEADERS}")
        if self._barren + self._fed > MAX_HEAD and sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEAD:
            raise _head_too_long()
        version: str = parser.get_http_version()
        self._method = parser.get_method().decode()
        self._keep = parser.should_keep_alive() and version == "1.1"
        if version != "1.1" and (version != "1.0" or self._chunked):
            raise HttpError(505, f"got HTTP/{version}, expected HTTP/1.1")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise HttpError(400, f"got {self._hosts} Host headers, expected one")
        if parser.should_upgrade():  # which the parser takes for granted; but we stay, and what follows is a body
            if self._method == "CONNECT" or self._chunked:
                raise HttpError(501, "got a request to change to another protocol, expected HTTP/1.1")
            self._raw = self._length
        self._path, self._query = target(self._url)
        return version

    def on_body(self, part: bytes) -> None:
        self._progress += 1
        if self._refused is None:
            size, most = self._size + len(part), self._server.settings.max_body
            if size > most:
                raise too_long(size, most)
            self._server.budget.take(len(part))
            self._held += len(part)
            self._size = size
            self._body.append(part)

    def on_message_complete(self) -> None:
        self._progress += 1
        if self._raw is None:
            self._complete()

    def _take_raw(self, data: bytes) -> None:
        assert self._raw is not None
        part, rest = data[: self._raw], data[self._raw :]
        self._raw -= len(part)
        self.on_body(part)
        if not self._raw:
            self._raw = None
            self._complete()
            if rest:
                self.data_received(rest)

    def _complete(self) -> None:
        parts = self._body
        body = b"" if not parts else parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._reading = False
        self._deaf = not self._keep
        bodiless = self._method == "HEAD"
        if self._refused is not None:
            self._queue(_Turn(self._refused, None, b"", bodiless, self._keep, self._size))
            return
        found = self._found
        request = Request(self._method, self._path.decode("latin-1"), self._query, self._headers, body, found[2])
        self._queue(_Turn(request, found, self._packed, bodiless, self._keep, self._size))

    # -- answers, one after the other --------------------------------------------------------------------------

    def _queue(self, turn: _Turn) -> None:
        if not (self._busy or self._paused):
            self._start(turn)
            return
        self._waiting.append(turn)
        if len(self._waiting) >= MAX_WAITING:
            self._waiting[-1] = turn._replace(keep=False)
            self._deaf = True
        if not self._stopped:
            self._stopped = True
            self._transport.pause_reading()

    def _start(self, turn: _Turn) -> None:
        self._busy = True
        if isinstance(turn.asked, Response):
            self._give(turn.asked, turn.keep, turn.bodiless)
            self._finish(turn)
        else:
            self._task = self._server.loop.create_task(self._answer(turn.asked, turn))

    async def _answer(self, request: Request, turn: _Turn) -> None:
        assert turn.found is not None
        try:
            response = await self._server.app.respond(request, turn.found, turn.packed)
            if self._server.ending:
                turn = turn._replace(keep=False)
            if isinstance(response.body, bytes):
                self._give(response, turn.keep, turn.bodiless)
            else:
                await self._stream(response, response.body, turn)
        except Exception as error:
            self._server.failed(error)
            self._transport.abort()  # an answer that has begun cannot be taken back
        else:
            self._task = None
            self._finish(turn)

    def _give(self, response: Response, keep: bool, bodiless: bool = False) -> None:
        """Write an answer that is complete."""
        body = response.body
        assert isinstance(body, bytes)
        self._server.answered(response.status)
        said = head(response, keep)
        if bodiless:
            self._transport.write(said)
        elif len(body) <= _JOINED:
            self._transport.write(said + body)
        else:
            self._transport.write(said)
            self._transport.write(body)

    async def _stream(self, response: Response, body: AsyncIterator[bytes], turn: _Turn) -> None:
        """Write an answer as it comes."""
        transport = self._transport
        self._server.answered(response.status)
        transport.write(head(response, turn.keep))
        if turn.bodiless:
            return
        try:
            async for piece in body:
                if piece:
                    transport.write(chunk(piece) if turn.keep else piece)
                if self._paused:
                    self._writable = self._server.loop.create_future()
                    await self._writable
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()
        if turn.keep:
            transport.write(LAST)

    def _finish(self, turn: _Turn) -> None:
        """An answer is written: the next one, if one waits."""
        if self._parser is None:
            return
        self._server.budget.give(turn.nbytes)
        self._held -= turn.nbytes
        self._since = self._server.now
        self._busy = False
        if not turn.keep:
            self._leave()
        elif self._waiting:
            if not self._paused:
                self._start(self._waiting.popleft())
        elif self._stopped:
            self._stopped = False
            self._transport.resume_reading()

    def _refuse(self, error: TfpoolError | HttpError) -> None:
        """Answer a request that cannot be read to its end."""
        if not self._deaf:
            self._deaf = True
            self._body.clear()
            refused = self._server.app.refused(error, self._headers)
            self._queue(_Turn(refused, None, b"", self._method == "HEAD", False, self._size))

    def _leave(self) -> None:
        """No more answers. Who is still sending gets to read the last one: closing at once would take it away."""
        self._deaf = True
        self._waiting.clear()
        if self._transport.can_write_eof():
            self._lingering = True
            if self._stopped:
                self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    # -- who does not read -------------------------------------------------------------------------------------

    def _reset(self) -> None:
        """Close it, and have the system forget what it still has to send."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = self._server.now
        self._unsent = self._transport.get_write_buffer_size()
        self._server.budget.hold(self._unsent)

    def resume_writing(self) -> None:
        self._paused = 0.0
        self._server.budget.give(self._unsent)
        self._unsent = 0
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._waiting and not self._busy:
            self._start(self._waiting.popleft())


def _head_too_long() -> HttpError:
    return HttpError(431, f"the head is too long: expected at most {MAX_HEAD} bytes")
