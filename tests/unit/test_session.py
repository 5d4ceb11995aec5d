"""How a client stays with its pool, without a socket: the test is the link, and the clock."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tfpool.client.core import Core
from tfpool.client.link import Change
from tfpool.client.reply import Reply
from tfpool.client.session import ATTEMPT_SECONDS, MOST_REFUSALS, PATIENCE_SECONDS, Session
from tfpool.errors import Cancelled, DeadlineExceeded, Unauthenticated, Unavailable
from tfpool.keys import ClientKeys
from tfpool.testing.leaks import descriptors
from tfpool.wire import messages
from tfpool.wire.messages import Flag, Verb
from tfpool.wire.tensors import Buffer

FAR = 1000.0
KEYS = ClientKeys(b"public", b"secret", b"server")
X = np.zeros((1, 1), np.float32)


class Link:
    """Remembers when it was opened and what was sent over which connection."""

    def __init__(self, endpoint: str = "tcp://there:1", keys: ClientKeys | None = None) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.is_open = False
        self.opened: list[float] = []
        self.sent: list[list[list[Buffer]]] = []
        self.inbox: list[list[bytes]] = []
        self.news: list[Change] = []
        self.clock = 0.0

    def open(self) -> None:
        assert not self.is_open
        self.is_open = True
        self.opened.append(self.clock)
        self.sent.append([])

    def shut(self, linger_ms: int = 0) -> None:
        self.is_open = False
        self.inbox.clear()

    def changes(self) -> list[Change]:
        assert self.is_open
        news, self.news = self.news, []
        return news

    def send(self, frames: list[Buffer]) -> None:
        assert self.is_open
        self.sent[-1].append(frames)

    def messages(self) -> Iterator[list[bytes]]:
        assert self.is_open
        while self.inbox:
            yield self.inbox.pop(0)


class Story:
    """A session whose time the test tells."""

    def __init__(self, link: Link | None = None, again: bool = True) -> None:
        self.link = link or Link()
        self.core = Core(lambda reply, timeout: None, 1 << 20, lambda: None)
        self.session = Session(self.link, self.core, again, 0.0)

    def at(self, now: float, *news: Change) -> None:
        """What the leader does at a time."""
        self.link.clock = now
        self.link.news += news
        self.session.tend(now)
        self.session.flush(now)
        self.core.expire(now, self.session.trouble)

    def until(self, now: float, news: Change) -> None:
        """Go from one due time to the next; every attempt has the same outcome, at once."""
        while min(self.session.due, self.link.clock + 0.001 if self.link.is_open else FAR) < now:
            if self.link.is_open:
                self.at(self.link.clock + 0.001, news)
            else:
                self.at(self.session.due)

    def ask(self, deadline: float = FAR) -> Reply:
        return self.core.submit("m", X, deadline)

    def verbs(self, connection: int = -1) -> list[int]:
        return [messages.decode(bytes(frames[0]))[0] for frames in self.link.sent[connection]]

    def flags(self) -> list[int]:
        """Of the groups in the last message."""
        return [g.flags for g in messages.decode_groups(messages.decode(bytes(self.link.sent[-1][-1][0]))[1])]


def arenas() -> list[int]:
    """The descriptors of arenas."""
    return [number for number, what in descriptors() if what.startswith("/memfd:tfpool-client")]


def test_nothing_leaves_before_somebody_is_there() -> None:
    story = Story()
    story.ask()
    story.at(0.1)
    assert story.link.sent == [[]]
    story.at(0.2, Change.UP)
    assert story.verbs() == [Verb.PREDICT]
    assert story.flags() == [Flag.SOFT], "it is sent for the first time"


def test_what_was_in_flight_is_sent_once_over_the_next_connection() -> None:
    story = Story()
    story.at(0.0, Change.UP)
    reply = story.ask()
    story.at(0.1)
    story.at(0.2, Change.ENDED)
    assert not reply.done()
    assert story.link.opened == [0.0, 0.2], "at once"
    story.at(0.3, Change.UP)
    assert [story.verbs(n) for n in (0, 1)] == [[Verb.PREDICT], [Verb.PREDICT]]
    assert story.flags() == [Flag.SOFT | Flag.AGAIN]
    story.at(0.4)
    assert len(story.link.sent[-1]) == 1


def test_what_was_answered_before_the_end_is_heard() -> None:
    story = Story()
    story.at(0.0, Change.UP)
    call = story.core.call("x", {}, FAR)
    story.at(0.1)
    story.link.inbox.append([messages.encode(Verb.RESULT, [0, "done"])])
    story.at(0.2, Change.ENDED)
    assert call.result() == "done"


def test_a_connection_that_came_and_went_unseen() -> None:
    story = Story()
    reply = story.ask()
    story.at(1.0, Change.UP, Change.ENDED)
    assert not story.session.up
    story.at(1.1, Change.UP)
    assert story.flags() == [Flag.SOFT], "it had not been sent"
    assert not reply.done()


def test_attempts_become_rare_and_go_on() -> None:
    story = Story()
    story.at(0.0, Change.UP)
    story.at(10.0, Change.ENDED)
    story.until(40.0, Change.ENDED)
    pauses = np.diff(story.link.opened[1:])
    assert 0.019 <= pauses[0] < 0.03
    assert max(pauses) <= 0.51
    assert sum(at < 11.0 for at in story.link.opened) > 10, "service may be back within a second"
    assert all(a <= b + 1e-9 for a, b in pairwise(pauses))


def test_an_attempt_that_comes_to_nothing_is_given_up() -> None:
    """As for a name that has no address: there is no news."""
    story = Story()
    story.at(ATTEMPT_SECONDS - 0.1)
    assert len(story.link.opened) == 1
    assert story.session.due <= ATTEMPT_SECONDS
    story.at(ATTEMPT_SECONDS)
    assert story.link.opened == [0.0, ATTEMPT_SECONDS]


def test_an_idle_client_tries_at_once_when_it_is_used_again() -> None:
    story = Story()
    story.link.news.append(Change.ENDED)
    story.at(3600.0)
    assert story.link.opened == [0.0, 3600.0]


def test_patience_ends_for_what_was_sent_before_only() -> None:
    story = Story()
    story.at(0.0, Change.UP)
    sent, call = story.ask(), story.core.call("x", {}, FAR)
    story.at(0.1)
    story.at(1.0, Change.ENDED)
    new, short = story.ask(), story.ask(deadline=2.0)
    story.until(1.0 + PATIENCE_SECONDS - 0.01, Change.ENDED)
    assert [reply.done() for reply in (sent, call, new, short)] == [False, False, False, True]
    with pytest.raises(DeadlineExceeded, match="nobody answers at tcp://there:1"):
        short.result()
    assert story.session.due <= 1.0 + PATIENCE_SECONDS
    story.at(1.0 + PATIENCE_SECONDS)
    for reply in (sent, call):
        with pytest.raises(Unavailable, match="tcp://there:1 was lost 5 s ago, and nobody answers"):
            reply.result()
    assert not new.done()
    story.until(60.0, Change.ENDED)
    while not story.link.is_open:
        story.at(story.session.due)
    story.at(61.0, Change.UP)
    assert story.flags() == [Flag.SOFT]


def test_without_again_what_was_in_flight_fails_at_once() -> None:
    story = Story(again=False)
    story.at(0.0, Change.UP)
    sent = story.core.call("load", {}, FAR)
    story.at(0.1)
    story.at(0.2, Change.ENDED)
    new = story.core.call("load", {}, FAR)
    with pytest.raises(Unavailable, match="was lost"):
        sent.result()
    story.at(0.3, Change.UP)
    assert story.verbs() == [Verb.CALL]
    assert not new.done()


@pytest.mark.parametrize(
    ("change", "keys", "error", "says"),
    [
        (Change.DENIED, KEYS, Unauthenticated, "does not let this key in"),
        (Change.MISMATCH, KEYS, Unauthenticated, "has no keys"),
        (Change.MISMATCH, None, Unauthenticated, "lets in who has a key only"),
        (Change.BROKEN_OFF, KEYS, Unauthenticated, "is not the server of the key file"),
        (Change.BROKEN_OFF, None, Unauthenticated, "lets in who has a key only"),
        (Change.GARBLED, None, Unavailable, "no pool, or refuses"),
    ],
)
def test_who_is_not_let_in_is_told_so(
    change: Change, keys: ClientKeys | None, error: type[Exception], says: str
) -> None:
    story = Story(Link(keys=keys))
    reply = story.ask()
    for turn in range(MOST_REFUSALS):
        assert not reply.done(), "a broker that ends may look like that"
        story.at(turn * 1.0, change, Change.ENDED)
        assert not story.link.is_open or story.link.opened[-1] == turn
        story.at(turn + 0.5)
    with pytest.raises(error, match=says):
        reply.result()
    late = story.ask(deadline=MOST_REFUSALS - 0.4)
    story.at(MOST_REFUSALS - 0.3)
    with pytest.raises(DeadlineExceeded, match=says):
        late.result()
    story.at(10.0, Change.UP)
    assert story.session.trouble == ""


def test_refusals_must_follow_each_other() -> None:
    story = Story()
    reply = story.ask()
    for turn in range(4):
        story.at(2.0 * turn, Change.BROKEN_OFF)
        story.at(2.0 * turn + 1.0, Change.ENDED)
    assert not reply.done()


def test_an_arena_is_offered_first_and_to_each_broker_anew() -> None:
    story = Story(Link("ipc:///somewhere"))
    story.ask()
    story.at(0.0, Change.UP)
    assert story.verbs() == [Verb.HELLO, Verb.PREDICT]
    story.at(0.1, Change.ENDED)
    story.at(0.2, Change.UP)
    assert story.verbs() == [Verb.HELLO, Verb.PREDICT]
    offers = [messages.decode(bytes(frames[0][0]))[1] for frames in story.link.sent]
    assert offers[0][3] != offers[1][3]
    story.session.close(0.3, 0)
    assert story.verbs() == [Verb.HELLO, Verb.PREDICT, Verb.BYE]
    assert not arenas()


def test_the_memory_of_a_lost_arena_goes_with_the_last_request_in_it() -> None:
    """Also where the user keeps the futures."""
    story = Story(Link("ipc:///somewhere"))
    story.at(0.0, Change.UP)
    story.link.inbox.append([messages.encode(Verb.WELCOME, [True])])
    story.session.receive()
    large = np.ones((1, story.core._crossover), np.uint8)
    kept, cancelled = (story.core.submit("m", large, FAR) for _ in range(2))
    story.at(0.1)
    arena, held = weakref.ref(kept.store), len(arenas())
    assert kept.store is cancelled.store
    cancelled.cancel()
    story.at(0.2, Change.ENDED)
    assert arena() is not None
    story.at(0.3, Change.UP)
    assert bytes(story.link.sent[-1][-1][1]) == large.tobytes()
    assert arena() is None
    assert len(arenas()) == held, "the new one's"
    story.session.close(0.4, 0)


def test_closing_cancels_everything() -> None:
    story = Story()
    story.at(0.0, Change.UP)
    sent = story.ask()
    story.at(0.1)
    story.at(0.2, Change.ENDED)
    new: Any = story.ask()
    story.session.close(0.3, 0)
    for reply in (sent, new):
        with pytest.raises(Cancelled, match="closed"):
            reply.result()
    assert not story.link.is_open


def test_no_socket_is_left() -> None:
    """What cannot be opened now is tried again, like a pool that is not there."""
    link = Link()
    failures = [Unavailable("cannot connect: too many open files")] * 3
    really = link.open

    def open_() -> None:
        if failures:
            raise failures.pop()
        really()

    link.open = open_  # type: ignore[method-assign]
    session = Session(link, Core(lambda reply, timeout: None, 1 << 20, lambda: None), True, 0.0)
    assert (session.trouble, session.up) == ("cannot connect: too many open files", False)
    now = 0.0
    while failures:
        now = session.due
        session.tend(now)
    session.tend(session.due)
    assert link.is_open
