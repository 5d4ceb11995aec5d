"""What a chain of moves gains, and what it takes: exactly, by making it on a copy of the board. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tfpool.placement.board import Board
from tfpool.placement.cost import loading
from tfpool.placement.ground import NOWHERE
from tfpool.placement.moves import Move
from tfpool.placement.restraint import Restraint, agreed
from tfpool.placement.snapshot import Kind

LEAST_WORTH = 1e-3  # seconds of waiting within the horizon: less than this is no gain
_ASIDE = 0.2  # seconds for each servable that is out of memory meanwhile: the way may have to be gone back
_EFFORT = 0.01  # seconds for each move, so that no way is gone that leads nowhere


@dataclass(frozen=True, slots=True)
class Chain:
    """Moves that follow each other. ``gain`` is what they save within the horizon by the less favourable average,
    ``cost`` what they disturb, both in seconds of waiting. By its ``worth`` a chain is preferred to others: what is
    left of the gain when the cost is taken from it as often as it must be earned. ``board`` is what they lead to."""

    moves: tuple[Move, ...]
    gain: float
    cost: float
    worth: float
    board: Board


def weigh(board: Board, restraint: Restraint, moves: Sequence[Move]) -> Chain | None:
    """None where there is no memory for one of the moves when its turn comes."""
    trial, cost, burden, fast, slow = board.copy(), 0.0, 0.0, 0.0, 0.0
    for move in moves:
        if move.target != NOWHERE and trial.free[move.target] < board.facts.servables[move.servable].peak:
            return None
        takes = disturbance(trial, restraint, move)
        cost += takes
        if move.target == NOWHERE:
            burden += restraint.rules.hysteresis * takes
        elif not _owed(trial, move):
            burden += restraint.caution(move.servable, move.target) * takes
        rise = trial.shift(move.servable, placed(trial, move))
        fast, slow = fast - rise[0], slow - rise[1]
    gain = float(agreed(fast, slow)) * restraint.rules.horizon
    aside = {m.servable for m in moves if m.kind is Kind.EVICT} & {m.servable for m in moves if m.kind is Kind.LOAD}
    worth = gain - burden - _EFFORT * (len(moves) - 1) - _ASIDE * len(aside)
    return Chain(tuple(moves), gain, cost, worth, trial)


def placed(board: Board, move: Move) -> list[int]:
    """The workers of the servable once it has moved."""
    workers = [worker for worker in board.on[move.servable] if worker != move.source]
    return workers if move.target == NOWHERE else [*workers, move.target]


def disturbance(board: Board, restraint: Restraint, move: Move) -> float:
    """Seconds of waiting that a move brings: a load takes its time from who is busy on the target, and the next request
    for an evicted servable waits for a load."""
    view = board.facts.servables[move.servable]
    if move.target != NOWHERE:
        return view.load_seconds * loading(max(loads[move.target] for loads in board.load))
    if move.kind is Kind.EVICT:
        return view.load_seconds * min(1.0, max(view.fast.asks, view.slow.asks) * restraint.rules.horizon)
    return 0.0


def _owed(board: Board, move: Move) -> bool:
    """Whether the servable shall have that replica whatever is asked of it."""
    return move.kind is not Kind.MIGRATE and len(board.on[move.servable]) < board.least(move.servable)
