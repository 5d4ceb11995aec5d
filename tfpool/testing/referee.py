"""The rules of the simulator's game: what the scheduler may do, checked after every event."""

from __future__ import annotations

from collections.abc import Sequence

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
from tfpool.scheduler.backlog import EXPIRY_STEP
from tfpool.scheduler.comeback import MAX_DEATHS
from tfpool.scheduler.sizing import batches, cap, input_bytes, output_bytes
from tfpool.scheduler.work import Batch, Queue, QueueSpec, Segment
from tfpool.shm.layout import Lease
from tfpool.testing.game import Request
from tfpool.testing.game_book import Book

CREDITS = 2


class Referee(Book):
    """What must hold in a game."""

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
            request.running |= taken
        self._order_is_kept(batch, [request for request, _ in requests])
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
        elif self.table.roomy and batch.rows not in sizes and batch.rows > min(sizes):
            mine = [request for request in self._open.values() if request.spec is spec]
            if not batch.pieces[0].limit and all(r.rows == 1 and not r.deaths for r in mine):
                self._fail(f"a batch of {batch.rows} single rows, allowed are {sizes}")

    def _order_is_kept(self, batch: Batch, requests: Sequence[Request]) -> None:
        """What comes back goes first; then higher priorities, then what is within a client's share, then earlier
        deadlines, then earlier arrivals."""
        if any(piece.limit or piece.deaths for piece in batch.pieces):
            return
        last: dict[int, Request] = {}
        for request in requests:
            found = last.setdefault(request.priority, request)
            if (request.deadline, request.order) > (found.deadline, found.order):
                last[request.priority] = request
        lowest, chosen = min(last), {request.order for request in requests}
        greedy = [] if self._came_back else [r for r in requests if r.behind >= batch.queue.quantum]
        for other in self._open.values():
            if other.spec is not batch.spec or other.order in chosen or other.waiting != other.rows or other.deaths:
                continue
            if other.priority > lowest:
                self._fail(f"request {other.number} of {other.client!r} waits behind a lower priority")
            mine = last.get(other.priority)
            if mine is None:
                continue
            if batch.spec.id not in self._crowded or not batch.spec.policy.fair:
                earlier = other.order < mine.order and not self._came_back
                if other.deadline < mine.deadline or (other.deadline == mine.deadline and earlier):
                    self._fail(f"request {mine.number} of {mine.client!r} goes before {other.number}, more urgent")
            elif not other.behind and any(r.priority == other.priority and r.order > other.order for r in greedy):
                self._fail(f"request {other.number} of {other.client!r} waits behind the flood of another client")

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

    def _refused(self, action: ev.Refuse, event: ev.Event) -> None:
        for segment in action.segments:
            for number in range(segment.first, segment.first + segment.count):
                request = self.requests[segment.client, number]
                if request.outcome:
                    self._fail(f"request {number} is refused after its outcome ({request.outcome})")
                if request.running and len(request.running) == request.rows:
                    self._fail(f"request {number} is refused while it runs")
                self._reason_is_true(request, action.error, event)
                self._settle(request, type(action.error).__name__)

    def _reason_is_true(self, request: Request, error: TfpoolError, event: ev.Event) -> None:
        early = self._longest(request.spec) if isinstance(event, ev.Turn) else 0.0
        true = {
            Cancelled: request.cancelled,
            DeadlineExceeded: request.deadline <= self.now + early,
            InvalidArgument: request.poison or not request.spec.retry,
            Unavailable: request.deaths and not request.spec.retry,
            FailedPrecondition: request.died_alone and isinstance(event, ev.WorkerReaped),
            NotFound: request.spec.servable in self._closed,
            ResourceExhausted: isinstance(event, ev.Turn) or self._had_to_go(request, event),
        }[type(error)]
        if not true:
            self._fail(f"request {request.number} is refused with {type(error).__name__}: {error}")

    @staticmethod
    def _had_to_go(request: Request, event: ev.Event) -> bool:
        """Only for what comes in, and only what that takes precedence over, a request is pushed out."""
        if not isinstance(event, ev.Submit):
            return False
        coming = event.segment
        mine = coming.client == request.client and coming.deadline == request.deadline
        lower = coming.priority > request.priority
        return mine or lower or (request.spec.policy.fair and request.behind > 0 and not request.deaths)

    def _settle(self, request: Request, outcome: str) -> None:
        request.outcome = outcome
        self.counts[outcome] += 1
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
        if total < waiting or (total > waiting and not self._left):
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
            mine = [
                queue
                for queue in self.scheduler.backlog.queues.values()
                if queue.segments and queue.spec.servable in worker.routes
            ]
            ripe = [queue for queue in mine if not self._may_wait(queue)]
            if ripe and all(map(self._has_room, mine)):
                self._fail(f"{worker.name} idles while {sum(q.rows for q in ripe)} rows wait for it")
            if any(wakeup > self.now + queue.spec.policy.max_wait for queue in mine) and all(map(self._has_room, mine)):
                self._fail(f"{worker.name} waits for a larger batch until {wakeup}")

    def _may_wait(self, queue: Queue) -> bool:
        """Whether what waits may do so for company: some worker would run more of it at a time."""
        spec = queue.spec
        serving = [name for name, worker in self.workers.items() if spec.servable in worker.routes]
        most = max(cap(queue, name) for name in serving)
        return batches(spec) and spec.policy.max_wait > 0 and queue.rows < most

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
        costs = self.table.costs
        running = (costs[batch.spec.servable] for worker in self.workers.values() for batch in worker.batches)
        longest = sum(running) + costs[spec.servable]
        return (40 if self._slowed else 4) * longest * (1 + 2 * 64 / 16)

    def _is_over(self) -> None:
        """What must hold when nothing is due any more."""
        for request in self._open.values():
            self._fail(f"request {request.number} of {request.client!r} has no outcome, and nothing is due")
        layout, accounts = self.scheduler.layout, self.scheduler.accounts
        if layout.leased_bytes or layout.quarantined_bytes or self.scheduler.waiting_rows():
            self._fail("something is left in the end")
        if accounts.nbytes or accounts.rows():
            self._fail(f"{accounts.rows()} rows and {accounts.nbytes} bytes are charged to somebody in the end")
        if layout.lease(layout.largest) is None:
            self._fail("the arena is not whole in the end")


def _end(lease: Lease) -> int:
    return lease.offset + lease.nbytes
