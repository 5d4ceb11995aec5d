"""A pool as the planner reckons with it: who is where, what that loads each worker with, and what it all costs. Pure.

Servables and workers are numbers here, their places in the snapshot. What is told twice is for the fast and for the
slow averages of demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Literal

from tfpool.placement.cost import WANTED, absence, divide, near_crashers, queue, row_seconds, spread
from tfpool.placement.snapshot import Hold, Inlined, Kind, Rules, ServableView, Snapshot

Which = Literal["fast", "slow"]
Pair = tuple[float, float]

_IDLE_SECONDS = Rules().idle
_SETTLING_SECONDS = 5.0  # once a form is loaded: until then it stays
_SWEEPS = 30
_QUIET = 1e-4
_NONE: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


class Facts:
    """What does not change as servables move. ``still`` are those to be left alone; ``need`` is how many replicas
    each shall have, asked for or not. ``inlined`` are the replicas, (servable, worker), that may be mapped again;
    ``fresh`` ones have just been inlined."""

    def __init__(self, snapshot: Snapshot, idle: float = _IDLE_SECONDS) -> None:
        self.snapshot = snapshot
        self.workers, self.servables = snapshot.workers, snapshot.servables
        self.index = {worker.name: number for number, worker in enumerate(self.workers)}
        self.rates = ([s.fast.rows for s in self.servables], [s.slow.rows for s in self.servables])
        self.seconds = [row_seconds(s, self.workers) for s in self.servables]
        self.still = [
            not s.movable or any(replica.hold is not Hold.SERVES for replica in s.on.values()) for s in self.servables
        ]
        self.need = [_need(s, idle) for s in self.servables]
        self.fresh: set[tuple[int, int]] = set()
        self.inlined: dict[tuple[int, int], Inlined] = {}
        self._take_in_forms()
        self.spread = [self._spread(number) for number in range(len(self.servables))]

    def _spread(self, servable: int) -> Pair:
        least = min(self.seconds[servable], default=0.0)
        return spread(self.rates[0][servable] * least), spread(self.rates[1][servable] * least)

    def _take_in_forms(self) -> None:
        snapshot = self.snapshot
        began = {(past.handle, past.target): past.when for past in snapshot.past if past.kind is Kind.INLINE}
        for number, view in enumerate(self.servables):
            if view.inlined is None or self.still[number]:
                continue
            for name in (name for name, replica in view.on.items() if replica.inlined and name in self.index):
                place, settled = (number, self.index[name]), view.inlined.load_seconds + _SETTLING_SECONDS
                if snapshot.now - began.get((view.handle, name), -inf) < settled:
                    self.fresh.add(place)
                else:
                    self.inlined[place] = view.inlined

    def may(self, servable: int, worker: int) -> bool:
        """Whether a worker may be given a servable, full or not."""
        view, where = self.servables[servable], self.workers[worker]
        return where.open and where.kept_for in (0, view.handle) and (not view.pins or where.name in view.pins)

    def absence(self, servable: int) -> Pair:
        """What it costs, by each average, that a servable serves nowhere."""
        view, least = self.servables[servable], min(self.seconds[servable], default=0.0)
        return absence(view.fast, view.load_seconds, least), absence(view.slow, view.load_seconds, least)


def _need(view: ServableView, idle: float) -> int:
    least = view.replicas[0]
    return max(1, least) if view.wanted and (least or view.idle < idle) else 0


class Board:
    """A placement. ``on`` has the workers of each servable, ``share`` the load that it brings to each of them."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        count = len(facts.workers)
        self.load = ([0.0] * count, [0.0] * count)
        self.crashers = [0] * count
        self.free = [worker.free for worker in facts.workers]
        self.on: list[tuple[int, ...]] = [()] * len(facts.servables)
        self.share = [_NONE] * len(facts.servables)
        shared: list[tuple[int, tuple[int, ...]]] = []
        for number, view in enumerate(facts.servables):
            held = [facts.index[w] for w, r in view.on.items() if r.hold is not Hold.GOES and w in facts.index]
            if len(held) > 1:
                shared.append((number, tuple(sorted(held))))
            else:
                self._enter(number, tuple(held))
        for number, workers in shared:  # they go where the others leave room
            self._enter(number, workers)
        self._shared = [number for number, _ in shared]
        self.settle()

    def copy(self) -> Board:
        """Another board that may be changed by itself."""
        other = Board.__new__(Board)
        other.facts = self.facts
        other.load = (self.load[0][:], self.load[1][:])
        other.crashers, other.free = self.crashers[:], self.free[:]
        other.on, other.share, other._shared = self.on[:], self.share[:], self._shared
        return other

    def yielding(self) -> Board:
        """Another board, where bytes that inlined replicas would give back if they were mapped count as free."""
        other = self.copy()
        for (_, worker), form in self.facts.inlined.items():
            other.free[worker] += form.nbytes
        return other

    # -- what it costs -----------------------------------------------------------------------------------------

    def cost(self) -> Pair:
        """Requests that wait, by each average."""
        fast, slow = self._at(range(len(self.facts.workers)))
        for number in range(len(self.facts.servables)):
            missing = self._missing(number)
            fast, slow = fast + missing[0], slow + missing[1]
        return fast, slow

    def _at(self, workers: Iterable[int]) -> Pair:
        fast, slow = self.load
        costs = [0.0, 0.0]
        for worker in workers:
            costs[0] += queue(fast[worker])
            costs[1] += queue(slow[worker])
            if count := self.crashers[worker]:
                costs[0] += near_crashers(count, fast[worker])
                costs[1] += near_crashers(count, slow[worker])
        return costs[0], costs[1]

    def least(self, servable: int) -> int:
        """How many replicas a servable shall have, whatever is asked of it."""
        if not self.on[servable]:
            return self.facts.need[servable]
        return max(self.facts.need[servable], self.facts.servables[servable].replicas[0])

    def spread(self, servable: int) -> Pair:
        """What replicas beyond the least cost."""
        fast, slow = self.facts.spread[servable]
        more = max(0, len(self.on[servable]) - max(1, self.facts.servables[servable].replicas[0]))
        return more * fast, more * slow

    def missed(self, servable: int) -> float:
        """What it costs where a servable serves nowhere, by the worse average."""
        return max(self.facts.absence(servable)) + WANTED * self.facts.need[servable]

    def _missing(self, servable: int) -> Pair:
        workers, facts = len(self.on[servable]), self.facts
        short = WANTED * max(0, self.least(servable) - workers)
        if workers:
            fast, slow = self.spread(servable)
            return fast + short, slow + short
        fast, slow = facts.absence(servable)
        return fast + short, slow + short

    # -- what changes it ---------------------------------------------------------------------------------------

    def shift(self, servable: int, workers: Sequence[int]) -> Pair:
        """Have these workers serve a servable, and no others; returns how much the costs rise. Others that have
        replicas do not give way: :meth:`settle` has them."""
        view, before = self.facts.servables[servable], self.on[servable]
        touched = {*before, *workers}
        was, missed = self._at(touched), self._missing(servable)
        self._leave(servable)
        for worker in before:
            self.free[worker] += view.nbytes
        for worker in workers:
            self.free[worker] -= view.nbytes
        self._enter(servable, tuple(sorted(workers)))
        after, misses = self._at(touched), self._missing(servable)
        return after[0] - was[0] + misses[0] - missed[0], after[1] - was[1] + misses[1] - missed[1]

    def _leave(self, servable: int) -> None:
        for loads, share in zip(self.load, self.share[servable], strict=True):
            for worker, part in zip(self.on[servable], share, strict=True):
                loads[worker] -= part
        if self.facts.servables[servable].crashes:
            for worker in self.on[servable]:
                self.crashers[worker] -= 1
        self.on[servable], self.share[servable] = (), _NONE

    def _enter(self, servable: int, workers: tuple[int, ...]) -> None:
        if not workers:
            return
        self.on[servable] = workers
        self._pour(servable)
        if self.facts.servables[servable].crashes:
            for worker in workers:
                self.crashers[worker] += 1

    def _pour(self, servable: int) -> None:
        """Divide the work of a servable, which no load has in it, over its workers."""
        workers, seconds = self.on[servable], self.facts.seconds[servable]
        each = [seconds[worker] for worker in workers]
        parts = []
        for loads, rates in zip(self.load, self.facts.rates, strict=True):
            part = tuple(divide([loads[worker] for worker in workers], each, rates[servable]))
            for worker, more in zip(workers, part, strict=True):
                loads[worker] += more
            parts.append(part)
        self.share[servable] = (parts[0], parts[1])

    def settle(self) -> None:
        """Divide the work of those with replicas anew, in turn, until nothing moves."""
        for _ in range(_SWEEPS if len(self._shared) > 1 else 0):
            most = 0.0
            for servable in self._shared:
                before = self.share[servable]
                for loads, share in zip(self.load, before, strict=True):
                    for worker, part in zip(self.on[servable], share, strict=True):
                        loads[worker] -= part
                self._pour(servable)
                for old, new in zip(before, self.share[servable], strict=True):
                    most = max(most, *(abs(a - b) for a, b in zip(old, new, strict=True)))
            if most < _QUIET:
                break


def cost(snapshot: Snapshot, which: Which) -> float:
    """Requests that wait on average, by the fast or the slow averages of demand."""
    fast, slow = Board(Facts(snapshot)).cost()
    return fast if which == "fast" else slow
