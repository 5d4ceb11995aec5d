"""Which workers a servable is given to when it is first loaded. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tfpool.placement.board import Board, Facts
from tfpool.placement.snapshot import Hold, Snapshot


class Candidate(NamedTuple):
    """A worker that may be given a model: bytes and number of the models it holds, its budget in bytes, how many loads
    it has to do, and the share of its time that it runs."""

    name: str
    used: int
    models: int
    budget: int | None
    loads: int = 0
    busy: float = 0.0


def place(
    candidates: Sequence[Candidate], held_by: Sequence[str], replicas: int, size: int | None, pins: Sequence[str] = ()
) -> list[str]:
    """Workers that shall load a model of ``size`` bytes (None: not known) so that ``replicas`` hold it.

    Fewer are returned where fewer can; those that hold it already count. First come workers with room for it, then
    those with the fewest loads to do, for a load begins after those before it; then the less busy ones, in tenths;
    then those with the fewest bytes, then with the fewest models.
    """
    wanted = replicas - len(held_by)
    able = [c for c in candidates if c.name not in held_by and (not pins or c.name in pins)]
    able.sort(key=lambda c: (_overfull(c, size), c.loads, round(c.busy, 1), c.used, c.models, c.name))
    return [c.name for c in able[: max(0, wanted)]]


def _overfull(candidate: Candidate, size: int | None) -> bool:
    return candidate.budget is not None and candidate.used + (size or 0) > candidate.budget


def choose(snapshot: Snapshot, handle: int, count: int) -> list[str]:
    """Up to ``count`` more workers for a servable, the best first.

    First come those with room for it; of these, where one that is asked for is loaded soonest; then where it makes the
    least wait; where that is about the same, since little or nothing is known of its demand, those with the fewest
    bytes, then with the fewest servables, then by name.
    Raises StopIteration for a handle that the snapshot does not have.
    """
    board = Board(Facts(snapshot))
    facts = board.facts
    servable = next(number for number, view in enumerate(facts.servables) if view.handle == handle)
    view = facts.servables[servable]
    models = [0] * len(facts.workers)
    for other in facts.servables:
        for name in other.on:
            if name in facts.index:
                models[facts.index[name]] += 1
    asked = view.fast.asks > 0 or view.slow.asks > 0
    queued = [_coming(facts, where.name) if asked else 0.0 for where in facts.workers]
    chosen: list[str] = []
    able = [w for w, where in enumerate(facts.workers) if facts.may(servable, w) and where.name not in view.on]
    while able and len(chosen) < count:
        ranks = {}
        for worker in able:
            rise = max(board.copy().shift(servable, [*board.on[servable], worker]))
            where = facts.workers[worker]
            lacks = board.free[worker] < view.peak
            ranks[worker] = (lacks, queued[worker], round(rise, 2), where.held, models[worker], where.name)
        best = min(able, key=ranks.__getitem__)
        board.shift(servable, [*board.on[servable], best])
        able.remove(best)
        chosen.append(facts.workers[best].name)
    return chosen


def _coming(facts: Facts, worker: str) -> float:
    """Seconds of loads that have not ended at a worker."""
    on = ((view, view.on.get(worker)) for view in facts.servables)
    return sum(view.load_seconds for view, replica in on if replica is not None and replica.hold is Hold.COMES)
