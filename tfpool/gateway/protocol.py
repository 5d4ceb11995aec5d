"""One connection of HTTP/1.1: requests are answered one after the other, in the order in which they came.

Nobody has a timer: the server sweeps its connections for those who are slow, to ask or to take an answer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from tfpool.errors import Unavailable
from tfpool.gateway.http import HttpError, Request, Response, refusal
from tfpool.gateway.lines import CONTINUE, LAST, chunk, head
from tfpool.gateway.reading import Reader, Turn

if TYPE_CHECKING:
    from tfpool.gateway.server import HttpServer

MAX_WAITING = 64
"""Requests that wait for the one before them on their connection."""
LINGER_SECONDS = 2.0
SLOWEST = 16 << 10
"""Bytes a second that somebody has to take of an answer, once that has waited for them."""
_JOINED = 64 << 10


class Connection(Reader, asyncio.Protocol):
    """Reads on while a request is answered, for that is how a caller who hangs up is noticed."""

    __slots__ = (
        "_busy", "_encrypted", "_lingering", "_paused", "_since", "_stopped", "_task", "_transport", "_unsent",
        "_waiting", "_writable",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[Turn] = deque()
        self._writable: asyncio.Future[None] | None = None
        self._since = server.now
        self._busy = self._stopped = self._lingering = False
        self._paused = 0.0
        self._unsent = 0

    # -- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._encrypted = transport.get_extra_info("sslcontext") is not None
        if len(self._server.connections) < self._server.most:
            self._server.connections.add(self)
        else:
            self._deaf = True
            self._give(refusal(Unavailable("this server has too many connections", 1.0)), keep=False)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.budget.give(self._held + self._unsent)
        self._held = self._unsent = 0
        self._waiting.clear()
        self._body.clear()
        self._deaf = True
        self._parser = None  # they hold each other
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._read(data)

    def end(self, late: bool) -> None:
        """Close it, once what has begun is answered; ``late``: what has only begun to arrive does not count."""
        if not self._busy and (late or not self._reading):
            self._transport.close()

    def abort(self) -> None:
        """Close it now."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Notice what has taken too long at ``now``, which may be a little while ago."""
        settings = self._server.settings
        if self._transport.is_closing() and not self._paused:
            if now - self._since > settings.idle_s + settings.read_s:
                self._reset()  # nobody takes what is left
            return
        if self._lingering and not self._paused:
            unsent = self._transport.get_write_buffer_size()
            if now - self._since > (settings.read_s if unsent else LINGER_SECONDS):
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

    # -- answers, one after the other --------------------------------------------------------------------------

    def _welcome(self) -> None:
        if not self._busy:
            self._transport.write(CONTINUE)

    def _queue(self, turn: Turn) -> None:
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

    def _start(self, turn: Turn) -> None:
        self._busy = True
        if isinstance(turn.asked, Response):
            self._give(turn.asked, turn.keep, turn.bodiless)
            self._finish(turn)
        else:
            self._task = self._server.loop.create_task(self._answer(turn.asked, turn))

    async def _answer(self, request: Request, turn: Turn) -> None:
        assert turn.found is not None
        try:
            response = await self._server.app.respond(request, turn.found, turn.packed)
            if self._server.ending:
                turn = turn._replace(keep=False)
            body = response.body
            if not isinstance(body, bytes):
                await self._stream(response, body, turn)
            elif len(body) <= _JOINED or not self._encrypted:
                self._give(response, turn.keep, turn.bodiless)
            else:
                await self._give_encrypted(response, body, turn)
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

    async def _give_encrypted(self, response: Response, body: bytes, turn: Turn) -> None:
        """Write a large answer piece by piece: what is encrypted counts as sent, and who does not read goes unseen."""
        self._server.budget.hold(len(body))
        try:
            await self._stream(response, _pieces(body), turn)
        finally:
            self._server.budget.give(len(body))

    async def _stream(self, response: Response, body: AsyncIterator[bytes | memoryview], turn: Turn) -> None:
        """Write an answer as it comes."""
        transport = self._transport
        self._server.answered(response.status)
        transport.write(head(response, turn.keep))
        chunked = turn.keep and not isinstance(response.body, bytes)
        if turn.bodiless:
            return
        try:
            async for piece in body:
                if piece:
                    transport.write(chunk(bytes(piece)) if chunked else piece)
                if self._paused:
                    self._writable = self._server.loop.create_future()
                    await self._writable
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()
        if chunked:
            transport.write(LAST)

    def _finish(self, turn: Turn) -> None:
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
        self._since = self._server.now
        self._server.budget.give(self._unsent)
        self._unsent = 0
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._waiting and not self._busy:
            self._start(self._waiting.popleft())


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    """A body in parts that are small enough to be encrypted one by one."""
    view = memoryview(body)
    for at in range(0, len(body), _JOINED):
        yield view[at : at + _JOINED]
