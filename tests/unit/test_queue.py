"""A queue: who goes first, and that nothing is lost whatever is cut, put back or taken out."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler.work import LEAST_QUANTUM, NEVER, BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

FLOOD, NEW = b"flood", b"newcomer"


def make_queue(max_rows: int = 64, fair: bool = True, priority: int = 0, max_queue_rows: int = 16384) -> Queue:
    policy = BatchPolicy(max_rows=max_rows, fair=fair, priority=priority, max_queue_rows=max_queue_rows)
    return Queue(QueueSpec(0, ModelKey("m", 1), 0, (Input((1,), 4, False),), True, True, True, policy))


def make(first: int, requests: int = 1, rows: int = 1, **more: object) -> Segment:
    fields: dict[str, object] = {"client": b"c", "deadline": NEVER, "arrived": 0.0, "buffers": ()} | more
    return Segment(first=first, count=requests, rows=rows, **fields)  # type: ignore[arg-type]


def order(queue: Queue) -> list[int]:
    """The first requests of what waits, to the last."""
    found = []
    while queue.segments:
        found.append(queue.take_one().first)
    return found


# -- the order -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(1, 5)), max_size=30), st.booleans())
def test_priority_then_deadline_then_arrival(requests: list[tuple[int, int]], fair: bool) -> None:
    queue = make_queue(fair=fair)
    for number, (priority, deadline) in enumerate(requests):
        queue.push(make(number, priority=priority, deadline=float(deadline)))
    expected = sorted(range(len(requests)), key=lambda n: (-requests[n][0], requests[n][1], n))
    assert order(queue) == expected


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(1, 5), st.integers(0, 2), st.integers(0, 1)), max_size=30))
def test_what_comes_back_goes_first(requests: list[tuple[int, int, int, int]]) -> None:
    """Suspects and halves before all others, and what was not begun before others of its rank; the last is first."""
    queue = make_queue()
    numbered = list(enumerate(requests))
    for number, (priority, deadline, _, _) in numbered[::2]:
        queue.push(make(number, priority=priority, deadline=float(deadline)))
    for number, (priority, deadline, deaths, limit) in numbered[1::2]:
        queue.push_back(make(number, priority=priority, deadline=float(deadline), deaths=deaths, limit=limit))

    def place(n: int) -> tuple[bool, int, int, int]:
        priority, deadline, deaths, limit = requests[n]
        returned = n % 2 == 1
        return not (returned and (deaths or limit)), -priority, deadline, -n if returned else n

    assert order(queue) == sorted(range(len(requests)), key=place)


def test_the_level_is_that_of_the_head() -> None:
    queue = make_queue(priority=5)
    queue.push(make(0))
    assert queue.level == 5
    queue.push(make(1, priority=2))
    assert queue.level == 7


# -- fair among clients --------------------------------------------------------------------------------------------


def rounds(queue: Queue) -> list[tuple[bytes, int, int]]:
    return [(segment.client, segment.round, segment.count * segment.rows) for segment in queue.segments]


def test_what_a_client_has_beyond_a_few_batches_is_for_later_rounds() -> None:
    queue = make_queue()
    assert queue.quantum == 256
    queue.push(make(0, 600, client=FLOOD, deadline=1.0))
    queue.push(make(600, 10, client=NEW, deadline=9.0))
    assert rounds(queue) == [(FLOOD, 0, 256), (NEW, 0, 10), (FLOOD, 1, 256), (FLOOD, 2, 88)]
    queue.push(make(610, 200, client=FLOOD, deadline=1.0))
    assert rounds(queue)[-2:] == [(FLOOD, 2, 168), (FLOOD, 3, 32)]
    assert [segment.first for segment in queue.segments] == [0, 600, 256, 512, 610, 778]


def test_where_the_queue_is_not_fair_only_deadlines_count() -> None:
    queue = make_queue(fair=False)
    queue.push(make(0, 600, client=FLOOD, deadline=1.0))
    queue.push(make(600, 10, client=NEW, deadline=9.0))
    assert rounds(queue) == [(FLOOD, 0, 600), (NEW, 0, 10)]
    assert queue.held == {}


@pytest.mark.parametrize(
    ("max_rows", "max_queue_rows", "rows"), [(64, 16384, 256), (1000, 16384, 4000), (1000, 4000, 1000), (1, 9, 16)]
)
def test_a_round_is_some_batches_and_less_than_the_queue(max_rows: int, max_queue_rows: int, rows: int) -> None:
    assert make_queue(max_rows=max_rows, max_queue_rows=max_queue_rows).quantum == max(rows, LEAST_QUANTUM)


def test_a_large_request_is_not_cut() -> None:
    queue = make_queue()
    queue.push(make(0, 3, rows=200, client=FLOOD))
    assert rounds(queue) == [(FLOOD, 0, 200), (FLOOD, 0, 200), (FLOOD, 1, 200)]


@given(st.integers(1, 4000), st.integers(0, 60), st.integers(1, 100), st.integers(0, 300))
def test_a_newcomer_waits_for_one_round_of_a_flood(flood: int, batches: int, mine: int, more: int) -> None:
    """Whatever of it has left already, and though its deadlines are earlier."""
    queue = make_queue()
    queue.push(make(0, flood, client=FLOOD, deadline=1.0))
    for _ in range(batches):
        if queue.rows > 64:
            queue.take(64)
    queue.push(make(flood, mine, client=NEW, deadline=9.0))
    if more:
        queue.push(make(flood + mine, more, client=FLOOD, deadline=0.5))
    before = 0
    for segment in queue.segments:
        if segment.client == NEW:
            break
        before += segment.count * segment.rows
    assert before <= queue.quantum


def test_among_returned_requests_the_round_is_that_of_the_others() -> None:
    queue = make_queue()
    queue.push(make(0, 600, client=FLOOD))
    suspects = queue.take(300)
    for piece in reversed(suspects):
        piece.deaths = 1
        queue.push_back(piece)
    newcomer = make(600, client=NEW)
    assert queue.round_of(newcomer) == 1
    queue.push(newcomer)
    assert rounds(queue) == [(FLOOD, 0, 256), (FLOOD, 1, 44), (FLOOD, 1, 212), (NEW, 1, 1), (FLOOD, 2, 88)]


# -- cutting -------------------------------------------------------------------------------------------------------


def test_a_batch_takes_what_fits_and_one_request_at_least() -> None:
    queue = make_queue()
    queue.push(make(0, 2, rows=3, deadline=1.0))
    queue.push(make(2, 4, rows=2, deadline=2.0))
    assert [(p.first, p.count, p.start) for p in queue.take(11)] == [(0, 2, 0), (2, 2, 0)]
    assert queue.rows == 4
    assert [(p.first, p.count, p.start) for p in queue.take(1)] == [(4, 1, 2)]
    assert queue.rows == 2


def test_a_request_that_does_not_fit_is_not_passed_over() -> None:
    queue = make_queue()
    queue.push(make(0, rows=2, deadline=1.0))
    queue.push(make(1, rows=9, deadline=2.0))
    queue.push(make(2, rows=1, deadline=3.0))
    assert [p.first for p in queue.take(8)] == [0]


def test_suspects_stay_among_themselves() -> None:
    queue = make_queue()
    for number, deaths in enumerate((0, 1, 1, 2)):
        queue.push_back(make(number, deaths=deaths, deadline=float(-deaths)))
    batches = []
    while queue.segments:
        batches.append([p.first for p in queue.take(64)])
    assert batches == [[3], [2, 1], [0]]


def test_what_comes_back_has_its_deadline_still() -> None:
    queue = make_queue()
    queue.push_back(make(0, deadline=5.0))
    queue.push_back(make(1, deadline=7.0))
    assert queue.earliest == 5.0


@pytest.mark.parametrize(("rows", "kept", "cut"), [(1, 4, 1), (2, 4, 1), (3, 3, 2), (10, 0, 5), (99, 0, 5)])
def test_the_tail_is_cut_in_whole_requests(rows: int, kept: int, cut: int) -> None:
    queue = make_queue()
    queue.push(make(0, 5, rows=2, deadline=1.0))
    tail = queue.cut_tail(rows)
    assert (tail.first, tail.count) == (kept, cut)
    assert [(s.first, s.count) for s in queue.segments] == ([(0, kept)] if kept else [])
    assert queue.rows == queue.held.get(b"c", 0) == 2 * kept


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "take", "take one", "cut", "back"]),
        st.integers(1, 300),
        st.integers(1, 5),
        st.sampled_from([FLOOD, NEW]),
        st.integers(0, 1),
        st.integers(1, 3),
    ),
    max_size=25,
)


@given(MOVES, st.booleans())
def test_whatever_happens_nothing_is_lost(moves: list[tuple[str, int, int, bytes, int, int]], fair: bool) -> None:
    queue, numbers = make_queue(fair=fair), count()
    away: list[Segment] = []
    outside: Counter[int] = Counter()
    pushed: Counter[int] = Counter()
    for move, many, rows, client, priority, deadline in moves:
        if move == "push":
            first = next(numbers) * 1000
            segment = make(first, many, rows, client=client, priority=priority, deadline=float(deadline))
            begins = queue.round_of(segment)
            queue.push(segment)
            pushed.update(range(first, first + many))
            assert next(s.round for s in queue.segments if s.first == first) == begins
        elif move == "back" and away:
            piece = away.pop()
            piece.deaths += priority
            queue.push_back(piece)
            outside.subtract(numbers_of(piece))
        elif queue.segments and move != "back":
            room = many
            if move == "take":
                taken = queue.take(room)
                assert sum(p.count * p.rows for p in taken) <= max(room, taken[0].rows)
            else:
                taken = [queue.take_one() if move == "take one" else queue.cut_tail(room)]
            away += taken
            for piece in taken:
                outside.update(numbers_of(piece))
        inside = Counter(number for segment in queue.segments for number in numbers_of(segment))
        assert inside + outside == pushed
        held: Counter[bytes] = Counter()
        for segment in queue.segments:
            held[segment.client] += segment.count * segment.rows
        assert queue.rows == sum(held.values())
        assert queue.held == (held if fair else {})
        ranks = [segment.rank for segment in queue.segments]
        assert ranks == sorted(ranks)
        assert queue.earliest <= min((s.deadline for s in queue.segments), default=NEVER)


def numbers_of(segment: Segment) -> range:
    return range(segment.first, segment.first + segment.count)
