"""The sizes whose runs a load measures, and what it leaves to real runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfpool.testing.fake_models import signature
from tfpool.types import DType
from tfpool.worker import measuring
from tfpool.worker.loader import Loaded, Signature
from tfpool.worker.measuring import measure


class Clock:
    """Time that passes only while a model runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(measuring, name, made)
    return made


def model(clock: Clock, takes: Callable[[int], float], runs: list[int], **options: Any) -> Signature:
    def call(x: Any) -> Any:
        runs.append(len(x))
        clock.now += takes(len(x))
        return (x.copy(),)

    return signature(call, {"x": (DType.FLOAT, (-1, 4))}, {"y": (DType.FLOAT, (-1, 4))}, **options)


def curve_of(clock: Clock, takes: Callable[[int], float], *sizes: int, most: int = 64, load: float = 1.0) -> Any:
    loaded = Loaded(None, [model(clock, takes, [])], {})
    return measure(loaded, sizes, most, load, 1)[0]


def test_powers_of_two_up_to_the_largest_batch(clock: Clock) -> None:
    curve = curve_of(clock, lambda rows: 1e-5 * rows + 1e-4, most=24)
    assert [rows for rows, _ in curve] == [1, 2, 4, 8, 16, 24]
    assert curve[0][1] == pytest.approx(1.1e-4)
    assert curve[-1][1] == pytest.approx(3.4e-4)


def test_only_the_sizes_that_are_allowed(clock: Clock) -> None:
    assert [rows for rows, _ in curve_of(clock, lambda rows: 1e-4, 3, 17)] == [3, 17]


@pytest.mark.parametrize(("load", "most"), [(0.1, 0.05), (10.0, 1.0)])
def test_it_takes_a_tenth_of_the_load_or_a_little(clock: Clock, load: float, most: float) -> None:
    curve = curve_of(clock, lambda rows: 0.01 * rows, load=load)
    assert 1 <= len(curve) < 7
    assert clock.now <= most + 0.01 * 2 * curve[-1][0] + 0.01


def test_sizes_beyond_the_one_that_loses_are_left_alone(clock: Clock) -> None:
    curve = curve_of(clock, lambda rows: 1e-4 if rows <= 4 else 1e-4 * rows)
    assert [rows for rows, _ in curve] == [1, 2, 4, 8]


def test_what_runs_singly_or_changes_state_is_not_run(clock: Clock) -> None:
    runs: list[int] = []
    made = [model(clock, lambda _: 0.1, runs, batchable=False), model(clock, lambda _: 0.1, runs, mutates=True)]
    assert measure(Loaded(None, made, {}), (), 8, 1.0, 1) == [[], []]
    assert runs == []


def test_the_better_of_two_tries_counts(clock: Clock) -> None:
    first = iter([0.0, 0.005])  # the run that looks for inputs, then one that is slow
    curve = curve_of(clock, lambda rows: next(first, 0.001))
    assert curve[0] == (1, pytest.approx(0.001))


def test_inputs_are_looked_for_once(clock: Clock) -> None:
    runs: list[int] = []
    measure(Loaded(None, [model(clock, lambda _: 1e-4, runs)], {}), (), 4, 1.0, 2)
    assert runs == [1, 1, 1, 2, 2, 4, 4]
    assert np.all(np.diff(runs) >= 0)
