"""What a process is said to hold, and a load to have taken: what stays, and the most there was on the way."""

from __future__ import annotations

import mmap
import os
import signal
from typing import Any

import numpy as np
import pytest

from tfpool.wire.messages import Gauge
from tfpool.worker import memory

MB = 1 << 20
LARGE = 64 * MB
SLACK = 8 * MB


def test_what_stays_and_what_was_there_for_a_while() -> None:
    meter = memory.Meter()
    begun = meter.begin()
    passing = np.ones(LARGE, np.uint8)
    del passing
    kept = np.ones(LARGE // 2, np.uint8)
    took = meter.end(begun)
    assert took.seconds >= 0
    assert abs(took.unique - kept.nbytes) < SLACK
    assert abs(took.resident - LARGE) < SLACK


def test_the_mark_is_set_back_for_the_next_one() -> None:
    meter = memory.Meter()
    first = meter.begin()
    np.ones(LARGE, np.uint8)
    assert meter.end(first).resident >= LARGE - SLACK
    assert meter.end(meter.begin()).resident < SLACK


def test_two_at_once_are_charged_for_each_other() -> None:
    meter = memory.Meter()
    first = meter.begin()
    np.ones(LARGE, np.uint8)
    second = meter.begin()
    meter.end(second)
    assert meter.end(first).resident >= LARGE - SLACK


def test_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "high_water", lambda: 0)
    meter = memory.Meter()
    begun = meter.begin()
    kept = np.ones(LARGE, np.uint8)
    took = meter.end(begun)
    assert took.resident == took.unique >= kept.nbytes - SLACK


# -- what a process holds ------------------------------------------------------------------------------------------


def grown(before: Gauge) -> tuple[int, int, int]:
    now = memory.host()
    return now.rss - before.rss, now.unique - before.unique, now.pss - before.pss


def test_memory_of_its_own_counts_everywhere() -> None:
    before = memory.host()
    assert before.rss >= before.pss >= before.unique > 0
    kept = np.ones(LARGE, np.uint8)
    assert all(abs(count - kept.nbytes) < SLACK for count in grown(before))
    assert before.gpu is None


def test_pages_that_two_share_are_nobodys_own_and_half_of_each_ones_part() -> None:
    before = memory.host()
    shared = mmap.mmap(-1, LARGE)
    view = np.frombuffer(shared, np.uint8)
    view[:] = 1
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            view[:] = 2
            os.write(tell, b"touched")
            signal.pause()
        finally:
            os._exit(0)
    os.close(tell)
    try:
        assert os.read(told, 7) == b"touched"
        rss, unique, pss = grown(before)
        assert abs(rss - LARGE) < SLACK
        assert unique < SLACK
        assert pss < LARGE // 2 + SLACK
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_kernel_that_only_tells_what_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def without_rollup(path: str, *rest: Any) -> Any:
        if path.endswith("smaps_rollup"):
            raise FileNotFoundError(path)
        return real(path, *rest)

    resident = memory.host().rss
    monkeypatch.setattr(memory, "open", without_rollup, raising=False)
    found = memory.host()
    assert abs(found.rss - resident) < SLACK
    assert found[1:] == (0, 0, None)
