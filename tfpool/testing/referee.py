"""The rules of the simulator's game: what the scheduler may do, checked after every event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tfpool.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tfpool.scheduler import events as ev
from tfpool.scheduler.backlog import EXPIRY_STEP
from tfpool.scheduler.core import MAX_DEATHS, Scheduler
from tfpool.scheduler.sizing import batches, input_bytes, output_bytes
from tfpool.scheduler.work import LEAST_QUANTUM, Batch, Queue, QueueSpec, Segment
from tfpool.shm.layout import Lease
from tfpool.types import ModelKey

CREDITS = 2
RECENT = 60
Id = tuple[bytes, int]


class Violation(AssertionError):
    """The scheduler did what it must not."""


class Name(str):
    """A worker's name that hashes alike in every process, so that a seed is the same game everywhere."""

    def __hash__(self) -> int:
        return int.from_bytes(self.encode(), "little")


@dataclass(slots=True)
class Request:
    """One request's story. ``running`` and ``answered`` are row ranges; a request without rows counts as one."""

    spec: QueueSpec
    client: bytes
    number: int
    rows: int
    deadline: float
    priority: int
    order: int
    poison: bool
    killer: bool
    outcome: str = ""
    running: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    deaths: int = 0
    died_alone: bool = False
    flood: bool = False
    sent: bool = False
    cancelled: bool = False
    gone: bool = False

    @property
    def waiting(self) -> int:
        """Rows that lie in the queue."""
        return 0 if self.outcome or self.gone else self.rows - len(self.running) - len(self.answered)


@dataclass(slots=True)
class Source:
    """Where a segment's buffers came from: the requests they were sent with."""

    first: int
    count: int
    rows: int


@dataclass(slots=True)
class Worker:
    """One worker process, or the gap where one was."""

    name: str
    models: list[ModelKey]
    generation: int = 0
    alive: bool = False
    draining: bool = False
    batches: deque[Batch] = field(default_factory=deque)
    routes: set[ModelKey] = field(default_factory=set)

    @property
    def holder(self) -> tuple[str, int]:
        return self.name, self.generation


class Referee:
    """What has happened so far in one game, and what must hold. ``calm``: nobody dies, cancels or fails."""

    scheduler: Scheduler
    workers: dict[str, Worker]

    def __init__(self, seed: int, calm: bool) -> None:
        self.seed = seed
        self.now = 0.0
        self.requests: dict[Id, Request] = {}
        self.counts: dict[str, int] = {}
        self._calm = calm
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._sources: dict[int, tuple[Source, list[Any]]] = {}
        self._quarantined: dict[tuple[str, int], int] = {}
        self._open: dict[Id, Request] = {}
        self._closed: set[ModelKey] = set()
        self._roomy = False

    def _dispatched(self, batch: Batch) -> None:
        worker, spec, policy = self.workers[batch.worker], batch.spec, batch.spec.policy
        if not worker.alive or worker.draining or spec.servable not in worker.routes:
            self._fail(f"a batch for {worker.name}, which is dead, draining or does not serve {spec.servable}")
        rows = 0
        for piece in batch.pieces:
            self._piece_is_sound(batch, piece)
            rows += piece.count * piece.rows
        if rows != batch.rows:
            self._fail(f"a batch says {batch.rows} rows and has {rows}")
        requests = self._rows_of(batch)
        if len(requests) > 1 and not batch.alone and not batches(spec):
            self._fail("requests that must run singly share a batch")
        if batches(spec) and not batch.alone and rows > policy.max_rows:
            self._fail(f"a batch of {rows} rows, max_rows is {policy.max_rows}")
        if batch.alone and any(p.regions is None or p.join or p.count != 1 for p in batch.pieces):
            self._fail("what is not in a client's arena runs in place")
        self._sizes_are_allowed(batch)
        for request, taken in requests:
            if request.deadline <= self.now:
                self._fail(f"request {request.number} was dispatched after its deadline")
            if request.outcome and len(requests) == 1:
                self._fail(f"request {request.number} has an outcome ({request.outcome}) and was dispatched")
            if taken & (request.running | request.answered):
                self._fail(f"rows of request {request.number} run twice")
            whole = request.rows <= policy.max_rows  # each part of a larger one has lives of its own
            if (whole and request.deaths >= MAX_DEATHS and request.died_alone) or (request.deaths and not spec.retry):
                self._fail(f"request {request.number} runs again after {request.deaths} deaths")
            self._order_is_kept(request, batch)
            request.running |= taken
            request.sent = True
        if len({piece.deaths for piece in batch.pieces}) > 1:
            self._fail("suspects run together with others")
        self._places_are_sound(batch)
        worker.batches.append(batch)
        if len(worker.batches) > CREDITS:
            self._fail(f"{worker.name} has {len(worker.batches)} batches")

    def _piece_is_sound(self, batch: Batch, piece: Segment) -> None:
        source = self._sources[id(piece.buffers)][0]
        if piece.join is None:
            start = piece.first - source.first
            good = piece.start == start and 0 <= start <= source.count - piece.count and piece.rows == source.rows
        else:
            start = (piece.join.request - source.first) * source.rows + piece.first
            good = piece.start == start and piece.rows == 1 and piece.first + piece.count <= piece.join.rows
        if not good:
            self._fail(f"a piece lies at {piece.start} of its buffers, expected {start}")

    def _sizes_are_allowed(self, batch: Batch) -> None:
        spec, sizes = batch.spec, batch.spec.policy.sizes
        if not sizes or not batches(spec):
            if batch.padded != batch.rows:
                self._fail(f"{batch.rows} rows were padded to {batch.padded}")
            return
        if batch.alone:
            if any(piece.rows not in sizes for piece in batch.pieces):
                self._fail(f"in place run {[p.rows for p in batch.pieces]} rows, allowed are {sizes}")
            return
        if spec.policy.pad:
            expected = next((size for size in sizes if size >= batch.rows), batch.rows)
            if batch.padded != expected:
                self._fail(f"{batch.rows} rows were padded to {batch.padded}, expected {expected}")
        elif batch.padded != batch.rows:
            self._fail("rows were padded, though pad is off")
        elif self._roomy and batch.rows not in sizes and batch.rows > min(sizes):
            mine = [request for request in self._open.values() if request.spec is spec]
            if not batch.pieces[0].limit and all(r.rows == 1 and not r.deaths for r in mine):
                self._fail(f"a batch of {batch.rows} single rows, allowed are {sizes}")

    def _order_is_kept(self, request: Request, batch: Batch) -> None:
        """What comes back goes first; then higher priorities, then earlier deadlines, then earlier arrivals; but what a
        client has sent while it had more than a round waiting."""
        if any(piece.limit or piece.deaths for piece in batch.pieces):
            return
        mine = {other.order for other, _ in self._rows_of(batch)}
        for other in self._open.values():
            if other.spec is not batch.spec or other.order in mine or other.waiting != other.rows or other.deaths:
                continue
            if other.priority > request.priority:
                self._fail(f"request {request.number} goes before {other.number}, which has a higher priority")
            if other.priority == request.priority and not other.flood:
                later = other.deadline == request.deadline and other.order < request.order and not other.sent
                if later or other.deadline < request.deadline:
                    self._fail(f"request {request.number} is before {other.number}, which is more urgent")

    def rows_waiting(self, client: bytes, spec: QueueSpec) -> int:
        return sum(r.waiting for r in self._open.values() if r.client == client and r.spec is spec)

    def _places_are_sound(self, batch: Batch) -> None:
        lease = batch.lease
        if lease is None:
            if not batch.alone:
                self._fail("a batch without a lease")
            return
        if not self.scheduler.layout.is_current(lease):
            self._fail("a batch with a lease that does not stand")
        at = lease.offset
        times = batch.padded if batch.spec.by_rows else 1
        for item, place in zip(() if batch.alone else batch.spec.inputs, batch.inputs, strict=True):
            if place.offset < at or place.offset % 64:
                self._fail("an input lies in the one before it, or is not aligned")
            at = place.offset + item.row_bytes * times
            if item.text:
                if place.payload < at or place.payload % 64:
                    self._fail("a payload lies in its lengths, or is not aligned")
                at = place.payload + place.payload_bytes
        if batch.out_offset < at or batch.out_bytes < 0 or batch.out_offset + batch.out_bytes > _end(lease):
            self._fail("the outputs lie in the inputs, or outside the lease")

    def _delivered(self, batch: Batch) -> None:
        for request, rows in self._rows_of(batch):
            if request.outcome:
                if len(rows) == request.rows:
                    self._fail(f"request {request.number} is answered after its outcome ({request.outcome})")
                continue  # a part of one that has failed: the broker lets it fall
            if rows & request.answered:
                self._fail(f"rows of request {request.number} are answered twice")
            request.answered |= rows
            if len(request.answered) == request.rows:
                self._settle(request, "answer")

    def _refused(self, action: ev.Refuse) -> None:
        for segment in action.segments:
            for number in range(segment.first, segment.first + segment.count):
                request = self.requests[segment.client, number]
                if request.outcome:
                    self._fail(f"request {number} is refused after its outcome ({request.outcome})")
                if request.running and len(request.running) == request.rows:
                    self._fail(f"request {number} is refused while it runs")
                self._reason_is_true(request, action)
                self._settle(request, type(action.error).__name__)

    def _reason_is_true(self, request: Request, action: ev.Refuse) -> None:
        error = action.error
        true = {
            Cancelled: request.cancelled,
            DeadlineExceeded: request.deadline <= self.now + self._longest(request.spec),
            InvalidArgument: request.poison or not request.spec.retry,
            Unavailable: request.deaths and not request.spec.retry,
            FailedPrecondition: request.deaths >= MAX_DEATHS and request.died_alone,
            NotFound: request.spec.servable in self._closed,
            ResourceExhausted: True,
        }[type(error)]
        if not true:
            self._fail(f"request {request.number} is refused with {type(error).__name__}: {error}")

    def _settle(self, request: Request, outcome: str) -> None:
        request.outcome = outcome
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self._open.pop((request.client, request.number), None)

    def _books(self) -> None:
        """What must hold after every event."""
        layout = self.scheduler.layout
        running = [batch for worker in self.workers.values() for batch in worker.batches]
        leased = sum(batch.lease.nbytes for batch in running if batch.lease)
        if layout.leased_bytes != leased:
            self._fail(f"{layout.leased_bytes} bytes are leased, the batches have {leased}")
        if layout.quarantined_bytes != sum(self._quarantined.values()):
            self._fail(f"{layout.quarantined_bytes} bytes are quarantined, expected {sum(self._quarantined.values())}")
        for name, worker in self.workers.items():
            if worker.alive and self.scheduler.in_flight(name) != len(worker.batches):
                self._fail(f"{name} has {len(worker.batches)} batches, the scheduler thinks otherwise")
        total = 0
        for queue in self.scheduler.backlog.queues.values():
            rows = sum(s.count * s.rows for s in queue.segments)
            if queue.rows != rows:
                self._fail(f"a queue says {queue.rows} rows and has {rows}")
            total += sum(s.count * s.rows for s in queue.segments if not (s.join and s.join.failed))
        waiting = sum(request.waiting for request in self._open.values())
        gone = any(request.gone for request in self.requests.values())
        if total < waiting or (total > waiting and not gone):
            self._fail(f"{total} rows lie in queues, the open requests have {waiting}")

    def _conserves_work(self) -> None:
        """After a Turn no worker idles while something ripe that it serves waits, and fits the arena."""
        wakeup = self.scheduler.wakeup()
        for request in self._open.values():
            if request.waiting and request.deadline + EXPIRY_STEP < wakeup:
                self._fail(f"request {request.number} expires at {request.deadline}, the next wakeup is {wakeup}")
        for worker in self.workers.values():
            if not worker.alive or worker.draining or worker.batches:
                continue
            ripe: list[Queue] = []
            next_ripe = float("inf")
            for queue in self.scheduler.backlog.queues.values():
                if not queue.segments or queue.spec.servable not in worker.routes:
                    continue
                due = queue.segments[0].arrived + queue.spec.policy.max_wait
                if due <= self.now or not batches(queue.spec) or queue.rows >= self.scheduler.cap(queue, worker.name):
                    ripe.append(queue)
                else:
                    next_ripe = min(next_ripe, due)
            if not ripe and next_ripe < wakeup:
                self._fail(f"a queue of {worker.name} is ripe at {next_ripe}, the next wakeup is {wakeup}")
            if ripe and all(self._has_room(queue) for queue in ripe):
                self._fail(f"{worker.name} idles while {sum(q.rows for q in ripe)} rows wait for it")

    def _has_room(self, queue: Queue) -> bool:
        """Whether the head of a queue could be leased its bytes now."""
        layout, rows = self.scheduler.layout, queue.segments[0].rows
        need, out = input_bytes(queue, rows), output_bytes(queue, rows)
        lease = layout.lease(need + out if need + out <= layout.largest else need)
        if lease is None:
            return False
        layout.free(lease)
        return True

    def _longest(self, spec: QueueSpec) -> float:
        """Seconds before its deadline that a request may be given up: those of the runs under way, and of its own."""
        raise NotImplementedError

    # -- help --------------------------------------------------------------------------------------------------

    def _rows_of(self, batch: Batch) -> list[tuple[Request, set[int]]]:
        found: dict[int, tuple[Request, set[int]]] = {}
        for piece in batch.pieces:
            if piece.join is not None:
                numbers: Iterable[int] = (piece.join.request,)
                rows = set(range(piece.first, piece.first + piece.count))
            else:
                numbers = range(piece.first, piece.first + piece.count)
                rows = set(range(piece.rows))
            for number in numbers:
                request = self.requests[piece.client, number]
                known = found.setdefault(request.order, (request, set()))[1]
                if known & rows:
                    self._fail(f"request {number} is twice in a batch")
                known |= rows
        return list(found.values())

    def _waiting_rows(self, spec: QueueSpec) -> int:
        queue = self.scheduler.backlog.queues.get(spec.id)
        return queue.rows if queue else 0

    def _fail(self, what: str) -> NoReturn:
        story = "\n".join(self._recent)
        raise Violation(f"seed {self.seed}: {what}\n{story}")


def _end(lease: Lease) -> int:
    return lease.offset + lease.nbytes


def brief(event: object) -> str:
    if isinstance(event, (ev.Dispatch, ev.Deliver)):
        batch = event.batch
        pieces = [(p.client, p.join.request if p.join else p.first, p.first, p.count, p.rows) for p in batch.pieces]
        kind = type(event).__name__
        return f"{kind} {batch.id} {batch.worker} {batch.spec.id} rows {batch.rows} alone {batch.alone} {pieces}"
    if isinstance(event, ev.Refuse):
        return f"Refuse {[(s.client, s.first, s.count) for s in event.segments]} {event.error!r}"
    if isinstance(event, ev.Submit):
        s = event.segment
        place = "arena" if s.regions else "frames"
        return f"Submit {event.spec.id} {(s.client, s.first, s.count, s.rows)} until {s.deadline:.6f} {place}"
    return str(event)
