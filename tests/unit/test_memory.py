"""What a load is said to have taken: what stays, and the most there was on the way."""

from __future__ import annotations

import numpy as np
import pytest

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
