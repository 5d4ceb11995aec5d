"""Open loops over HTTP/1.1: prepared requests, sent at moments given beforehand over connections that are kept.

A connection carries one request at a time; more are opened as they are needed. A request that finds all of them busy
waits for the first that is free, and its latency counts from when it was due.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import httptools
import uvloop

from bench.arrivals import Schedule
from bench.children import Channel
from bench.post import Post
from bench.senders import REASONS, Sender, orders, to_check

CONNECTIONS = 512
_KEPT = 4096  # different answers, that are compared
_SWEEP_SECONDS = 0.05
_IDLE = -1
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class WebStream(Sender):
    """A client of the server at the address of ``posts``, which it sends by turns. ``audit`` gets the number of a post
    and what came back, for one answer in 16, and raises WrongAnswer; only where they differ, and 4,096 of them."""

    def __init__(
        self, posts: Sequence[Post], audit: Callable[[int, bytes], None], connections: int = CONNECTIONS
    ) -> None:
        super().__init__(post, posts[0].address, connections)
        self._audit = audit
        try:
            self._child.ask([base64.b64encode(one.head() + one.body).decode() for one in posts])
        except BaseException:
            self.close()
            raise

    def load(self, schedule: Schedule, timeout: float | None) -> None:
        if schedule.models > 1:
            raise ValueError(f"got a schedule for {schedule.models} models, expected one for the model of the posts")
        super().load(schedule, timeout)

    def _compare(self, told: Mapping[str, Any]) -> None:
        for number, content in told["kept"]:
            self._audit(number, base64.b64decode(content))


# -- the child's side ----------------------------------------------------------------------------------------------


def post(channel: Channel, address: str, connections: int) -> None:
    """The child: says that it is there; told the requests (in base64), that it has them; then sends as it is told."""
    channel.say("started")
    requests = [base64.b64decode(text) for text in channel.hear() or ()]
    channel.say("ready")
    for order in orders(channel):
        volley = Volley(address, requests, connections)
        channel.say(uvloop.run(volley.run(order["begin"], order["moments"], order["timeout"])))


class Volley:
    """One open loop, in an event loop of its own."""

    def __init__(self, address: str, requests: Sequence[bytes], connections: int = CONNECTIONS) -> None:
        host, _, port = address.rpartition(":")
        self._place = host, int(port)
        self.requests = requests
        self._most = connections
        self._all: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._errors: Counter[str] = Counter()
        self._reasons: list[str] = []
        self._bugs: list[BaseException] = []
        self._kept: dict[tuple[int, bytes], None] = {}

    async def run(self, begin: float, moments: Sequence[float], timeout: float) -> dict[str, Any]:
        """Send it all, wait for the end of it, and tell. Who has no answer so long after it was due has failed."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._burst)
        self._over = asyncio.Event()
        self._due = [begin + moment for moment in moments]
        self._lateness = [0.0] * len(moments)
        self._ended = [float("inf")] * len(moments)
        self._next, self._left, self._timeout = 0, len(moments), timeout
        cpu = time.process_time()
        alarm = Alarm()
        self._loop.add_reader(alarm.fd, self._ring, alarm)
        try:
            self._ring(alarm)
            self._sweep()
            await self._over.wait()
        finally:
            self._loop.remove_reader(alarm.fd)
            alarm.close()
            await self._hang_up()
        if self._bugs:
            raise self._bugs[0]
        return {
            "due": list(moments),
            "lateness": self._lateness,
            "seconds": [ended - due for ended, due in zip(self._ended, self._due, strict=True)],
            "errors": dict(self._errors),
            "reasons": self._reasons,
            "cpu": time.process_time() - cpu,
            "kept": [[number, base64.b64encode(content).decode()] for number, content in self._kept],
        }

    def _ring(self, alarm: Alarm) -> None:
        """Send what is due, and wait for the next."""
        while self._next < len(self._due):
            due, now = self._due[self._next], time.monotonic()
            if now < due:
                alarm.set(due)
                return
            self._lateness[self._next] = now - due
            self._send(self._next)
            self._next += 1
        alarm.stop()
        if not self._left:
            self._over.set()

    def _send(self, number: int) -> None:
        if self._idle:
            self._idle.pop().send(number)
        elif len(self._all) < self._most:
            connection = _Connection(self, number)
            self._all.add(connection)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self._waiting.append(number)

    async def _connect(self, connection: _Connection) -> None:
        try:
            await self._loop.create_connection(lambda: connection, *self._place)
        except OSError as error:
            self.lost(connection, "no connection", str(error))

    def free(self, connection: _Connection) -> None:
        """It can take another request."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection, kind: str, reason: str = "") -> None:
        """It is no more; what was under way on it has failed. Who waits gets another."""
        if connection.lost:
            return
        connection.lost = True
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.number != _IDLE:
            self.failed(connection.number, kind, reason)
        if self._waiting:
            self._send(self._waiting.popleft())

    def unasked(self, connection: _Connection, content: bytes) -> None:
        """An answer to nothing: what comes next on this connection could be to anything."""
        self._note("unasked", repr(content[:80]))
        self.lost(connection, "unasked")
        connection.abort()

    def answered(self, number: int, content: bytes) -> None:
        self._ended[number] = time.monotonic()
        if to_check(number) and len(self._kept) < _KEPT:
            self._kept[number % len(self.requests), content] = None
        self._done()

    def failed(self, number: int, kind: str, reason: str = "") -> None:
        self._note(kind, reason)
        self._done()

    def _note(self, kind: str, reason: str) -> None:
        self._errors[kind] += 1
        if reason and len(self._reasons) < REASONS:
            self._reasons.append(f"{kind}: {reason}")

    def _done(self) -> None:
        self._left -= 1
        if not self._left:
            self._over.set()

    def _burst(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback has raised: no figure would be true."""
        self._bugs.append(context.get("exception") or RuntimeError(context["message"]))
        self._over.set()

    def _sweep(self) -> None:
        """Give up those that take too long; over and over."""
        if self._over.is_set():
            return
        now = time.monotonic() - self._timeout
        for connection in [one for one in self._all if one.number != _IDLE and self._due[one.number] < now]:
            connection.abort()
            self.lost(connection, "timed out")
        while self._waiting and self._due[self._waiting[0]] < now:
            self.failed(self._waiting.popleft(), "timed out")
        self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def _hang_up(self) -> None:
        closing: list[Coroutine[Any, Any, None]] = [connection.close() for connection in self._all]
        self._all.clear()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*closing, *self._connecting, return_exceptions=True)


class _Connection(asyncio.Protocol):
    """One of a volley's; ``number`` is of the request that is under way, and nothing more is sent on a ``lost`` one."""

    _transport: asyncio.Transport | None = None
    lost = False

    def __init__(self, volley: Volley, number: int) -> None:
        self._volley = volley
        self.number = number
        self._closed = asyncio.Event()
        self._parser = httptools.HttpResponseParser(self)
        self._content: list[bytes] = []

    def send(self, number: int) -> None:
        assert self._transport is not None
        self.number = number
        requests = self._volley.requests
        self._transport.write(requests[number % len(requests)])

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self._closed.wait()

    # -- of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        if self.lost:  # it took too long
            self.abort()
        else:
            self.send(self.number)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._volley.lost(self, "no HTTP", f"{error!r} in {data[:80]!r}")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._volley.lost(self, "closed", str(error or ""))

    # -- of httptools

    def on_body(self, data: bytes) -> None:
        self._content.append(data)

    def on_message_complete(self) -> None:
        number, self.number = self.number, _IDLE
        content, self._content = b"".join(self._content), []
        status = self._parser.get_status_code()
        if number == _IDLE:
            self._volley.unasked(self, content)
            return
        if status == 200:
            self._volley.answered(number, content)
        else:
            self._volley.failed(number, f"HTTP {status}", content[:200].decode(errors="replace"))
        if self._parser.should_keep_alive():
            self._volley.free(self)
        else:
            self._volley.lost(self, "closed")
            self.abort()


class Alarm:
    """A timer of the kernel (timerfd) that is as precise as its clock: those of event loops count milliseconds. ``fd``
    can be read when it has rung."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, moment: float) -> None:
        """To a moment of the monotonic clock, and to no other."""
        whole, part = divmod(moment, 1.0)
        self._settime(int(whole), max(1, int(part * 1e9)))

    def stop(self) -> None:
        self._settime(0, 0)

    def _settime(self, seconds: int, nanoseconds: int) -> None:
        spec = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self.fd, _ABSOLUTE, spec, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        os.close(self.fd)
