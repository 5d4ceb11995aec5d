"""The scheduler through its one door: small scenes with named workers, in virtual time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tfpool.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TfpoolError,
    Unavailable,
)
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Limits
from tfpool.scheduler.comeback import MAX_LONE_DEATHS
from tfpool.scheduler.core import LEAD, LONG_RUN, SHARED_RUN, SHARED_SECONDS, Scheduler
from tfpool.scheduler.curves import Point
from tfpool.scheduler.staff import CREDITS, NARROW
from tfpool.scheduler.work import NEVER, Batch, BatchPolicy, Input, QueueSpec, Segment
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey
from tfpool.wire.messages import Region

Points = Sequence[tuple[int, float]]
FLAT = [(1, 0.010), (64, 0.010)]
LINEAR = [(1, 0.002), (64, 0.065)]
"""A millisecond, and one more a row."""
BAD = InvalidArgument("bad")


def make_spec(number: int = 0, name: str = "m", batchable: bool = True, retry: bool = True, **policy: Any) -> QueueSpec:
    inputs = (Input((1,), 4, False),)
    return QueueSpec(number, ModelKey(name, 1), 0, inputs, True, batchable, retry, BatchPolicy(**policy))


class Desk:
    """Workers that serve all of ``specs``, whose runs are known to take what ``points`` say. Time stands still until
    something runs. ``answered`` are requests in that order, ``refused`` those with an error."""

    def __init__(
        self,
        *specs: QueueSpec,
        workers: str = "w",
        points: Points = (),
        limits: Limits | None = None,
        narrow: int = NARROW,
        arena: int = 1 << 22,
    ) -> None:
        self.scheduler = Scheduler(Layout(arena), limits, narrow)
        self.specs = specs
        self.now = 100.0
        self.batches: dict[str, deque[Batch]] = {}
        self.lives: Counter[str] = Counter()
        self.answered: list[int] = []
        self.refused: dict[int, TfpoolError] = {}
        self.sent: list[Batch] = []
        self._next = 0
        for name in workers:
            self.join(name)
            for spec in specs if points else ():
                self.tell(ev.Measured(spec.servable, name, [[Point(*point) for point in points]]))

    def tell(self, event: ev.Event) -> None:
        """Something happens; what follows from it is noted."""
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, ev.Dispatch):
                assert len({piece.deaths for piece in action.batch.pieces}) == 1, "suspects run with others"
                self.sent.append(action.batch)
                self.batches[action.batch.worker].append(action.batch)
            elif isinstance(action, ev.Deliver):
                for piece in action.batch.pieces:
                    join = piece.join
                    if join is None:
                        self.answered += numbers_of(piece)
                    elif not join.failed:
                        join.answered += piece.count
                        self.answered += [join.request] if join.answered == join.rows else []
            else:
                for segment in action.segments:
                    for number in numbers_of(segment):
                        assert number not in self.refused, "refused once"
                        self.refused[number] = action.error
        assert not set(self.answered) & set(self.refused)
        assert len(set(self.answered)) == len(self.answered)

    # -- clients -----------------------------------------------------------------------------------------------

    def ask(
        self, count: int = 1, *, of: QueueSpec | None = None, client: bytes = b"c", within: float = NEVER, **more: Any
    ) -> range:
        """Requests of ``rows`` rows each come in, with ``within`` seconds; their numbers."""
        first, self._next = self._next, self._next + count
        fields: dict[str, Any] = {"rows": 1, "buffers": (), "row_bytes": 4} | more
        segment = Segment(client, first, count, deadline=self.now + within, arrived=self.now, **fields)
        self.tell(ev.Submit(of or self.specs[0], segment))
        return range(first, first + count)

    def in_place(self, count: int = 1, rows: int = 1) -> range:
        """Requests that lie in their client's memory, with room for their answers."""
        first = self._next
        for _ in range(count):
            self.ask(rows=rows, regions=(Region(4096, 1 << 20),), reply=Region(8192, 4096))
        return range(first, first + count)

    # -- workers -----------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        self.lives[name] += 1
        self.batches[name] = deque()
        self.tell(ev.WorkerJoined(name, self.holder(name)))
        for spec in self.specs:
            self.tell(ev.Routed(spec.servable, name))

    def holder(self, name: str) -> tuple[str, int]:
        return name, self.lives[name]

    def turn(self) -> list[list[int]]:
        """The requests of each batch that leaves now."""
        before = len(self.sent)
        self.tell(ev.Turn())
        return [requests_of(batch) for batch in self.sent[before:]]

    def end(self, name: str = "w", seconds: float = 0.010, after: float | None = None) -> Batch:
        """A worker's run ends, ``after`` that time or as soon as it took ``seconds``."""
        self.now += seconds if after is None else after
        batch = self.batches[name].popleft()
        self.tell(ev.Completed(name, batch.id, seconds, 64 * batch.padded))
        return batch

    def fail(self, name: str = "w", error: TfpoolError = BAD) -> None:
        self.tell(ev.Broken(name, self.batches[name].popleft().id, 0.001, error))

    def late(self, name: str = "w") -> None:
        self.tell(ev.Late(name, self.batches[name].popleft().id))

    def kill(self, name: str = "w", guilty: bool = True) -> None:
        """A worker dies, and another takes its place."""
        holder = self.holder(name)
        self.tell(ev.WorkerLost(name, "signal 9"))
        self.tell(ev.WorkerReaped(holder, guilty))
        self.join(name)

    def serve(self, killers: Iterable[int] = (), poison: Iterable[int] = (), seconds: float = 0.010) -> int:
        """Let all workers run what there is, until nothing is left; how often one died."""
        deaths, killers, poison = 0, set(killers), set(poison)
        self.turn()
        while busy := [name for name, batches in self.batches.items() if batches]:
            for name in busy:
                requests = set(requests_of(self.batches[name][0]))
                if requests & killers:
                    deaths += 1
                    assert deaths < 100, "it goes on and on"
                    self.kill(name)
                elif requests & poison:
                    self.fail(name)
                else:
                    self.end(name, seconds)
            self.turn()
        return deaths

    def is_square(self) -> None:
        """Nothing waits, runs or is charged to anybody."""
        accounts, layout = self.scheduler.accounts, self.scheduler.layout
        assert (self.scheduler.waiting_rows(), accounts.rows(), accounts.nbytes) == (0, 0, 0)
        assert (layout.leased_bytes, layout.quarantined_bytes) == (0, 0)
        assert all(not queue.held for queue in self.scheduler.backlog.queues.values())


def numbers_of(segment: Segment) -> list[int]:
    return list(range(segment.first, segment.first + segment.count))


def requests_of(batch: Batch) -> list[int]:
    return [n for p in batch.pieces for n in ([p.join.request] * p.count if p.join else numbers_of(p))]


# -- who goes first ------------------------------------------------------------------------------------------------


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


# -- how large a batch is ------------------------------------------------------------------------------------------

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


# -- deadlines -----------------------------------------------------------------------------------------------------


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


# -- admission -----------------------------------------------------------------------------------------------------


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


# -- limits of clients, and the way out -----------------------------------------------------------------------------


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


# -- what is staged ------------------------------------------------------------------------------------------------


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


# -- suspects ------------------------------------------------------------------------------------------------------


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


# -- wide routes ---------------------------------------------------------------------------------------------------


def test_on_a_wide_route_one_row_goes_to_one_worker_and_many_to_all() -> None:
    desk = Desk(make_spec(), workers="abcde", points=FLAT, narrow=2)
    desk.ask()
    assert desk.turn() == [[0]]
    desk.ask(8)
    assert [len(batch) for batch in desk.turn()] == [2, 2, 2, 2]
    assert {batch.worker for batch in desk.sent} == set("abcde")
    desk.ask(3)
    assert desk.turn() == []
    desk.end("d")
    assert desk.turn() == [[9, 10, 11]]
    assert desk.sent[-1].worker == "d"


@pytest.mark.parametrize("seed", range(10))
def test_on_wide_routes_nobody_idles_while_something_waits(seed: int) -> None:
    """Whatever comes between: drained, lost and unrouted workers, of two models that not all of them serve."""
    random = Random(seed)
    specs = [make_spec(0, "one", max_rows=3), make_spec(1, "two", max_rows=2, priority=random.randint(0, 1))]
    desk = Desk(*specs, workers="abcde", points=random.choice([FLAT, [(1, 0.0005), (64, 0.0005)], ()]), narrow=2)
    draining: set[str] = set()
    closed: set[tuple[str, str]] = set()
    for _ in range(120):
        name, spec = random.choice("abcde"), random.choice(specs)
        step = random.choice(["ask", "ask", "ask", "end", "end", "end", "drain", "die", "route"])
        if step == "ask":
            desk.ask(random.randint(1, 7), of=spec, priority=random.randint(0, 1), within=random.choice([0.02, 9.0]))
        elif step == "end" and desk.batches[name]:
            desk.end(name, after=random.choice([0.0, 0.003, 0.01]))
        elif step == "drain":
            draining ^= {name}
            desk.tell(ev.Drain(name, name in draining))
        elif step == "die":
            desk.kill(name)
            draining.discard(name)
            closed = {place for place in closed if place[0] != name}
        elif step == "route":
            place = (name, spec.servable.name)
            closed ^= {place}
            desk.tell(ev.Unrouted(spec.servable, name) if place in closed else ev.Routed(spec.servable, name))
        if random.random() < 0.7:
            desk.turn()
            for queue in desk.scheduler.backlog.waiting():
                for worker, batches in desk.batches.items():
                    idle = not batches and worker not in draining
                    assert not idle or (worker, queue.spec.servable.name) in closed, f"{worker} idles"


@pytest.mark.parametrize("leaves", ["drained", "unrouted", "lost"])
def test_when_the_worker_that_was_told_cannot_another_takes_it(leaves: str) -> None:
    desk = Desk(make_spec(), workers="abcde", points=FLAT, narrow=2)
    desk.ask()
    if leaves == "drained":
        desk.tell(ev.Drain("a", True))
    elif leaves == "unrouted":
        desk.tell(ev.Unrouted(desk.specs[0].servable, "a"))
    else:
        desk.tell(ev.WorkerLost("a", "signal 9"))
    assert desk.turn() == [[0]]
    assert desk.sent[0].worker == "b"


# -- what is known of runs -----------------------------------------------------------------------------------------


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
