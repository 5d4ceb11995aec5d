"""A pool at one moment in, at most one step out that makes it better, and why. Pure and stateless.

A step is worth its while where what it saves within the horizon is more than ``hysteresis`` times what it disturbs,
by the fast and by the slow averages of demand. Steps that only help together are weighed together; the first is told,
and the next plan finds the others. Where everything is well placed, replicas may change their form.
"""

from __future__ import annotations

from tfpool.placement.board import Board, Facts
from tfpool.placement.chains import best_chain
from tfpool.placement.choice import Candidate, place
from tfpool.placement.forms import give_way, reform
from tfpool.placement.ground import NOWHERE
from tfpool.placement.housekeeping import tidy
from tfpool.placement.moves import Move
from tfpool.placement.reasons import explain
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import Kind, Rules, Snapshot, Step
from tfpool.placement.steps import after
from tfpool.placement.weighing import Chain, weigh

__all__ = ["Candidate", "after", "place", "plan", "plan_all"]


def plan(snapshot: Snapshot, rules: Rules) -> Step | None:
    """The step that gains most; None where none gains enough. The same snapshot gives the same step."""
    board = Board(Facts(snapshot, rules.idle))
    restraint = Restraint(board, rules)
    if restraint.moves <= 0:
        return None
    return _gaining(board, restraint) or tidy(board, restraint) or reform(board, restraint)


def plan_all(snapshot: Snapshot, rules: Rules, most: int = 100) -> list[Step]:
    """Steps one after the other, each as if the ones before were done, until nothing gains enough."""
    steps: list[Step] = []
    while len(steps) < most and (step := plan(snapshot, rules)) is not None:
        steps.append(step)
        snapshot = after(snapshot, step)
    return steps


def _gaining(board: Board, restraint: Restraint) -> Step | None:
    """The first step of the best chain. Inlined replicas give way to it, where one that needs no room of theirs would
    be worth less."""
    yielding = board.yielding() if board.facts.inlined else board
    best = _best(yielding, restraint)
    if best is None:
        return None
    first = best.moves[0]
    if first.target != NOWHERE and board.free[first.target] < board.facts.servables[first.servable].peak:
        other = _best(board, restraint)
        way = give_way(board, restraint, best, 0.0 if other is None else other.worth)
        if way is not None or other is None:
            return way
        best = other
    return _step(board, best.moves[0], best.gain, best.cost, explain(board, best))


def _best(board: Board, restraint: Restraint) -> Chain | None:
    best = best_chain(board, restraint)
    if best is not None and best.moves[0].kind is Kind.LOAD:  # it does not depend on those that are loaded with it
        return weigh(board, restraint, best.moves[:1]) or best
    return best


def _step(board: Board, move: Move, gain: float, cost: float, reason: str) -> Step:
    view, names = board.facts.servables[move.servable], [worker.name for worker in board.facts.workers]
    source = "" if move.source == NOWHERE else names[move.source]
    target = "" if move.target == NOWHERE else names[move.target]
    nbytes = view.nbytes if target else view.kept(source)
    return Step(move.kind, view.handle, view.name, source, target, nbytes, gain, cost, reason)
