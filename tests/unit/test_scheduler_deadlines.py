"""What is refused, dropped or not begun for its deadline."""

from __future__ import annotations

from typing import Any

import pytest

from tfpool.errors import DeadlineExceeded, ResourceExhausted
from tfpool.scheduler.work import NEVER
from tfpool.testing.desk import FLAT, LINEAR, Desk, Points, make_spec

# -- deadlines --------------------------------------------------------------------------------------------------------


def test_what_comes_too_late_is_refused_at_once() -> None:
    desk = Desk(make_spec())
    (number,) = desk.ask(within=0.0)
    assert isinstance(desk.refused[number], DeadlineExceeded)
    assert desk.turn() == []


def test_what_waits_past_its_deadline_is_refused_then() -> None:
    desk = Desk(make_spec(), workers="")
    (number,) = desk.ask(within=0.5)
    assert desk.turn() == []
    desk.now = desk.scheduler.wakeup()
    assert desk.now == pytest.approx(100.5)
    desk.turn()
    assert desk.refused[number].message == "the deadline passed in the queue"
    assert desk.scheduler.wakeup() == NEVER


def test_what_is_late_by_less_than_a_look_does_not_leave_either() -> None:
    """Though it waits behind what is not late, and late requests were looked for a moment ago."""
    desk = Desk(make_spec(max_rows=2))
    desk.ask(4)
    desk.turn()
    (urgent,) = desk.ask(within=9.0, priority=1)
    late = [desk.ask(within=within)[0] for within in (0.0100, 0.0105)]
    desk.end(after=0.0100)
    desk.ask(2, priority=2)
    assert len(desk.turn()) == 1
    assert set(desk.refused) == {late[0]}
    desk.end(after=0.0006)
    desk.end(after=0.0)
    assert desk.scheduler.wakeup() > desk.now
    assert desk.turn() == [[urgent]]
    assert set(desk.refused) == {*late}


def test_what_cannot_be_in_time_is_told_early() -> None:
    desk = Desk(make_spec(), points=LINEAR)
    desk.ask(30)
    desk.turn()
    (number,) = desk.ask(within=0.0325)
    desk.end(seconds=0.0312)
    assert desk.turn() == []
    assert desk.refused[number].message == (
        "it waited 31.2 ms and would not be answered in time: a run takes about 2.0 ms, and 1.3 ms would be left"
    )
    desk.is_square()


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (64, 3.0)]])
def test_nobody_is_refused_for_ever_on_an_old_figure(points: Points) -> None:
    """A worker was slow once; now it is not."""
    desk = Desk(make_spec(), points=points)
    outcomes = []
    for _ in range(70):
        (number,) = desk.ask(within=0.1)
        desk.serve(seconds=0.005)
        outcomes.append(number in desk.answered)
        desk.now += 0.1
    assert not any(outcomes[:10])
    assert all(outcomes[60:])


@pytest.mark.parametrize(("others", "dropped"), [(20, False), (400, True)])
def test_a_dear_head_is_dropped_only_where_not_all_can_be_served(others: int, dropped: bool) -> None:
    desk = Desk(make_spec(max_rows=8), points=[(1, 0.010), (8, 0.017)])
    (head,) = desk.ask(within=0.0105)
    desk.ask(others, within=0.2)
    (batch,) = desk.turn()
    assert (head in desk.refused) == dropped
    assert len(batch) == (8 if dropped else 1)


def test_a_wait_for_company_does_not_cost_the_deadline() -> None:
    desk = Desk(make_spec(max_wait=0.050), points=FLAT)
    desk.ask(within=0.030)
    assert desk.turn() == []
    desk.now = desk.scheduler.wakeup()
    assert desk.now < 100.020
    assert desk.turn() == [[0]]


def test_a_wait_for_company_ends_when_there_is_enough() -> None:
    desk = Desk(make_spec(max_wait=0.050, max_rows=4))
    desk.ask(3)
    assert desk.turn() == []
    assert desk.scheduler.wakeup() == pytest.approx(100.050)
    desk.ask(1)
    assert desk.turn() == [[0, 1, 2, 3]]


def test_of_a_batch_that_was_not_begun_in_time_the_rest_runs() -> None:
    desk = Desk(make_spec(), points=FLAT)
    short = desk.ask(2, within=0.020)
    long = desk.ask(2, within=1.0)
    (batch,) = desk.turn()
    assert batch == [*short, *long]
    assert desk.sent[0].start_by == pytest.approx(100.020)
    desk.now += 0.030
    desk.late()
    assert {desk.refused[n].message for n in short} == {"the deadline passed before the run began"}
    assert desk.turn() == [[*long]]
    desk.serve()
    assert desk.answered == [*long]
    desk.is_square()


def test_behind_a_run_what_cannot_be_in_time_after_it_is_told_so() -> None:
    desk = Desk(make_spec(), points=[(1, 0.003), (2, 0.006)])
    desk.ask()
    desk.turn()
    desk.now += 0.001
    hopeless, other = desk.ask(within=0.0045)[0], desk.ask(within=0.0055)[0]
    assert desk.turn() == [[other]]
    assert "a run takes about 3.0 ms, and 2.5 ms would be left" in desk.refused[hopeless].message


def test_the_worker_that_is_free_first_is_asked_first() -> None:
    desk = Desk(make_spec(max_rows=1), workers="ab", points=[(1, 0.003), (2, 0.006)])
    desk.ask()
    desk.turn()
    desk.now += 0.0025
    desk.ask()
    desk.turn()
    desk.now += 0.0003
    first, second = desk.sent
    (number,) = desk.ask(within=0.0045)
    assert desk.turn() == [[number]]
    assert first.worker == desk.sent[-1].worker != second.worker
    assert desk.refused == {}


# -- admission --------------------------------------------------------------------------------------------------------


def overloaded(**policy: Any) -> Desk:
    """A queue of which a batch of 4 leaves every 10 ms, with 400 rows in it."""
    desk = Desk(make_spec(max_rows=4, fair=False, **policy), points=FLAT)
    desk.ask(600, within=60.0)
    for _ in range(50):
        desk.turn()
        desk.end()
    desk.turn()
    assert desk.scheduler.waiting_rows() == pytest.approx(400, abs=8)
    return desk


def test_what_would_miss_its_deadline_by_waiting_is_refused_at_once() -> None:
    desk = overloaded()
    (number,) = desk.ask(within=0.5, priority=-1)
    error = desk.refused[number]
    assert isinstance(error, ResourceExhausted)
    assert "rows wait, about" in error.message
    assert error.retry_after == pytest.approx(0.66, rel=0.1)
    assert desk.ask(within=1.6, priority=-1)[0] not in desk.refused
    assert desk.ask(within=0.5)[0] not in desk.refused, "its deadline is earlier than those of all others"


def test_a_first_burst_is_bounded_by_what_the_warm_up_has_shown() -> None:
    desk = Desk(make_spec(), workers="ab", points=FLAT)
    desk.ask(1280, within=0.040)
    (number,) = desk.ask(within=0.050)
    error = desk.refused[number]
    assert "about 100 ms of work; this request has 25 ms" in error.message
    assert error.retry_after == pytest.approx(0.075)
    assert desk.ask(within=0.2)[0] not in desk.refused


def test_the_wait_is_bounded_where_the_user_says_so() -> None:
    desk = overloaded(max_queue=0.7)
    (number,) = desk.ask(within=NEVER)
    assert "this request has 700 ms" in desk.refused[number].message
    assert desk.ask(within=50.0)[0] not in desk.refused


def test_the_wait_is_longer_where_models_take_turns() -> None:
    one, two = (make_spec(i, name, max_rows=4, fair=False) for i, name in enumerate(("one", "two")))
    desk = Desk(one, two, points=FLAT)
    for spec in (one, two):
        desk.ask(600, of=spec, within=60.0)
    for _ in range(100):
        desk.turn()
        desk.end()
    (number,) = desk.ask(within=1.7, priority=-1)
    waits = desk.scheduler.waiting(one.servable) * 0.020 / 4
    error = desk.refused[number]
    assert error.retry_after == pytest.approx(waits - (0.7 * 1.7 - 0.010), rel=0.1)


def test_an_empty_queue_refuses_nobody() -> None:
    """However long it was empty."""
    desk = overloaded(max_queue=0.7)
    desk.serve()
    for seconds in (0.0, 10.0):
        desk.now += seconds
        desk.ask(100, within=9.0)
        desk.turn()
        desk.ask(within=0.5, priority=-1)
        desk.serve()
    assert desk.refused == {}
