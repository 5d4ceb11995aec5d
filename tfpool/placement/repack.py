"""How to come from one placement to a much better one of everything, where memory is short. Pure."""

from __future__ import annotations

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.cost import loading
from tfpool.placement.ground import NOWHERE
from tfpool.placement.moves import Move
from tfpool.placement.packing import Pack, pack
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import REFORMS, Kind, Past, Snapshot

_MOST_CELLS = 2000  # servables x workers: larger pools are seldom lumpy, and would take too long
_MOST_MOVES = 100
_EFFORT = 1e-4
_UNLIMITED = float(1 << 60)
_PERIOD_SECONDS = 600.0
_REST_SECONDS = 60.0
_SEARCH_SECONDS = 30.0  # at the beginning of a period, for it takes long


def repack(board: Board, restraint: Restraint) -> list[Move]:
    """The moves to a better placement, in an order for which there is memory; nothing where none is found.

    It is looked for from where everything was when the present period began, if the pool was at rest then, so that each
    step on the way leads to the same end. The next period looks elsewhere.
    """
    if not _due(board.facts.snapshot, restraint):
        return []
    facts, on = board.facts, _before(board)
    servables = [n for n in range(len(on)) if not facts.still[n] and (on[n] or board.missed(n) > 0)]
    servables = [n for n in servables if all(facts.may(n, w) and not _rests(board, restraint, n, w) for w in on[n])]
    if not servables or len(servables) * len(facts.workers) > _MOST_CELLS:
        return []
    found = pack(_pack(board, restraint, servables, on), int(_began(facts.snapshot) // _PERIOD_SECONDS))
    goal = {n: set(np.flatnonzero(row).tolist()) for n, row in zip(servables, found, strict=True)}
    goal = {n: workers for n, workers in goal.items() if workers != set(board.on[n])}
    moves = _way(board, goal)
    return [] if any(m.source != NOWHERE and restraint.rests(m.servable, m.source) for m in moves) else moves


def _due(snapshot: Snapshot, restraint: Restraint) -> bool:
    """Whether a period has just begun, or a way that was found then is being gone."""
    began = _began(snapshot)
    lately = [past.when for past in _moves(snapshot) if past.when >= began - _REST_SECONDS]
    if not lately:
        return snapshot.now < began + _SEARCH_SECONDS
    return restraint.under_way and began <= lately[0] < began + _SEARCH_SECONDS


def _moves(snapshot: Snapshot) -> list[Past]:
    """The steps of the past that changed who serves."""
    return [past for past in snapshot.past if past.kind not in REFORMS]


def _began(snapshot: Snapshot) -> float:
    return snapshot.now - snapshot.now % _PERIOD_SECONDS


def _before(board: Board) -> list[set[int]]:
    """The workers of each servable when the period began."""
    facts, snapshot = board.facts, board.facts.snapshot
    began = _began(snapshot)
    number = {view.handle: n for n, view in enumerate(facts.servables)}
    on = [set(workers) for workers in board.on]
    for past in reversed(_moves(snapshot)):
        if past.when < began or past.handle not in number:
            continue
        workers = on[number[past.handle]]
        workers.discard(facts.index.get(past.target, NOWHERE))
        if past.source in facts.index:
            workers.add(facts.index[past.source])
    return on


def _rests(board: Board, restraint: Restraint, servable: int, worker: int) -> bool:
    return worker in board.on[servable] and restraint.rests(servable, worker)


def _pack(board: Board, restraint: Restraint, servables: list[int], where: list[set[int]]) -> Pack:
    facts, rules, width = board.facts, restraint.rules, len(board.facts.workers)
    views = [facts.servables[n] for n in servables]
    on = np.array([[w in where[n] for w in range(width)] for n in servables], dtype=bool)
    may = np.array([[facts.may(n, w) for w in range(width)] for n in servables], dtype=bool)
    work = np.array(facts.rates).mean(axis=0)[:, None] * np.array(facts.seconds)
    nbytes = np.array([view.nbytes for view in views], dtype=float)
    base, free = np.array(board.load).mean(axis=0), np.minimum(np.array(board.free, dtype=float), _UNLIMITED)
    for n in servables:
        for worker, *parts in zip(board.on[n], *board.share[n], strict=False):
            base[worker] -= sum(parts) / len(parts)
            free[worker] += facts.servables[n].nbytes
    often = np.array([min(1.0, max(v.fast.asks, v.slow.asks) * rules.horizon) for v in views])
    again = np.array([view.load_seconds for view in views]) * rules.hysteresis / rules.horizon
    return Pack(
        on=on,
        work=np.where(may, work[servables], np.inf),
        nbytes=nbytes,
        peak=np.array([view.peak for view in views], dtype=float),
        missed=np.array([board.missed(n) for n in servables]) + np.where(on.any(axis=1), often * again, 0.0) + _EFFORT,
        spread=np.array([facts.spread[n] for n in servables]).mean(axis=1),
        moving=again * loading(float(work.min(axis=1).sum()) / width) + _EFFORT,
        least=np.array([max(facts.need[n], view.replicas[0]) for n, view in zip(servables, views, strict=True)]),
        most=np.array([view.replicas[1] for view in views]),
        base=np.maximum(0.0, base.round(9)),
        free=free,
    )


def _way(board: Board, goal: dict[int, set[int]]) -> list[Move]:
    """What fits comes first, then what only leaves, then one that is out of memory until there is room for it again."""
    facts, free = board.facts, board.free[:]
    moves: list[Move] = []
    on = {servable: set(board.on[servable]) for servable in goal}

    def do(move: Move) -> None:
        moves.append(move)
        if move.source != NOWHERE:
            on[move.servable].discard(move.source)
            free[move.source] += facts.servables[move.servable].nbytes
        if move.target != NOWHERE:
            on[move.servable].add(move.target)
            free[move.target] -= facts.servables[move.servable].nbytes

    while len(moves) < _MOST_MOVES:
        open_ = [servable for servable in goal if on[servable] != goal[servable]]
        if not open_:
            return moves
        move = next((move for n in open_ if (move := _entry(board, n, on[n], goal[n], free))), None)
        if move is None and (leaving := [n for n in open_ if _may_leave(board, n, on[n], goal[n])]):
            move = min((_exit(board, n, on[n], goal[n]) for n in leaving), key=lambda exit_: exit_[0])[1]
        if move is None:
            break  # a load takes more than what is kept
        do(move)
    return []


def _entry(board: Board, servable: int, on: set[int], goal: set[int], free: list[float]) -> Move | None:
    """One more worker takes a servable, if it has room for it."""
    peak = board.facts.servables[servable].peak
    leaves = sorted(on - goal)
    for target in sorted(goal - on):
        if free[target] >= peak:
            if leaves:
                return Move(Kind.MIGRATE, servable, leaves[0], target)
            return Move(Kind.REPLICATE if on else Kind.LOAD, servable, NOWHERE, target)
    return None


def _may_leave(board: Board, servable: int, on: set[int], goal: set[int]) -> bool:
    """Whether a servable is to leave a worker, and is its last replica or has enough others."""
    return bool(on - goal) and (len(on) == 1 or len(on) > board.facts.servables[servable].replicas[0])


def _exit(board: Board, servable: int, on: set[int], goal: set[int]) -> tuple[tuple[bool, float], Move]:
    """How a servable would leave a worker, and how much that hurts."""
    view, source = board.facts.servables[servable], min(on - goal)
    if len(on) > 1:
        return (bool(goal - on), 0.0), Move(Kind.DROP, servable, source, NOWHERE)
    return (bool(goal), view.load_seconds * view.fast.asks), Move(Kind.EVICT, servable, source, NOWHERE)
