"""What the scheduler moves: segments of requests, the queues they wait in, the batches they leave in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tfpool.shm.layout import Lease
from tfpool.types import ModelKey, Shape

if TYPE_CHECKING:
    from tfpool.scheduler.accounts import Account
    from tfpool.scheduler.curves import Curve
    from tfpool.scheduler.staff import Route

WorkerName = str
BatchId = int
Rank = tuple[bool, int, int, float]
NEVER = float("inf")
LEAST_QUANTUM = 16


class BatchPolicy(NamedTuple):
    """Limits of a model's batches and queues; sizes are rows, times seconds.

    ``max_queue`` bounds the time that is thought to pass in the queue (0: the deadline does). ``fair``: see
    :attr:`Segment.round`. ``priority`` is the model's, to which that of a request is added between models.
    """

    max_rows: int = 64
    max_wait: float = 0.0
    sizes: tuple[int, ...] = ()
    pad: bool = True
    max_queue_rows: int = 16384
    weight: float = 1.0
    max_queue: float = 0.0
    fair: bool = True
    priority: int = 0


class Input(NamedTuple):
    """One input of a queue. ``row_bytes`` is of one row (of the whole tensor where rows do not batch);
    a ``text`` input has 4 bytes an element, and its payload apart."""

    shape: Shape
    row_bytes: int
    text: bool


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """What may share a batch: one servable, one signature, one set of inner shapes and dtypes.

    ``by_rows``: the shapes leave the rows out. ``batchable``: the signature's rows are known to be independent.
    ``retry``: a request may run again after a worker died under it.
    """

    id: int
    servable: ModelKey
    signature: int
    inputs: tuple[Input, ...]
    by_rows: bool
    batchable: bool
    retry: bool
    policy: BatchPolicy
    has_text: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_text", any(item.text for item in self.inputs))


@dataclass(slots=True)
class Join:
    """A request of more rows than a batch may hold: its parts are collected until all rows are there."""

    request: int
    rows: int
    answered: int = 0
    parts: dict[int, Any] = field(default_factory=dict)
    failed: bool = False


@dataclass(slots=True)
class Segment:
    """Requests ``first .. first + count - 1`` of one client, ``rows`` rows each, waiting as one.

    ``start`` is the index of the first request in the buffers, which the scheduler never looks into. ``payload``
    has, per text input, where the bytes of each row end. With a ``join``, the requests are the single rows of one
    large request, and ``first`` counts its rows. ``deaths`` counts the workers that died while running it,
    ``lone_deaths`` those that ran nothing else; ``limit``: at most so many rows in this one's batch (0: any). ``round``
    puts what a client has waiting beyond a few batches behind what others have. ``row_bytes`` of memory a row are held
    on ``account``. ``twin`` is whoever compares the answers with those of a copy; the scheduler only carries it along.
    """

    client: bytes
    first: int
    count: int
    rows: int
    deadline: float
    arrived: float
    buffers: Sequence[Any]
    priority: int = 0
    start: int = 0
    payload: tuple[list[int], ...] = ()
    regions: tuple[Any, ...] | None = None
    reply: Any = None
    join: Join | None = None
    deaths: int = 0
    limit: int = 0
    twin: Any = None
    round: int = 0
    row_bytes: int = 0
    account: Account | None = None
    lone_deaths: int = 0

    @property
    def rank(self) -> Rank:
        """Its place in a queue: what comes back from a worker goes first; then by priority, by round, by deadline."""
        return not (self.deaths or self.limit), -self.priority, self.round, self.deadline

    def take(self, count: int) -> Segment:
        """Cut the first ``count`` requests off."""
        part = Segment(
            self.client,
            self.first,
            count,
            self.rows,
            self.deadline,
            self.arrived,
            self.buffers,
            self.priority,
            self.start,
            self.payload,
            self.regions,
            self.reply,
            self.join,
            self.deaths,
            self.limit,
            self.twin,
            self.round,
            self.row_bytes,
            self.account,
            self.lone_deaths,
        )
        self.first += count
        self.start += count
        self.count -= count
        return part


@dataclass(slots=True)
class Queue:
    """Segments that may share batches, in order of their :attr:`Segment.rank`.

    ``held`` has the rows of each client, if the queue is fair among them; ``quantum`` rows make a round. ``curves``
    are those of the signature, by worker; ``route`` has the workers, while something waits. ``earliest`` is no later
    than the first deadline. ``paced`` rows have left in ``pacing`` seconds, the last at ``sent`` (monotonic seconds),
    without the queue being empty in between; ``gap`` seconds lay between the last two times.
    """

    spec: QueueSpec
    segments: deque[Segment] = field(default_factory=deque)
    rows: int = 0
    earliest: float = NEVER
    out_row_bytes: int = 0
    closing: bool = False
    curves: dict[WorkerName, Curve] = field(default_factory=dict)
    held: dict[bytes, int] = field(default_factory=dict)
    quantum: int = 0
    route: Route | None = None
    paced: float = 0.0
    pacing: float = 0.0
    sent: float = 0.0
    gap: float = 0.0

    def __post_init__(self) -> None:
        policy = self.spec.policy
        self.quantum = max(LEAST_QUANTUM, min(4 * policy.max_rows, policy.max_queue_rows // 4))

    @property
    def level(self) -> int:
        """The priority of the head against those of other models."""
        return self.spec.policy.priority + self.segments[0].priority

    def round_of(self, segment: Segment) -> int:
        """The round that a new segment begins in."""
        if not self.spec.policy.fair:
            return 0
        return self._round(segment.priority) + self.held.get(segment.client, 0) // self.quantum

    def _round(self, priority: int) -> int:
        """The round whose turn it is among requests of a priority."""
        segments = self.segments
        if not segments:
            return 0
        head = segments[0]
        if head.priority == priority and not (head.deaths or head.limit):
            return head.round
        at = bisect_left(segments, (True, -priority, -1, 0.0), key=_rank)
        return segments[at].round if at < len(segments) and segments[at].priority == priority else 0

    def push(self, segment: Segment) -> None:
        """A new segment, at its place: behind others of its rank. One of many rows may be cut into rounds."""
        if self.spec.policy.fair:
            held = self.held.get(segment.client, 0)
            begin = self._round(segment.priority)
            room = self.quantum - held % self.quantum
            while segment.count * segment.rows > room and segment.count > 1:
                part = segment.take(min(segment.count - 1, max(1, room // segment.rows)))
                part.round = begin + held // self.quantum
                held += part.count * part.rows
                self._insert(part)
                room = self.quantum - held % self.quantum
            segment.round = begin + held // self.quantum
            self.held[segment.client] = held + segment.count * segment.rows
        self._insert(segment)

    def _insert(self, segment: Segment) -> None:
        segments = self.segments
        if segments:
            last = segments[-1]
            like = last.priority == segment.priority and last.round == segment.round
            if (like and last.deadline <= segment.deadline) or last.rank <= segment.rank:
                segments.append(segment)
            else:
                segments.insert(bisect_right(segments, segment.rank, key=_rank), segment)
        else:
            segments.append(segment)
        self.rows += segment.count * segment.rows
        if segment.deadline < self.earliest:
            self.earliest = segment.deadline

    def push_back(self, segment: Segment) -> None:
        """What comes back from a worker, before others of its rank; it does not bring an earlier round back."""
        if self.spec.policy.fair and not (segment.deaths or segment.limit):
            segment.round = max(segment.round, self._round(segment.priority))
        self.segments.insert(bisect_left(self.segments, segment.rank, key=_rank), segment)
        rows = segment.count * segment.rows
        self.rows += rows
        self.earliest = min(self.earliest, segment.deadline)
        if self.spec.policy.fair:
            self.held[segment.client] = self.held.get(segment.client, 0) + rows

    def take(self, max_rows: int) -> list[Segment]:
        """Cut segments off the head, up to ``max_rows`` rows, one request at least.

        Those that workers have died of stay among themselves.
        """
        segments, room = self.segments, max_rows
        deaths = segments[0].deaths
        fair = self.spec.policy.fair
        taken: list[Segment] = []
        while segments:
            head = segments[0]
            fits = room // head.rows
            if (fits == 0 and taken) or head.deaths != deaths:
                break
            fits = max(fits, 1)
            if fits >= head.count:
                taken.append(segments.popleft())
            else:
                head = head.take(fits)
                taken.append(head)
            rows = head.count * head.rows
            room -= rows
            if fair:
                self._let_go(head.client, rows)
            if room <= 0:
                break
        self.rows -= max_rows - room
        return taken

    def take_one(self) -> Segment:
        """Cut one request off the head."""
        head = self.segments[0]
        taken = head.take(1) if head.count > 1 else self.segments.popleft()
        self.rows -= taken.rows
        if self.spec.policy.fair:
            self._let_go(taken.client, taken.rows)
        return taken

    def cut_tail(self, rows: int) -> Segment:
        """Cut requests of ``rows`` rows, if there are so many, off the last segment."""
        last = self.segments.pop()
        count = min(last.count, -(-rows // last.rows))
        if count < last.count:
            kept = last.take(last.count - count)
            self.segments.append(kept)
        cut = last.count * last.rows
        self.rows -= cut
        if self.spec.policy.fair:
            self._let_go(last.client, cut)
        return last

    def _let_go(self, client: bytes, rows: int) -> None:
        held = self.held[client] - rows
        if held:
            self.held[client] = held
        else:
            del self.held[client]


def _rank(segment: Segment) -> Rank:
    return segment.rank


class InputPlace(NamedTuple):
    """Where an input of a batch lies in its lease: offset of the rows, of the payload, and the payload's bytes."""

    offset: int
    payload: int
    payload_bytes: int


@dataclass(slots=True)
class Batch:
    """Requests on their way through a worker.

    ``alone``: one request that runs in place, on its client's own memory; ``lease`` is then for its outputs, if
    there is one at all. ``rows`` are real rows, the tensors have ``padded`` rows. The run is thought to take
    ``thought`` seconds; it must not begin after ``start_by``, and has ``begun`` once it is done (monotonic seconds).
    """

    id: BatchId
    queue: Queue
    worker: WorkerName
    pieces: list[Segment]
    requests: int
    rows: int
    padded: int
    lease: Lease | None
    alone: bool
    inputs: tuple[InputPlace, ...]
    out_offset: int
    out_bytes: int
    sent: float
    start_by: float
    thought: float = 0.0
    begun: float = 0.0

    @property
    def spec(self) -> QueueSpec:
        return self.queue.spec
