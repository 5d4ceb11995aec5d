"""The workers: what each has to do, who serves what, and who is to be looked at in the next turn."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from itertools import islice

from tfpool.scheduler.backlog import Backlog
from tfpool.scheduler.fairness import Turns
from tfpool.scheduler.work import NEVER, Batch, BatchId, Queue, WorkerName
from tfpool.types import ModelKey

CREDITS = 2
NARROW = 8


class Worker:
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
        self.wide: list[Route] = []

    @property
    def running(self) -> Batch | None:
        for batch in self.batches.values():
            return batch
        return None


class Route:
    """The workers that serve a servable. Where they are many it is *wide*: ``idle`` are those without a batch, and a
    worker that has become idle looks for itself whether anything waits here."""

    __slots__ = ("idle", "servable", "wide", "workers")

    def __init__(self, servable: ModelKey) -> None:
        self.servable = servable
        self.workers: dict[WorkerName, Worker] = {}
        self.idle: dict[WorkerName, Worker] = {}
        self.wide = False

    def widen(self, worker: Worker) -> None:
        """A wide route has one more worker."""
        if self not in worker.wide:
            worker.wide.append(self)
        if not worker.batches and not worker.draining:
            self.idle[worker.name] = worker

    def drop(self, name: WorkerName) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None and self.wide:
            worker.wide.remove(self)
            self.idle.pop(name, None)


class Staff:
    """``backlog`` is what there is to do, ``narrow`` the most workers of a servable that are all told when something
    waits. ``hungry`` workers are looked at in the next turn; ``starved`` ones found no room in the arena."""

    def __init__(self, backlog: Backlog, narrow: int = NARROW) -> None:
        self.workers: dict[WorkerName, Worker] = {}
        self.hungry: dict[WorkerName, Worker] = {}
        self.starved: dict[WorkerName, Worker] = {}
        self._backlog = backlog
        self._narrow = narrow
        self._routes: dict[ModelKey, Route] = {}
        self._seats: dict[str, dict[WorkerName, Worker]] = {}
        self._ripe: list[tuple[float, WorkerName]] = []

    @property
    def next_ripe(self) -> float:
        """When somebody is to be looked at, even if nothing happens (monotonic seconds)."""
        return self._ripe[0][0] if self._ripe else NEVER

    @staticmethod
    def sharers(queue: Queue) -> int:
        """Idle workers that could take a part of this queue now."""
        route = queue.route
        if route is None or len(route.workers) == 1:
            return 1
        idle = route.idle if route.wide else route.workers
        return sum(1 for other in idle.values() if not other.batches and not other.draining) or 1

    # -- who has to be told of what ----------------------------------------------------------------------------

    def wake(self, queue: Queue) -> None:
        """A queue has something waiting: its model takes part in the turns of every worker that serves it."""
        self._backlog.wake(queue)
        spec = queue.spec
        route = queue.route = self._routes.get(spec.servable)
        if route is None:
            return
        model = spec.servable.name
        level = spec.policy.priority + queue.segments[0].priority
        seats = self._seats.get(model)
        if seats is None:
            seats = self._seats[model] = {}
        told = route.workers if not route.wide else dict(islice(route.idle.items(), queue.rows))
        for name, worker in told.items():
            seats[name] = worker
            worker.turns.join(model, level)
            if len(worker.batches) < CREDITS and not worker.draining:
                self.hungry[name] = worker

    def rest(self, queue: Queue) -> None:
        """A queue may have become empty: keep the turns in step."""
        if self._backlog.rest(queue):
            model = queue.spec.servable.name
            seats = self._seats.get(model)
            if seats is not None:
                for worker in seats.values():
                    worker.turns.leave(model)
                route = queue.route
                if route is None or route.wide or not route.workers:
                    del self._seats[model]

    def idle(self, worker: Worker) -> None:
        """A worker has nothing to run: what waits on its wide routes takes part in its turns."""
        for route in worker.wide:
            route.idle[worker.name] = worker
            for queue in self._backlog.of_servable(route.servable):
                self._seats.setdefault(route.servable.name, {})[worker.name] = worker
                worker.turns.join(route.servable.name, queue.level)

    def busy(self, worker: Worker) -> None:
        """A worker has been given something to run: what else it was told of is for others who are idle."""
        for route in worker.wide:
            route.idle.pop(worker.name, None)
            if route.idle and route.servable.name in worker.turns:
                self._tell_others(route)

    def _tell_others(self, route: Route) -> None:
        for queue in self._backlog.of_servable(route.servable):
            self.wake(queue)

    def feed_starved(self) -> None:
        """The arena has room again, or a head that found none is gone."""
        if self.starved:
            self.hungry.update(self.starved)
            self.starved.clear()

    def ripen(self, worker: Worker, when: float) -> None:
        """Look at a worker then."""
        if when < worker.ripe_at:
            worker.ripe_at = when
            heappush(self._ripe, (when, worker.name))

    def turn(self, now: float) -> list[Worker]:
        """Who is to be looked at now; those with the least to do first."""
        ripe = self._ripe
        while ripe and ripe[0][0] <= now:
            when, name = heappop(ripe)
            worker = self.workers.get(name)
            if worker is not None and worker.ripe_at == when:
                worker.ripe_at = NEVER
                self.hungry[name] = worker
        if not self.hungry:
            return []
        hungry = list(self.hungry.values())
        self.hungry.clear()
        if len(hungry) > 1:
            hungry.sort(key=_load)
        return hungry

    # -- workers and routes come and go ------------------------------------------------------------------------

    def join(self, name: WorkerName, holder: Hashable) -> None:
        self.workers[name] = Worker(name, holder)

    def lose(self, name: WorkerName) -> Worker | None:
        """A worker is gone; what it was, with its batches."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            wide = list(worker.wide)
            for route in self._routes.values():
                route.drop(name)
            for table in (self.hungry, self.starved, *self._seats.values()):
                table.pop(name, None)
            for route in wide:
                self._tell_others(route)
        return worker

    def drain(self, worker: Worker, draining: bool) -> None:
        """Give a worker nothing more, or do again."""
        worker.draining = draining
        if draining:
            self.busy(worker)
            return
        if not worker.batches:
            self.idle(worker)
        self.hungry[worker.name] = worker

    def route(self, servable: ModelKey, name: WorkerName) -> None:
        """A worker serves a servable from now on."""
        route = self._routes.get(servable)
        if route is None:
            route = self._routes[servable] = Route(servable)
        worker = route.workers[name] = self.workers[name]
        if route.wide:
            route.widen(worker)
        elif len(route.workers) > self._narrow:
            route.wide = True
            for each in route.workers.values():
                route.widen(each)
        for queue in self._backlog.of_servable(servable):
            self.wake(queue)

    def unroute(self, servable: ModelKey, name: WorkerName) -> None:
        """A worker gets no further batch of a servable."""
        route = self._routes.get(servable)
        if route is not None:
            route.drop(name)
            if not route.workers:
                del self._routes[servable]
            elif route.wide:
                self._tell_others(route)


def _load(worker: Worker) -> tuple[int, float]:
    return len(worker.batches), worker.busy_until
