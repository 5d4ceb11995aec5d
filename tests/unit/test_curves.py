"""Latency curves: what is learnt from runs, and how large a batch they make worth its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler.curves import BATCH_OVERHEAD_SECONDS, NEARLY, Curve, Estimates, Point, monotone
from tfpool.scheduler.sizing import plan
from tfpool.scheduler.work import Batch, BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

KEY = ModelKey("m", 1)
FALLING = [(1, 0.010), (2, 0.012), (4, 0.016), (8, 0.040), (16, 0.100)]
"""Rows a second are best at 4 rows: 100, 167, 250, 200, 160."""


def curve_of(points: Iterable[tuple[int, float]], now: float = 0.0) -> Curve:
    curve = Curve()
    for rows, seconds in points:
        curve.learn(rows, seconds, now)
    return curve


SOME_POINTS = st.lists(st.integers(1, 1000), min_size=2, max_size=7).map(
    lambda costs: [(1 << k, cost / 1000) for k, cost in enumerate(costs)]
)


# -- the fit -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), max_size=9))
def test_the_fit_is_the_closest_that_never_falls(seconds: list[int]) -> None:
    """By the formula of isotonic regression: the highest of the lowest means of stretches around a point."""

    def best(i: int) -> float:
        stretches = ((a, [sum(seconds[a:b]) / (b - a) for b in range(i + 1, len(seconds) + 1)]) for a in range(i + 1))
        return max(min(means) for _, means in stretches)

    points = [Point(float(rows), float(value)) for rows, value in enumerate(seconds, 1)]
    fitted = monotone(points)
    assert [rows for rows, _ in fitted] == [rows for rows, _ in points]
    assert [value for _, value in fitted] == pytest.approx([best(i) for i in range(len(points))])


@given(SOME_POINTS)
def test_more_rows_never_take_less(points: list[tuple[int, float]]) -> None:
    curve = curve_of(points)
    runs = [curve.run(rows) for rows in range(1, 200)]
    assert runs == sorted(runs)


def test_nothing_is_known_at_first() -> None:
    curve = Curve()
    assert (curve.points, curve.run(5), curve.at_best(5, 0.0), curve.knee(64)) == ([], 0.0, 0.0, 64)
    assert curve.rows_within(0.001, 64) == 64


def test_between_two_sizes_the_curve_is_straight_and_goes_on_beyond() -> None:
    curve = curve_of([(2, 0.010), (4, 0.020), (8, 0.024)])
    expected = {1: 10, 2: 10, 3: 15, 4: 20, 6: 22, 8: 24, 16: 32}
    assert {rows: round(curve.run(rows) * 1000, 6) for rows in expected} == expected


def test_of_one_size_larger_ones_are_thought_to_cost_in_proportion() -> None:
    curve = curve_of([(4, 0.008)])
    assert [curve.run(rows) for rows in (1, 4, 8)] == [0.008, 0.008, pytest.approx(0.016)]


def test_runs_are_averaged_and_one_that_is_far_out_counts_for_little() -> None:
    curve = curve_of([(4, 0.010)])
    for i in range(60):
        curve.learn(4, 0.020, i / 10)
    assert curve.run(4) == pytest.approx(0.020, rel=0.06)
    before = curve.run(4)
    curve.learn(4, 1000.0, 7.0)
    assert before < curve.run(4) <= before * 2


def test_sizes_that_are_alike_share_what_is_known() -> None:
    """Two buckets an octave: 4 and 5 rows, 6 and 7 rows."""
    assert len(curve_of([(4, 0.01), (5, 0.02), (6, 0.03), (7, 0.04)]).points) == 2
    assert len(curve_of([(1, 0.01), (2, 0.02), (3, 0.03), (4, 0.04)]).points) == 4


def test_small_changes_are_taken_in_after_a_while() -> None:
    curve = curve_of([(4, 0.0100)])
    for now in range(1, 20):
        curve.learn(4, 0.0103, now)
    assert curve.run(4) == pytest.approx(0.0103, rel=0.01)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("rare", [0.0, 0.02])
def test_noise_at_one_size_says_nothing_of_others(noise: float, rare: float) -> None:
    """However long only that one is run; ``rare`` runs take five times as long."""
    random = Random(7)
    curve = curve_of([(1, 0.010), *[(8, 0.020)] * 5])
    for i in range(11_000):
        seconds = 0.010 * max(0.3, random.gauss(1.0, noise)) * (5 if random.random() < rare else 1)
        curve.learn(1, seconds, i / 200)
    assert 0.5 < curve.run(1) / 0.010 < 2
    assert 0.5 < curve.run(8) / 0.020 < 2


@pytest.mark.parametrize("slower", [3.0, 0.4])
def test_what_slows_down_one_size_slows_down_all(slower: float) -> None:
    """Others use the same CPU, say: those that do not run now shall not look good beside those that do."""
    curve = curve_of([(1, 0.010), (8, 0.020)] * 20)
    knee = curve.knee(64)
    for i in range(15):
        curve.learn(1, 0.010 * slower, i / 100)
    assert curve.run(1) == pytest.approx(0.010 * slower, rel=0.3)
    assert curve.run(8) == pytest.approx(0.020 * slower, rel=0.5)
    assert curve.knee(64) == knee


def test_what_stays_slow_is_the_business_of_its_size_again() -> None:
    curve = curve_of([(8, 0.020)] * 20)
    for i in range(1000):
        curve.learn(1, 0.010 if i < 500 else 0.018, i / 20)
    assert curve.run(1) == pytest.approx(0.018, rel=0.1)
    assert curve.run(8) == pytest.approx(0.020, rel=0.15)


def test_the_first_runs_of_a_size_say_nothing_of_others() -> None:
    """They may be slow for reasons of their own."""
    curve = curve_of([(1, 0.010), (8, 0.020), (8, 0.060)])
    assert curve.run(1) == pytest.approx(0.010)


# -- how large a batch may be -------------------------------------------------------------------------------------


@given(SOME_POINTS, st.integers(0, 1200), st.integers(1, 100))
def test_rows_within_a_time(points: list[tuple[int, float]], milliseconds: int, most: int) -> None:
    curve, seconds = curve_of(points), milliseconds / 1000
    assert curve.rows_within(seconds, most) == max(
        (rows for rows in range(1, most + 1) if curve.run(rows) <= seconds), default=0
    )


def rate(curve: Curve, rows: int) -> float:
    return rows / (curve.run(rows) + BATCH_OVERHEAD_SECONDS)


@given(SOME_POINTS, st.integers(1, 100))
def test_the_knee_is_nearly_best_and_small(points: list[tuple[int, float]], most: int) -> None:
    curve = curve_of(points)
    knee = curve.knee(most)
    enough = NEARLY * max(rate(curve, rows) for rows in range(1, most + 1))
    assert 1 <= knee <= most
    assert rate(curve, knee) >= enough
    assert all(rate(curve, 1 << k) < enough for k in range(7) if 1 << k < knee)


@given(SOME_POINTS, st.integers(1, 100), st.sets(st.integers(1, 100), min_size=1, max_size=5))
def test_the_knee_is_an_allowed_size(points: list[tuple[int, float]], most: int, some: set[int]) -> None:
    curve, sizes = curve_of(points), tuple(sorted(some))
    allowed = [size for size in sizes if size <= most]
    knee = curve.knee(most, sizes)
    if allowed:
        enough = NEARLY * max(rate(curve, size) for size in allowed)
        assert knee == min(size for size in allowed if rate(curve, size) >= enough)
    else:
        assert knee == curve.knee(most)


def test_the_knee_is_where_rows_a_second_stop_growing() -> None:
    curve = curve_of(FALLING)
    assert [curve.knee(most) for most in (64, 8, 4, 3, 1)] == [4, 4, 4, 3, 1]
    assert curve.knee(64, (1, 8, 64)) == 8
    growing = curve_of([(1, 0.010), (2, 0.011), (4, 0.012)])
    assert growing.knee(64) == 64


@pytest.mark.parametrize(("rows", "knee"), [(1, 2), (5, 10), (40, 64), (64, 64)])
def test_of_a_single_size_twice_as_many_are_tried(rows: int, knee: int) -> None:
    """However dear it is: nothing is known of larger ones, or of how they do beside smaller ones."""
    for seconds in (0.0001, 0.001, 0.1):
        assert curve_of([(rows, seconds)]).knee(64) == knee
    assert curve_of([(rows, 0.001)]).knee(64, (8, 64)) == 64


@pytest.mark.parametrize(
    ("known", "best"), [([(1, 0.010)], 64), ([(1, 0.010), (4, 0.020)], 64), ([(1, 0.010), (4, 0.020)], 4), (FALLING, 4)]
)
@pytest.mark.parametrize("first", [5.0, 0.040])
def test_batches_come_to_be_as_large_as_pays(known: list[tuple[int, float]], best: int, first: float) -> None:
    """Though the first runs of 8 rows were slow, and nothing but the largest that may be is ever run."""

    def takes(rows: int) -> float:
        return 0.010 + 0.0001 * rows if best == 64 or rows <= 4 else 0.004 * rows

    curve, runs = curve_of([*known, *[(8, first)] * 10]), []
    for now in range(1, 400):
        runs.append(curve.knee(64))
        curve.learn(runs[-1], takes(runs[-1]), now)
    assert runs[200:].count(best) > 0.8 * len(runs[200:])


def test_a_size_that_once_looked_bad_is_tried_again() -> None:
    curve = curve_of([(1, 0.010), (4, 0.013), (8, 5.0)])
    assert curve.knee(64) == 4
    for now in range(1, 75):
        for rows, seconds in ((1, 0.010), (4, 0.013)):
            curve.learn(rows, seconds, now)
    assert curve.run(8) == pytest.approx(0.017)
    assert curve.knee(64) >= 8


def test_what_all_is_old_is_better_than_nothing() -> None:
    curve = curve_of([(1, 0.010), (4, 0.013)])
    curve.learn(1, 0.010, 1000.0)
    assert curve.run(1) == 0.010


def test_an_old_figure_fades_from_what_is_refused() -> None:
    curve = curve_of([(1, 0.8), (2, 1.6)], now=100.0)
    assert curve.at_best(2, 100.9) == 1.6
    assert [curve.at_best(2, 100.0 + age) for age in (1, 2, 5)] == [0.8, 0.4, 0.05]
    assert curve.at_best(2, 1e9) < 1e-6
    assert curve.run(2) == 1.6, "what a run takes is still thought to be the same"


def test_nobody_is_refused_on_a_guess() -> None:
    curve = curve_of([(4, 0.1)])
    assert curve.run(64) == pytest.approx(1.6)
    assert curve.at_best(64, 0.0) == 0.1


# -- of all models -------------------------------------------------------------------------------------------------


def make_queue(estimates: Estimates) -> Queue:
    spec = QueueSpec(0, KEY, 0, (Input((1,), 4, False),), True, True, True, BatchPolicy())
    return Queue(spec, curves=estimates.curves(KEY, 0))


def make_batch(queue: Queue, rows: Sequence[int], alone: bool = False, worker: str = "w") -> Batch:
    pieces = [Segment(b"c", i, 1, n, 9.0, 0.0, ()) for i, n in enumerate(rows)]
    return plan(1, queue, worker, pieces, None, alone, 0.0)


def test_a_run_is_learnt_for_its_worker_only() -> None:
    estimates = Estimates()
    queue = make_queue(estimates)
    estimates.learn(make_batch(queue, [2, 2]), 0.010, 0, 0.0)
    assert list(estimates.curves(KEY, 0)) == ["w"]
    assert queue.curves["w"].points == [(4.0, 0.010)]
    assert estimates.curves(KEY, 1) == estimates.curves(ModelKey("m", 2), 0) == {}


def test_what_runs_in_place_is_several_runs() -> None:
    estimates = Estimates()
    queue = make_queue(estimates)
    estimates.learn(make_batch(queue, [2, 2, 2], alone=True), 0.030, 0, 0.0)
    ((rows, seconds),) = queue.curves["w"].points
    assert rows == 2
    assert seconds == pytest.approx(0.010)


def test_output_bytes_are_the_most_that_a_row_has_needed() -> None:
    estimates = Estimates()
    queue = make_queue(estimates)
    for rows, nbytes, expected in ((4, 10, 3), (4, 8, 3), (1, 64, 64), (64, 128, 64)):
        estimates.learn(make_batch(queue, [rows]), 0.010, nbytes, 0.0)
        assert queue.out_row_bytes == estimates.out_row_bytes(queue.spec) == expected


def test_a_warm_up_tells_those_who_know_nothing_yet() -> None:
    estimates = Estimates()
    queue = make_queue(estimates)
    estimates.learn(make_batch(queue, [1]), 0.010, 0, 0.0)
    for worker in ("w", "v"):
        estimates.seed(KEY, 0, worker, [Point(1, 0.5), Point(2, 0.6)], 1.0)
    assert queue.curves["w"].points == [(1.0, 0.010)]
    assert queue.curves["v"].points == [(1.0, 0.5), (2.0, 0.6)]


def test_of_what_is_gone_nothing_is_kept() -> None:
    estimates = Estimates()
    queue = make_queue(estimates)
    estimates.learn(make_batch(queue, [1]), 0.010, 64, 0.0)
    other = ModelKey("other", 1)
    estimates.seed(other, 0, "w", [Point(1, 0.5)], 0.0)
    estimates.forget(KEY)
    assert queue.curves == estimates.curves(KEY, 0) == {}
    assert estimates.out_row_bytes(queue.spec) == 0
    assert list(estimates.curves(other, 0)) == ["w"]
