"""All queues: which of them have something waiting, and requests taken out of the middle."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler.backlog import EXPIRY_STEP, Backlog, explode
from tfpool.scheduler.work import NEVER, BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

CLIENTS = (b"a", b"b")


def make_spec(number: int = 0, name: str = "m", version: int = 1, priority: int = 0) -> QueueSpec:
    policy = BatchPolicy(priority=priority)
    return QueueSpec(number, ModelKey(name, version), 0, (Input((1,), 4, False),), True, True, True, policy)


def make(
    first: int, requests: int = 1, rows: int = 1, client: bytes = b"a", deadline: float = NEVER, priority: int = 0
) -> Segment:
    return Segment(client, first, requests, rows, deadline, 0.0, (), priority)


def push(backlog: Backlog, queue: Queue, *segments: Segment) -> None:
    for segment in segments:
        queue.push(segment)
    backlog.wake(queue)


def requests_of(segments: list[Segment]) -> list[tuple[bytes, int]]:
    return [(segment.client, segment.first + i) for segment in segments for i in range(segment.count)]


# -- what waits ----------------------------------------------------------------------------------------------------


def test_what_waits_by_model_and_by_servable() -> None:
    backlog = Backlog()
    old, new, other, idle = (
        backlog.open(make_spec(i, *key)) for i, key in enumerate([("m", 1), ("m", 2), ("n", 1), ("o", 1)])
    )
    for queue in (old, new, other):
        push(backlog, queue, make(0))
    assert backlog.of_model("m") == [*backlog.group("m").values()] == [old, new]
    assert backlog.of_servable(ModelKey("m", 2)) == [new]
    assert backlog.waiting() == [old, new, other]
    assert (backlog.group("o"), backlog.level("o")) == ({}, None)
    assert backlog.of_model("o") == backlog.of_servable(idle.spec.servable) == []
    assert not backlog.rest(new), "something waits in it"
    new.take(1)
    assert not backlog.rest(new), "something of its model waits"
    assert backlog.of_model("m") == [old]
    old.take(1)
    assert backlog.rest(old)
    assert backlog.waiting() == [other]


def test_the_level_of_a_model_is_its_best() -> None:
    backlog = Backlog()
    first, second = backlog.open(make_spec(0, priority=1)), backlog.open(make_spec(1, version=2, priority=3))
    push(backlog, first, make(0, priority=4))
    push(backlog, second, make(0))
    assert backlog.level("m") == 5
    first.take(1)
    assert backlog.level("m") == 3


def test_a_closed_queue_is_forgotten_once_it_is_empty() -> None:
    backlog = Backlog()
    empty, full = backlog.open(make_spec(0)), backlog.open(make_spec(1))
    push(backlog, full, make(0))
    for number in (0, 1, 7):
        backlog.close(number)
    assert backlog.queues == {1: full}
    taken = full.take(1)
    backlog.rest(full)
    assert backlog.queues == {}
    full.push_back(taken[0])
    backlog.wake(full)
    assert backlog.queues == {1: full}, "what returns from a dead worker lies in it"
    full.take(1)
    backlog.rest(full)
    assert backlog.queues == {}
    assert backlog.open(empty.spec) is not empty


# -- out of the middle ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(1, 6), st.integers(1, 3)), max_size=8),
    st.lists(st.tuples(st.integers(0, 45), st.integers(0, 12)), min_size=1, max_size=4),
)
def test_exactly_the_cancelled_are_taken_out(
    pushed: list[tuple[bytes, int, int]], ranges: list[tuple[int, int]]
) -> None:
    backlog, numbers = Backlog(), dict.fromkeys(CLIENTS, 0)
    queues = [backlog.open(make_spec(i)) for i in range(2)]
    for i, (client, many, rows) in enumerate(pushed):
        push(backlog, queues[i % 2], make(numbers[client], many, rows, client))
        numbers[client] += many
    before = [requests_of(list(queue.segments)) for queue in queues]
    gone = {queue.spec.id: requests_of(segments) for queue, segments in backlog.cancelled(b"a", ranges)}
    for i, queue in enumerate(queues):
        hit = [(c, n) for c, n in before[i] if c == b"a" and any(f <= n < f + many for f, many in ranges)]
        assert sorted(gone.get(i, [])) == sorted(hit)
        assert requests_of(list(queue.segments)) == [request for request in before[i] if request not in hit]
        assert queue.rows == sum(queue.held.values()) == sum(s.count * s.rows for s in queue.segments)


def test_a_cancelled_segment_keeps_its_place_in_the_buffers() -> None:
    backlog = Backlog()
    queue = backlog.open(make_spec())
    push(backlog, queue, make(10, 6))
    ((_, gone),) = backlog.cancelled(b"a", [(12, 2)])
    assert [(s.first, s.count, s.start) for s in gone] == [(12, 2, 2)]
    assert [(s.first, s.count, s.start) for s in queue.segments] == [(10, 2, 0), (14, 2, 4)]


def test_of_a_request_in_parts_all_that_waits_is_cancelled() -> None:
    backlog = Backlog()
    queue = backlog.open(make_spec())
    first, second = explode(make(5, 2, rows=600))
    push(backlog, queue, first, second)
    ((_, gone),) = backlog.cancelled(b"a", [(6, 1)])
    assert {id(s.join) for s in gone} == {id(second.join)}
    assert sum(s.count for s in gone) == queue.rows == 600
    assert all(s.join is first.join for s in queue.segments)


def test_of_a_client_that_is_gone_nothing_waits() -> None:
    backlog = Backlog()
    queue, other = backlog.open(make_spec(0)), backlog.open(make_spec(1))
    push(backlog, queue, make(0, 2), make(0, 3, client=b"b"), make(2))
    push(backlog, other, make(0, client=b"b"))
    ((found, gone),) = backlog.of_client(b"a")
    assert (found, requests_of(gone)) == (queue, [(b"a", 0), (b"a", 1), (b"a", 2)])
    assert requests_of(list(queue.segments)) == [(b"b", 0), (b"b", 1), (b"b", 2)]
    assert queue.held == {b"b": 3}


def test_requests_that_are_larger_than_a_batch_become_single_rows() -> None:
    segment = make(7, 2, rows=3)
    segment.start, segment.row_bytes = 4, 9
    parts = explode(segment)
    assert [(p.first, p.count, p.rows, p.start, p.row_bytes) for p in parts] == [(0, 3, 1, 12, 9), (0, 3, 1, 15, 9)]
    assert [(p.join.request, p.join.rows) for p in parts if p.join] == [(7, 3), (8, 3)]


# -- deadlines -----------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "take", "wait"]),
        st.integers(0, 1),
        st.integers(1, 3),
        st.integers(1, 30),
    ),
    max_size=30,
)


@given(EVENTS)
def test_nothing_waits_past_its_deadline(events: list[tuple[str, int, int, int]]) -> None:
    """Whoever looks when he was told to finds all that is late, and nothing else."""
    backlog, numbers, now = Backlog(), count(), 0.0
    queues = [backlog.open(make_spec(i)) for i in range(2)]
    for event, which, many, ticks in events:
        queue = queues[which]
        if event == "push":
            push(backlog, queue, make(next(numbers) * 10, many, deadline=now + ticks / 4))
        elif event == "take" and queue.segments:
            queue.take(many)
            backlog.rest(queue)
        elif event == "wait":
            until = now + ticks / 8
            while backlog.expiry <= until:
                now = max(now, backlog.expiry)
                _expire(backlog, now)
            now = until
        waiting = [s.deadline for q in queues for s in q.segments]
        assert backlog.expiry <= max(min(waiting, default=NEVER), now + EXPIRY_STEP)


def _expire(backlog: Backlog, now: float) -> None:
    for queue, gone in backlog.late(now):
        assert gone
        assert all(segment.deadline <= now < segment.deadline + 2 * EXPIRY_STEP for segment in gone)
        backlog.rest(queue)
    assert all(segment.deadline > now for queue in backlog.waiting() for segment in queue.segments)
    assert backlog.expiry > now


def test_a_queue_is_not_looked_through_too_often() -> None:
    """Though a deadline passes every 10 us."""
    backlog = Backlog()
    queue = backlog.open(make_spec())
    push(backlog, queue, *(make(i, deadline=1.0 + i * 1e-5) for i in range(1000)))
    looks = 0
    while queue.segments:
        list(backlog.late(backlog.expiry))
        looks += 1
    assert looks <= 12
