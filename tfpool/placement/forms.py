"""In which form replicas are: mapped, which shares its memory, or inlined, which is faster and keeps more. Pure.

A form changes where the replica is, and nobody else serves for it. Memory that somebody needs is worth more than speed:
what is inlined gives way.
"""

from __future__ import annotations

from tfpool.placement.board import Board, Facts, Pair
from tfpool.placement.cost import loading, queue
from tfpool.placement.reasons import inlining, making_way
from tfpool.placement.restraint import Restraint, agreed
from tfpool.placement.snapshot import Inlined, Kind, Step
from tfpool.placement.steps import after
from tfpool.placement.weighing import LEAST_WORTH, Chain, weigh

_WORTHWHILE = 1.03  # times the rows a second: with less, a form is not inlined
_USELESS = 1.02  # with less, it is mapped again
_SHORT = 0.05  # of the room of a worker: with less left, what is inlined is mapped
_SLACK = 0.1  # of its room: what has to be left beside a form that is inlined


def reform(board: Board, restraint: Restraint) -> Step | None:
    """The replica whose form should change most, if one should: one that is inlined in vain, or else one that would
    save most if it were."""
    return _map(board, restraint) or _inline(board, restraint)


def give_way(board: Board, restraint: Restraint, chain: Chain, worth: float) -> Step | None:
    """The first of the replicas to be mapped so that a chain can begin, for which memory is short; None where it would
    be worth no more than ``worth`` then."""
    facts, move = board.facts, chain.moves[0]
    steps, lost = list[Step](), 0.0
    able = {servable: form for (servable, worker), form in facts.inlined.items() if worker == move.target}
    needed = facts.servables[move.servable].peak - facts.workers[move.target].free
    why = making_way(board, chain)
    while needed > 0 and able:
        costs = {servable: _dearer(board, restraint, servable, move.target, form) for servable, form in able.items()}
        enough = [servable for servable, form in able.items() if form.nbytes >= needed]
        few = min(enough, key=costs.__getitem__) if enough else max(able, key=lambda servable: able[servable].nbytes)
        form = able.pop(few)
        needed -= form.nbytes
        lost += max(0.0, costs[few])
        steps.append(_mapping(facts, few, move.target, form, chain.gain, chain.cost + max(0.0, costs[few]), why))
    seen = facts.snapshot
    for step in steps:
        seen = after(seen, step)
    found = weigh(Board(Facts(seen, restraint.rules.idle)).yielding(), restraint, chain.moves)
    return steps[0] if found is not None and found.worth - lost > max(LEAST_WORTH, worth) else None


def _map(board: Board, restraint: Restraint) -> Step | None:
    """The replica that loses least for the bytes that it gives back, of those that are inlined in vain or whose memory
    is short."""
    facts = board.facts
    best: tuple[float, Step] | None = None
    for (servable, worker), form in facts.inlined.items():
        view, where = facts.servables[servable], facts.workers[worker]
        if form.gain < _USELESS:
            why = f"inlined it runs {form.gain:.2f} times as fast, which is not worth its memory"
        elif view.idle >= restraint.rules.idle:
            why = f"nobody has asked for it for {view.idle:.0f} s, and mapped it keeps less"
        elif where.free < _SHORT * (where.room or 0):
            why = f"{where.name} has {where.free / (1 << 20):.0f} MiB left, and mapped it keeps less"
        else:
            continue
        lost = _dearer(board, restraint, servable, worker, form)
        density = lost / max(1, form.nbytes)
        if not restraint.rests(servable, worker) and (best is None or density < best[0]):
            best = density, _mapping(facts, servable, worker, form, max(0.0, -lost), max(0.0, lost), why)
    return None if best is None else best[1]


def _inline(board: Board, restraint: Restraint) -> Step | None:
    """The replica that is worth most if it is inlined, of those whose workers have the memory."""
    facts, rules = board.facts, restraint.rules
    best: tuple[float, Step] | None = None
    for servable, view in enumerate(facts.servables):
        form = view.inlined
        if form is None or form.gain < _WORTHWHILE or view.idle >= rules.idle or facts.still[servable]:
            continue
        if not restraint.affords(Kind.INLINE, form.nbytes):
            continue
        for worker in board.on[servable]:
            where = facts.workers[worker]
            left = where.free - form.nbytes
            if view.on[where.name].inlined or not where.open or restraint.in_vain(servable, worker):
                continue
            if where.free < form.peak or left < _SLACK * (where.room or 0):
                continue
            gain = float(agreed(*_saved(board, servable, worker, 1 / form.gain))) * rules.horizon
            cost = form.load_seconds * loading(max(loads[worker] for loads in board.load))
            worth = gain - rules.hysteresis * cost
            if worth > max(LEAST_WORTH, best[0] if best else 0.0) and not restraint.rests(servable, worker):
                why = inlining(board, servable, worker, form)
                step = Step(Kind.INLINE, view.handle, view.name, "", where.name, form.nbytes, gain, cost, why)
                best = worth, step
    return None if best is None else best[1]


def _mapping(facts: Facts, servable: int, worker: int, form: Inlined, gain: float, cost: float, why: str) -> Step:
    view, where = facts.servables[servable], facts.workers[worker]
    return Step(Kind.MAP, view.handle, view.name, where.name, "", form.nbytes, gain, cost, why)


def _dearer(board: Board, restraint: Restraint, servable: int, worker: int, form: Inlined) -> float:
    """Seconds of waiting that are lost within the horizon if a replica is mapped, by the worse average (below 0:
    saved)."""
    return -min(_saved(board, servable, worker, form.gain)) * restraint.rules.horizon


def _saved(board: Board, servable: int, worker: int, times: float) -> Pair:
    """Requests that no longer wait or run, by each average, if those of a replica take so many times as long."""
    at = board.on[servable].index(worker)
    fast, slow = ((loads[worker], share[at]) for loads, share in zip(board.load, board.share[servable], strict=True))
    return _less(*fast, times), _less(*slow, times)


def _less(load: float, part: float, times: float) -> float:
    then = load + part * (times - 1)
    return load + queue(load) - then - queue(then)
