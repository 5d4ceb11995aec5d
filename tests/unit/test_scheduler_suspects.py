"""Requests that fail, or whose workers die."""

from __future__ import annotations

from random import Random

import pytest

from tfpool.errors import FailedPrecondition, NotFound, Unavailable
from tfpool.scheduler import events as ev
from tfpool.scheduler.comeback import MAX_LONE_DEATHS
from tfpool.testing.desk import FLAT, Desk, make_spec, requests_of


@pytest.mark.parametrize("killer", [0, 7, 15])
def test_a_killer_among_sixteen_is_found_and_the_others_are_answered(killer: int) -> None:
    desk = Desk(make_spec(), points=FLAT)
    asked = desk.ask(16)
    deaths = desk.serve(killers={killer})
    assert deaths == 2 + 4, "as they were, once more, and 8, 4, 2, 1"
    assert sorted(desk.answered) == [number for number in asked if number != killer]
    error = desk.refused[killer]
    assert isinstance(error, FailedPrecondition)
    assert error.message == (
        "this request is in quarantine: 6 workers died while running it, the last of them: signal 9"
    )
    desk.is_square()


@pytest.mark.parametrize("seed", range(8))
def test_killers_among_many_of_all_sizes_are_found(seed: int) -> None:
    """While others come in, on two workers, some in place."""
    random = Random(seed)
    desk = Desk(make_spec(max_rows=random.choice([4, 16, 64])), workers="ab", points=[(1, 0.0001), (64, 0.0004)])
    for _ in range(6):
        desk.ask(random.randint(1, 9), rows=random.randint(1, 6))
        desk.in_place(random.randint(0, 5), rows=random.randint(1, 3))
        desk.turn()
    killers = {random.randrange(desk._next) for _ in range(3)}
    desk.serve(killers)
    assert set(desk.refused) == killers
    assert sorted(desk.answered) == sorted(set(range(desk._next)) - killers)
    desk.is_square()


def test_a_request_in_parts_that_kills_is_refused_once_and_the_others_are_answered() -> None:
    desk = Desk(make_spec(max_rows=8), points=FLAT)
    (large,) = desk.ask(rows=20)
    others = desk.ask(5)
    desk.serve(killers={large})
    assert max(batch.rows for batch in desk.sent) == 8
    assert set(desk.refused) == {large}
    assert sorted(desk.answered) == [*others]
    desk.is_square()


def test_a_killer_alone_has_two_lives() -> None:
    desk = Desk(make_spec(), points=FLAT)
    (killer,) = desk.ask()
    assert desk.serve(killers={killer}) == 2
    assert isinstance(desk.refused[killer], FailedPrecondition)


@pytest.mark.parametrize("together", [1, 2])
def test_what_somebody_else_ended_is_nobodys_fault(together: int) -> None:
    """But a request whose workers die again and again while it is alone is given up all the same."""
    desk = Desk(make_spec(), points=FLAT)
    number, *_ = asked = desk.ask(together)
    for _ in range(2 if together > 1 else 0):
        assert desk.turn() == [[*asked]]
        desk.kill(guilty=False)
    for _ in range(MAX_LONE_DEATHS):
        assert number not in desk.refused
        assert desk.turn() == [[number]]
        desk.kill(guilty=False)
    assert isinstance(desk.refused[number], FailedPrecondition)
    desk.serve()
    assert desk.answered == [*asked[1:]]
    desk.is_square()


def test_suspects_run_among_themselves_and_first() -> None:
    desk = Desk(make_spec(max_rows=8), points=FLAT)
    suspects = [desk.ask(within=9.0)[0] for _ in range(3)]
    desk.turn()
    desk.kill()
    fresh = desk.ask(3, within=1.0, priority=5)
    assert desk.turn() == [suspects]
    desk.kill()
    assert desk.turn() == [[suspects[0]]]
    desk.serve()
    assert desk.answered == [*suspects, *fresh]


def test_what_was_only_staged_is_not_suspected() -> None:
    desk = Desk(make_spec(max_rows=4))
    desk.ask(8)
    desk.turn()
    desk.kill()
    fresh = desk.ask(4)
    desk.turn()
    assert [(requests_of(batch), batch.pieces[0].deaths) for batch in desk.sent[2:]] == [
        ([0, 1, 2, 3], 1),
        ([4, 5, 6, 7], 0),
    ]
    desk.serve()
    assert desk.answered == [*range(8), *fresh]


def test_what_may_not_run_twice_is_lost_with_its_worker_unless_it_was_only_staged() -> None:
    desk = Desk(make_spec(max_rows=4, retry=False))
    ran, staged = desk.ask(4), desk.ask(4)
    desk.turn()
    desk.kill()
    assert {type(desk.refused[number]) for number in ran} == {Unavailable}
    assert desk.refused[0].message == "worker w died while running this: signal 9"
    desk.serve()
    assert desk.answered == [*staged]
    desk.is_square()


def test_of_a_request_that_was_cancelled_no_part_runs_again() -> None:
    desk = Desk(make_spec(max_rows=8))
    desk.ask(rows=24)
    desk.turn()
    desk.tell(ev.Cancel(b"c", [(0, 1)]))
    desk.kill()
    assert desk.turn() == []
    desk.is_square()


def test_what_runs_when_its_model_goes_is_answered_or_told_so() -> None:
    desk = Desk(make_spec(max_rows=2))
    servable = desk.specs[0].servable
    desk.ask(4)
    desk.turn()
    desk.tell(ev.ServableGone(servable, NotFound("unloaded")))
    desk.end()
    assert desk.answered == [0, 1]
    desk.kill()
    assert {str(desk.refused[number]) for number in (2, 3)} == {"unloaded"}
    desk.ask(2)
    desk.turn()
    desk.kill()
    desk.serve()
    assert desk.answered == [0, 1, 4, 5], "it is served again, and so its requests are retried"


def test_what_was_known_of_a_model_goes_with_it() -> None:
    desk = Desk(make_spec(), points=FLAT)
    desk.tell(ev.ServableGone(desk.specs[0].servable, NotFound("unloaded")))
    assert desk.scheduler.estimates.curves(desk.specs[0].servable, 0) == {}


def test_what_fails_and_may_not_run_twice_fails_together() -> None:
    desk = Desk(make_spec(max_rows=4, retry=False))
    desk.ask(8)
    desk.serve(poison={1})
    assert {number: str(error) for number, error in desk.refused.items()} == dict.fromkeys(range(4), "bad")
    assert desk.answered == [4, 5, 6, 7]


def test_what_fails_is_found_in_halves() -> None:
    desk = Desk(make_spec(), points=FLAT)
    asked = desk.ask(16, rows=2)
    desk.serve(poison={3, 12})
    assert {number: str(error) for number, error in desk.refused.items()} == {3: "bad", 12: "bad"}
    assert sorted(desk.answered) == [number for number in asked if number not in (3, 12)]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_in_place_too_the_one_at_fault_is_found(rows: int) -> None:
    faults: list[dict[str, set[int]]] = [{"killers": {2}}, {"poison": {2}}]
    for fault in faults:
        desk = Desk(make_spec(), points=[(1, 0.0001), (16, 0.0002)])
        asked = desk.in_place(3, rows=rows)
        assert desk.turn() == [[*asked]]
        assert desk.sent[0].alone
        desk.in_place(3, rows=rows)
        desk.serve(fault.get("killers", ()), fault.get("poison", ()))
        assert set(desk.refused) == {2}
        assert sorted(desk.answered) == [0, 1, 3, 4, 5]
        desk.is_square()
