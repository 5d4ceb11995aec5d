"""One client's way to a broker on an event loop: no thread, no lock, no hand-over.

What is submitted while the loop runs its callbacks leaves as one message when they have run. Where requests come one by
one to a loop that is busy, a message each would cost the pool more than they do themselves, and take the time from it
that the loop needs: there those that are patient wait for company, a millisecond at most, unless nothing is in flight.

ZeroMQ's descriptors tell of news only once, and using a socket may swallow the word: so whoever has sent looks whether
something has come, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from tfpool.client import forks
from tfpool.client.connection import CROSSOVER_BYTES, LINGER_MS
from tfpool.client.core import Core
from tfpool.client.link import Link
from tfpool.client.reply import Reply
from tfpool.client.session import Session
from tfpool.errors import FailedPrecondition
from tfpool.keys import ClientKeys

_TICK_SECONDS = 0.05
_RETRY_SECONDS = 0.01
HOLD_SECONDS = 0.001
WINDOW_SECONDS = 0.02
BUSY_SHARE = 0.4
ENOUGH = 32
EARLY = 16


class LoopConnection:
    """The requests to an endpoint, all from the loop that runs when it is made. See :class:`Connection`, too."""

    def __init__(self, endpoint: str, keys: ClientKeys | None = None, again: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self._life, self._thread = forks.life(), threading.get_ident()
        self._link = Link(endpoint, keys, self._watch)
        self.core = Core(self._waited, CROSSOVER_BYTES, self.push)
        self._flushing = self._receiving = self._urgent = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._hold: asyncio.TimerHandle | None = None
        self._share = self._looked = self._worked = 0.0
        self._session = Session(self._link, self.core, again, time.monotonic())

    def check(self) -> None:
        """Raises FailedPrecondition after a fork, on another loop, and when closed."""
        if forks.life() != self._life:
            raise FailedPrecondition("this client was made before a fork: make a new one in the child process")
        if self._closed:
            raise FailedPrecondition("this client is closed")
        if threading.get_ident() != self._thread or not self._loop.is_running():
            raise FailedPrecondition("this client belongs to another event loop")

    def push(self, patient: bool = False) -> None:
        """Something was queued: it leaves once the loop has run what is due; if it is ``patient`` perhaps later."""
        self._urgent = self._urgent or not patient
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._leave)
            if self._timer is None:
                self._wind()
            return
        waiting, in_flight = self.core.load
        if waiting >= EARLY and waiting >= in_flight:
            self._flush()  # the pool works on these while the loop comes to the rest

    async def result(self, reply: Reply) -> Any:
        """What a reply brings, or its error. Cancelling the task cancels the request."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(_: Any) -> None:
            if future.done():
                return
            value, error = reply.outcome()
            if reply.withdrawn:
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        reply.add_done_callback(done)
        try:
            return await future
        except asyncio.CancelledError:
            reply.cancel()
            raise

    async def close(self) -> None:
        """Fail what is in flight with Cancelled, and free everything."""
        if self._closed or forks.life() != self._life:
            return
        self._closed = True
        for timer in (self._timer, self._hold):
            if timer is not None:
                timer.cancel()
        self._session.close(time.monotonic(), LINGER_MS)
        await asyncio.to_thread(self._link.close)

    # -- on the loop -------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, watched: bool, changes: bool) -> None:
        if watched:
            self._loop.add_reader(descriptor, self._changed if changes else self._heard)
        else:
            self._loop.remove_reader(descriptor)

    def _heard(self) -> None:
        """There may be messages."""
        if self._closed or not self._link.is_open:
            return
        self._receive()
        self._go_on()

    def _changed(self) -> None:
        """Something has become of the connection."""
        if self._closed or not self._link.is_open:
            return
        self._session.tend(time.monotonic())
        self._go_on()

    def _go_on(self) -> None:
        if self.core.unsent and not self._flushing and self._hold is None:
            self._flush()

    def _leave(self) -> None:
        """Send what waits; or have it wait for company, where this loop is busy, and the pool too."""
        self._flushing = False
        waiting, in_flight = self.core.load
        if self._urgent or not in_flight or waiting >= ENOUGH or not self._busy():
            self._flush()
        elif self._hold is None:
            self._hold = self._loop.call_later(HOLD_SECONDS, self._flush)

    def _busy(self) -> bool:
        """Whether this thread has had much to do lately."""
        now = time.monotonic()
        if now - self._looked >= WINDOW_SECONDS:
            worked = time.thread_time()
            self._share = (worked - self._worked) / (now - self._looked)
            self._looked, self._worked = now, worked
        return self._share > BUSY_SHARE

    def _flush(self) -> None:
        self._urgent = False
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._closed:
            return
        self._session.flush(time.monotonic())
        if self._session.up:
            self._receive()

    def _receive(self) -> None:
        """Take in what has come; what its callbacks send leaves meanwhile, and does not come here again."""
        if not self._receiving:
            self._receiving = True
            try:
                self._session.receive()
            finally:
                self._receiving = False

    def _wind(self) -> None:
        self._timer = self._loop.call_later(_TICK_SECONDS if self._session.up else _RETRY_SECONDS, self._tick)

    def _tick(self) -> None:
        """Look after deadlines, and after a connection that is lost."""
        self._timer = None
        session, core, now = self._session, self.core, time.monotonic()
        try:
            if now >= session.due or not session.up:
                session.tend(now)
            session.flush(now)
            if session.up:
                self._receive()
            if now >= core.next_expiry():
                core.expire(now, session.trouble)
        finally:
            if core.busy or not session.up:
                self._wind()

    def _waited(self, reply: Reply, timeout: float | None) -> None:
        """A reply's holder has cancelled it, or waits for it as only threads may."""
        if reply.pending:
            raise FailedPrecondition("this would hold the event loop up: await the answer")
        if not self._closed:
            self.core.withdraw(reply)
            self.push()
