"""The scheduler's one door: ``handle(event, now) -> actions``.

Work-conserving batching: a free worker takes what waits, at once, up to the batch that its latency curve and the
head's deadline allow. Each worker has two credits, one for the batch that runs and one for a batch that is staged
behind it. Until a staged batch leaves it may still grow, so it leaves early only when it is full, or as large as the
one that runs: clients that keep requests in flight then settle into two batches of like size, and the worker never
waits. Where several models take turns, or a run is long, the next batch is chosen when the one before it is about to
end, or has ended: what is more urgent by then goes first.

A Submit is only admitted; batches leave at the next Turn, so that everything which arrived together can leave
together. Requests of a worker that died return to the head of their queues. Those that ran are suspects: they run again
once as they were, then in halves among themselves, until the one that kills is alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
from itertools import islice

from tfpool.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    TfpoolError,
    Unavailable,
)
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Accounts, Limits
from tfpool.scheduler.admission import full, hopeless, make_room, paced, too_slow, triage
from tfpool.scheduler.backlog import Backlog, explode, remove, replace
from tfpool.scheduler.curves import Estimates
from tfpool.scheduler.fairness import Turns
from tfpool.scheduler.forming import Former
from tfpool.scheduler.sizing import batches
from tfpool.scheduler.work import NEVER, Batch, BatchId, Queue, QueueSpec, Segment, WorkerName
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey

CREDITS = 2
MAX_DEATHS = 2  # of a request that ran alone
MAX_GONE = 1024  # servables whose batches a dying worker may still give back
LONG_RUN = 0.004  # a batch behind such a run is chosen when it is about to end
LEAD = 0.002
SHARED_RUN = 0.001  # a batch behind such a run, where models take turns, when it has ended
SHARED_SECONDS = 1.0
NARROW = 8


class _Worker:
    """``busy_until`` is when its batches are thought to be done, ``shared_until`` until when it counts as one that
    several models use, ``ripe_at`` when it is to be looked at again (monotonic seconds); ``wide`` are its wide routes.
    """

    __slots__ = (
        "batches",
        "busy_until",
        "draining",
        "holder",
        "last_model",
        "name",
        "ripe_at",
        "shared_until",
        "turns",
        "wide",
    )

    def __init__(self, name: WorkerName, holder: Hashable) -> None:
        self.name = name
        self.holder = holder
        self.batches: dict[BatchId, Batch] = {}
        self.turns = Turns()
        self.draining = False
        self.busy_until = 0.0
        self.last_model = ""
        self.shared_until = 0.0
        self.ripe_at = NEVER
        self.wide: list[_Route] = []


class _Route:
    """The workers that serve a servable. Where they are many it is *wide*: ``idle`` are those without a batch, and a
    worker that has become idle looks for itself whether anything waits here."""

    __slots__ = ("_narrow", "idle", "servable", "wide", "workers")

    def __init__(self, servable: ModelKey, narrow: int) -> None:
        self.servable = servable
        self._narrow = narrow
        self.workers: dict[WorkerName, _Worker] = {}
        self.idle: dict[WorkerName, _Worker] = {}
        self.wide = False

    def add(self, worker: _Worker) -> None:
        self.workers[worker.name] = worker
        if self.wide:
            self._widen(worker)
        elif len(self.workers) > self._narrow:
            self.wide = True
            for each in self.workers.values():
                self._widen(each)

    def _widen(self, worker: _Worker) -> None:
        if self not in worker.wide:
            worker.wide.append(self)
        if not worker.batches and not worker.draining:
            self.idle[worker.name] = worker

    def drop(self, name: WorkerName) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None and self.wide:
            worker.wide.remove(self)
            self.idle.pop(name, None)


class Scheduler:
    """All queues of a pool. ``layout`` is the arena that batches lease their bytes from, ``narrow`` the most workers of
    a servable that are all told when something waits."""

    def __init__(self, layout: Layout, limits: Limits | None = None, narrow: int = NARROW) -> None:
        self.layout = layout
        self.backlog = Backlog()
        self.accounts = Accounts(limits or Limits())
        self.estimates = Estimates()
        self._workers: dict[WorkerName, _Worker] = {}
        self._routes: dict[ModelKey, _Route] = {}
        self._seats: dict[str, dict[WorkerName, _Worker]] = {}
        self._hungry: dict[WorkerName, _Worker] = {}
        self._starved: dict[WorkerName, _Worker] = {}
        self._gone: dict[ModelKey, TfpoolError] = {}
        self._narrow = narrow
        self._flying = 0
        self._last: Batch | None = None
        self._ripe: list[tuple[float, WorkerName]] = []
        self._former = Former(layout)
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
            ev.Measured: self._measured,
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
        expiry = self.backlog.expiry
        return min(expiry, self._ripe[0][0]) if self._ripe else expiry

    def lone_run(self) -> float:
        """Seconds that the run of the only request in flight is thought to take; inf where there are more, or none."""
        return self._last.thought if self._flying == 1 and self._last is not None else NEVER

    def running(self, worker: WorkerName) -> Batch | None:
        """The batch that a worker is running, or was when it died, until :class:`WorkerLost` is handled."""
        found = self._workers.get(worker)
        return next(iter(found.batches.values()), None) if found is not None else None

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
        queue = self.backlog.queues.get(spec.id)
        if queue is None:
            queue = self.backlog.open(spec)
            queue.curves = self.estimates.curves(spec.servable, spec.signature)
            queue.out_row_bytes = self.estimates.out_row_bytes(spec)
        policy = spec.policy
        if queue.pacing:
            slow = too_slow(queue, segment, self._batch_seconds(queue), now)
            if slow is not None:
                actions.append(ev.Refuse(spec, [segment], slow))
                return
        why = self.accounts.charge(segment)
        if why:
            actions.append(ev.Refuse(spec, [segment], ResourceExhausted(why)))
            return
        if segment.count * segment.rows > policy.max_queue_rows - queue.rows:
            self._refuse(spec, make_room(queue, segment), full(queue, segment), actions)
            fits = max(0, policy.max_queue_rows - queue.rows) // segment.rows
            if fits < segment.count:
                rest, segment = segment, segment.take(fits)
                self._refuse(spec, [rest], full(queue, rest), actions)
                if not fits:
                    return
        for part in explode(segment) if segment.rows > policy.max_rows and batches(spec) else (segment,):
            queue.push(part)
        self._wake(queue)

    def _batch_seconds(self, queue: Queue) -> float:
        """What the next batch of a queue will take, as far as is known."""
        for name, curve in queue.curves.items():
            return curve.run(self.cap(queue, name))
        return 0.0

    @staticmethod
    def cap(queue: Queue, worker: WorkerName) -> int:
        """The largest batch that a queue may send a worker: the user's, or the knee of the worker's curve."""
        policy = queue.spec.policy
        curve = queue.curves.get(worker)
        return policy.max_rows if curve is None else curve.knee(policy.max_rows, policy.sizes)

    def _wake(self, queue: Queue) -> None:
        """A queue has something waiting: its model takes part in the turns of every worker that serves it."""
        self.backlog.wake(queue)
        spec = queue.spec
        route = self._routes.get(spec.servable)
        if route is None:
            return
        model, level = spec.servable.name, queue.level
        seats = self._seats.get(model)
        if seats is None:
            seats = self._seats[model] = {}
        told = route.workers if not route.wide else dict(islice(route.idle.items(), queue.rows))
        for name, worker in told.items():
            seats[name] = worker
            worker.turns.join(model, level)
            if len(worker.batches) < CREDITS and not worker.draining:
                self._hungry[name] = worker

    def _look_around(self, worker: _Worker) -> None:
        """A worker has become idle: what waits on its wide routes takes part in its turns."""
        for route in worker.wide:
            route.idle[worker.name] = worker
            for queue in self.backlog.of_servable(route.servable):
                self._seats[queue.spec.servable.name][worker.name] = worker
                worker.turns.join(queue.spec.servable.name, queue.level)

    def _rest(self, queue: Queue) -> None:
        """A queue may have become empty: keep the turns in step."""
        if self.backlog.rest(queue):
            model = queue.spec.servable.name
            for worker in self._seats.pop(model, {}).values():
                worker.turns.leave(model)

    # -- batches out -------------------------------------------------------------------------------------------

    def _turn(self, event: ev.Turn, now: float, actions: list[ev.Action]) -> None:
        if now >= self.backlog.expiry:
            for queue, late in self.backlog.late(now):
                self._refuse(queue.spec, late, DeadlineExceeded("the deadline passed in the queue"), actions)
                self._rest(queue)
            self._feed_starved()
        ripe = self._ripe
        while ripe and ripe[0][0] <= now:
            when, name = heappop(ripe)
            found = self._workers.get(name)
            if found is not None and found.ripe_at == when:
                found.ripe_at = NEVER
                self._hungry[name] = found
        if not self._hungry:
            return
        hungry = list(self._hungry.values())
        self._hungry.clear()
        if len(hungry) > 1:
            hungry.sort(key=lambda worker: len(worker.batches))
        for worker in hungry:
            self._feed(worker, now, actions)

    def _feed(self, worker: _Worker, now: float, actions: list[ev.Action]) -> None:
        """Fill a worker's credits."""
        while len(worker.batches) < CREDITS and not worker.draining:
            queue = self._next_queue(worker, now)
            if queue is None:
                return
            most = self.cap(queue, worker.name)
            curve = queue.curves.get(worker.name)
            start = max(now, worker.busy_until) if worker.batches else now
            if curve is not None and queue.segments[0].deadline - start < curve.run(most):
                most, hopeless_ones = triage(queue, curve, start, most, now)
                for segment in hopeless_ones:
                    self._refuse(queue.spec, [segment], hopeless(segment, curve, start, now), actions)
                if not queue.segments:
                    self._rest(queue)
                    continue
            if not self._fits(queue, worker, actions):
                if worker.name in self._starved:
                    return
                continue
            self._send(queue, worker, most, start, now, actions)

    def _send(
        self, queue: Queue, worker: _Worker, most: int, start: float, now: float, actions: list[ev.Action]
    ) -> None:
        """Have a batch leave a queue."""
        batch = self._former.form(queue, worker.name, worker.holder, self._sharers(queue, worker), most, now)
        worker.batches[batch.id] = batch
        worker.busy_until = start + batch.thought
        for route in worker.wide:
            route.idle.pop(worker.name, None)
        spec = queue.spec
        model = spec.servable.name
        if model != worker.last_model:
            if worker.last_model:
                worker.shared_until = now + SHARED_SECONDS
            worker.last_model = model
        if queue.segments:
            paced(queue, batch.rows, now)
            worker.turns.start(model, batch.thought / spec.policy.weight, queue.level)
        else:
            worker.turns.start(model, batch.thought / spec.policy.weight)
            self._rest(queue)
        self._flying += batch.requests
        self._last = batch
        actions.append(ev.Dispatch(batch))

    def _next_queue(self, worker: _Worker, now: float) -> Queue | None:
        """The queue whose turn it is, if it may send this worker a batch already."""
        running = next(iter(worker.batches.values()), None)
        enough = 0
        if running is not None:
            enough = running.rows
            if running.thought > SHARED_RUN:
                if now < worker.shared_until:
                    return None
                ripe = worker.busy_until - LEAD
                if running.thought > LONG_RUN and ripe > now:
                    self._ripen(worker, ripe)
                    return None
        found: Queue | None = None

        def ready(model: str) -> bool:
            nonlocal found
            found = self._ready_queue(model, worker, enough, now)
            return found is not None

        return found if worker.turns.pick(ready, first_only=enough > 0) is not None else None

    def _ready_queue(self, model: str, worker: _Worker, enough: int, now: float) -> Queue | None:
        """The most urgent queue of a model among those that may send a batch now (to be staged: of ``enough`` rows)."""
        best: Queue | None = None
        for queue in self.backlog.of_model(model):
            spec = queue.spec
            route = self._routes.get(spec.servable)
            if route is None or worker.name not in route.workers:
                continue
            if (enough or spec.policy.max_wait) and batches(spec) and queue.rows < self.cap(queue, worker.name):
                if queue.rows < enough:
                    continue
                ripe = queue.segments[0].arrived + spec.policy.max_wait
                if ripe > now:
                    self._ripen(worker, ripe)
                    continue
            if best is None or queue.segments[0].rank < best.segments[0].rank:
                best = queue
        return best

    def _ripen(self, worker: _Worker, when: float) -> None:
        """Look at a worker again then."""
        if when < worker.ripe_at:
            worker.ripe_at = when
            heappush(self._ripe, (when, worker.name))

    def _fits(self, queue: Queue, worker: _Worker, actions: list[ev.Action]) -> bool:
        """Whether the head of a queue can have room. One that never can is refused; else its worker is starved."""
        need, allowed = self._former.needs(queue, worker.name), self.layout.largest
        if need > allowed:
            what = f"a request of {queue.spec.servable} needs {need} bytes of shared memory"
            error = ResourceExhausted(f"{what}; shm_budget allows {allowed}")
            self._refuse(queue.spec, [queue.take_one()], error, actions)
            self._rest(queue)
            return False
        if need and not self.layout.has_room(need):
            self._starved[worker.name] = worker
            return False
        return True

    def _sharers(self, queue: Queue, worker: _Worker) -> int:
        """Idle workers that could take a part of this queue now, ``worker`` among them."""
        route = self._routes.get(queue.spec.servable)
        if route is None or len(route.workers) == 1 or worker.batches or queue.rows == 1:
            return 1
        idle = route.idle if route.wide else route.workers
        return sum(1 for other in idle.values() if not other.batches and not other.draining) or 1

    # -- answers -----------------------------------------------------------------------------------------------

    def _completed(self, event: ev.Completed, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run, now)
        if batch is not None:
            batch.begun = event.begun
            self.estimates.learn(batch, event.run, event.out_bytes, now)
            for piece in batch.pieces:
                self.accounts.clear(piece)
            actions.append(ev.Deliver(batch))

    def _broken(self, event: ev.Broken, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, event.run, now)
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
        for piece in reversed(batch.pieces):
            if piece.join is not None and piece.join.failed:
                self.accounts.clear(piece)
                continue
            piece.limit = max(1, batch.rows // 2)
            batch.queue.push_back(piece)
        if batch.queue.segments:
            self._wake(batch.queue)

    def _late(self, event: ev.Late, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, 0.0, now)
        if batch is None:
            return
        gone = self._gone.get(batch.spec.servable)
        late: list[Segment] = []
        for piece in reversed(batch.pieces):
            if gone is not None or piece.deadline <= now:
                late.append(piece)
            elif piece.join is None or not piece.join.failed:
                batch.queue.push_back(piece)
            else:
                self.accounts.clear(piece)
        error = gone or DeadlineExceeded("the deadline passed before the run began")
        self._refuse(batch.spec, late[::-1], error, actions)
        if batch.queue.segments:
            self._wake(batch.queue)

    def _end(self, worker_name: WorkerName, batch_id: BatchId, run: float, now: float) -> Batch | None:
        worker = self._workers.get(worker_name)
        batch = worker.batches.pop(batch_id, None) if worker else None
        if worker is None or batch is None:
            return None
        self._flying -= batch.requests
        worker.busy_until = now + sum(staged.thought for staged in worker.batches.values()) if worker.batches else now
        worker.turns.settle(batch.spec.servable.name, (run - batch.thought) / batch.spec.policy.weight)
        if batch.lease is not None:
            self.layout.free(batch.lease)
            self._feed_starved()
        if worker.wide and not worker.batches and not worker.draining:
            self._look_around(worker)
        if worker.turns and not worker.draining:
            self._hungry[worker_name] = worker
        return batch

    def _feed_starved(self) -> None:
        """The arena has room again, or a head that found none is gone."""
        if self._starved:
            self._hungry.update(self._starved)
            self._starved.clear()

    def _refuse(
        self, spec: QueueSpec, segments: Iterable[Segment], error: TfpoolError, actions: list[ev.Action]
    ) -> None:
        """Refuse requests; a large one is refused once, as a whole, and its other parts do not run."""
        whole = []
        for segment in segments:
            self.accounts.clear(segment)
            join = segment.join
            if join is None:
                whole.append(segment)
            elif not join.failed:
                join.failed = True
                segment.first, segment.count, segment.rows = join.request, 1, join.rows
                whole.append(segment)
                queue = self.backlog.queues.get(spec.id)
                if queue is not None:
                    for other in remove(queue, lambda other, join=join: other.join is join):  # type: ignore[misc]
                        self.accounts.clear(other)
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
        for queue, gone in self.backlog.of_client(event.client):
            for segment in gone:
                self.accounts.clear(segment)
            self._rest(queue)
        self.accounts.forget(event.client)
        self._feed_starved()

    def _worker_joined(self, event: ev.WorkerJoined, now: float, actions: list[ev.Action]) -> None:
        self._workers[event.worker] = _Worker(event.worker, event.holder)

    def _worker_lost(self, event: ev.WorkerLost, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        for route in self._routes.values():
            route.drop(event.worker)
        for workers in (self._hungry, self._starved, *self._seats.values()):
            workers.pop(event.worker, None)
        self.layout.quarantine(worker.holder)
        running = next(iter(worker.batches.values()), None)
        for batch in reversed(worker.batches.values()):
            self._flying -= batch.requests
            self._orphaned(batch, batch is running, event.why, actions)

    def _orphaned(self, batch: Batch, ran: bool, why: str, actions: list[ev.Action]) -> None:
        """The requests of a dead worker return to the head of their queue, if they may run again.

        Only those that ran (``ran``) may have killed it: again as they were, then in halves, until the one is alone.
        """
        gone = self._gone.get(batch.spec.servable)
        lost: list[Segment] = []
        quarantined: list[Segment] = []
        for piece in reversed(batch.pieces):
            piece.deaths += ran
            if piece.join is not None and piece.join.failed:
                self.accounts.clear(piece)
            elif gone is not None or (ran and not batch.spec.retry):
                lost.append(piece)
            elif ran and piece.deaths >= MAX_DEATHS and batch.requests == 1:
                quarantined.append(piece)
            else:
                if piece.deaths >= MAX_DEATHS:
                    piece.limit = max(1, batch.rows // 2)
                batch.queue.push_back(piece)
        if batch.queue.segments:
            self._wake(batch.queue)
        error = gone or Unavailable(f"worker {batch.worker} died while running this: {why}")
        self._refuse(batch.spec, lost[::-1], error, actions)
        for piece in quarantined:
            text = (
                f"this request is in quarantine: {piece.deaths} workers died while running it, the last {batch.worker}"
            )
            self._refuse(batch.spec, [piece], FailedPrecondition(f"{text} ({why})"), actions)

    def _worker_reaped(self, event: ev.WorkerReaped, now: float, actions: list[ev.Action]) -> None:
        self.layout.release(event.holder)
        self._feed_starved()

    def _drain(self, event: ev.Drain, now: float, actions: list[ev.Action]) -> None:
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.draining = event.draining
            if event.draining:
                for route in worker.wide:
                    route.idle.pop(event.worker, None)
                return
            if not worker.batches:
                self._look_around(worker)
            self._hungry[event.worker] = worker

    def _routed(self, event: ev.Routed, now: float, actions: list[ev.Action]) -> None:
        self._gone.pop(event.servable, None)
        route = self._routes.get(event.servable)
        if route is None:
            route = self._routes[event.servable] = _Route(event.servable, self._narrow)
        route.add(self._workers[event.worker])
        for queue in self.backlog.of_servable(event.servable):
            self._wake(queue)

    def _unrouted(self, event: ev.Unrouted, now: float, actions: list[ev.Action]) -> None:
        route = self._routes.get(event.servable)
        if route is not None:
            route.drop(event.worker)
            if not route.workers:
                del self._routes[event.servable]
        self._feed_starved()

    def _measured(self, event: ev.Measured, now: float, actions: list[ev.Action]) -> None:
        for signature, points in enumerate(event.curves):
            self.estimates.seed(event.servable, signature, event.worker, points, now)

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
        self.estimates.forget(event.servable)

    def _queue_closed(self, event: ev.QueueClosed, now: float, actions: list[ev.Action]) -> None:
        self.backlog.close(event.id)
