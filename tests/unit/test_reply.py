"""Waiting for a reply races with its outcome: every interleaving must do."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeout  # not the built-in one before Python 3.11
from types import FrameType
from typing import Any

import pytest

from tfpool.client import reply as reply_module
from tfpool.client.reply import Reply
from tfpool.errors import NotFound

SOON = 10.0


class Waits:
    """The driver's side: who waits here waits for the condition, like any Future's user."""

    def wait(self, reply: Reply, timeout: float | None) -> None:
        with reply._condition:
            if reply.pending:
                reply._condition.wait(SOON if timeout is None else timeout)


def make() -> Reply:
    return Reply(Waits(), None, 1, 0.0, None)


def test_an_outcome_is_set_once() -> None:
    reply = make()
    assert not reply.done()
    assert reply.resolve({"y": 1})
    assert not reply.resolve({"y": 2})
    assert not reply.resolve(None, NotFound("no"))
    assert not reply.cancel()
    assert reply.done()
    assert not reply.cancelled()
    assert not reply.running()
    assert reply.result() == reply.result(0) == {"y": 1}
    assert reply.exception() is None


def test_errors_are_raised() -> None:
    reply = make()
    reply.resolve(None, NotFound("no"))
    with pytest.raises(NotFound, match="no"):
        reply.result()
    assert isinstance(reply.exception(), NotFound)


def test_a_cancelled_reply_stays_cancelled() -> None:
    reply = make()
    assert reply.cancel()
    assert reply.cancel()
    assert not reply.resolve({})
    assert reply.cancelled()
    assert reply.done()
    with pytest.raises(CancelledError):
        reply.result()
    with pytest.raises(CancelledError):
        reply.exception()


def test_waiting_has_an_end() -> None:
    with pytest.raises(FutureTimeout):
        make().result(0.01)
    with pytest.raises(FutureTimeout):
        make().exception(0.01)


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
def test_callbacks_run_once_each_in_order(touched: bool, cancelled: bool) -> None:
    reply, calls = make(), []
    if touched:
        assert reply._condition
    for i in range(3):
        reply.add_done_callback(lambda f, i=i: calls.append((i, f)))
    assert calls == []
    assert reply.cancel() if cancelled else reply.resolve({})
    reply.add_done_callback(lambda f: calls.append((3, f)))
    assert calls == [(i, reply) for i in range(4)]


@pytest.mark.parametrize("touched", [False, True])
def test_the_same_callback_may_be_added_twice(touched: bool) -> None:
    reply, calls = make(), []

    def callback(future: Any) -> None:
        calls.append(future)

    reply.add_done_callback(callback)
    if touched:
        assert reply._condition
    reply.add_done_callback(callback)
    reply.resolve({})
    assert calls == [reply, reply]


def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    for touched in (False, True):
        reply, calls = make(), []
        if touched:
            assert reply._condition
        reply.add_done_callback(lambda f: 1 / 0)
        reply.add_done_callback(calls.append)
        reply.resolve({})
        assert calls == [reply]
    assert "exception calling callback" in caplog.text


def test_the_tools_of_concurrent_futures() -> None:
    replies = [make() for _ in range(4)]
    replies[2].resolve({"n": 2})
    done, rest = wait(replies, return_when=FIRST_COMPLETED)
    assert done == {replies[2]}
    assert rest == set(replies) - done
    resolver = threading.Thread(target=lambda: [r.resolve({"n": i}) for i, r in enumerate(replies)])
    resolver.start()
    assert {reply.result()["n"] for reply in as_completed(replies, SOON)} == {0, 1, 2, 3}
    assert wait(replies, SOON).not_done == set()
    resolver.join()


def test_a_reply_can_be_awaited() -> None:
    async def story() -> Any:
        reply = make()
        future = asyncio.wrap_future(reply)
        threading.Thread(target=reply.resolve, args=({"y": 3},)).start()
        return await asyncio.wait_for(future, SOON)

    assert asyncio.run(story()) == {"y": 3}


@pytest.mark.parametrize("tool", ["wait", "as_completed"])
def test_a_callback_that_takes_its_time_does_not_mislead_waiters(tool: str) -> None:
    """Who begins to wait after the outcome is set, but before the callbacks have run, counts this one once."""
    first, second = make(), make()
    begun, go_on = threading.Event(), threading.Event()

    def slowly(_: Any) -> None:
        begun.set()
        go_on.wait(SOON)

    first.add_done_callback(slowly)
    resolver = threading.Thread(target=first.resolve, args=({},))
    resolver.start()
    assert begun.wait(SOON)
    waiting = threading.Event()
    found: list[Any] = []

    def listen() -> None:
        try:
            if tool == "wait":
                found.append(wait(_told([first, second], waiting), SOON))
            else:
                found.extend(as_completed(_told([first, second], waiting), SOON))
        except BaseException as error:
            found.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    assert waiting.wait(SOON)
    until(lambda: len(second.__dict__.get("_waiters", ())) == 1)
    go_on.set()
    resolver.join()
    second.resolve({})
    listener.join()
    if tool == "wait":
        assert found[0].done == {first, second}
    else:
        assert found == [first, second]


def _told(replies: list[Reply], waiting: threading.Event) -> Iterator[Reply]:
    yield from replies
    waiting.set()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        threading.Event().wait(0.0001)
    raise AssertionError("it never came true")


# -- every interleaving --------------------------------------------------------------------------------------------


class At:
    """Runs ``other`` in a thread of its own when the traced call reaches line number ``line`` of reply.py's code.

    Where the other thread has to wait for a lock that the traced one holds, both go on.
    """

    def __init__(self, line: int, other: Callable[[], object]) -> None:
        self.left = line
        self.thread = threading.Thread(target=other)
        self.fired = False

    def __call__(self, call: Callable[[], object]) -> None:
        old = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(old)
        if self.fired:
            self.thread.join(SOON)
            assert not self.thread.is_alive(), "it hangs"

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != reply_module.__file__:
            return None
        if event == "line" and not self.fired:
            self.left -= 1
            if self.left < 0:
                self.fired = True
                self.thread.start()
                self.thread.join(0.02)
        return self._trace


SETTLE, LISTEN = ("resolve", "cancel"), ("callback", "result", "wait", "as_completed")
PAIRS = [
    *((first, second) for first in SETTLE for second in (*SETTLE, *LISTEN)),
    *(("callback", second) for second in SETTLE),
]
PAIRS.remove(("resolve", "resolve"))  # one thread at a time receives


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_interleaving_of_two(first: str, second: str, touched: bool) -> None:
    """``second`` happens at each line of ``first``; in the end there is one outcome, and all agree on it."""
    line = 0
    while True:
        reply, other = make(), make()
        other.resolve({"other": True})
        if touched:
            assert reply._condition
        calls: list[Any] = []
        seen: dict[str, Any] = {}

        def do(
            what: str, reply: Reply = reply, other: Reply = other, calls: list[Any] = calls, seen: dict[str, Any] = seen
        ) -> None:
            key = f"{what} {len(seen)}"
            try:
                if what == "resolve":
                    seen[key] = reply.resolve({"y": 1})
                elif what == "cancel":
                    seen[key] = reply.cancel()
                elif what == "callback":
                    reply.add_done_callback(lambda f: calls.append(key))
                elif what == "result":
                    seen[key] = reply.result(SOON)
                elif what == "wait":
                    seen[key] = wait([reply, other], SOON)
                else:
                    seen[key] = set(as_completed([reply, other], SOON))
            except CancelledError:
                seen[key] = "cancelled"
            except BaseException as error:
                seen[key] = error

        at = At(line, lambda second=second: do(second))
        at(lambda: do(first))
        if not at.fired:
            assert line > 2
            return
        where = f"{second} at line {line} of {first}"
        assert reply.done(), where
        problems = [value for value in seen.values() if isinstance(value, BaseException)]
        assert not problems, f"{where}: {problems}"
        setters = [value for key, value in seen.items() if key.split()[0] in ("resolve", "cancel")]
        if {first, second} == {"resolve", "cancel"}:
            assert sorted(setters) == [False, True], where
            assert reply.cancelled() == next(v for k, v in seen.items() if k.startswith("cancel")), where
        else:
            assert all(setters), where
        assert len(calls) == [first, second].count("callback"), f"{where}: {calls}"
        for key, value in seen.items():
            if key.startswith("wait"):
                assert value.done == {reply, other}, where
            elif key.startswith("as_completed"):
                assert value == {reply, other}, where
            elif key.startswith("result"):
                assert value == ("cancelled" if reply.cancelled() else {"y": 1}), where
        line += 1


def test_a_storm_of_threads() -> None:
    """Many replies resolved, cancelled, waited for and listened to at once, at the worst moments."""
    dice = random.Random(7)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            replies = [make() for _ in range(8)]
            calls: list[Any] = []
            won: list[Any] = []
            seen: list[Any] = []
            start = threading.Barrier(6)

            def settle(how: str, order: list[Reply], start: threading.Barrier = start, won: list[Any] = won) -> None:
                start.wait(SOON)
                settled = [r for r in order if getattr(r, how)(*([{}] if how == "resolve" else []))]
                won.extend((reply, how) for reply in settled)

            def listen(
                how: str,
                order: list[Reply],
                start: threading.Barrier = start,
                seen: list[Any] = seen,
                calls: list[Any] = calls,
            ) -> None:
                start.wait(SOON)
                try:
                    if how == "callback":
                        for reply in order:
                            reply.add_done_callback(calls.append)
                    elif how == "wait":
                        seen.append(wait(order, SOON).done)
                    elif how == "as_completed":
                        seen.append(set(as_completed(order, SOON)))
                    else:
                        for reply in order:
                            reply.exception(SOON) if not reply.cancelled() else None
                except CancelledError:
                    pass
                except BaseException as error:
                    seen.append(error)

            def shuffled(replies: list[Reply] = replies) -> list[Reply]:
                return dice.sample(replies, len(replies))

            threads = [
                threading.Thread(target=settle, args=("resolve", shuffled())),
                threading.Thread(target=settle, args=("cancel", shuffled())),
                *(
                    threading.Thread(target=listen, args=(how, shuffled()))
                    for how in ("callback", "wait", "as_completed", "exception")
                ),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * SOON)
            assert not any(thread.is_alive() for thread in threads)
            assert seen == [set(replies), set(replies)]
            assert sorted(map(id, calls)) == sorted(map(id, replies)), "one call for each"
            outcome = {id(r): how for r, how in won}
            assert len(won) == len(outcome) == len(replies)
            assert all(reply.cancelled() == (outcome[id(reply)] == "cancel") for reply in replies)
    finally:
        sys.setswitchinterval(old)
