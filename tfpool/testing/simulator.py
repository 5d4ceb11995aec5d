"""A pool in virtual time: the real scheduler, with workers and clients that are dice.

``python -m tfpool.testing.simulator --seeds N`` plays N games. Each seed is one game: random models, policies and
arenas; clients that submit, cancel and leave; workers that finish, fail, die and are replaced. After every event the
simulator compares what the scheduler did with what it may do, and raises :class:`Violation` with the seed and the
last events.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NoReturn

from tfpool.errors import Cancelled, DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import MAX_DEATHS, Scheduler
from tfpool.scheduler.sizing import batches, input_bytes, output_bytes
from tfpool.scheduler.work import Batch, BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.shm.layout import MIN_BLOCK, Layout, Lease
from tfpool.types import ModelKey
from tfpool.wire.messages import Region

HORIZON = 2.0
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


class Simulation:
    """One game. ``calm``: nobody dies, cancels or fails."""

    def __init__(self, seed: int, calm: bool = False) -> None:
        self.seed = seed
        self.now = 0.0
        self.requests: dict[Id, Request] = {}
        self.counts: dict[str, int] = {}
        self._calm = calm
        self._dice = dice = Random(seed)
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._step = 0
        self._sources: dict[int, tuple[Source, list[Any]]] = {}
        self._quarantined: dict[tuple[str, int], int] = {}
        self._last_order: dict[tuple[int, int], tuple[int, int]] = {}
        self._open: dict[Id, Request] = {}
        self._closed: set[ModelKey] = set()
        self._costs: dict[ModelKey, float] = {}
        self._roomy = dice.random() < 0.5
        capacity = (1 << 22) if self._roomy else MIN_BLOCK * dice.choice([2, 5, 16, 64])
        self.scheduler = Scheduler(Layout(capacity))
        self._specs = [self._some_spec(i) for i in range(dice.randint(1, 5))]
        self._next_spec = len(self._specs)
        names: list[str] = [Name(f"w{i}") for i in range(dice.randint(1, 3))]
        self.workers = {name: Worker(name, []) for name in names}
        for servable in dict.fromkeys(spec.servable for spec in self._specs):
            self._costs[servable] = dice.choice([0.0005, 0.002, 0.01, 0.05])
            for name in dice.sample(names, dice.randint(1, len(names))):
                self.workers[name].models.append(servable)
        self._plan()

    # -- the dice ----------------------------------------------------------------------------------------------

    def _some_spec(self, number: int) -> QueueSpec:
        dice = self._dice
        mutates = dice.random() < 0.15
        by_rows = dice.random() < 0.9
        policy = BatchPolicy(
            max_rows=dice.choice([1, 2, 4, 8, 16, 64]),
            max_wait=dice.choice([0.0, 0.0, 0.0, 0.004, 0.05]),
            sizes=dice.choice([(), (), (1, 2, 4, 8, 16, 64), (4, 8), (3, 5)]),
            pad=dice.random() < 0.6,
            max_queue_rows=dice.choice([5, 30, 200, 16384]),
            weight=dice.choice([1.0, 1.0, 0.2, 5.0]),
        )
        inputs = tuple(
            Input((1,), dice.choice([0, 1, 4, 64, 100, 900]), False) if dice.random() < 0.75 else Input((1,), 4, True)
            for _ in range(dice.choice([1, 1, 1, 2, 3]))
        )
        servable = ModelKey(f"m{dice.randint(0, number)}", 1)
        batchable = by_rows and not mutates and dice.random() < 0.85
        return QueueSpec(number, servable, 0, inputs, by_rows, batchable, not mutates, policy)

    def _plan(self) -> None:
        dice = self._dice
        for worker in self.workers.values():
            self._at(dice.choice([0.0, 0.0, 0.3]), partial(self._join, worker))
        for _ in range(dice.choice([5, 20, 60])):
            self._at(dice.uniform(0.0, HORIZON), self._burst)
        if self._calm:
            return
        for _ in range(dice.choice([0, 2, 6])):
            self._at(dice.uniform(0.0, HORIZON), self._cancel)
        for _ in range(dice.choice([0, 0, 1, 4])):
            self._at(dice.uniform(0.0, HORIZON), self._kill_any)
        for _ in range(dice.choice([0, 0, 3])):
            self._at(dice.uniform(0.0, HORIZON), self._toggle)
        if dice.random() < 0.2:
            self._at(dice.uniform(0.0, HORIZON), self._client_leaves)
        if dice.random() < 0.2:
            self._at(dice.uniform(0.0, HORIZON), self._unload)
        if dice.random() < 0.3:
            self._at(dice.uniform(0.0, HORIZON), self._new_queue)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._step += 1
        heapq.heappush(self._agenda, (when, self._step, what))

    # -- what clients do ---------------------------------------------------------------------------------------

    def _burst(self) -> None:
        dice = self._dice
        for _ in range(dice.choice([1, 1, 3, 12])):
            spec = dice.choice(self._specs)
            if spec.servable not in self._closed:
                self._submit(spec)

    def _submit(self, spec: QueueSpec) -> None:
        dice = self._dice
        client = dice.choice([b"a", b"b", b"c"])
        rows = dice.choice([1, 1, 1, 2, 3, 7, 20]) if spec.by_rows else 1
        count = dice.choice([1, 1, 2, 5, 30]) if spec.by_rows else 1
        dense = not any(item.text for item in spec.inputs)
        regions = reply = None
        if dense and dice.random() < 0.2:
            count = 1
            regions = tuple(Region(4096, item.row_bytes * rows) for item in spec.inputs)
            reply = Region(8192, 4096) if dice.random() < 0.6 else None
        first = 1 + max((number for owner, number in self.requests if owner == client), default=-1)
        deadline = self.now + dice.choice([0.003, 0.05, 0.5, 3.0, 30.0])
        priority = dice.choice([0, 0, 0, 1, -1])
        for number in range(first, first + count):
            bad = not self._calm
            request = Request(
                spec,
                client,
                number,
                rows,
                deadline,
                priority,
                len(self.requests),
                bad and dice.random() < 0.03,
                bad and dice.random() < 0.005,
            )
            self.requests[client, number] = self._open[client, number] = request
        payload = tuple(self._ends(rows * count) for item in spec.inputs if item.text)
        buffers: list[Any] = [b""] * (len(spec.inputs) + len(payload))
        self._sources[id(buffers)] = Source(first, count, rows), buffers
        segment = Segment(client, first, count, rows, deadline, self.now, buffers, priority, 0, payload, regions, reply)
        before = self._waiting_rows(spec)
        self._tell(ev.Submit(spec, segment))
        after = self._waiting_rows(spec)
        if after > max(before, spec.policy.max_queue_rows):
            self._fail(f"{after} rows wait, max_queue_rows is {spec.policy.max_queue_rows}")
        refused = sum(self.requests[client, n].outcome != "" for n in range(first, first + count))
        if refused and before + rows * (count - refused + 1) <= spec.policy.max_queue_rows and deadline > self.now:
            self._fail(f"{refused} requests were refused, though {before} rows wait")

    def _ends(self, rows: int) -> list[int]:
        ends, total = [], 0
        for _ in range(rows):
            total += self._dice.choice([0, 1, 10, 300])
            ends.append(total)
        return ends

    def _cancel(self) -> None:
        client = self._dice.choice([b"a", b"b", b"c"])
        mine = [request for request in self._open.values() if request.client == client]
        if not mine:
            return
        times = range(self._dice.randint(1, 3))
        ranges = [(self._dice.choice(mine).number, self._dice.choice([1, 1, 4, 50])) for _ in times]
        hit = [r for r in mine if any(first <= r.number < first + count for first, count in ranges)]
        for request in hit:
            request.cancelled = True
        self._tell(ev.Cancel(client, ranges))
        for request in hit:
            if not request.outcome and request.waiting:
                self._fail(f"request {request.number} was cancelled and waits on")

    def _client_leaves(self) -> None:
        client = self._dice.choice([b"a", b"b", b"c"])
        for key, request in list(self._open.items()):
            if request.client == client:
                request.gone = True
                del self._open[key]
        self._tell(ev.ClientGone(client))

    # -- what workers and the broker do ------------------------------------------------------------------------

    def _join(self, worker: Worker) -> None:
        worker.generation += 1
        worker.alive, worker.draining = True, False
        self._tell(ev.WorkerJoined(worker.name, worker.holder))
        for servable in worker.models:
            if servable not in self._closed:
                worker.routes.add(servable)
                self._tell(ev.Routed(servable, worker.name))

    def _kill_any(self) -> None:
        alive = [worker for worker in self.workers.values() if worker.alive]
        if alive:
            self._kill(self._dice.choice(alive))

    def _kill(self, worker: Worker) -> None:
        holder = worker.holder
        worker.alive = False
        worker.routes.clear()
        lost, worker.batches = list(worker.batches), deque()
        self._quarantined[holder] = sum(batch.lease.nbytes for batch in lost if batch.lease)
        died: dict[int, Request] = {}
        for batch in lost:
            for request, rows in self._rows_of(batch):
                request.running -= rows
                died[request.order] = request
        for request in died.values():
            request.deaths += 1
        self._tell(ev.WorkerLost(worker.name, "killed"))
        delay = self._dice.choice([0.0, 0.01, 0.2])
        self._at(self.now + delay, lambda: self._reaped(holder))
        self._at(self.now + delay + self._dice.choice([0.0, 0.1]), lambda: self._join(worker))

    def _reaped(self, holder: tuple[str, int]) -> None:
        del self._quarantined[holder]
        self._tell(ev.WorkerReaped(holder))

    def _toggle(self) -> None:
        """Drain a worker for a while, or take a route away for a while."""
        worker = self._dice.choice([*self.workers.values()])
        if not worker.alive:
            return
        life, until = worker.generation, self.now + self._dice.choice([0.01, 0.3])
        if self._dice.random() < 0.5 or not worker.routes:
            worker.draining = True
            self._tell(ev.Drain(worker.name, True))
            self._at(until, lambda: self._undrain(worker, life))
        else:
            servable = self._dice.choice(sorted(worker.routes))
            worker.routes.discard(servable)
            self._tell(ev.Unrouted(servable, worker.name))
            self._at(until, lambda: self._reroute(worker, servable, life))

    def _undrain(self, worker: Worker, life: int) -> None:
        if worker.alive and worker.generation == life:
            worker.draining = False
            self._tell(ev.Drain(worker.name, False))

    def _reroute(self, worker: Worker, servable: ModelKey, life: int) -> None:
        if worker.alive and worker.generation == life and servable not in self._closed:
            worker.routes.add(servable)
            self._tell(ev.Routed(servable, worker.name))

    def _unload(self) -> None:
        servable = self._dice.choice(self._specs).servable
        self._closed.add(servable)
        for worker in self.workers.values():
            if servable in worker.routes:
                worker.routes.discard(servable)
                self._tell(ev.Unrouted(servable, worker.name))
        self._tell(ev.ServableGone(servable, NotFound("unloaded")))
        for request in self._open.values():
            if request.spec.servable == servable and request.waiting and not request.running:
                self._fail(f"request {request.number} waits for a servable that is gone")

    def _new_queue(self) -> None:
        """The broker has forgotten what a key meant: later requests get a queue of another number."""
        at = self._dice.randrange(len(self._specs))
        old = self._specs[at]
        self._next_spec += 1
        self._specs[at] = QueueSpec(
            self._next_spec, old.servable, 0, old.inputs, old.by_rows, old.batchable, old.retry, old.policy
        )
        self._tell(ev.QueueClosed(old.id))

    def _finish(self, worker: Worker, batch: Batch, life: int) -> None:
        if not worker.alive or worker.generation != life:
            return
        requests = [request for request, _ in self._rows_of(batch)]
        if any(request.killer for request in requests):
            self._kill(worker)
            return
        worker.batches.popleft()
        if worker.batches:
            self._run(worker)
        cost = self._cost(batch)
        for request, rows in self._rows_of(batch):
            request.running -= rows
        if any(request.poison for request in requests):
            self._tell(ev.Broken(worker.name, batch.id, 0.0, InvalidArgument("poison")))
        else:
            self._tell(ev.Completed(worker.name, batch.id, cost, self._dice.choice([0, 64, 1000, 9000])))

    def _cost(self, batch: Batch) -> float:
        return self._costs[batch.spec.servable] * (1 + batch.padded / 16)

    def _run(self, worker: Worker) -> None:
        batch, life = worker.batches[0], worker.generation
        self._at(self.now + self._cost(batch), lambda: self._finish(worker, batch, life))

    # -- the game ----------------------------------------------------------------------------------------------

    def play(self) -> dict[str, int]:
        """Play to the end; how many requests had which outcome."""
        while True:
            due = min(self._agenda[0][0] if self._agenda else float("inf"), self.scheduler.wakeup())
            if due == float("inf"):
                break
            self.now = max(self.now, due)
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
                if self._dice.random() < 0.5:
                    break
            self._tell(ev.Turn())
            self._conserves_work()
            if self._step > 200_000:
                self._fail("it never ends")
        for request in self._open.values():
            self._fail(f"request {request.number} of {request.client!r} has no outcome, and nothing is due")
        layout = self.scheduler.layout
        if layout.leased_bytes or layout.quarantined_bytes or self.scheduler.waiting_rows():
            self._fail("something is left in the end")
        if layout.lease(layout.largest) is None:
            self._fail("the arena is not whole in the end")
        return self.counts

    def _tell(self, event: ev.Event) -> None:
        self._recent.append(f"{self.now:.6f} {_brief(event)}")
        actions = self.scheduler.handle(event, self.now)
        for action in actions:
            self._recent.append(f"{self.now:.6f}   -> {_brief(action)}")
            if isinstance(action, ev.Dispatch):
                self._dispatched(action.batch)
            elif isinstance(action, ev.Deliver):
                self._delivered(action.batch)
            else:
                self._refused(action)
        if isinstance(event, ev.Completed) and not actions:
            self._fail("a completed batch was not delivered")
        self._books()

    # -- rules -------------------------------------------------------------------------------------------------

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
            if (whole and request.deaths >= MAX_DEATHS) or (request.deaths and not spec.retry):
                self._fail(f"request {request.number} runs again after {request.deaths} deaths")
            self._order_is_kept(request, taken, batch)
            request.running |= taken
        self._places_are_sound(batch)
        worker.batches.append(batch)
        if len(worker.batches) > CREDITS:
            self._fail(f"{worker.name} has {len(worker.batches)} batches")
        if len(worker.batches) == 1:
            self._run(worker)

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

    def _order_is_kept(self, request: Request, taken: set[int], batch: Batch) -> None:
        """Those that have run before, and come back, go first; the others in order of arrival within a priority."""
        if request.deaths or any(piece.limit or piece.deaths for piece in batch.pieces):
            return
        key = batch.spec.id, request.priority
        place = request.order, min(taken, default=0)
        if place < self._last_order.get(key, (-1, -1)):
            self._fail(f"request {request.number} is overtaken by a later one of its queue")
        self._last_order[key] = place
        for other in self._open.values():
            before = other.spec is batch.spec and other.priority > request.priority and other.waiting == other.rows
            if before and all(other is not mine for mine, _ in self._rows_of(batch)):
                self._fail(f"request {request.number} goes before {other.number}, which has a higher priority")

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
            DeadlineExceeded: request.deadline <= self.now,
            InvalidArgument: request.poison or not request.spec.retry,
            Unavailable: request.deaths >= (MAX_DEATHS if request.spec.retry else 1),
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
            if request.waiting and request.deadline < wakeup:
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
                if due <= self.now or not batches(queue.spec) or queue.rows >= queue.spec.policy.max_rows:
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


def _brief(event: object) -> str:
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


def play(seed: int, calm: bool = False) -> dict[str, int]:
    """One game; how many requests had which outcome. Raises Violation."""
    return Simulation(seed, calm).play()


def main(arguments: Sequence[str] | None = None) -> int:
    """``--seeds N`` (1000), ``--first SEED`` (0); the exit status is 1 when a seed fails, 2 for bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = {"--seeds": 1000, "--first": 0}
    while words:
        name = words.pop(0)
        if name not in options or not words or not words[0].isdigit():
            print("usage: python -m tfpool.testing.simulator [--seeds N] [--first SEED]", file=sys.stderr)
            return 2
        options[name] = int(words.pop(0))
    total: dict[str, int] = {}
    begin, failed = time.monotonic(), []
    for seed in range(options["--first"], options["--first"] + options["--seeds"]):
        try:
            for outcome, count in play(seed).items():
                total[outcome] = total.get(outcome, 0) + count
        except Exception as error:
            failed.append(seed)
            print(error if isinstance(error, Violation) else f"seed {seed}: {error!r}", file=sys.stderr)
    seconds = time.monotonic() - begin
    print(f"{options['--seeds']} seeds in {seconds:.1f} s, {len(failed)} failed {failed[:10]}; {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
