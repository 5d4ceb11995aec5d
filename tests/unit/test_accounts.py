"""What clients have with the pool: three limits, and books that balance."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler.accounts import Account, Accounts, Limits
from tfpool.scheduler.backlog import Backlog
from tfpool.scheduler.work import BatchPolicy, Input, QueueSpec, Segment
from tfpool.types import ModelKey

CLIENTS = (b"a", b"b")


def make(client: bytes = b"a", requests: int = 1, rows: int = 1, row_bytes: int = 10, first: int = 0) -> Segment:
    return Segment(client, first, requests, rows, 9.0, 0.0, (), row_bytes=row_bytes)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(client_rows=10), "a client may have 10 rows with the pool, this one has 6"),
        (Limits(client_bytes=100), "a client may have 100 bytes with the pool, this one has 60"),
        (Limits(total_bytes=110), "requests of 70 bytes wait, queue_budget is 110"),
    ],
)
def test_what_is_too_much_is_not_taken_in(limits: Limits, why: str) -> None:
    accounts = Accounts(limits)
    assert accounts.charge(make(b"b")) == ""
    assert accounts.charge(make(b"a", 3, 2)) == ""
    too_much = make(b"a", 5)
    assert accounts.charge(too_much) == why
    assert too_much.account is None
    accounts.clear(too_much)
    assert (accounts.rows(), accounts.nbytes) == (7, 70)
    assert accounts.charge(make(b"a", 4)) == "", "as much as is allowed"


def test_one_client_does_not_use_up_the_share_of_another() -> None:
    accounts = Accounts(Limits(client_rows=10, client_bytes=100))
    for client in CLIENTS:
        assert accounts.charge(make(client, 10)) == ""
        assert accounts.charge(make(client)) != ""


def test_what_lies_in_a_clients_own_memory_is_no_bytes() -> None:
    accounts = Accounts(Limits(client_bytes=0, total_bytes=0))
    assert accounts.charge(make(row_bytes=0)) == ""


def test_a_client_that_is_gone_and_comes_back_starts_anew() -> None:
    accounts = Accounts(Limits(client_rows=10))
    before, after = make(requests=10), make(requests=10)
    accounts.charge(before)
    accounts.forget(b"a")
    assert accounts.nbytes == 100, "its requests are still held"
    assert accounts.charge(after) == ""
    accounts.clear(before)
    assert (after.account, accounts.nbytes) == (Account(10, 100), 100)


def test_clients_that_left_without_a_word_are_forgotten() -> None:
    accounts = Accounts(Limits(client_rows=1))
    staying = make(b"stays")
    accounts.charge(staying)
    for number in range(10_000):
        segment = make(b"%d" % number)
        assert accounts.charge(segment) == ""
        accounts.clear(segment)
    assert len(accounts._clients) <= 1025
    assert accounts.charge(make(b"stays")) != ""
    assert accounts.rows() == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "take", "cut", "cancel", "gone", "answer"]),
        st.sampled_from(CLIENTS),
        st.integers(1, 20),
        st.integers(1, 3),
        st.sampled_from([0, 7]),
    ),
    max_size=30,
)


@given(STEPS)
def test_the_books_balance(steps: list[tuple[str, bytes, int, int, int]]) -> None:
    """Of what waits and of what runs, however it was cut."""
    accounts, backlog, numbers = Accounts(Limits()), Backlog(), count()
    spec = QueueSpec(0, ModelKey("m", 1), 0, (Input((1,), 4, False),), True, True, True, BatchPolicy())
    queue = backlog.open(spec)
    running: list[Segment] = []
    for step, client, many, rows, row_bytes in steps:
        answered: list[Segment] = []
        if step == "push":
            segment = make(client, many, rows, row_bytes, next(numbers) * 100)
            assert accounts.charge(segment) == ""
            queue.push(segment)
            backlog.wake(queue)
        elif step == "take" and queue.segments:
            running += queue.take(many)
        elif step == "cut" and queue.segments:
            answered.append(queue.cut_tail(many))
        elif step == "cancel":
            answered += [s for _, gone in backlog.cancelled(client, [(many * 10, 100 * rows)]) for s in gone]
        elif step == "gone":
            answered += [s for _, gone in backlog.of_client(client) for s in gone]
        elif step == "answer" and running:
            answered.append(running.pop(many % len(running)))
        for segment in answered:
            accounts.clear(segment)
        held = [*queue.segments, *running]
        assert accounts.rows() == sum(s.count * s.rows for s in held)
        assert accounts.nbytes == sum(s.count * s.rows * s.row_bytes for s in held)
        for segment in held:
            mine = [s for s in held if s.client == segment.client]
            expected = Account(sum(s.count * s.rows for s in mine), sum(s.count * s.rows * s.row_bytes for s in mine))
            assert segment.account == expected
