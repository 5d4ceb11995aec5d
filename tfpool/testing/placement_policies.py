"""Other policies to judge the planner by: the least recently used leaves, the hottest moves, the future is known."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from tfpool.placement.cost import row_seconds
from tfpool.placement.planner import plan_all
from tfpool.placement.policies import Static
from tfpool.placement.snapshot import Demand, Hold, Kind, Rules, ServableView, Snapshot, Step, WorkerView

_FREELY = Rules(hysteresis=1.0, moves_per_minute=1 << 30, bytes_per_minute=1 << 60)
_AT_ONCE = 3


class LruCache:
    """What was asked for the longest ago leaves first."""

    def __init__(self) -> None:
        self._bytes: OrderedDict[Hashable, int] = OrderedDict()

    def admit(self, key: Hashable, nbytes: int, cost: float) -> None:
        self._bytes[key] = nbytes
        self._bytes.move_to_end(key)

    def hit(self, key: Hashable, count: int = 1) -> None:
        if key in self._bytes:
            self._bytes.move_to_end(key)

    def victims(self, needed: int, evictable: Iterable[Hashable]) -> list[Hashable]:
        allowed, chosen = set(evictable), []
        for key, nbytes in self._bytes.items():
            if needed <= 0:
                break
            if key in allowed:
                chosen.append(key)
                needed -= nbytes
        return chosen if needed <= 0 else []

    def evicted(self, key: Hashable) -> None:
        self.forget(key)

    def forget(self, key: Hashable) -> None:
        self._bytes.pop(key, None)


class Lru(Static):
    """Models are loaded when they are asked for, where the fewest loads wait and the most is free; nothing moves."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = LruCache()

    def choose(self, snapshot: Snapshot, handle: int) -> str:
        coming = Counter(
            worker for servable in snapshot.servables for worker in servable.on if not _serves(servable, worker)
        )
        return min(snapshot.workers, key=lambda worker: (coming[worker.name], -worker.free)).name


class Greedy(Static):
    """Each time, the hottest model of the busiest worker moves to the least busy one, if that has room."""

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        loads = _loads(snapshot)
        source = max(snapshot.workers, key=lambda worker: sum(loads[worker.name].values()))
        target = min(snapshot.workers, key=lambda worker: sum(loads[worker.name].values()))
        views = {servable.handle: servable for servable in snapshot.servables}
        hottest = sorted(loads[source.name], key=lambda handle: -loads[source.name][handle])
        for handle in hottest[:1]:
            view = views[handle]
            if source is not target and view.movable and target.name not in view.on and target.free >= view.peak:
                return (_move(view, source, target),)
        return ()


class Oracle(Static):
    """Plans with what will be asked for, ``future(now)`` (demands by handle), and takes many steps at once."""

    def __init__(self, future: Callable[[float], Mapping[int, Demand]]) -> None:
        super().__init__()
        self._future = future

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        future = self._future(snapshot.now)
        servables = []
        for view in snapshot.servables:
            demand = future.get(view.handle, Demand(0.0, 0.0))
            servables.append(replace(view, fast=demand, slow=demand))
        return plan_all(replace(snapshot, servables=tuple(servables), past=()), _FREELY, _AT_ONCE)


def _loads(snapshot: Snapshot) -> dict[str, dict[int, float]]:
    """By worker and handle, the share of the worker's time that a servable takes there."""
    found: dict[str, dict[int, float]] = {worker.name: {} for worker in snapshot.workers}
    for view in snapshot.servables:
        seconds = dict(zip(found, row_seconds(view, snapshot.workers), strict=True))
        there = [worker for worker in view.on if _serves(view, worker)]
        for worker in there:
            found[worker][view.handle] = view.fast.rows * seconds[worker] / len(there)
    return found


def _serves(view: ServableView, worker: str) -> bool:
    return view.on[worker].hold is Hold.SERVES


def _move(view: ServableView, source: WorkerView, target: WorkerView) -> Step:
    reason = f"{source.name} is the busiest, {target.name} the least busy"
    return Step(Kind.MIGRATE, view.handle, view.name, source.name, target.name, view.nbytes, 0.0, 0.0, reason)
