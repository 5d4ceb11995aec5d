"""Steps that save memory rather than time: replicas of no use, cold servables, workers that kept too much. Pure."""

from __future__ import annotations

from tfpool.placement.board import Board
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import Hold, Kind, Step
from tfpool.placement.weighing import LEAST_WORTH

_SHORT = 0.1  # of the room of a worker: with less left, what is of no use should go


def tidy(board: Board, restraint: Restraint) -> Step | None:
    """The first of what there is to tidy up."""
    if not restraint.affords(Kind.DROP, 0):
        return None
    return _drop(board, restraint) or _evict(board, restraint) or _recycle(board, restraint)


def _drop(board: Board, restraint: Restraint) -> Step | None:
    """The replica that is of least use, where more is gained without it, where it is of none and memory is short, or
    where there is one too many."""
    facts, rules = board.facts, restraint.rules
    best: tuple[float, int, int] | None = None
    for number, view in enumerate(facts.servables):
        held = board.on[number]
        if facts.still[number] or len(held) <= max(1, view.replicas[0], facts.need[number]):
            continue
        again = rules.hysteresis * view.load_seconds  # what it would have to gain to come back
        for worker in held:
            if restraint.rests(number, worker):
                continue
            saves = max(board.copy().shift(number, [w for w in held if w != worker])) * rules.horizon
            short = saves <= 0 and board.free[worker] < _SHORT * (facts.workers[worker].room or 0)
            if (saves < -again - LEAST_WORTH or short or len(held) > view.replicas[1]) and (
                best is None or saves < best[0]
            ):
                best = saves, number, worker
    if best is None:
        return None
    saves, number, worker = best
    view, where = facts.servables[number], facts.workers[worker].name
    others = [w for w in board.on[number] if w != worker]
    work = max(sum(share) for share in board.share[number])
    busiest = max(max(loads[w] for w in others) for loads in board.load)
    why = (
        f"it is {work * 100:.0f} % of a worker, the others that serve it are {busiest * 100:.0f} % busy at most, and "
        f"its batches get larger without {where}"
    )
    if len(board.on[number]) > view.replicas[1]:
        why = f"it has {len(board.on[number])} replicas and shall have {view.replicas[1]} at most"
    return Step(Kind.DROP, view.handle, view.name, where, "", view.kept(where), -saves, 0.0, why)


def _evict(board: Board, restraint: Restraint) -> Step | None:
    for number, view in enumerate(board.facts.servables):
        held = board.on[number]
        if view.replicas[0] or view.idle < restraint.rules.idle or len(held) != 1 or board.facts.still[number]:
            continue
        asked = max(view.fast.asks, view.slow.asks) * restraint.rules.idle >= 1
        if not asked and not restraint.rests(number, held[0]):
            where = board.facts.workers[held[0]].name
            why = f"nobody has asked for it for {view.idle:.0f} s, and it need not stay in memory"
            return Step(Kind.EVICT, view.handle, view.name, where, "", view.kept(where), 0.0, 0.0, why)
    return None


def _recycle(board: Board, restraint: Restraint) -> Step | None:
    snapshot, bound = board.facts.snapshot, restraint.rules.residue
    recycled = {past.source for past in snapshot.past if past.kind is Kind.RECYCLE}
    moving = {w for s in snapshot.servables for w, r in s.on.items() if r.hold is not Hold.SERVES}
    able = [w for w in snapshot.workers if w.residue > bound and w.open and w.name not in recycled | moving]
    if not able:
        return None
    worker = max(able, key=lambda w: w.residue)
    cost = sum(s.load_seconds for s in snapshot.servables if worker.name in s.on)
    why = f"models that have left it still fill {worker.residue >> 20} MiB, more than {bound >> 20} MiB"
    return Step(Kind.RECYCLE, 0, "", worker.name, "", worker.residue, 0.0, cost, why)
