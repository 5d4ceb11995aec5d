"""Whose turn it is on a worker: the model by fair turns, and of its queues the most urgent one."""

from __future__ import annotations

from tfpool.scheduler.backlog import Backlog
from tfpool.scheduler.sizing import batches, cap
from tfpool.scheduler.staff import Staff, Worker
from tfpool.scheduler.work import Queue, WorkerName

LONG_RUN = 0.004  # a batch behind such a run is chosen when it is about to end
LEAD = 0.002
SHARED_RUN = 0.001  # a batch behind such a run, where models take turns, when it has ended


class Choice:
    """Looks at queues and turns; workers that are to be looked at again later are noted with ``staff``."""

    def __init__(self, staff: Staff, backlog: Backlog) -> None:
        self._staff = staff
        self._backlog = backlog

    def next_queue(self, worker: Worker, now: float) -> Queue | None:
        """The queue whose turn it is, if it may send this worker a batch already."""
        first = self._first(worker)
        if first is None:
            return None
        running = worker.running
        enough = 0
        if running is not None:
            enough = running.rows
            if running.thought > SHARED_RUN:
                if now < worker.shared_until:
                    return None
                ripe = worker.busy_until - LEAD
                if running.thought > LONG_RUN and ripe > now:
                    self._staff.ripen(worker, ripe)
                    return None
        found = self._ready_queue(first, worker, enough, now)
        if found is not None or enough:
            return found

        def ready(model: str) -> bool:
            nonlocal found
            found = self._ready_queue(model, worker, 0, now)
            return found is not None

        worker.turns.pick(ready)
        return found

    def _first(self, worker: Worker) -> str | None:
        """The model whose turn it is, by the level of what it has waiting now."""
        turns = worker.turns
        while (first := turns.first()) is not None:
            level, here = None, False
            for queue in self._backlog.group(first).values():
                own = queue.level
                if level is None or own > level:
                    level = own
                here = here or (queue.route is not None and worker.name in queue.route.workers)
            if not here or level is None:
                turns.leave(first)
            elif not turns.lower(first, level):
                return first
        return None

    def _ready_queue(self, model: str, worker: Worker, enough: int, now: float) -> Queue | None:
        """The most urgent queue of a model among those that may send a batch now (to be staged: of ``enough`` rows)."""
        best: Queue | None = None
        for queue in self._backlog.group(model).values():
            spec = queue.spec
            if queue.route is None or worker.name not in queue.route.workers:
                continue
            if (enough or spec.policy.max_wait) and batches(spec) and queue.rows < cap(queue, worker.name):
                if queue.rows < enough:
                    continue
                ripe = self._ripe(queue, worker.name)
                if ripe > now:
                    self._staff.ripen(worker, ripe)
                    continue
            if best is None or queue.segments[0].rank < best.segments[0].rank:
                best = queue
        return best

    @staticmethod
    def _ripe(queue: Queue, worker: WorkerName) -> float:
        """Until when a queue may wait for a larger batch: the head must not miss its deadline by it."""
        head, curve = queue.segments[0], queue.curves.get(worker)
        needed = LEAD + (curve.run(queue.rows) if curve is not None else 0.0)
        return min(head.arrived + queue.spec.policy.max_wait, head.deadline - needed)
