"""One client's way to a broker: whose turn it is to use the socket.

A thread that waits for its reply drives the socket itself, when nobody else does (leader); the others wait and are
woken when their reply is there, or when it is their turn to lead. Futures that nobody waits for are driven by
a background thread, which starts with the first of them. So a single caller pays for no hand-over between threads,
and what several have queued meanwhile leaves together.
"""

from __future__ import annotations

import threading
import time

from tfpool.client import forks
from tfpool.client.core import Core
from tfpool.client.ledger import GRACE_SECONDS
from tfpool.client.link import Link
from tfpool.client.reply import Reply
from tfpool.client.session import Session
from tfpool.errors import FailedPrecondition
from tfpool.keys import ClientKeys

CROSSOVER_BYTES = 64 << 10
LINGER_MS = 200
_LONGEST_POLL = 0.5


class Connection:
    """The requests to an endpoint, and the threads that wait for them.

    ``keys`` are for tcp. With ``again``, what was in flight when the connection was lost is asked for again.
    """

    def __init__(self, endpoint: str, keys: ClientKeys | None = None, again: bool = True) -> None:
        self._life = forks.life()
        self._link = Link(endpoint, keys)
        self.core = Core(self._waited, CROSSOVER_BYTES, self._flush)
        self._session = Session(self._link, self.core, again, time.monotonic())
        self._io = threading.Lock()
        self._starting = threading.Lock()
        self._leader = 0
        self._followers: dict[Reply, None] = {}
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ringing = False

    # -- from any thread ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises FailedPrecondition after a fork, and when closed."""
        if forks.life() != self._life:
            raise FailedPrecondition("this client was made before a fork: make a new one in the child process")
        if self._closed:
            raise FailedPrecondition("this client is closed")

    def push(self) -> None:
        """Something was queued that nobody may be waiting for."""
        self._ring()
        if not self._wanted.is_set():
            if self._thread is None:
                self._start_thread()
            self._wanted.set()

    def wait(self, reply: Reply, timeout: float | None = None) -> None:
        """Return when the reply is resolved, or after ``timeout`` seconds."""
        give_up = None if timeout is None else time.monotonic() + timeout
        while reply.pending:
            if self._io.acquire(blocking=False):
                self._lead(reply, give_up)
            elif self._leader == threading.get_ident():
                raise FailedPrecondition("waiting for a reply inside a future's callback would wait forever")
            else:
                self._follow(reply, give_up)
            if give_up is not None and time.monotonic() >= give_up:
                return

    def close(self) -> None:
        """Fail what is in flight with Cancelled, and free everything."""
        if self._closed or forks.life() != self._life:
            return
        self._closed = True
        self._link.ring()
        self._wanted.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._io:
            self._session.close(time.monotonic(), LINGER_MS)
            self._link.close()

    # -- whose turn it is --------------------------------------------------------------------------------------

    def _waited(self, reply: Reply, timeout: float | None) -> None:
        """A reply's holder waits for it, or has cancelled it."""
        if reply.pending:
            self.wait(reply, timeout)
        elif not self._closed:
            self.core.withdraw(reply)
            self.push()

    def _lead(self, reply: Reply, give_up: float | None) -> None:
        """Drive the socket for ``reply``. The caller has acquired the right to."""
        try:
            self._leader = threading.get_ident()
            self._pump(reply, give_up)
        finally:
            self._leader = 0
            self._io.release()
            self._hand_over()

    def _follow(self, reply: Reply, give_up: float | None) -> None:
        """Wait until the reply is there or the leader leaves, and then lead."""
        self._followers[reply] = None
        if self.core.unsent:
            self._ring()
        until = reply.deadline + 2 * GRACE_SECONDS if give_up is None else give_up
        with reply._condition:
            # A leaver looks for followers after it has let go, and wakes them under this condition: so either this
            # acquires, or the leaver's call finds this waiting.
            lead = self._io.acquire(blocking=False)
            if not lead and reply.pending:
                reply._condition.wait(max(0.0, min(until - time.monotonic(), _LONGEST_POLL)))
        self._followers.pop(reply, None)
        if lead:
            self._lead(reply, give_up)

    def _ring(self) -> None:
        """Have the leader flush."""
        if not self._ringing:
            self._ringing = True
            self._link.ring()

    def _hand_over(self) -> None:
        """The leader leaves: somebody else must go on, if anything is due."""
        for reply in list(self._followers):
            if reply.pending:
                with reply._condition:
                    reply._condition.notify_all()
                return
        if self.core.busy and self._thread is not None:
            self._wanted.set()

    def _start_thread(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._background, name="tfpool-client", daemon=True)
                self._thread.start()

    def _due(self) -> bool:
        return self.core.busy or self._closed

    def _background(self) -> None:
        while not self._closed:
            self._wanted.wait()
            with self._io:
                self._leader = threading.get_ident()
                try:
                    while self.core.busy and not self._closed:
                        self._pump(None, None)
                finally:
                    self._leader = 0
                self._wanted.clear()
                if self._due():
                    self._wanted.set()
            self._hand_over()

    # -- the leader's work -------------------------------------------------------------------------------------

    def _pump(self, reply: Reply | None, give_up: float | None) -> None:
        """Send what waits and take in what comes, until ``reply`` is resolved (None: until nothing is due)."""
        core, session, link = self.core, self._session, self._link
        while not self._closed:
            self._ringing = False
            now = time.monotonic()
            if now >= session.due:
                session.tend(now)
            session.flush(now)
            if now >= core.next_expiry():
                core.expire(now, session.trouble)
            if not reply.pending if reply is not None else not core.busy:
                return
            until = min(now + _LONGEST_POLL, core.next_expiry())
            if not session.up:
                until = min(until, session.due)
            if give_up is not None:
                if now >= give_up:
                    return
                until = min(until, give_up)
            if link.wait(until - now):
                session.receive()
            if link.changed:
                session.tend(time.monotonic())

    def _flush(self) -> None:
        self._session.flush(time.monotonic())
