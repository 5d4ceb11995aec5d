"""Who goes first: deadlines, priorities, shares of models and of clients."""

from __future__ import annotations

from dataclasses import replace

from tfpool.errors import ResourceExhausted
from tfpool.scheduler import events as ev
from tfpool.scheduler.work import NEVER
from tfpool.testing.desk import FLAT, Desk, make_spec


def test_the_earliest_deadline_goes_first() -> None:
    desk = Desk(make_spec(max_rows=1))
    for within in (3.0, 1.0, 2.0, NEVER, 1.5):
        desk.ask(within=within)
    desk.serve()
    assert desk.answered == [1, 4, 2, 0, 3]


def test_a_higher_priority_goes_before_an_earlier_deadline() -> None:
    desk = Desk(make_spec(max_rows=1))
    for priority, within in ((0, 1.0), (1, 3.0), (-1, 0.5), (1, 2.0)):
        desk.ask(priority=priority, within=within)
    desk.serve()
    assert desk.answered == [3, 1, 0, 2]


def test_between_models_priorities_of_model_and_request_add_up() -> None:
    plain, high = make_spec(0, "plain", max_rows=1), make_spec(1, "high", max_rows=1, priority=1)
    desk = Desk(plain, high, points=FLAT)
    for spec, priority in ((plain, 0), (plain, 2), (high, 0), (high, -2), (high, 2), (plain, 0)):
        desk.ask(of=spec, priority=priority)
    desk.serve()
    assert desk.answered == [4, 1, 2, 0, 5, 3]


def test_an_urgent_request_lifts_only_itself() -> None:
    """Not what else waits of its model, on any worker."""
    plain, better = make_spec(0, "plain", max_rows=1), make_spec(1, "better", max_rows=1)
    desk = Desk(plain, better, workers="ab", points=FLAT)
    low = desk.ask(50, of=plain)
    desk.ask(50, of=better, priority=1)
    for _ in range(20):
        desk.ask(of=plain, priority=5)
        desk.turn()
        desk.end("a")
        desk.end("b", after=0.0)
    assert not set(low) & set(desk.answered)
    assert len(desk.answered) == 40


def test_a_withdrawn_urgent_request_lifts_nobody() -> None:
    plain, better = make_spec(0, "plain", max_rows=1), make_spec(1, "better", max_rows=1)
    desk = Desk(plain, better, points=FLAT)
    low, high = desk.ask(3, of=plain), desk.ask(3, of=better, priority=1)
    (urgent,) = desk.ask(of=plain, priority=5)
    desk.tell(ev.Cancel(b"c", [(urgent, 1)]))
    desk.serve()
    assert desk.answered == [*high, *low]


def test_what_a_run_has_cost_counts_not_what_it_was_thought_to() -> None:
    dear, cheap = make_spec(0, "dear"), make_spec(1, "cheap")
    desk = Desk(dear, cheap, points=FLAT)
    desk.ask(of=dear)
    desk.serve(seconds=1.0)
    for _ in range(5):
        desk.ask(of=cheap)
        desk.serve(seconds=0.010)
    desk.ask(of=dear)
    (expected,) = desk.ask(of=cheap)
    assert desk.turn() == [[expected]]


def test_of_the_queues_of_a_model_the_most_urgent_goes_first() -> None:
    plain = make_spec(0)
    other = replace(plain, id=1, signature=1)
    desk = Desk(plain)
    for spec, within in ((plain, 3.0), (other, 2.0), (plain, 1.0)):
        desk.ask(of=spec, within=within)
    desk.serve()
    assert desk.answered == [2, 0, 1]
    for spec, within in ((plain, 3.0), (other, 2.0)):
        desk.ask(of=spec, within=within)
    desk.serve()
    assert desk.answered[3:] == [4, 3]


def test_within_a_level_models_share_the_time_of_a_worker() -> None:
    dear, cheap = make_spec(0, "dear", max_rows=1), make_spec(1, "cheap", max_rows=1)
    desk = Desk(dear, cheap)
    for _ in range(12):
        desk.ask(of=dear, priority=1)
        desk.ask(of=cheap, priority=1)
    for _ in range(12):
        desk.turn()
        desk.end(seconds=0.030 if desk.batches["w"][0].spec is dear else 0.010)
    assert 2 <= sum(number % 2 == 0 for number in desk.answered) <= 4, "a third as many of what costs three times"


def test_a_flood_of_one_client_does_not_hold_up_another() -> None:
    desk = Desk(make_spec(max_rows=8), points=FLAT)
    desk.ask(4000, client=b"flood", within=60.0)
    desk.turn()
    desk.end()
    desk.turn()
    (mine,) = desk.ask(client=b"new", within=99.0)
    for _ in range(400):
        desk.turn()
        desk.end()
        if mine in desk.answered:
            break
    assert len(desk.answered) <= 256 + 3 * 8


def test_where_clients_do_not_share_the_deadline_decides() -> None:
    desk = Desk(make_spec(max_rows=8, fair=False), points=FLAT)
    desk.ask(400, client=b"flood", within=60.0)
    (mine,) = desk.ask(client=b"new", within=99.0)
    desk.serve(seconds=0.001)
    assert desk.answered[-1] == mine


def test_at_a_full_queue_the_last_rounds_make_room() -> None:
    desk = Desk(make_spec(max_queue_rows=600))
    desk.ask(600, client=b"flood")
    assert desk.ask(client=b"flood")[0] in desk.refused
    new = desk.ask(5, client=b"new")
    assert sorted(desk.refused) == [595, 596, 597, 598, 599, 600]
    assert all(isinstance(error, ResourceExhausted) for error in desk.refused.values())
    assert desk.refused[599].message == "queue of m:1 is full: 600 rows wait, max_queue_rows is 600"
    desk.serve()
    assert set(new) < set(desk.answered)
    desk.is_square()


def test_at_a_full_queue_a_lower_priority_makes_room() -> None:
    desk = Desk(make_spec(max_queue_rows=10, fair=False))
    desk.ask(10)
    desk.ask(3, priority=1)
    assert sorted(desk.refused) == [7, 8, 9]
    desk.ask(2)
    assert sorted(desk.refused) == [7, 8, 9, 13, 14]
    desk.ask(9, priority=1)
    assert sorted(desk.refused) == [*range(10), 13, 14, 22, 23]
    desk.serve()
    desk.is_square()
