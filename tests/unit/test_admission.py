"""What a queue takes in, and what it lets go before its time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler.admission import expected_wait, full, hopeless, make_room, paced, too_slow, triage
from tfpool.scheduler.curves import Curve
from tfpool.scheduler.work import NEVER, BatchPolicy, Input, Join, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

FLOOD, NEW = b"flood", b"newcomer"


def make_queue(batchable: bool = True, **policy: object) -> Queue:
    limits = BatchPolicy(**policy)  # type: ignore[arg-type]
    return Queue(QueueSpec(0, ModelKey("m", 1), 0, (Input((1,), 4, False),), True, batchable, True, limits))


def make(
    requests: int = 1, rows: int = 1, client: bytes = b"c", deadline: float = NEVER, priority: int = 0, first: int = 0
) -> Segment:
    return Segment(client, first, requests, rows, deadline, 0.0, (), priority)


def curve_of(points: Sequence[tuple[int, float]], now: float = 1.0) -> Curve:
    curve = Curve()
    for rows, seconds in points:
        curve.learn(rows, seconds, now)
    return curve


def pace(queue: Queue, rows: int, seconds: float, times: int = 60) -> None:
    for i in range(times):
        paced(queue, rows, i * seconds)


# -- how long it will wait -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "seconds"), [(1, 0.01), (10, 0.01), (4, 0.1), (1, 0.0001)])
def test_what_waits_leaves_at_the_pace_so_far(rows: int, seconds: float) -> None:
    """Also where many workers share it, and batches leave one soon after another."""
    queue = make_queue()
    queue.push(make(200))
    pace(queue, rows, seconds, times=100)
    assert expected_wait(queue, make(), 0.0) == pytest.approx(200 / rows * seconds, rel=0.05)


def test_one_pause_is_no_pace() -> None:
    """A worker died, say: a thousand rows a second before and after, and nothing for half a second."""
    queue = make_queue()
    queue.push(make(1000))
    for step in range(20):
        paced(queue, 10, 1.0 + 0.01 * step)
    assert expected_wait(queue, make(), 0.0) == pytest.approx(1.0, rel=0.1)
    paced(queue, 10, 1.69)
    assert expected_wait(queue, make(), 0.0) < 5.0, "not fifty seconds"
    paced(queue, 10, 2.19)
    assert expected_wait(queue, make(), 0.0) > 20.0, "the second time it is believed"
    for step in range(1, 60):
        paced(queue, 10, 2.19 + 0.01 * step)
    assert expected_wait(queue, make(), 0.0) == pytest.approx(1.0, rel=0.1)


def test_the_pace_is_not_known_from_a_batch_or_from_some_at_once() -> None:
    queue = make_queue()
    queue.push(make(200))
    assert expected_wait(queue, make(), 0.0) == 0.0
    for _ in range(8):
        paced(queue, 64, 5.0)
    assert expected_wait(queue, make(), 0.0) == 0.0
    assert expected_wait(queue, make(), 0.002) == pytest.approx(0.4), "what the curve says is better than nothing"


def test_the_pace_follows_what_changes() -> None:
    queue = make_queue()
    queue.push(make(100))
    pace(queue, 1, 1.0)
    for i in range(60):
        paced(queue, 1, 59.0 + 0.01 * i)
    assert expected_wait(queue, make(), 0.0) == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize("fair", [True, False])
def test_only_what_goes_before_it_counts(fair: bool) -> None:
    queue = make_queue(fair=fair)
    for priority in range(4):
        queue.push(make(10, client=b"%d" % priority, priority=priority, deadline=9.0))
    pace(queue, 1, 0.01)
    waits = [expected_wait(queue, make(client=b"x", priority=p, deadline=99.0), 0.0) for p in (-1, 0, 1, 2, 3, 4)]
    assert waits == [pytest.approx(rows / 100) for rows in (40, 40, 30, 20, 10, 0)]


def test_a_flood_waits_for_itself() -> None:
    queue = make_queue()
    queue.push(make(1024, client=FLOOD, deadline=10.0))
    pace(queue, 1, 0.001)
    assert expected_wait(queue, make(client=FLOOD, deadline=9.0), 0.0) == pytest.approx(1.024)
    assert expected_wait(queue, make(client=NEW, deadline=11.0), 0.0) == pytest.approx(0.256)


def test_what_would_wait_too_long_is_told_so_and_when_to_come_back() -> None:
    """Seven tenths of its deadline are for the queue and the run."""
    queue = make_queue(fair=False)
    queue.push(make(200, deadline=11.0))
    pace(queue, 1, 0.01)
    now = 10.0
    error = too_slow(queue, make(deadline=now + 1.5), 0.25, 0.0, now)
    assert error is not None
    assert error.message == (
        "queue of m:1 is full: 200 rows wait, about 2000 ms of work; this request has 800 ms for that"
    )
    assert error.retry_after == pytest.approx(1.2)
    assert too_slow(queue, make(deadline=now + 3.3), 0.25, 0.0, now) is None
    assert too_slow(queue, make(), 0.25, 0.0, now) is None


def test_the_wait_may_be_bounded_beside_deadlines() -> None:
    queue = make_queue(max_queue=0.5)
    queue.push(make(49))
    pace(queue, 1, 0.01)
    assert too_slow(queue, make(), 0.0, 0.0, 10.0) is None
    queue.push(make(2))
    error = too_slow(queue, make(), 0.0, 0.0, 10.0)
    assert error is not None
    assert "this request has 500 ms" in error.message


def test_what_waits_for_less_than_a_run_is_not_too_much() -> None:
    queue = make_queue(fair=False)
    queue.push(make(9, deadline=10.5))
    assert too_slow(queue, make(deadline=11.0), 0.9, 0.1, 10.0) is None
    assert too_slow(queue, make(deadline=11.0), 0.8, 0.1, 10.0) is not None


# -- a queue without room ------------------------------------------------------------------------------------------


def test_there_is_no_room_for_what_is_larger_than_a_queue() -> None:
    error = full(make_queue(max_queue_rows=10), make(rows=11), 0.1)
    assert error.message == "a request of m:1 has 11 rows, more than max_queue_rows (10)"
    assert error.retry_after is None


def test_when_to_come_back_to_a_full_queue() -> None:
    queue = make_queue(max_queue_rows=100)
    queue.push(make(100))
    assert full(queue, make(), 0.0).retry_after is None
    pace(queue, 1, 0.01)
    error = full(queue, make(), 0.0)
    assert error.message == "queue of m:1 is full: 100 rows wait, max_queue_rows is 100"
    assert error.retry_after == pytest.approx(0.5)


WAITING = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 4), st.sampled_from([FLOOD, NEW, b"c"]), st.integers(0, 1)),
    max_size=8,
)


@given(WAITING, WAITING.filter(bool), st.booleans())
def test_only_what_must_is_pushed_out(
    waiting: list[tuple[int, int, bytes, int]], comers: list[tuple[int, int, bytes, int]], fair: bool
) -> None:
    """From the end of the queue, of lower priority or later rounds, and not for what then has no room all the same."""
    many, rows, client, priority = comers[0]
    total = sum(count * rows for count, rows, _, _ in waiting)
    queue = make_queue(max_queue_rows=max(1, total), fair=fair)
    for i, (count, each, owner, level) in enumerate(waiting):
        queue.push(make(count, each, owner, priority=level, first=1000 * i))
    comer = make(many, rows, client, priority=priority)
    before = [(s.first + i, s.rows, s.priority, s.round) for s in queue.segments for i in range(s.count)]
    round_ = queue.round_of(comer)
    pushed = make_room(queue, comer)
    after = [(s.first + i, s.rows, s.priority, s.round) for s in queue.segments for i in range(s.count)]
    out = [(s.first + i, s.rows, s.priority, s.round) for s in reversed(pushed) for i in range(s.count)]
    assert after + out == before
    assert all(level < priority or (level == priority and late > round_) for _, _, level, late in out)
    freed = sum(each for _, each, _, _ in out)
    wanted = many * rows - (queue.spec.policy.max_queue_rows - total)
    if out:
        assert freed - out[0][1] < wanted, "no more than it takes"
        assert queue.spec.policy.max_queue_rows - queue.rows >= rows
    elif after and wanted > 0:
        loose = 0
        for _, each, level, late in reversed(after):
            if not (level < priority or (level == priority and late > round_)):
                break
            loose += each
        assert loose + queue.spec.policy.max_queue_rows - total < rows


def test_nobody_is_pushed_out_for_what_then_has_no_room_all_the_same() -> None:
    queue = make_queue(max_queue_rows=5)
    queue.push(make(3, priority=1))
    queue.push(make(2))
    assert make_room(queue, make(rows=3, priority=1)) == []
    assert [s.count for s in make_room(queue, make(rows=2, priority=1))] == [2]


@pytest.mark.parametrize("sacred", [{"join": Join(0, 5)}, {"deaths": 1}, {"limit": 1}])
def test_parts_and_suspects_are_not_pushed_out(sacred: dict[str, object]) -> None:
    queue = make_queue(max_queue_rows=5)
    waiting = make(5, priority=-1)
    for name, value in sacred.items():
        setattr(waiting, name, value)
    queue.push(waiting)
    assert make_room(queue, make(priority=1)) == []
    assert queue.rows == 5


# -- what will not be in time --------------------------------------------------------------------------------------

LINEAR = [(1, 0.002), (64, 0.065)]
"""A millisecond, and one more a row."""


def test_a_batch_is_as_large_as_its_head_can_wait_for() -> None:
    queue = make_queue()
    queue.push(make(50, deadline=1.010))
    assert triage(queue, curve_of(LINEAR), 1.0, 64, 1.0) == (9, [])
    assert queue.rows == 50


def test_a_head_that_is_larger_than_its_deadline_allows_runs_alone() -> None:
    """What is thought of a size that was never run is a guess, and it would fail without trying."""
    queue = make_queue()
    queue.push(make(1, rows=20, deadline=1.010))
    curve = curve_of([(1, 0.002)])
    assert curve.run(20) == pytest.approx(0.040)
    assert triage(queue, curve, 1.0, 64, 0.0) == (20, [])


def test_what_cannot_be_in_time_is_dropped_and_the_others_are_not() -> None:
    queue = make_queue()
    queue.push(make(3, deadline=1.0015, first=0))
    queue.push(make(2, deadline=1.0045, first=3))
    rows, dropped = triage(queue, curve_of(LINEAR), 1.0, 64, 1.0)
    assert rows == 3
    assert [(s.first, s.count) for s in dropped] == [(0, 3)]
    assert [(s.first, s.count) for s in queue.segments] == [(3, 2)]


def test_what_is_dropped_is_told_why() -> None:
    segment = make(deadline=1.0015)
    segment.arrived = 0.7
    error = hopeless(segment, curve_of(LINEAR), 0.9998, 0.9)
    assert error.message == (
        "it waited 200.0 ms and would not be answered in time: a run takes about 2.0 ms, and 1.7 ms would be left"
    )
    assert "0.0 ms would be left" in hopeless(segment, curve_of(LINEAR), 3.0, 0.9).message


def test_nobody_is_dropped_for_ever_on_an_old_figure() -> None:
    queue = make_queue()
    queue.push(make(deadline=1000.1))
    curve = curve_of([(1, 5.0), (2, 9.0)], now=990.0)
    rows, dropped = triage(queue, curve, 1000.0, 64, 1000.0)
    assert (rows, dropped) == (1, [])


DEADLINES = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@given(DEADLINES, st.integers(1, 64))
def test_of_what_can_be_in_time_nothing_is_dropped_but_under_overload(deadlines: list[int], most: int) -> None:
    queue, curve = make_queue(max_rows=most), curve_of(LINEAR)
    for i, milliseconds in enumerate(deadlines):
        queue.push(make(deadline=1.0 + milliseconds / 1000, first=i))
    waiting = sorted(deadlines)
    best = queue.rows / most * curve.run(most)
    overloaded = best > waiting[-1] / 1000 and queue.rows >= most
    rows, dropped = triage(queue, curve, 1.0, most, 1.0)
    left = [s.deadline - 1.0 for s in queue.segments]
    late = [milliseconds for milliseconds in waiting if milliseconds < 2]
    assert len(left) + len(dropped) == len(waiting)
    assert len(dropped) >= len(late)
    assert len(dropped) == len(late) or overloaded
    if left:
        assert rows == 1 or curve.run(rows) <= left[0]
        assert rows == most or curve.run(rows + 1) > left[0]


@pytest.mark.parametrize("batchable", [True, False])
def test_under_overload_those_that_make_small_dear_batches_go(batchable: bool) -> None:
    """200 rows with 100 ms each: half of them cannot be done. The first has time for a batch of two."""
    queue, curve = make_queue(batchable), curve_of([(1, 0.010), (2, 0.011), (64, 0.073)])
    queue.push(make(1, deadline=1.0115, first=0))
    queue.push(make(200, deadline=1.1, first=1))
    rows, dropped = triage(queue, curve, 1.0, 64, 1.0)
    assert [s.first for s in dropped] == ([0] if batchable else [])
    assert rows == (64 if batchable else 2)


def test_what_is_dropped_for_the_others_ends_where_they_are_served() -> None:
    """As soon as less than a full batch waits, the rest is run however small its batches are."""
    queue, curve = make_queue(max_rows=8), curve_of([(1, 0.010), (8, 0.017)])
    for i in range(10):
        queue.push(make(1, deadline=1.0105, first=i))
    rows, dropped = triage(queue, curve, 1.0, 8, 1.0)
    assert [s.first for s in dropped] == [0, 1, 2]
    assert rows == 1
    assert queue.rows == 7
