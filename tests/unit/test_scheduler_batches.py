"""How large batches are, what is staged behind a run, and what is known of runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tfpool.errors import Cancelled, NotFound
from tfpool.scheduler import events as ev
from tfpool.scheduler.choice import LEAD, LONG_RUN, SHARED_RUN
from tfpool.scheduler.core import SHARED_SECONDS
from tfpool.scheduler.curves import Point
from tfpool.scheduler.staff import CREDITS
from tfpool.scheduler.work import NEVER
from tfpool.testing.desk import FLAT, LINEAR, Desk, make_spec
from tfpool.types import ModelKey

# -- how large a batch is ---------------------------------------------------------------------------------------------


KNEE_AT_4 = [(1, 0.010), (2, 0.012), (4, 0.016), (8, 0.040), (16, 0.100)]


@pytest.mark.parametrize(
    ("policy", "rows"),
    [({}, 4), ({"max_rows": 2}, 2), ({"sizes": (1, 2, 64)}, 2), ({"sizes": (3, 64)}, 3), ({"max_rows": 4}, 4)],
)
def test_a_batch_has_as_many_rows_as_pay(policy: dict[str, Any], rows: int) -> None:
    desk = Desk(make_spec(**policy), points=KNEE_AT_4)
    desk.ask(50)
    assert [len(batch) for batch in desk.turn()] == [rows]


def test_a_batch_has_as_many_rows_as_the_user_allows_where_nothing_is_known() -> None:
    desk = Desk(make_spec(max_rows=20))
    desk.ask(50)
    assert [len(batch) for batch in desk.turn()] == [20, 20]


def test_a_batch_is_padded_to_an_allowed_size() -> None:
    desk = Desk(make_spec(sizes=(1, 8, 64)), points=FLAT)
    desk.ask(5)
    desk.turn()
    assert (desk.sent[0].rows, desk.sent[0].padded) == (5, 8)


def test_a_batch_is_only_as_large_as_its_head_can_wait_for() -> None:
    desk = Desk(make_spec(), points=LINEAR)
    desk.ask(40, within=9.0)
    (first,) = desk.ask(within=0.0105)
    (batch,) = desk.turn()
    assert (batch[0], len(batch)) == (first, 9)


def test_idle_workers_share_what_waits() -> None:
    desk = Desk(make_spec(), workers="abc", points=FLAT)
    desk.ask(30)
    assert [len(batch) for batch in desk.turn()] == [10, 10, 10]


# -- what is staged ---------------------------------------------------------------------------------------------------


def test_a_batch_is_staged_behind_a_short_run_once_it_is_as_large() -> None:
    desk = Desk(make_spec(), points=[(1, 0.001), (64, 0.001)])
    desk.ask(3)
    assert desk.turn() == [[0, 1, 2]]
    desk.ask(2)
    assert desk.turn() == []
    desk.ask(2)
    assert desk.turn() == [[3, 4, 5, 6]]
    desk.ask(9)
    assert desk.turn() == [], "two credits"
    assert desk.scheduler.in_flight("w") == CREDITS


def test_behind_a_long_run_the_next_batch_is_chosen_when_it_is_about_to_end() -> None:
    assert FLAT[0][1] > LONG_RUN
    desk = Desk(make_spec(max_rows=1), points=FLAT)
    desk.ask(3, within=9.0)
    assert desk.turn() == [[0]]
    assert desk.scheduler.wakeup() == pytest.approx(desk.now + FLAT[0][1] - LEAD)
    desk.now = desk.scheduler.wakeup()
    (urgent,) = desk.ask(within=1.0)
    assert desk.turn() == [[urgent]]


def test_where_models_take_turns_the_next_batch_is_chosen_when_a_run_has_ended() -> None:
    one, two = make_spec(0, "one", max_rows=1), make_spec(1, "two", max_rows=1)
    desk = Desk(one, two, points=[(1, 2 * SHARED_RUN), (2, 3 * SHARED_RUN)])
    desk.ask(of=one)
    desk.ask(of=two)
    assert len(desk.turn()) == 2, "it is not known yet that they take turns"
    desk.end(seconds=0.002)
    desk.ask(3, of=one)
    assert desk.turn() == []
    assert desk.scheduler.wakeup() == NEVER
    desk.end(seconds=0.002)
    assert len(desk.turn()) == 1
    desk.now += SHARED_SECONDS + 0.001
    desk.ask(of=one)
    assert len(desk.turn()) == 1, "one has had it to itself"


def test_what_waits_for_another_worker_does_not_keep_this_one_from_staging() -> None:
    """Another version of a model that it serves too."""
    one, other = make_spec(0, "one", max_rows=1), make_spec(2, "other", max_rows=1)
    two = replace(one, id=1, servable=ModelKey("one", 2))
    desk = Desk(one, two, other, workers="ab")
    for servable, worker in ((two.servable, "a"), (one.servable, "b"), (other.servable, "b")):
        desk.tell(ev.Unrouted(servable, worker))
    desk.ask(9, of=two)
    desk.ask(of=one)
    desk.turn()
    desk.end("a", seconds=0.0005)
    desk.ask(9, of=other)
    for _ in range(4):
        desk.turn()
        assert desk.scheduler.in_flight("a") == CREDITS
        desk.end("a", seconds=0.0005)


def test_what_is_not_known_to_be_long_is_staged_behind() -> None:
    desk = Desk(make_spec(max_rows=1))
    desk.ask(3)
    assert desk.turn() == [[0], [1]]


# -- what is known of runs --------------------------------------------------------------------------------------------


def test_a_warm_up_counts_until_it_is_known_better() -> None:
    desk = Desk(make_spec(), workers="wv", points=[(1, 0.010), (2, 0.011)])
    curves = desk.scheduler.estimates.curves(ModelKey("m", 1), 0)
    assert curves["w"].points == [(1.0, 0.010), (2.0, 0.011)]
    desk.tell(ev.Measured(ModelKey("m", 1), "w", [[Point(1, 5.0)]]))
    desk.tell(ev.Measured(ModelKey("m", 1), "x", [[Point(1, 5.0)]]))
    assert curves["w"].points == [(1.0, 0.010), (2.0, 0.011)]
    assert curves["x"].points == [(1.0, 5.0)]


def test_what_a_lone_run_is_thought_to_take() -> None:
    desk = Desk(make_spec(), points=LINEAR)
    assert desk.scheduler.lone_run() == NEVER
    for rows, seconds in ((4, 0.005), (9, 0.010)):
        desk.ask(rows=rows)
        desk.turn()
        assert desk.sent[-1].thought == desk.scheduler.lone_run() == pytest.approx(seconds, rel=0.01)
        desk.end(seconds=seconds)
        assert desk.scheduler.lone_run() == NEVER
    for _ in range(2):
        desk.ask(2)
        desk.turn()
        assert desk.scheduler.lone_run() == NEVER, "there are two"
        desk.kill()
        desk.serve()
    desk.ask()
    desk.turn()
    assert desk.scheduler.lone_run() < NEVER


def test_a_client_that_cancels_hears_it_of_what_waits_only() -> None:
    desk = Desk(make_spec(max_rows=2), points=FLAT)
    desk.ask(6)
    desk.turn()
    desk.tell(ev.Cancel(b"other", [(0, 9)]))
    desk.tell(ev.Cancel(b"c", [(1, 3), (5, 1)]))
    assert {number: type(error) for number, error in desk.refused.items()} == dict.fromkeys((2, 3, 5), Cancelled)
    desk.serve()
    assert desk.answered == [0, 1, 4]
    desk.is_square()


def test_a_model_that_comes_back_is_measured_anew() -> None:
    spec = make_spec()
    desk = Desk(spec, points=FLAT)
    desk.ask()
    desk.turn()
    desk.end()
    desk.tell(ev.ServableGone(spec.servable, NotFound("away")))
    desk.tell(ev.Routed(spec.servable, "w"))
    desk.tell(ev.Measured(spec.servable, "w", [[Point(1, 0.5), Point(64, 0.6)]]))
    desk.ask()
    desk.turn()
    assert desk.sent[-1].thought == 0.5
