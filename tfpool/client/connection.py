"""One connection to a broker: the socket, and whose turn it is to use it.

A thread that waits for its reply drives the socket itself, when nobody else does (leader); the others wait and are
woken when their reply is there, or when it is their turn to lead. Futures that nobody waits for are driven by
a background thread, which starts with the first of them. So a single caller pays for no hand-over between threads,
and what several have queued meanwhile leaves together.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from typing import Any

import zmq

from tfpool.client.arena import ClientArena
from tfpool.client.core import Core
from tfpool.client.ledger import GRACE_SECONDS
from tfpool.client.reply import Reply
from tfpool.errors import FailedPrecondition, TfpoolError, Unavailable
from tfpool.telemetry import log
from tfpool.wire.messages import Verb

CROSSOVER_BYTES = 64 << 10
_LONGEST_POLL = 0.5
# as plain numbers: arithmetic on pyzmq's enums costs microseconds a message
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = _NOBLOCK | int(zmq.SNDMORE)


class Connection:
    """A DEALER socket to ``endpoint`` and the requests on it."""

    def __init__(self, endpoint: str, crossover: int = CROSSOVER_BYTES) -> None:
        self.endpoint = endpoint
        self._pid = os.getpid()
        self._local = endpoint.startswith("ipc://")
        self._store: ClientArena | None = None
        self.core = Core(self._waited, crossover, self._flush)
        self._io = threading.Lock()
        self._starting = threading.Lock()
        self._leader = 0
        self._followers: dict[Reply, None] = {}
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ringing = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.RECONNECT_IVL, 20)):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(endpoint)
        self._poller = zmq.Poller()
        for watched in (self._socket, self._monitor, self._wake):
            self._poller.register(watched, zmq.POLLIN)

    # -- from any thread ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises FailedPrecondition after a fork, and when closed."""
        if os.getpid() != self._pid:
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
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._wanted.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._io:
            if self._store is not None:
                self.core.note(Verb.BYE, None)
            with suppress(zmq.ZMQError):
                self._flush()
            self.core.close()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(200)
            self._context.term()
            os.close(self._wake)
            if self._store is not None:
                self._store.close()

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
            os.eventfd_write(self._wake, 1)

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
        core, sock = self.core, self._socket
        while not self._closed:
            self._ringing = False
            now = time.monotonic()
            self._flush(now)
            if now >= core.next_expiry():
                core.expire(now)
            if not reply.pending if reply is not None else not core.busy:
                return
            until = min(now + _LONGEST_POLL, core.next_expiry())
            if give_up is not None:
                if now >= give_up:
                    return
                until = min(until, give_up)
            for watched, _ in self._poller.poll(math.ceil(max(0.0, until - now) * 1000)):
                if watched is sock:
                    self._receive()
                elif watched is self._monitor:
                    self._monitored()
                else:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._wake)

    def _flush(self, now: float | None = None) -> None:
        for frames in self.core.flush(time.monotonic() if now is None else now):
            for frame in frames[:-1]:
                self._socket.send(frame, _MORE)
            self._socket.send(frames[-1], _NOBLOCK)

    def _receive(self) -> None:
        sock, core = self._socket, self.core
        while sock.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            frames = sock.recv_multipart(_NOBLOCK)
            try:
                accepted = core.receive(frames)
            except (TfpoolError, ValueError, TypeError, IndexError) as error:
                log.get("client").warning("answer.unreadable", error=error)
                continue
            if accepted is not None and self._store is not None:
                self._store.accepted = accepted

    def _monitored(self) -> None:
        """The connection came up: offer an arena; or went down: what was in flight is lost."""
        from zmq.utils.monitor import recv_monitor_message

        with suppress(zmq.Again):
            while True:
                event: Any = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._offer()
                elif event["event"] == zmq.EVENT_DISCONNECTED:
                    self._receive()  # what was answered before
                    self.core.lost(Unavailable(f"the connection to {self.endpoint} was lost"))
                    self._drop_store()

    def _offer(self) -> None:
        if not self._local or self._store is not None:
            return
        try:
            self._store = ClientArena()
        except TfpoolError as error:
            log.get("client").info("arena.none", error=error)
            return
        self.core.attach(self._store)
        self.core.note(Verb.HELLO, self._store.offer())

    def _drop_store(self) -> None:
        if self._store is not None:
            self.core.attach(None)
            self._store.close()
            self._store = None
