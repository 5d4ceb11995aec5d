"""The scheduler's one door: ``handle(event, now) -> actions``.

Work-conserving batching: a free worker takes what waits, at once, up to the largest batch. Each worker has two
credits, one for the batch that runs and one for a batch that is staged behind it; the staged one leaves early only
when it is full, because until then it may still grow.

A Submit is only admitted; batches leave at the next Turn, so that everything which arrived together can leave
together. Requests of a worker that died return to the head of their queues once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from tfpool.errors import Cancelled, DeadlineExceeded, ResourceExhausted, TfpoolError, Unavailable
from tfpool.scheduler import events as ev
from tfpool.scheduler.fairness import Turns
from tfpool.scheduler.sizing import Estimates, batch_rows, batches, in_place, input_bytes, output_bytes, plan
from tfpool.scheduler.work import Batch, BatchId, Join, Queue, QueueSpec, Segment, WorkerName
from tfpool.shm.layout import Layout, Lease
from tfpool.types import ModelKey

CREDITS = 2
MAX_DEATHS = 2


class _Worker:
    __slots__ = ("batches", "draining", "holder", "name", "turns")

    def __init__(self, name: WorkerName, holder: Hashable) -> None:
        self.name = name
        self.holder = holder
        self.batches: dict[BatchId, Batch] = {}
        self.turns = Turns()
        self.draining = False


class Scheduler:
    """All queues of a pool. ``layout`` is the arena that batches lease their bytes from."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.queues: dict[int, Queue] = {}
        self._waiting: dict[str, dict[int, Queue]] = {}
        self._workers: dict[WorkerName, _Worker] = {}
        self._routes: dict[ModelKey, set[WorkerName]] = {}
        self._hungry: dict[WorkerName, None] = {}
        self._starved: set[WorkerName] = set()
        self._next_batch = 0
        self._next_expiry = float("inf")
        self._next_ripe = float("inf")
        self._estimates = Estimates()
        self._doors = {
            ev.Submit: self._submit,
            ev.Completed: self._completed,
            ev.Turn: self._turn,
            ev.Broken: self._broken,
            ev.Cancel: self._cancel,
            ev.ClientGone: self._client_gone,
            ev.WorkerJoined: self._worker_joined,
            ev.WorkerLost: self._worker_lost,
            ev.WorkerReaped: self._worker_reaped,
            ev.Drain: self._drain,
            ev.Routed: self._routed,
            ev.Unrouted: self._unrouted,
            ev.ServableGone: self._servable_gone,
            ev.QueueClosed: self._queue_closed,
        }

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take one event in; ``now`` is monotonic seconds. The actions are to be done in order."""
        actions: list[ev.Action] = []
        self._doors[type(event)](event, now, actions)  # type: ignore[operator]
        return actions

    def wakeup(self) -> float:
        """When the next Turn is due even if nothing happens (monotonic seconds; inf: never)."""
        return min(self._next_expiry, self._next_ripe)

    def in_flight(self, worker: WorkerName, servable: ModelKey | None = None) -> int:
        """Batches (of a servable) that a worker has."""
        found = self._workers.get(worker)
        if found is None:
            return 0
        return sum(1 for b in found.batches.values() if servable is None or b.spec.servable == servable)

    def waiting_rows(self) -> int:
        return sum(q.rows for group in self._waiting.values() for q in group.values())

    def oldest(self, queue: Queue) -> float | None:
        """When the head of a queue arrived (monotonic seconds)."""
        return queue.segments[0].arrived if queue.segments else None

    # -- requests in -------------------------------------------------------------------------------------------

    def _submit(self, event: ev.Submit, now: float, actions: list[ev.Action]) -> None:
        spec, segment = event
        if segment.deadline <= now:
            actions.append(ev.Refuse(spec, [segment], DeadlineExceeded("the deadline had passed on arrival")))
            return
        queue = self.queues.get(spec.id)
        if queue is None:
            queue = self.queues[spec.id] = Queue(spec, out_row_bytes=self._estimates.out_row_bytes(spec))
        policy = spec.policy
        room = policy.max_queue_rows - queue.rows
        if segment.count * segment.rows > room:
            over = segment
            if 0 < room // segment.rows < segment.count:
                over = segment
                segment = over.take(room // segment.rows)
                self._enqueue(queue, segment)
            error = ResourceExhausted(
                f"queue of {spec.servable} is full: {queue.rows} rows wait, max_queue_rows is {policy.max_queue_rows}"
            )
            actions.append(ev.Refuse(spec, [over], error))
            return
        if segment.rows > policy.max_rows and batches(spec):
            for part in explode(segment):
                self._enqueue(queue, part)
            return
        self._enqueue(queue, segment)

    def _enqueue(self, queue: Queue, segment: Segment) -> None:
        queue.push(segment)
        self._wake(queue)

    def _wake(self, queue: Queue) -> None:
        """A queue has something waiting: its model takes part in the turns of every worker that serves it."""
        servable = queue.spec.servable
        self._waiting.setdefault(servable.name, {})[queue.spec.id] = queue
        self._next_expiry = min(self._next_expiry, queue.earliest)
        for name in self._routes.get(servable, ()):
            worker = self._workers[name]
            worker.turns.join(servable.name)
            if len(worker.batches) < CREDITS and not worker.draining:
                self._hungry[name] = None

    # -- batches out -------------------------------------------------------------------------------------------

    def _turn(self, event: ev.Turn, now: float, actions: list[ev.Action]) -> None:
        if now >= self._next_expiry:
            self._expire(now, actions)
        self._next_ripe = float("inf")
        if not self._hungry:
            return
        hungry = [self._workers[name] for name in self._hungry]
        if len(hungry) > 1:
            hungry.sort(key=lambda worker: len(worker.batches))
        for worker in hungry:
            self._feed(worker, now, actions)
        if self._next_ripe == float("inf"):
            self._hungry.clear()

    def _feed(self, worker: _Worker, now: float, actions: list[ev.Action]) -> None:
        while len(worker.batches) < CREDITS and not worker.draining:
            staging = bool(worker.batches)
            picked: list[Queue] = []

            def ready(
                model: str, staging: bool = staging, picked: list[Queue] = picked, worker: _Worker = worker
            ) -> bool:
                queue = self._ready_queue(model, worker, staging, now)
                if queue is not None:
                    picked[:] = [queue]
                return queue is not None

            model = worker.turns.pick(ready, first_only=staging)
            if model is None:
                return
            queue = picked[0]
            batch = self._form(queue, worker, now, actions)
            if batch is None:
                return
            worker.batches[batch.id] = batch
            batch.thought = self._estimates.run(queue.spec)
            worker.turns.start(model, batch.thought / queue.spec.policy.weight)
            self._rest(queue)
            actions.append(ev.Dispatch(batch))

    def _ready_queue(self, model: str, worker: _Worker, staging: bool, now: float) -> Queue | None:
        best: Queue | None = None
        for queue in self._waiting.get(model, {}).values():
            spec = queue.spec
            if worker.name not in self._routes.get(spec.servable, ()):
                continue
            if batches(spec) and queue.rows < spec.policy.max_rows:
                if staging:
                    continue
                ripe = queue.segments[0].arrived + spec.policy.max_wait
                if ripe > now:
                    self._next_ripe = min(self._next_ripe, ripe)
                    continue
            if best is None or queue.segments[0].arrived < best.segments[0].arrived:
                best = queue
        return best

    def _form(self, queue: Queue, worker: _Worker, now: float, actions: list[ev.Action]) -> Batch | None:
        """Cut a batch off a queue, or None while the arena has no room for it."""
        alone = in_place(queue, self._estimates.run(queue.spec))
        lease = None
        if alone:
            rows = queue.segments[0].rows
            if queue.segments[0].reply is None:
                lease = self.layout.lease(output_bytes(queue, rows), worker.holder)
            pieces = [piece for _ in range(alone) for piece in queue.take_one()]
        else:
            rows = batch_rows(queue, self._sharers(queue, worker))
            lease = self._lease(queue, rows, worker.holder)
            while lease is None and batches(queue.spec) and rows > queue.segments[0].rows:
                rows = max(rows // 2, queue.segments[0].rows)
                lease = self._lease(queue, rows, worker.holder)
            if lease is None:
                self._no_room(queue, rows, worker, actions)
                return None
            pieces = queue.take(rows) if batches(queue.spec) else queue.take_one()
        self._next_batch += 1
        return plan(self._next_batch, queue, worker.name, pieces, lease, bool(alone), now)

    def _lease(self, queue: Queue, rows: int, holder: Hashable) -> Lease | None:
        need, out = input_bytes(queue, rows), output_bytes(queue, rows)
        return self.layout.lease(need + out if need + out <= self.layout.largest else need, holder)

    def _no_room(self, queue: Queue, rows: int, worker: _Worker, actions: list[ev.Action]) -> None:
        """The head waits until a lease ends, unless it can never fit."""
        need = input_bytes(queue, rows)
        if need <= self.layout.largest:
            self._starved.add(worker.name)
            return
        head = queue.take_one()
        self._rest(queue)
        self._hungry[worker.name] = None
        allowed = self.layout.largest
        message = f"a request of {queue.spec.servable} needs {need} bytes of shared memory; shm_budget allows {allowed}"
        self._refuse(queue.spec, head, ResourceExhausted(message), actions)

    def _sharers(self, queue: Queue, worker: _Worker) -> int:
        """Idle workers that could take a part of this queue now, ``worker`` among them."""
        if worker.batches:
            return 1
        names = self._routes.get(queue.spec.servable, ())
        if len(names) == 1:
            return 1
        return sum(1 for n in names if not self._workers[n].batches and not self._workers[n].draining) or 1

    def _rest(self, queue: Queue) -> None:
        """Nothing of a queue may be waiting any more: keep the turns in step."""
        if queue.segments:
            return
        queue.rows = 0
        queue.earliest = float("inf")
        servable = queue.spec.servable
        group = self._waiting.get(servable.name, {})
        group.pop(queue.spec.id, None)
        if not group:
            self._waiting.pop(servable.name, None)
            for worker in self._workers.values():
                worker.turns.leave(servable.name)
        if queue.closing:
            self.queues.pop(queue.spec.id, None)

    # -- answers -----------------------------------------------------------------------------------------------

    def _completed(self, event: ev.Completed, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run)
        if batch is None:
            return
        self._estimates.learn(batch, event.run, event.out_bytes)
        actions.append(ev.Deliver(batch))

    def _broken(self, event: ev.Broken, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run)
        if batch is None:
            return
        requests = sum(1 if p.join else p.count for p in batch.pieces)
        if requests == 1 or not batch.spec.retry:
            self._refuse(batch.spec, batch.pieces, event.error, actions)
            return
        # One request may have failed the others: run the halves apart, until the culprit is alone.
        for piece in reversed(batch.pieces):
            piece.limit = max(1, batch.rows // 2)
            batch.queue.push_back(piece)
        self._restore(batch.queue)

    def _end(self, worker_name: WorkerName, batch_id: BatchId, run: float) -> Batch | None:
        worker = self._workers.get(worker_name)
        batch = worker.batches.pop(batch_id, None) if worker else None
        if worker is None or batch is None:
            return None
        worker.turns.settle(batch.spec.servable.name, (run - batch.thought) / batch.spec.policy.weight)
        if batch.lease is not None:
            self.layout.free(batch.lease)
            self._hungry.update((name, None) for name in self._starved if name in self._workers)
            self._starved.clear()
        if worker.turns and not worker.draining:
            self._hungry[worker_name] = None
        return batch

    def _refuse(
        self, spec: QueueSpec, segments: Iterable[Segment], error: TfpoolError, actions: list[ev.Action]
    ) -> None:
        """Refuse requests; the parts of a large one are refused once, as a whole."""
        whole = []
        for segment in segments:
            join = segment.join
            if join is None:
                whole.append(segment)
            elif not join.failed:
                join.failed = True
                segment.first, segment.count, segment.rows = join.request, 1, join.rows
                whole.append(segment)
        if whole:
            actions.append(ev.Refuse(spec, whole, error))

    # -- time, cancellation ------------------------------------------------------------------------------------

    def _expire(self, now: float, actions: list[ev.Action]) -> None:
        def late(segment: Segment) -> bool:
            return segment.deadline <= now or (segment.join is not None and segment.join.failed)

        following = float("inf")
        for queue in [q for group in self._waiting.values() for q in group.values()]:
            if queue.earliest <= now:
                gone = self._remove(queue, late)
                self._refuse(queue.spec, gone, DeadlineExceeded("the deadline passed in the queue"), actions)
            if queue.segments:
                following = min(following, queue.earliest)
        self._next_expiry = following

    def _remove(self, queue: Queue, unwanted: Callable[[Segment], bool]) -> list[Segment]:
        gone = [s for s in queue.segments if unwanted(s)]
        if gone:
            kept = [s for s in queue.segments if not unwanted(s)]
            self._replace(queue, kept)
        else:
            queue.earliest = min((s.deadline for s in queue.segments), default=float("inf"))
        return gone

    def _replace(self, queue: Queue, segments: list[Segment]) -> None:
        queue.segments.clear()
        queue.segments.extend(segments)
        queue.rows = sum(s.count * s.rows for s in segments)
        queue.earliest = min((s.deadline for s in segments), default=float("inf"))
        self._rest(queue)

    def _cancel(self, event: ev.Cancel, now: float, actions: list[ev.Action]) -> None:
        for queue in [q for group in self._waiting.values() for q in group.values()]:
            kept: list[Segment] = []
            gone: list[Segment] = []
            for segment in queue.segments:
                if segment.client != event.client:
                    kept.append(segment)
                else:
                    _sift(segment, event.ranges, kept, gone)
            if gone:
                self._replace(queue, kept)
                self._refuse(queue.spec, gone, Cancelled("cancelled by the client"), actions)

    def _client_gone(self, event: ev.ClientGone, now: float, actions: list[ev.Action]) -> None:
        for queue in [q for group in self._waiting.values() for q in group.values()]:
            self._remove(queue, lambda s: s.client == event.client)

    # -- workers and routes ------------------------------------------------------------------------------------

    def _worker_joined(self, event: ev.WorkerJoined, now: float, actions: list[ev.Action]) -> None:
        self._workers[event.worker] = _Worker(event.worker, event.holder)

    def _worker_lost(self, event: ev.WorkerLost, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        self._hungry.pop(event.worker, None)
        for routes in self._routes.values():
            routes.discard(event.worker)
        self.layout.quarantine(worker.holder)
        for batch in reversed(worker.batches.values()):
            self._orphaned(batch, event.why, actions)

    def _orphaned(self, batch: Batch, why: str, actions: list[ev.Action]) -> None:
        again: list[Segment] = []
        lost: list[Segment] = []
        for segment in batch.pieces:
            segment.deaths += 1
            retry = batch.spec.retry and segment.deaths < MAX_DEATHS
            (again if retry and not (segment.join and segment.join.failed) else lost).append(segment)
        for segment in reversed(again):
            batch.queue.push_back(segment)
        if again:
            self._restore(batch.queue)
        self._refuse(batch.spec, lost, Unavailable(f"worker {batch.worker} died while running this: {why}"), actions)

    def _restore(self, queue: Queue) -> None:
        self.queues[queue.spec.id] = queue
        self._wake(queue)

    def _worker_reaped(self, event: ev.WorkerReaped, now: float, actions: list[ev.Action]) -> None:
        self.layout.release(event.holder)
        self._hungry.update((name, None) for name, worker in self._workers.items() if worker.turns)

    def _drain(self, event: ev.Drain, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.draining = event.draining
            if not event.draining:
                self._hungry[event.worker] = None

    def _routed(self, event: ev.Routed, now: float, actions: list[ev.Action]) -> None:
        self._routes.setdefault(event.servable, set()).add(event.worker)
        for queue in list(self._waiting.get(event.servable.name, {}).values()):
            if queue.spec.servable == event.servable:
                self._wake(queue)

    def _unrouted(self, event: ev.Unrouted, now: float, actions: list[ev.Action]) -> None:
        routes = self._routes.get(event.servable)
        if routes is not None:
            routes.discard(event.worker)
            if not routes:
                del self._routes[event.servable]

    def _servable_gone(self, event: ev.ServableGone, now: float, actions: list[ev.Action]) -> None:
        for queue in list(self._waiting.get(event.servable.name, {}).values()):
            if queue.spec.servable == event.servable:
                gone = list(queue.segments)
                self._replace(queue, [])
                self._refuse(queue.spec, gone, event.error, actions)
        self._estimates.forget(event.servable)

    def _queue_closed(self, event: ev.QueueClosed, now: float, actions: list[ev.Action]) -> None:
        queue = self.queues.get(event.id)
        if queue is not None:
            queue.closing = True
            if not queue.segments:
                del self.queues[event.id]


def explode(segment: Segment) -> list[Segment]:
    """Requests larger than a batch, each as one segment of single rows with a join."""
    parts = []
    for i in range(segment.count):
        part = Segment(
            segment.client,
            0,
            segment.rows,
            1,
            segment.deadline,
            segment.arrived,
            segment.buffers,
            segment.priority,
            (segment.start + i) * segment.rows,
            segment.payload,
            segment.regions,
            segment.reply,
            Join(segment.first + i, segment.rows),
        )
        parts.append(part)
    return parts


def _sift(segment: Segment, ranges: list[tuple[int, int]], kept: list[Segment], gone: list[Segment]) -> None:
    """Split one segment into what is still wanted and what is not."""
    if segment.join is not None:
        request = segment.join.request
        hit = any(first <= request < first + count for first, count in ranges)
        (gone if hit else kept).append(segment)
        return
    rest: Segment | None = segment
    for first, count in sorted(ranges):
        if rest is None:
            break
        begin, end = max(first, rest.first), min(first + count, rest.first + rest.count)
        if begin >= end:
            continue
        before = rest.take(begin - rest.first) if begin > rest.first else None
        unwanted = rest.take(end - begin)
        if before is not None:
            kept.append(before)
        gone.append(unwanted)
        if rest.count == 0:
            rest = None
    if rest is not None:
        kept.append(rest)
