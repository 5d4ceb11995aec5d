"""The workers: who is told that something waits, and who takes it when that one cannot."""

from __future__ import annotations

from itertools import count

import pytest

from tfpool.scheduler.backlog import Backlog
from tfpool.scheduler.sizing import plan
from tfpool.scheduler.staff import CREDITS, Staff, Worker
from tfpool.scheduler.work import NEVER, BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

M, N = ModelKey("m", 1), ModelKey("n", 1)
NARROW = 2


class Office:
    """A staff of workers that all serve ``m`` and ``n``, and what there is to do."""

    def __init__(self, workers: str, narrow: int = NARROW) -> None:
        self.backlog = Backlog()
        self.staff = Staff(self.backlog, narrow)
        self.numbers = count()
        for name in workers:
            self.staff.join(name, name)
        for servable in (M, N):
            for name in workers:
                self.staff.route(servable, name)
        self.queues = {key: self.backlog.open(_spec(i, key)) for i, key in enumerate((M, N))}

    def wait(self, rows: int = 1, servable: ModelKey = M, priority: int = 0) -> Queue:
        """Requests come in."""
        queue = self.queues[servable]
        queue.push(Segment(b"c", next(self.numbers), rows, 1, NEVER, 0.0, (), priority))
        self.staff.wake(queue)
        return queue

    def take(self, name: str, rows: int = 1, servable: ModelKey = M) -> None:
        """A worker takes a batch, as the scheduler has it done."""
        worker, queue = self.staff.workers[name], self.queues[servable]
        batch = plan(next(self.numbers), queue, name, queue.take(rows), None, False, 0.0)
        worker.batches[batch.id] = batch
        worker.turns.start(servable.name, 0.0, self.backlog.level(servable.name))
        if not queue.segments:
            self.staff.rest(queue)
        self.staff.busy(worker)

    def end(self, name: str) -> None:
        """A worker has done all that it had."""
        worker = self.staff.workers[name]
        worker.batches.clear()
        self.staff.idle(worker)

    def told(self) -> list[str]:
        """Who is looked at in the next turn, and finds something."""
        return [worker.name for worker in self.staff.turn(0.0) if worker.turns.first() is not None]


def _spec(number: int, servable: ModelKey) -> QueueSpec:
    return QueueSpec(number, servable, 0, (Input((1,), 4, False),), True, True, True, BatchPolicy())


# -- who is told ---------------------------------------------------------------------------------------------------


def test_where_they_are_few_all_are_told() -> None:
    office = Office("ab")
    office.wait()
    assert office.told() == ["a", "b"]
    assert office.told() == [], "once"


@pytest.mark.parametrize(("rows", "told"), [(1, "a"), (2, "ab"), (9, "abcde")])
def test_where_they_are_many_as_many_are_told_as_there_are_rows(rows: int, told: str) -> None:
    office = Office("abcde")
    office.wait(rows)
    assert office.told() == list(told)


def test_only_those_that_are_idle_are_told() -> None:
    office = Office("abc")
    office.wait()
    office.take("a")
    office.told()
    office.wait()
    assert office.told() == ["b"]


def test_who_falls_idle_looks_for_himself() -> None:
    office = Office("abc")
    office.wait(3)
    for name in "abc":
        office.take(name)
    office.told()
    office.wait(2)
    assert office.told() == []
    office.end("b")
    assert office.staff.workers["b"].turns.first() == "m"
    assert office.staff.workers["a"].turns.first() is None


def test_of_two_models_each_has_somebody() -> None:
    """The first idle worker is told of both; when it takes one, the next is told of the other."""
    office = Office("abc")
    office.wait(servable=M)
    office.wait(servable=N)
    assert office.told() == ["a"]
    office.take("a", servable=M)
    assert office.told() == ["b"]
    assert office.staff.workers["b"].turns.first() == "n"


@pytest.mark.parametrize("leaves", ["drained", "lost", "unrouted"])
def test_when_the_one_that_was_told_cannot_another_is(leaves: str) -> None:
    office = Office("abc")
    office.wait()
    if leaves == "drained":
        office.staff.drain(office.staff.workers["a"], True)
    elif leaves == "lost":
        assert office.staff.lose("a") is not None
    else:
        office.staff.unroute(M, "a")
    assert "b" in office.told()


def test_what_comes_while_a_worker_is_drained_is_there_when_it_is_back() -> None:
    office = Office("abc")
    for name in "abc":
        office.staff.drain(office.staff.workers[name], True)
    office.wait(5)
    assert office.staff.turn(0.0) == []
    office.staff.drain(office.staff.workers["c"], False)
    assert office.told() == ["c"]


def test_a_drained_worker_that_runs_something_is_not_idle_when_it_is_back() -> None:
    office = Office("abc")
    office.wait()
    office.take("a")
    for draining in (True, False):
        office.staff.drain(office.staff.workers["a"], draining)
    office.told()
    office.wait(9)
    assert office.told() == ["b", "c"]


def test_a_route_that_has_become_wide_tells_the_idle() -> None:
    office = Office("ab")
    office.wait()
    office.take("a")
    office.staff.join("c", "c")
    office.staff.route(M, "c")
    office.told()
    office.wait()
    assert office.told() == ["b"]


def test_who_comes_finds_what_waits() -> None:
    office = Office("", narrow=1)
    office.wait(3)
    assert office.staff.turn(0.0) == []
    for name in "ab":
        office.staff.join(name, name)
        office.staff.route(M, name)
        assert name in office.told()


def test_a_route_may_be_told_twice() -> None:
    office = Office("abc")
    office.staff.route(M, "a")
    office.staff.unroute(M, "a")
    office.wait(servable=N)
    assert office.told() == ["a"]
    office.take("a", servable=N)
    office.end("a")
    queue = office.wait(9)
    assert queue.route is not None
    assert list(queue.route.workers) == ["b", "c"]
    assert office.told() == ["b", "c"]


@pytest.mark.parametrize("workers", ["ab", "abc"])
def test_when_nothing_waits_nobody_has_a_turn(workers: str) -> None:
    office = Office(workers)
    queue = office.wait(3)
    queue.take(3)
    office.staff.rest(queue)
    assert office.told() == []


def test_the_level_is_told() -> None:
    office = Office("ab")
    office.wait(servable=M)
    office.wait(servable=N, priority=1)
    assert [worker.turns.first() for worker in office.staff.turn(0.0)] == ["n", "n"]


# -- who is looked at, and when ------------------------------------------------------------------------------------


def test_those_with_the_least_to_do_are_looked_at_first() -> None:
    office = Office("abc", narrow=8)
    for name in "aab":
        office.wait()
        office.take(name)
    office.told()
    office.wait(2)
    assert len(office.staff.workers["a"].batches) == CREDITS
    assert office.told() == ["c", "b"]


def test_of_those_with_as_much_to_do_the_first_to_be_done_is_looked_at_first() -> None:
    """What it cannot do in time is dropped; so another must not be asked before."""
    office = Office("ab")
    office.wait(2)
    for name, busy_until in (("a", 2.0), ("b", 1.0)):
        office.take(name)
        office.staff.workers[name].busy_until = busy_until
    office.wait()
    assert office.told() == ["b", "a"]


def test_who_is_to_be_looked_at_later_is() -> None:
    office = Office("ab")
    a, b = (office.staff.workers[name] for name in "ab")
    assert office.staff.next_ripe == NEVER
    for worker, when in ((a, 3.0), (a, 2.0), (a, 5.0), (b, 4.0)):
        office.staff.ripen(worker, when)
    looked: list[tuple[float, list[Worker]]] = []
    while office.staff.next_ripe < NEVER:
        when = office.staff.next_ripe
        looked.append((when, office.staff.turn(when)))
    assert [(when, found) for when, found in looked if found] == [(2.0, [a]), (4.0, [b])]


def test_who_found_no_room_is_looked_at_when_there_is_some() -> None:
    office = Office("ab")
    worker = office.staff.workers["b"]
    office.staff.starved["b"] = worker
    assert office.staff.turn(0.0) == []
    office.staff.feed_starved()
    assert office.staff.turn(0.0) == [worker]


def test_a_lost_worker_is_not_looked_at() -> None:
    office = Office("ab")
    office.wait()
    office.staff.ripen(office.staff.workers["a"], 1.0)
    office.staff.starved["a"] = office.staff.workers["a"]
    assert office.staff.lose("a") is not None
    assert office.staff.lose("a") is None
    office.staff.feed_starved()
    assert [worker.name for worker in office.staff.turn(2.0)] == ["b"]


# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [8, 2])
def test_what_waits_is_shared_among_the_idle(narrow: int) -> None:
    office = Office("abcd", narrow)
    staff = office.staff
    queue = office.wait(20)
    assert staff.sharers(queue) == 4
    office.take("a")
    staff.drain(staff.workers["b"], True)
    assert staff.sharers(queue) == 2
    staff.unroute(M, "d")
    assert staff.sharers(queue) == 1
    office.take("c")
    assert staff.sharers(queue) == 1, "nobody is idle"


def test_where_nobody_serves_it_there_is_nobody_to_share_with() -> None:
    office = Office("")
    assert office.staff.sharers(office.wait()) == 1
