"""A journal as a world and a demand, to be played again with other workers, memory or rules. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tfpool.errors import InvalidArgument
from tfpool.placement.cost import mapped_row_seconds
from tfpool.placement.guests import Tenant, World
from tfpool.placement.journal import BEGUN, Entry
from tfpool.placement.rates import FAST_SECONDS
from tfpool.placement.snapshot import NOTHING, Demand, Hold, Replica, Rules, ServableView, WorkerView

LONGEST_GAP = 30.0  # seconds; what lies beyond is taken for a pool that was down
_LONG_SECONDS = 2 * FAST_SECONDS
_TICK = 0.25


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be otherwise than recorded; None leaves it.

    ``memory`` is what models may fill on all workers together, and ``most`` the replicas of one model.
    """

    workers: int | None = None
    memory: int | None = None
    most: int | None = None


class Recording:
    """What has been read of a journal so far: each servable as it was last seen, and what was asked for, by name.

    ``looks`` at the pool in so many ``seconds``, and ``steps`` that were taken.
    """

    def __init__(self) -> None:
        self.rules = Rules()
        self.looks = self.steps = 0
        self.seconds = 0.0
        self._workers: tuple[WorkerView, ...] = ()
        self._servables: dict[str, ServableView] = {}
        self._first: dict[str, Mapping[str, Replica]] = {}
        self._spans: list[tuple[float, dict[str, float]]] = []
        self._asked: dict[str, Demand] = {}
        self._when = math.inf

    def add(self, entry: Entry) -> None:
        """The next entry. Averages look back, so what it tells was asked for since the one before: the fast one where
        that is not long ago."""
        passed = min(max(0.0, entry.when - self._when), LONGEST_GAP)
        self._when, self._workers, self.rules = entry.when, entry.snapshot.workers, entry.rules
        rates = {}
        for view in entry.snapshot.servables:
            self._servables[view.name] = view
            self._first.setdefault(view.name, {} if self.looks else view.on)
            demand = view.fast if passed <= _LONG_SECONDS else view.slow
            if demand.asks > 0:
                rates[view.name] = demand.asks
                asks, rows = self._asked.get(view.name, NOTHING)
                self._asked[view.name] = Demand(asks + demand.asks * passed, rows + demand.rows * passed)
        self._spans.append((passed, rates))
        self.looks += 1
        self.steps += entry.outcome == BEGUN
        self.seconds += passed

    def world(self, change: Change, interval: float) -> World:
        """The pool as recorded, but for ``change``. Raises InvalidArgument where nothing was recorded."""
        if not self._workers or self.seconds <= 0:
            raise InvalidArgument("got a journal of one moment, expected at least two looks at a pool with workers")
        workers = _workers(self._workers, change)
        there = {worker.name for worker in workers}
        return World(
            workers, tuple(self._tenant(view, workers, there, change) for view in self._views()), _TICK, interval
        )

    def ticks(self) -> Iterator[Mapping[int, int]]:
        """How many requests came in each tick, by handle: whole ones, as many as the rates make up together."""
        handles = {view.name: view.handle for view in self._views()}
        owed = dict.fromkeys(handles, 0.0)
        left = 0.0
        for passed, rates in self._spans:
            left += passed
            while left >= _TICK:
                left -= _TICK
                asked = {}
                for name, rate in rates.items():
                    owed[name] += rate * _TICK
                    if owed[name] >= 1.0:
                        asked[handles[name]] = int(owed[name])
                        owed[name] -= asked[handles[name]]
                yield asked

    def _views(self) -> list[ServableView]:
        """Handles may have been given twice, after a restart: these are new."""
        return [replace(view, handle=number) for number, view in enumerate(self._servables.values(), 1)]

    def _tenant(self, view: ServableView, workers: tuple[WorkerView, ...], there: set[str], change: Change) -> Tenant:
        asks, rows = self._asked.get(view.name, NOTHING)
        least, most = view.replicas
        most = change.most or (len(workers) if most >= len(self._workers) else most)
        most = max(1, min(most, len(workers)))
        on = {worker: replica for worker, replica in self._first[view.name].items() if replica.hold is Hold.SERVES}
        seen = replace(
            view,
            fast=NOTHING,
            slow=NOTHING,
            replicas=(min(least, most), most),
            pins=tuple(pin for pin in view.pins if pin in there),
            on=on,
            movable=view.movable or any(replica.hold is not Hold.SERVES for replica in view.on.values()),
            crashes=0,
            idle=0.0,
        )
        known = replace(view, row_seconds={w: s for w, s in view.row_seconds.items() if w in there} or view.row_seconds)
        names = [worker.name for worker in workers]
        seconds = dict(zip(names, mapped_row_seconds(known, workers), strict=True))
        return Tenant(seen, rows / asks if asks else 1.0, seconds)


def _workers(seen: tuple[WorkerView, ...], change: Change) -> tuple[WorkerView, ...]:
    """As many as asked for: the first of those seen, and then more like the last one."""
    count = change.workers or len(seen)
    names = {worker.name for worker in seen}
    stem = re.sub(r"\d+$", "", seen[-1].name)
    fresh = (name for name in (f"{stem}{number}" for number in range(len(names) + count)) if name not in names)
    workers = [*seen[:count], *(replace(seen[-1], name=next(fresh)) for _ in range(count - len(seen)))]
    room = None if change.memory is None else change.memory // count
    clean = (replace(worker, held=0, residue=0, busy=0.0, open=True, kept_for=0) for worker in workers)
    return tuple(worker if room is None else replace(worker, room=room) for worker in clean)
