"""The scheduler's one door: ``handle(event, now) -> actions``.

Work-conserving batching: a free worker takes what waits, at once, up to the batch that its latency curve and the
head's deadline allow. Each worker has two credits, one for the batch that runs and one for a batch that is staged
behind it. Until a staged batch leaves it may still grow, so it leaves early only when it is full, or as large as the
one that runs: clients that keep requests in flight then settle into two batches of like size, and the worker never
waits. Where several models take turns, or a run is long, the next batch is chosen when the one before it is about to
end, or has ended: what is more urgent by then goes first.

A Submit is only admitted; batches leave at the next Turn, so that everything which arrived together can leave
together. What comes back without an answer is the business of :mod:`tfpool.scheduler.comeback`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from tfpool.errors import Cancelled, DeadlineExceeded, ResourceExhausted, TfpoolError
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Accounts, Limits
from tfpool.scheduler.admission import full, hopeless, make_room, paced, too_slow, triage
from tfpool.scheduler.backlog import Backlog, explode, remove, replace
from tfpool.scheduler.choice import Choice
from tfpool.scheduler.comeback import Comeback
from tfpool.scheduler.curves import Estimates
from tfpool.scheduler.forming import Former
from tfpool.scheduler.sizing import batches, cap
from tfpool.scheduler.staff import CREDITS, NARROW, Staff, Worker
from tfpool.scheduler.work import NEVER, Batch, BatchId, Queue, QueueSpec, Segment, WorkerName
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey

MAX_GONE = 1024  # servables whose batches a dying worker may still give back
SHARED_SECONDS = 1.0


class Scheduler:
    """All queues of a pool. ``layout`` is the arena that batches lease their bytes from, ``narrow`` the most workers of
    a servable that are all told when something waits."""

    def __init__(self, layout: Layout, limits: Limits | None = None, narrow: int = NARROW) -> None:
        self.layout = layout
        self.backlog = Backlog()
        self.accounts = Accounts(limits or Limits())
        self.estimates = Estimates()
        self.staff = Staff(self.backlog, narrow)
        self._gone: dict[ModelKey, TfpoolError] = {}
        self._choice = Choice(self.staff, self.backlog)
        self._comeback = Comeback(self.staff, self.accounts, self._gone, self._refuse)
        self._flying = 0
        self._last: Batch | None = None
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
        return min(self.backlog.expiry, self.staff.next_ripe)

    def lone_run(self) -> float:
        """Seconds that the run of the only request in flight is thought to take; inf where there are more, or none."""
        return self._last.thought if self._flying == 1 and self._last is not None else NEVER

    def running(self, worker: WorkerName) -> Batch | None:
        """The batch that a worker is running, or was when it died, until :class:`WorkerLost` is handled."""
        found = self.staff.workers.get(worker)
        return found.running if found is not None else None

    def in_flight(self, worker: WorkerName, servable: ModelKey | None = None) -> int:
        """Batches (of a servable) that a worker has."""
        found = self.staff.workers.get(worker)
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
            queue.out_row_bytes = self.estimates.out_row_bytes(spec)
        if not queue.curves:  # it is new, or its model was away
            queue.curves = self.estimates.curves(spec.servable, spec.signature)
        policy = spec.policy
        if queue.rows:
            slow = too_slow(queue, segment, *self._pace(queue), now)
            if slow is not None:
                actions.append(ev.Refuse(spec, [segment], slow))
                return
        why = self.accounts.charge(segment)
        if why:
            actions.append(ev.Refuse(spec, [segment], ResourceExhausted(why)))
            return
        if segment.count * segment.rows > policy.max_queue_rows - queue.rows:
            row_seconds = self._pace(queue)[1]
            error = full(queue, segment, row_seconds)
            self._refuse(spec, make_room(queue, segment), error, actions)
            fits = max(0, policy.max_queue_rows - queue.rows) // segment.rows
            if fits < segment.count:
                rest, segment = segment, segment.take(fits)
                self._refuse(spec, [rest], full(queue, rest, row_seconds), actions)
                if not fits:
                    return
        for part in explode(segment) if segment.rows > policy.max_rows and batches(spec) else (segment,):
            queue.push(part)
        self.staff.wake(queue)

    def _pace(self, queue: Queue) -> tuple[float, float]:
        """Seconds of the next batch of a queue, and seconds a row at best, as far as is known."""
        route = queue.route
        for name, curve in queue.curves.items():
            most = cap(queue, name)
            seconds = curve.run(most)
            return seconds, seconds / (most * len(route.workers)) if route is not None and route.workers else 0.0
        return 0.0, 0.0

    # -- batches out -------------------------------------------------------------------------------------------

    def _turn(self, event: ev.Turn, now: float, actions: list[ev.Action]) -> None:
        if now >= self.backlog.expiry:
            for queue, late in self.backlog.late(now):
                self._refuse(queue.spec, late, DeadlineExceeded("the deadline passed in the queue"), actions)
                self.staff.rest(queue)
            self.staff.feed_starved()
        hungry = self.staff.turn(now)
        while hungry:
            for worker in hungry:
                self._feed(worker, now, actions)
            hungry = self.staff.turn(now) if self.staff.hungry else []

    def _feed(self, worker: Worker, now: float, actions: list[ev.Action]) -> None:
        """Fill a worker's credits."""
        while worker.turns and len(worker.batches) < CREDITS and not worker.draining:
            queue = self._choice.next_queue(worker, now)
            if queue is None:
                return
            curve = queue.curves.get(worker.name)
            most = 1 if queue.rows == 1 else cap(queue, worker.name)
            if queue.earliest <= now and self._drop_late(queue, most, now, actions):
                continue
            start = max(now, worker.busy_until) if worker.batches else now
            if curve is not None and queue.segments[0].deadline - start < curve.run(most):
                most, hopeless_ones = triage(queue, curve, start, most, now)
                for segment in hopeless_ones:
                    self._refuse(queue.spec, [segment], hopeless(segment, curve, start, now), actions)
                if not queue.segments:
                    self.staff.rest(queue)
                    continue
            if self._send(queue, worker, most, start, now, actions):
                continue
            if not self._never_fits(queue, worker, actions):
                self.staff.starved[worker.name] = worker
                return

    def _drop_late(self, queue: Queue, most: int, now: float, actions: list[ev.Action]) -> bool:
        """Take out what is late if the next batch would have some of it; whether there was any."""
        if all(segment.deadline > now for segment in islice(queue.segments, most)):
            return False
        late = remove(queue, lambda segment: segment.deadline <= now)
        self._refuse(queue.spec, late, DeadlineExceeded("the deadline passed in the queue"), actions)
        self.staff.rest(queue)
        return True

    def _send(
        self, queue: Queue, worker: Worker, most: int, start: float, now: float, actions: list[ev.Action]
    ) -> bool:
        """Have a batch leave a queue; False where the arena has no room for it."""
        sharers = 1 if queue.rows == 1 or worker.batches else self.staff.sharers(queue)
        batch = self._former.form(queue, worker.name, worker.holder, sharers, most, now)
        if batch is None:
            return False
        worker.batches[batch.id] = batch
        worker.busy_until = start + batch.thought
        spec = queue.spec
        model = spec.servable.name
        if model != worker.last_model:
            if worker.last_model:
                worker.shared_until = now + SHARED_SECONDS
            worker.last_model = model
        worker.turns.start(model, batch.thought / spec.policy.weight, self.backlog.level(model))
        if queue.segments:
            paced(queue, batch.rows, now)
        else:
            self.staff.rest(queue)
        if worker.wide:
            self.staff.busy(worker)
        self._flying += batch.requests
        self._last = batch
        actions.append(ev.Dispatch(batch))
        return True

    def _never_fits(self, queue: Queue, worker: Worker, actions: list[ev.Action]) -> bool:
        """Whether the head of a queue can never have room, however empty the arena; it is refused then."""
        need, allowed = self._former.needs(queue, worker.name), self.layout.largest
        if need <= allowed:
            return False
        what = f"a request of {queue.spec.servable} needs {need} bytes of shared memory"
        error = ResourceExhausted(f"{what}; shm_budget allows {allowed}")
        self._refuse(queue.spec, [queue.take_one()], error, actions)
        self.staff.rest(queue)
        return True

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
        if batch is not None:
            self._comeback.broken(batch, event.error, actions)

    def _late(self, event: ev.Late, now: float, actions: list[ev.Action]) -> None:
        batch = self._end(event.worker, event.batch, 0.0, now)
        if batch is not None:
            self._comeback.late(batch, now, actions)

    def _end(self, worker_name: WorkerName, batch_id: BatchId, run: float, now: float) -> Batch | None:
        worker = self.staff.workers.get(worker_name)
        batch = worker.batches.pop(batch_id, None) if worker else None
        if worker is None or batch is None:
            return None
        self._flying -= batch.requests
        worker.busy_until = now + sum(staged.thought for staged in worker.batches.values()) if worker.batches else now
        worker.turns.settle(batch.spec.servable.name, (run - batch.thought) / batch.spec.policy.weight)
        if batch.lease is not None:
            self.layout.free(batch.lease)
            self.staff.feed_starved()
        if worker.wide and not worker.batches and not worker.draining:
            self.staff.idle(worker)
        if worker.turns and not worker.draining:
            self.staff.hungry[worker_name] = worker
        return batch

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
                    self.staff.rest(queue)
        if whole:
            actions.append(ev.Refuse(spec, whole, error))

    # -- clients, workers and routes ---------------------------------------------------------------------------

    def _cancel(self, event: ev.Cancel, now: float, actions: list[ev.Action]) -> None:
        for queue, gone in self.backlog.cancelled(event.client, event.ranges):
            self._refuse(queue.spec, gone, Cancelled("cancelled by the client"), actions)
            self.staff.rest(queue)
        self.staff.feed_starved()

    def _client_gone(self, event: ev.ClientGone, now: float, actions: list[ev.Action]) -> None:
        for queue, gone in self.backlog.of_client(event.client):
            for segment in gone:
                self.accounts.clear(segment)
            self.staff.rest(queue)
        self.accounts.forget(event.client)
        self.staff.feed_starved()

    def _worker_joined(self, event: ev.WorkerJoined, now: float, actions: list[ev.Action]) -> None:
        self.staff.join(event.worker, event.holder)

    def _worker_lost(self, event: ev.WorkerLost, now: float, actions: list[ev.Action]) -> None:
        worker = self.staff.lose(event.worker)
        if worker is None:
            return
        self.layout.quarantine(worker.holder)
        running = worker.running
        for batch in reversed(worker.batches.values()):
            self._flying -= batch.requests
            self._comeback.orphaned(batch, batch is running, event.why, worker.holder, actions)

    def _worker_reaped(self, event: ev.WorkerReaped, now: float, actions: list[ev.Action]) -> None:
        self.layout.release(event.holder)
        self._comeback.reaped(event.holder, event.guilty, actions)
        self.staff.feed_starved()

    def _drain(self, event: ev.Drain, now: float, actions: list[ev.Action]) -> None:
        worker = self.staff.workers.get(event.worker)
        if worker is not None:
            self.staff.drain(worker, event.draining)

    def _routed(self, event: ev.Routed, now: float, actions: list[ev.Action]) -> None:
        self._gone.pop(event.servable, None)
        self.staff.route(event.servable, event.worker)

    def _unrouted(self, event: ev.Unrouted, now: float, actions: list[ev.Action]) -> None:
        self.staff.unroute(event.servable, event.worker)
        self.staff.feed_starved()

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
            self.staff.rest(queue)
        self.staff.feed_starved()
        self.estimates.forget(event.servable)

    def _queue_closed(self, event: ev.QueueClosed, now: float, actions: list[ev.Action]) -> None:
        self.backlog.close(event.id)
