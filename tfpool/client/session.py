"""How a client stays with the pool behind an endpoint: it connects again, and asks again what was not answered.

While nobody is there, requests are held; what had been sent before is sent again, marked as such, to whoever answers
there next. The time is an argument, and the link may be any: see :class:`Way`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tfpool.client.arena import ClientArena
from tfpool.client.core import Core
from tfpool.client.link import Change
from tfpool.errors import TfpoolError, Unauthenticated, Unavailable
from tfpool.keys import ClientKeys
from tfpool.telemetry import log
from tfpool.wire.messages import Verb
from tfpool.wire.tensors import Buffer

PATIENCE_SECONDS = 5.0
ATTEMPT_SECONDS = 5.0
LOOK_SECONDS = 0.01
MOST_REFUSALS = 3
_LEAST_PAUSE, _MOST_PAUSE, _PAUSE_SHARE = 0.02, 0.5, 0.125


class Way(Protocol):
    """What a session needs of a :class:`tfpool.client.link.Link`."""

    endpoint: str
    keys: ClientKeys | None
    is_open: bool

    def open(self) -> None: ...

    def shut(self, linger_ms: int = 0) -> None: ...

    def changes(self) -> list[Change]: ...

    def send(self, frames: list[Buffer]) -> None: ...

    def messages(self) -> Iterable[list[bytes]]: ...


class Session:
    """The link's user, one thread at a time. ``due`` is when :meth:`tend` wants to be called at the latest (monotonic
    seconds); ``trouble`` says why nobody is there. With ``again``, what was lost is asked for again."""

    def __init__(self, link: Way, core: Core, again: bool, now: float) -> None:
        self.up = False
        self.due = now
        self.trouble = f"nobody answers at {link.endpoint}"
        self._link = link
        self._core = core
        self._again = again
        self._store: ClientArena | None = None
        self._down_since = self._attempted = self._retry_at = now
        self._refusals = 0
        self.tend(now)

    # -- messages ----------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what waits, or hold it while nobody is there."""
        if self.up:
            send = self._link.send
            for frames in self._core.flush(now):
                send(frames)
        else:
            self._core.hold()

    def receive(self) -> None:
        """Take in what has come."""
        core = self._core
        for frames in self._link.messages():
            try:
                accepted = core.receive(frames)
            except (TfpoolError, ValueError, TypeError, IndexError) as error:
                log.get("client").warning("answer.unreadable", error=error)
                continue
            if accepted is not None and self._store is not None:
                self._store.accepted = accepted

    # -- the connection ----------------------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Hear what has become of the connection, and do what is due for it."""
        link = self._link
        for change in link.changes() if link.is_open else ():
            if not link.is_open:
                break
            if change == Change.UP:
                self._came_up()
            elif change == Change.ENDED:
                self._ended(now)
            else:
                self._refused(change)
        if self.up:
            self.due = now + LOOK_SECONDS
            return
        if link.is_open and now >= self._attempted + ATTEMPT_SECONDS:
            self._pause()
        if not link.is_open and now >= self._retry_at:
            self._attempted = now
            try:
                link.open()
            except Unavailable as error:
                self.trouble = error.message
                self._pause()
        self.due = self._attempted + ATTEMPT_SECONDS if link.is_open else self._retry_at
        give_up = self._down_since + PATIENCE_SECONDS
        if now < give_up:
            self.due = min(self.due, give_up)
        else:
            lost = f"the connection to {link.endpoint} was lost {PATIENCE_SECONDS:g} s ago, and {self.trouble}"
            self._core.abandon(Unavailable(lost), resent_only=True)

    def close(self, now: float, linger_ms: int) -> None:
        """Cancel what is in flight, and say goodbye."""
        self._core.close()
        if self.up and self._store is not None:
            self._core.note(Verb.BYE, None)
            self.flush(now)
        self._link.shut(linger_ms)
        if self._store is not None:
            self._store.close()
        self.up = False

    def _came_up(self) -> None:
        self.up = True
        self.trouble = ""
        self._refusals = 0
        self._offer()
        self._core.resume()

    def _ended(self, now: float) -> None:
        """The connection is gone, or never was."""
        link = self._link
        self._refusals = 0
        self.trouble = f"nobody answers at {link.endpoint}"
        if not self.up:
            self._pause()
            return
        self.receive()  # what was answered before
        link.shut()
        self.up = False
        self._down_since = self._retry_at = now
        lost = Unavailable(f"the connection to {link.endpoint} was lost")
        self._core.lost(lost, self._again)
        self._retire_store()

    def _refused(self, change: Change) -> None:
        """Somebody is there who does not let us in. A broker that ends may look like that, but not several times."""
        error = _refusal(change, self._link)
        self.trouble = error.message
        self._refusals += 1
        if self._refusals >= MOST_REFUSALS:
            self._core.abandon(error, resent_only=False)
        self._pause()

    def _pause(self) -> None:
        """Try again, the sooner the shorter the trouble has lasted."""
        self._link.shut()
        pause = (self._attempted - self._down_since) * _PAUSE_SHARE
        self._retry_at = self._attempted + min(max(pause, _LEAST_PAUSE), _MOST_PAUSE)

    # -- large tensors -----------------------------------------------------------------------------------------

    def _offer(self) -> None:
        """Share memory with a broker on this host."""
        if not self._link.endpoint.startswith("ipc://"):
            return
        try:
            self._store = ClientArena()
        except TfpoolError as error:
            log.get("client").info("arena.none", error=error)
            return
        self._core.attach(self._store)
        self._core.note(Verb.HELLO, self._store.offer())

    def _retire_store(self) -> None:
        if self._store is not None:
            self._core.attach(None)
            self._store.retire()
            self._store = None


def _refusal(change: Change, link: Way) -> TfpoolError:
    """What a failed handshake means. Which side notices a mismatch first, and breaks off, is a matter of chance."""
    where, ours = link.endpoint, link.keys is not None
    broken_off = f"{where} broke the handshake off:"
    name_one = "(--keys, TFPOOL_KEYS, keys=)"
    if change == Change.DENIED:
        return Unauthenticated(f"{where} does not let this key in: is it authorized there, and for this endpoint?")
    if change == Change.MISMATCH and ours:
        return Unauthenticated(f"{where} has no keys, so nothing proves that it is the server of the key file")
    if change == Change.MISMATCH:
        return Unauthenticated(f"{where} lets in who has a key only: name the key file {name_one}")
    if ours:
        return Unauthenticated(f"{broken_off} it is not the server of the key file, or has no keys")
    if change == Change.BROKEN_OFF and where.startswith("tcp://"):
        return Unauthenticated(f"{broken_off} it lets in who has a key only {name_one}, or is no pool")
    return Unavailable(f"what listens at {where} is no pool, or refuses connections")
