"""What clients may have with the pool, and that every way out clears it."""

from __future__ import annotations

from typing import Any

import pytest

from tfpool.errors import NotFound
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Limits
from tfpool.testing.desk import FLAT, Desk, make_spec


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(client_rows=10), "a client may have 10 rows with the pool, this one has 10"),
        (Limits(client_bytes=40), "a client may have 40 bytes with the pool, this one has 40"),
        (Limits(total_bytes=44), "requests of 44 bytes wait, queue_budget is 44"),
    ],
)
def test_what_a_client_may_have(limits: Limits, why: str) -> None:
    desk = Desk(make_spec(), limits=limits, points=FLAT)
    desk.ask(10)
    assert desk.ask(client=b"other")[0] not in desk.refused
    (number,) = desk.ask()
    assert desk.refused[number].message == why
    desk.turn()
    assert desk.ask()[0] in desk.refused, "what runs counts too"
    desk.end()
    assert desk.ask()[0] not in desk.refused
    desk.serve()
    desk.is_square()


def test_a_client_that_is_gone_and_comes_back_starts_anew() -> None:
    desk = Desk(make_spec(), limits=Limits(client_rows=2), points=FLAT)
    desk.ask(2)
    desk.turn()
    desk.tell(ev.ClientGone(b"c"))
    assert not set(desk.ask(2)) & set(desk.refused)
    desk.serve()
    desk.is_square()


def answer(desk: Desk) -> None:
    desk.serve()


def fail(desk: Desk) -> None:
    desk.serve(poison={0, 5, 11})


def quarantine(desk: Desk) -> None:
    desk.serve(killers={0})


def die_untried(desk: Desk) -> None:
    desk.turn()
    desk.kill(guilty=False)
    desk.serve()


def cancel(desk: Desk) -> None:
    desk.turn()
    desk.tell(ev.Cancel(b"c", [(0, 1000)]))
    desk.serve()


def leave(desk: Desk) -> None:
    desk.turn()
    desk.tell(ev.ClientGone(b"c"))
    desk.serve()


def leave_and_die(desk: Desk) -> None:
    desk.turn()
    desk.tell(ev.ClientGone(b"c"))
    desk.serve(killers={0, 1})


def expire(desk: Desk) -> None:
    desk.turn()
    desk.now += 99.0
    desk.serve()


def start_late(desk: Desk) -> None:
    desk.turn()
    desk.now += 99.0
    while desk.batches["w"]:
        desk.late()
    desk.serve()


def unload(desk: Desk) -> None:
    desk.turn()
    desk.tell(ev.ServableGone(desk.specs[0].servable, NotFound("unloaded")))
    desk.kill()
    desk.serve()


def unload_while_it_fails(desk: Desk) -> None:
    desk.turn()
    desk.tell(ev.ServableGone(desk.specs[0].servable, NotFound("unloaded")))
    while desk.batches["w"]:
        desk.fail()
    desk.serve()


def push_out(desk: Desk) -> None:
    desk.ask(30, client=b"better", priority=9)
    desk.serve()


WAYS = [
    answer,
    fail,
    quarantine,
    die_untried,
    cancel,
    leave,
    leave_and_die,
    expire,
    start_late,
    unload,
    unload_while_it_fails,
    push_out,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("retry", [True, False])
def test_whatever_becomes_of_it_nothing_is_left_on_its_account(way: Any, rows: int, retry: bool) -> None:
    """Of requests of one row, of some, and of more than a batch may hold."""
    desk = Desk(make_spec(max_rows=8, max_queue_rows=320, retry=retry), points=FLAT)
    asked = desk.ask(12, rows=rows, within=9.0)
    way(desk)
    desk.is_square()
    if way not in (leave, leave_and_die):
        assert sorted([*desk.answered, *desk.refused])[: len(asked)] == [*asked]


def test_a_head_that_never_fits_the_arena_is_refused() -> None:
    desk = Desk(make_spec(max_rows=4000), arena=1 << 12)
    (large,), (small,) = desk.ask(rows=2000), desk.ask()
    desk.serve()
    assert "needs 8000 bytes of shared memory; shm_budget allows 4096" in desk.refused[large].message
    assert desk.answered == [small]
    desk.is_square()


def test_who_found_no_room_in_the_arena_gets_it_when_a_run_ends() -> None:
    desk = Desk(make_spec(max_rows=1000, fair=False), workers="ab", arena=1 << 12)
    desk.ask(rows=800)
    desk.ask(rows=800)
    assert desk.turn() == [[0]]
    desk.end(desk.sent[0].worker)
    assert desk.turn() == [[1]]
    assert desk.sent[1].worker != desk.sent[0].worker
