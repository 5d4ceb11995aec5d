"""What the scheduler moves: segments of requests, the queues they wait in, the batches they leave in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfpool.shm.layout import Lease
from tfpool.types import ModelKey, Shape

WorkerName = str
BatchId = int


class BatchPolicy(NamedTuple):
    """Limits of a model's batches and queues; sizes are rows, times seconds."""

    max_rows: int = 64
    max_wait: float = 0.0
    sizes: tuple[int, ...] = ()
    pad: bool = True
    max_queue_rows: int = 16384
    weight: float = 1.0


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
    large request, and ``first`` counts its rows. ``limit``: at most so many rows in this one's batch (0: any).
    ``twin`` is whoever compares the answers with those of a copy; the scheduler only carries it along.
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
        )
        self.first += count
        self.start += count
        self.count -= count
        return part


@dataclass(slots=True)
class Queue:
    """Segments that may share batches, in order of arrival within a priority."""

    spec: QueueSpec
    segments: deque[Segment] = field(default_factory=deque)
    rows: int = 0
    earliest: float = float("inf")
    out_row_bytes: int = 0
    closing: bool = False

    def push(self, segment: Segment) -> None:
        segments = self.segments
        if segments and segments[-1].priority < segment.priority:
            at = len(segments)
            for other in reversed(segments):  # one that has come back to the head may be of lower priority
                if other.priority >= segment.priority:
                    break
                at -= 1
            segments.insert(at, segment)
        else:
            segments.append(segment)
        self.rows += segment.count * segment.rows
        if segment.deadline < self.earliest:
            self.earliest = segment.deadline

    def push_back(self, segment: Segment) -> None:
        """Return a segment to the head."""
        self.segments.appendleft(segment)
        self.rows += segment.count * segment.rows
        self.earliest = min(self.earliest, segment.deadline)

    def take(self, max_rows: int) -> list[Segment]:
        """Cut segments off the head, up to ``max_rows`` rows, one request at least."""
        segments, room = self.segments, max_rows
        taken: list[Segment] = []
        while segments:
            head = segments[0]
            fits = room // head.rows
            if fits == 0 and taken:
                break
            fits = max(fits, 1)
            if fits >= head.count:
                taken.append(segments.popleft())
            else:
                taken.append(head.take(fits))
            room -= taken[-1].count * head.rows
            if room <= 0:
                break
        self.rows -= max_rows - room
        return taken

    def take_one(self) -> Segment:
        """Cut one request off the head."""
        head = self.segments[0]
        self.rows -= head.rows
        return head.take(1) if head.count > 1 else self.segments.popleft()


class InputPlace(NamedTuple):
    """Where an input of a batch lies in its lease: offset of the rows, of the payload, and the payload's bytes."""

    offset: int
    payload: int
    payload_bytes: int


@dataclass(slots=True)
class Batch:
    """Requests on their way through a worker.

    ``alone``: one request that runs in place, on its client's own memory; ``lease`` is then for its outputs, if
    there is one at all. ``rows`` are real rows, the tensors have ``padded`` rows.
    """

    id: BatchId
    queue: Queue
    worker: WorkerName
    pieces: list[Segment]
    rows: int
    padded: int
    lease: Lease | None
    alone: bool
    inputs: tuple[InputPlace, ...]
    out_offset: int
    out_bytes: int
    sent: float
    thought: float = 0.0
    start_by: float = float("inf")
    requests: int = field(init=False)

    def __post_init__(self) -> None:
        self.requests = sum(piece.count for piece in self.pieces)

    @property
    def spec(self) -> QueueSpec:
        return self.queue.spec
