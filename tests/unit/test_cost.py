from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.placement.board import Board, Facts, cost
from tfpool.placement.cost import (
    KNEE,
    UNKNOWN_ROW_SECONDS,
    absence,
    divide,
    level,
    loading,
    queue,
    queues,
    row_seconds,
    slope,
    spread,
)
from tfpool.placement.snapshot import Demand, Hold, Replica, ServableView, Snapshot, WorkerView

LOADS = st.floats(0.0, 3.0)


def servable(handle: int = 1, rows: float = 0.0, **more: object) -> ServableView:
    asked = Demand(rows, rows)
    return ServableView(handle, f"m{handle}", 1 << 20, 1 << 20, 1.0, asked, asked, **more)  # type: ignore[arg-type]


def on(*workers: str) -> dict[str, Replica]:
    return {worker: Replica(Hold.SERVES, -1e6) for worker in workers}


def test_a_queue_is_that_of_one_server_up_to_the_knee() -> None:
    assert queue(0.0) == 0.0
    assert queue(0.5) == pytest.approx(0.5)
    assert queue(0.9) == pytest.approx(8.1)
    assert queue(KNEE + 1e-9) == pytest.approx(queue(KNEE), rel=1e-6)
    assert slope(KNEE + 1e-9) == pytest.approx(slope(KNEE), rel=1e-6)


@given(LOADS, LOADS)
def test_queues_rise_ever_more_steeply(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert queue(low) <= queue(high)
    assert slope(low) <= slope(high)
    assert queue((low + high) / 2) <= (queue(low) + queue(high)) / 2 + 1e-9
    assert queues(np.array([low, high])).tolist() == pytest.approx([queue(low), queue(high)])


@given(LOADS)
def test_level_is_the_inverse_of_slope(load: float) -> None:
    assert level(slope(load)) == pytest.approx(load, abs=1e-9)


@given(
    st.lists(st.tuples(LOADS, st.sampled_from([0.001, 0.004, 0.0101])), min_size=1, max_size=5),
    st.floats(0.0, 500.0),
    st.randoms(use_true_random=False),
)
def test_work_is_divided_so_that_no_other_division_is_better(
    workers: list[tuple[float, float]], rows: float, random: object
) -> None:
    bases, seconds = [base for base, _ in workers], [second for _, second in workers]
    loads = divide(bases, seconds, rows)
    assert all(load >= 0 for load in loads)
    assert sum(load / second for load, second in zip(loads, seconds, strict=True)) == pytest.approx(rows, abs=1e-6)
    best = sum(queue(base + load) for base, load in zip(bases, loads, strict=True))
    for giver in range(len(workers)):
        for taker in range(len(workers)):
            moved = loads[giver] * 0.1 / seconds[giver]
            other = loads[:]
            other[giver] -= moved * seconds[giver]
            other[taker] += moved * seconds[taker]
            assert best <= sum(queue(base + load) for base, load in zip(bases, other, strict=True)) + 1e-6


def test_work_fills_workers_like_vessels_that_are_joined() -> None:
    assert divide([0.2, 0.5, 0.9], [0.01] * 3, 50.0) == pytest.approx([0.4, 0.1, 0.0])
    assert divide([0.5, 0.1], [0.01, 0.01], 0.0) == [0.0, 0.0]
    assert divide([0.5], [0.01], 10.0) == [0.1]


def test_a_row_takes_what_it_took_else_what_the_device_suggests() -> None:
    workers = [WorkerView("a", threads=1), WorkerView("b", threads=2), WorkerView("g", "gpu:0"), WorkerView("c")]
    known = servable(row_seconds={"a": 0.008, "b": 0.006})
    assert row_seconds(known, workers) == pytest.approx([0.008, 0.006, 0.010, 0.010])
    assert row_seconds(servable(row_seconds={"gone": 0.5}), workers) == [0.5] * 4
    assert row_seconds(servable(), workers) == [UNKNOWN_ROW_SECONDS] * 4


def test_absence_costs_the_wait_for_loads_and_the_work() -> None:
    assert absence(Demand(0.0, 0.0), 5.0, 0.01) == 0.0
    assert absence(Demand(0.1, 0.0), 2.0, 0.01) == pytest.approx(0.2)
    assert absence(Demand(100.0, 0.0), 2.0, 0.01) == 1.0
    assert absence(Demand(1.0, 50.0), 0.0, 0.01) > queue(0.5)


def test_replicas_cost_where_batches_would_matter_and_loads_where_somebody_waits() -> None:
    assert spread(0.0) == 0.0
    assert 0 < spread(0.01) < spread(0.05) == spread(0.9)
    assert loading(0.0) < 1.5 < loading(0.5) < loading(0.8) == loading(2.0)


def test_a_pool_costs_its_queues_and_what_is_absent() -> None:
    busy = servable(1, 50.0, row_seconds={"a": 0.01}, on=on("a"))
    absent = servable(2, wanted=True)
    pool = Snapshot(0.0, (WorkerView("a"), WorkerView("b")), (busy,))
    assert cost(pool, "fast") == pytest.approx(0.5)
    assert cost(Snapshot(0.0, pool.workers, (busy, absent)), "slow") > 0.5
    assert cost(Snapshot(0.0, (), ()), "fast") == 0.0


def test_a_servable_that_comes_counts_as_there_and_one_that_goes_as_gone() -> None:
    for hold, load in ((Hold.COMES, 0.5), (Hold.SERVES, 0.5), (Hold.GOES, 0.0)):
        view = servable(1, 50.0, row_seconds={"a": 0.01}, on={"a": Replica(hold, 0.0)})
        assert Board(Facts(Snapshot(0.0, (WorkerView("a"),), (view,)))).load[0] == pytest.approx([load])


def test_crashers_are_dearer_where_others_work() -> None:
    workers = (WorkerView("a"), WorkerView("b"))
    steady = servable(1, 50.0, row_seconds={"a": 0.01}, on=on("a"))
    near = Snapshot(0.0, workers, (steady, servable(2, crashes=1, on=on("a"))))
    far = Snapshot(0.0, workers, (steady, servable(2, crashes=1, on=on("b"))))
    both = Snapshot(0.0, workers, (steady, servable(2, crashes=1, on=on("b")), servable(3, crashes=2, on=on("b"))))
    assert cost(far, "fast") < cost(near, "fast")
    assert cost(far, "fast") < cost(both, "fast")


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12), st.integers(0, 99))
def test_a_shift_tells_by_how_much_the_cost_rises(moves: list[tuple[int, bool]], seed: int) -> None:
    names = ("a", "b", "c", "d")
    workers = tuple(WorkerView(name) for name in names)
    views = tuple(
        servable(n, 10.0 * n, row_seconds={"a": 0.004 + 0.001 * seed / 99}, on=on(names[n % 4]), crashes=n == 3)
        for n in range(1, 6)
    )
    board = Board(Facts(Snapshot(0.0, workers, views)))
    for number, (worker, absent) in enumerate(moves):
        before = board.cost()
        rise = board.shift(number % 5, [] if absent else [worker])
        assert board.cost() == pytest.approx((before[0] + rise[0], before[1] + rise[1]), abs=1e-9)
