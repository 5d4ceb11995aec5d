"""The scheduler's one door: ``handle(event, now) -> actions``.

Work-conserving batching: a free worker takes what waits, at once, up to the largest batch. Each worker has two
credits, one for the batch that runs and one for a batch that is staged behind it. Until a staged batch leaves it may
still grow, so it leaves early only when it is full, or as large as the one that runs: clients that keep requests in
flight then settle into two batches of like size, and the worker never waits.

A Submit is only admitted; batches leave at the next Turn, so that everything which arrived together can leave
together. Requests of a worker that died return to the head of their queues once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from tfpool.errors import Cancelled, DeadlineExceeded, ResourceExhausted, TfpoolError, Unavailable
from tfpool.scheduler import events as ev
from tfpool.scheduler.backlog import NEVER, Backlog, explode, remove, replace
from tfpool.scheduler.fairness import Turns
from tfpool.scheduler.forming import Former
from tfpool.scheduler.sizing import Estimates, batches
from tfpool.scheduler.work import Batch, BatchId, Queue, QueueSpec, Segment, WorkerName
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey

CREDITS = 2
MAX_DEATHS = 2
MAX_GONE = 1024  # servables whose batches a dying worker may still give back


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
        self.backlog = Backlog()
        self._workers: dict[WorkerName, _Worker] = {}
        self._routes: dict[ModelKey, dict[WorkerName, None]] = {}
        self._hungry: dict[WorkerName, None] = {}
        self._starved: dict[WorkerName, None] = {}
        self._gone: dict[ModelKey, TfpoolError] = {}
        self._flying = 0
        self._last: Batch | None = None
        self._next_ripe = NEVER
        self._estimates = Estimates()
        self._former = Former(layout, self._estimates)
        self._doors = {
            ev.Submit: self._submit,
            ev.Completed: self._completed,
            ev.Turn: self._turn,
            ev.Broken: self._broken,
            ev.Late: self._late,
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
        return min(self.backlog.expiry, self._next_ripe)

    def lone_run(self) -> float:
        """Seconds that the run of the only request in flight is thought to take; inf where there are more, or none."""
        return self._last.thought if self._flying == 1 and self._last is not None else NEVER

    def in_flight(self, worker: WorkerName, servable: ModelKey | None = None) -> int:
        """Batches (of a servable) that a worker has."""
        found = self._workers.get(worker)
        if found is None:
            return 0
        return sum(1 for b in found.batches.values() if servable is None or b.spec.servable == servable)

    def waiting(self, servable: ModelKey) -> int:
        """Rows of a servable that wait."""
        return sum(queue.rows for queue in self.backlog.of_servable(servable))

    def waiting_rows(self) -> int:
        return sum(queue.rows for queue in self.backlog.waiting())

    # -- requests in -------------------------------------------------------------------------------------------

    def _submit(self, event: ev.Submit, now: float, actions: list[ev.Action]) -> None:
        spec, segment = event
        if segment.deadline <= now:
            actions.append(ev.Refuse(spec, [segment], DeadlineExceeded("the deadline had passed on arrival")))
            return
        queue = self.backlog.open(spec, self._estimates.out_row_bytes(spec))
        policy = spec.policy
        room = policy.max_queue_rows - queue.rows
        if segment.count * segment.rows > room:
            fits = room // segment.rows
            over, segment = segment, segment.take(max(0, fits))
            most = policy.max_queue_rows
            if over.rows > most:
                message = f"a request of {spec.servable} has {over.rows} rows, more than max_queue_rows ({most})"
            else:
                message = f"queue of {spec.servable} is full: {queue.rows} rows wait, max_queue_rows is {most}"
            actions.append(ev.Refuse(spec, [over], ResourceExhausted(message)))
            if not segment.count:
                return
        for part in explode(segment) if segment.rows > policy.max_rows and batches(spec) else (segment,):
            queue.push(part)
        self._wake(queue)

    def _wake(self, queue: Queue) -> None:
        """A queue has something waiting: its model takes part in the turns of every worker that serves it."""
        self.backlog.wake(queue)
        servable = queue.spec.servable
        for name in self._routes.get(servable, ()):
            worker = self._workers[name]
            worker.turns.join(servable.name)
            if len(worker.batches) < CREDITS and not worker.draining:
                self._hungry[name] = None

    def _rest(self, queue: Queue) -> None:
        """A queue may have become empty: keep the turns in step."""
        if self.backlog.rest(queue):
            for worker in self._workers.values():
                worker.turns.leave(queue.spec.servable.name)

    # -- batches out -------------------------------------------------------------------------------------------

    def _turn(self, event: ev.Turn, now: float, actions: list[ev.Action]) -> None:
        if now >= self.backlog.expiry:
            for queue, late in self.backlog.late(now):
                self._refuse(queue.spec, late, DeadlineExceeded("the deadline passed in the queue"), actions)
                self._rest(queue)
            self._feed_starved()
        self._next_ripe = NEVER
        if not self._hungry:
            return
        hungry = [self._workers[name] for name in self._hungry]
        self._hungry.clear()
        if len(hungry) > 1:
            hungry.sort(key=lambda worker: len(worker.batches))
        for worker in hungry:
            self._feed(worker, now, actions)
        if self._next_ripe != NEVER:
            self._hungry.update((worker.name, None) for worker in hungry)

    def _feed(self, worker: _Worker, now: float, actions: list[ev.Action]) -> None:
        """Fill a worker's credits."""
        while len(worker.batches) < CREDITS and not worker.draining:
            running = next(iter(worker.batches.values()), None)
            queue = self._next_queue(worker, running.rows if running else 0, now)
            if queue is None:
                return
            if not self._fits(queue, worker, actions):
                if worker.name in self._starved:
                    return
                continue
            batch = self._former.form(queue, worker.name, worker.holder, self._sharers(queue, worker), now)
            worker.batches[batch.id] = batch
            worker.turns.start(queue.spec.servable.name, batch.thought / queue.spec.policy.weight)
            self._rest(queue)
            self._flying += batch.requests
            self._last = batch
            actions.append(ev.Dispatch(batch))

    def _next_queue(self, worker: _Worker, enough: int, now: float) -> Queue | None:
        """The queue whose turn it is, if it has ``enough`` rows to be staged already (0: the worker is idle)."""
        found: Queue | None = None

        def ready(model: str) -> bool:
            nonlocal found
            found = self._ready_queue(model, worker, enough, now)
            return found is not None

        return found if worker.turns.pick(ready, first_only=enough > 0) is not None else None

    def _ready_queue(self, model: str, worker: _Worker, enough: int, now: float) -> Queue | None:
        """The queue of a model whose head has waited longest, among those that may send a batch now."""
        best: Queue | None = None
        for queue in self.backlog.of_model(model):
            spec = queue.spec
            if worker.name not in self._routes.get(spec.servable, ()):
                continue
            if batches(spec) and queue.rows < spec.policy.max_rows:
                if queue.rows < enough:
                    continue
                ripe = queue.segments[0].arrived + spec.policy.max_wait
                if ripe > now:
                    self._next_ripe = min(self._next_ripe, ripe)
                    continue
            if best is None or queue.segments[0].arrived < best.segments[0].arrived:
                best = queue
        return best

    def _fits(self, queue: Queue, worker: _Worker, actions: list[ev.Action]) -> bool:
        """Whether the head of a queue can have room. One that never can is refused; else its worker is starved."""
        need, allowed = self._former.needs(queue), self.layout.largest
        if need > allowed:
            what = f"a request of {queue.spec.servable} needs {need} bytes of shared memory"
            error = ResourceExhausted(f"{what}; shm_budget allows {allowed}")
            self._refuse(queue.spec, [queue.take_one()], error, actions)
            self._rest(queue)
            return False
        if need and not self.layout.has_room(need):
            self._starved[worker.name] = None
            return False
        return True

    def _sharers(self, queue: Queue, worker: _Worker) -> int:
        """Idle workers that could take a part of this queue now, ``worker`` among them."""
        names = self._routes.get(queue.spec.servable, ())
        if len(names) == 1 or worker.batches:
            return 1
        return sum(1 for n in names if not self._workers[n].batches and not self._workers[n].draining) or 1

    # -- answers -----------------------------------------------------------------------------------------------

    def _completed(self, event: ev.Completed, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run)
        if batch is not None:
            self._estimates.learn(batch, event.run, event.out_bytes)
            actions.append(ev.Deliver(batch))

    def _broken(self, event: ev.Broken, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run)
        if batch is None:
            return
        if batch.requests == 1 or not batch.spec.retry:
            self._refuse(batch.spec, batch.pieces, event.error, actions)
            return
        gone = self._gone.get(batch.spec.servable)
        if gone is not None:
            self._refuse(batch.spec, batch.pieces, gone, actions)
            return
        # One request may have failed the others: run the halves apart, until the culprit is alone.
        again = [piece for piece in batch.pieces if piece.join is None or not piece.join.failed]
        for piece in reversed(again):
            piece.limit = max(1, batch.rows // 2)
            batch.queue.push_back(piece)
        if again:
            self._wake(batch.queue)

    def _late(self, event: ev.Late, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, 0.0)
        if batch is None:
            return
        for piece in reversed(batch.pieces):
            batch.queue.push_back(piece)
        self._wake(batch.queue)

    def _end(self, worker_name: WorkerName, batch_id: BatchId, run: float) -> Batch | None:
        worker = self._workers.get(worker_name)
        batch = worker.batches.pop(batch_id, None) if worker else None
        if worker is None or batch is None:
            return None
        self._flying -= batch.requests
        worker.turns.settle(batch.spec.servable.name, (run - batch.thought) / batch.spec.policy.weight)
        if batch.lease is not None:
            self.layout.free(batch.lease)
            self._feed_starved()
        if worker.turns and not worker.draining:
            self._hungry[worker_name] = None
        return batch

    def _feed_starved(self) -> None:
        """The arena has room again, or a head that found none is gone."""
        if self._starved:
            self._hungry.update((name, None) for name in self._starved if name in self._workers)
            self._starved.clear()

    def _refuse(
        self, spec: QueueSpec, segments: Iterable[Segment], error: TfpoolError, actions: list[ev.Action]
    ) -> None:
        """Refuse requests; a large one is refused once, as a whole, and its other parts do not run."""
        whole = []
        for segment in segments:
            join = segment.join
            if join is None:
                whole.append(segment)
            elif not join.failed:
                join.failed = True
                segment.first, segment.count, segment.rows = join.request, 1, join.rows
                whole.append(segment)
                queue = self.backlog.queues.get(spec.id)
                if queue is not None and remove(queue, lambda other, join=join: other.join is join):  # type: ignore[misc]
                    self._rest(queue)
        if whole:
            actions.append(ev.Refuse(spec, whole, error))

    # -- clients, workers and routes ---------------------------------------------------------------------------

    def _cancel(self, event: ev.Cancel, now: float, actions: list[ev.Action]) -> None:
        for queue, gone in self.backlog.cancelled(event.client, event.ranges):
            self._refuse(queue.spec, gone, Cancelled("cancelled by the client"), actions)
            self._rest(queue)
        self._feed_starved()

    def _client_gone(self, event: ev.ClientGone, now: float, actions: list[ev.Action]) -> None:
        for queue, _ in self.backlog.of_client(event.client):
            self._rest(queue)
        self._feed_starved()

    def _worker_joined(self, event: ev.WorkerJoined, now: float, actions: list[ev.Action]) -> None:
        self._workers[event.worker] = _Worker(event.worker, event.holder)

    def _worker_lost(self, event: ev.WorkerLost, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        self._hungry.pop(event.worker, None)
        for routes in self._routes.values():
            routes.pop(event.worker, None)
        self.layout.quarantine(worker.holder)
        for batch in reversed(worker.batches.values()):
            self._flying -= batch.requests
            self._orphaned(batch, event.why, actions)

    def _orphaned(self, batch: Batch, why: str, actions: list[ev.Action]) -> None:
        """The requests of a dead worker return to the head of their queue, once, if somebody may still serve them."""
        gone = self._gone.get(batch.spec.servable)
        again: list[Segment] = []
        lost: list[Segment] = []
        for segment in batch.pieces:
            segment.deaths += 1
            if segment.join is None or not segment.join.failed:
                (again if batch.spec.retry and gone is None and segment.deaths < MAX_DEATHS else lost).append(segment)
        for segment in reversed(again):
            batch.queue.push_back(segment)
        if again:
            self._wake(batch.queue)
        error = gone or Unavailable(f"worker {batch.worker} died while running this: {why}")
        self._refuse(batch.spec, lost, error, actions)

    def _worker_reaped(self, event: ev.WorkerReaped, now: float, actions: list[ev.Action]) -> None:
        self.layout.release(event.holder)
        self._feed_starved()

    def _drain(self, event: ev.Drain, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.draining = event.draining
            if not event.draining:
                self._hungry[event.worker] = None

    def _routed(self, event: ev.Routed, now: float, actions: list[ev.Action]) -> None:
        self._gone.pop(event.servable, None)
        self._routes.setdefault(event.servable, {})[event.worker] = None
        for queue in self.backlog.of_servable(event.servable):
            self._wake(queue)

    def _unrouted(self, event: ev.Unrouted, now: float, actions: list[ev.Action]) -> None:
        routes = self._routes.get(event.servable)
        if routes is not None:
            routes.pop(event.worker, None)
            if not routes:
                del self._routes[event.servable]
        self._feed_starved()

    def _servable_gone(self, event: ev.ServableGone, now: float, actions: list[ev.Action]) -> None:
        self._gone[event.servable] = event.error
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]
        for queue in self.backlog.of_servable(event.servable):
            gone = list(queue.segments)
            replace(queue, [])
            self._refuse(queue.spec, gone, event.error, actions)
            self._rest(queue)
        self._feed_starved()
        self._estimates.forget(event.servable)

    def _queue_closed(self, event: ev.QueueClosed, now: float, actions: list[ev.Action]) -> None:
        self.backlog.close(event.id)
