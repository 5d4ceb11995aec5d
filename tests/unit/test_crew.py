from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tfpool.repository.crew import Crew
from tfpool.testing.fake_worker import until


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew("tfpool-test", 0.01, 3)
    yield crew
    crew.close(time.monotonic() + 10)


def test_one_thread_does_all_in_order(crew: Crew) -> None:
    done: list[tuple[int, int]] = []
    for number in range(10):
        crew.submit(lambda number=number: done.append((number, threading.get_ident())))  # type: ignore[misc]
    until(lambda: len(done) == 10)
    assert [number for number, _ in done] == list(range(10))
    assert len({thread for _, thread in done}) == 1
    assert not crew.tend()


def test_threads_that_are_stuck_get_help_up_to_a_limit(crew: Crew) -> None:
    released = threading.Event()
    stuck, done = [], []

    def hang() -> None:
        stuck.append(1)
        released.wait(30)

    try:
        for most in (1, 2, 3):
            crew.submit(hang)
            until(lambda most=most: crew.tend() or len(stuck) == most)  # type: ignore[misc]
            until(lambda most=most: crew.tend() is False and len(stuck) == most)  # type: ignore[misc]
        crew.submit(lambda: done.append(1))
        until(lambda: all(since and since < time.monotonic() - 0.05 for since in crew._since.values()))
        assert crew.tend(), "three are stuck, and three is the limit"
        assert len(crew._since) == 3
    finally:
        released.set()
    until(lambda: done)
    until(lambda: len(crew._since) == 1)


def test_close_waits_no_longer_than_it_may(crew: Crew) -> None:
    started, released = threading.Event(), threading.Event()
    done: list[int] = []

    def hang() -> None:
        started.set()
        released.wait(30)

    crew.submit(hang)
    crew.submit(lambda: done.append(1))
    assert started.wait(10)
    crew.close(time.monotonic() + 0.05)
    released.set()
    crew.close(time.monotonic() + 10)
    assert not done, "what waits is dropped"
