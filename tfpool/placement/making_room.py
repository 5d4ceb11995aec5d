"""Memory where there is none: which servables should leave a worker so that others fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.ground import NOWHERE
from tfpool.placement.leaving import Exits, Leaver
from tfpool.placement.moves import Move, Table
from tfpool.placement.snapshot import Kind

_SPARED = 3
_TOGETHER = 16
_ROOMIEST = 16


def make_room(board: Board, exits: Exits, move: Move) -> Iterator[list[Move]]:
    """Moves that end with ``move``, for whose target there is no room yet; nothing where none can be made."""
    needed = board.facts.servables[move.servable].peak - board.free[move.target]
    able = [
        leaver
        for leaver in exits.by_worker.get(move.target, [])
        if leaver.move.servable != move.servable and _admissible(board, leaver, move)
    ]
    several = _spared(_greedy(board, able, needed), needed)
    few = _few(able, needed)
    for chosen in (several, few if few != several else []):
        if chosen:
            yield [*(leaver.move for leaver in chosen), move]


def make_way(board: Board, exits: Exits, loads: Table, most: int) -> Iterator[list[Move]]:
    """One servable leaves, and absent ones that fit nowhere are loaded in its place, which are worth more together."""
    nowhere = np.all(loads.needed > 0, axis=1)
    loads = replace(loads, worth=np.where(nowhere[:, None], loads.worth, -np.inf))
    found: list[tuple[float, Leaver]] = []
    for worker, leavers in exits.by_worker.items():
        worth, nbytes = _densest(loads, worker)
        if len(worth) == 1:
            continue
        for leaver in leavers:
            rise = np.interp(board.free[worker] + leaver.nbytes, nbytes, worth) - np.interp(
                board.free[worker], nbytes, worth
            )
            if rise > leaver.loss:
                found.append((float(rise) - leaver.loss, leaver))
    found.sort(key=lambda pair: -pair[0])
    for _, leaver in found[:most]:
        worker = leaver.move.source
        more = fill(board, loads, {leaver.move.servable}, worker, board.free[worker] + leaver.nbytes)
        if more:
            yield [leaver.move, *more]


def fill_up(board: Board, loads: Table, most: int) -> Iterator[list[Move]]:
    """Absent servables are loaded together where there is room, rather than one that takes the room of several."""
    found: list[tuple[float, list[Move]]] = []
    able = np.flatnonzero(((loads.needed <= 0) & (loads.worth > 0)).any(axis=0)).tolist()
    for worker in sorted(able, key=lambda worker: -board.free[worker])[:_ROOMIEST]:
        whole = fill(board, loads, set(), worker, board.free[worker])
        for but in (set(), *({move.servable} for move in whole[:_SPARED])):
            moves = fill(board, loads, but, worker, board.free[worker]) if but else whole
            if len(moves) > 1:
                found.append((_sum(loads, moves), moves))
    found.sort(key=lambda pair: -pair[0])
    for _, moves in found[:most]:
        yield moves


def _sum(loads: Table, moves: list[Move]) -> float:
    row = {servable: number for number, servable in enumerate(loads.items.servable.tolist())}
    return sum(float(loads.worth[row[move.servable], move.target]) for move in moves)


def _densest(loads: Table, worker: int) -> tuple[np.ndarray, np.ndarray]:
    """About what is won by so many bytes on a worker: the worth, and the bytes, that add up, the densest first."""
    worth = loads.worth[:, worker]
    rows = np.flatnonzero(worth > 0)
    nbytes = loads.peak[rows]
    order = np.argsort(-worth[rows] / np.maximum(nbytes, 1.0), kind="stable")
    return (
        np.concatenate(([0.0], np.cumsum(worth[rows][order]))),
        np.concatenate(([0.0], np.cumsum(nbytes[order]))),
    )


def fill(board: Board, loads: Table, but: set[int], worker: int, left: float) -> list[Move]:
    """Absent servables for ``left`` bytes of a worker, those first that are worth most for their bytes."""
    worth = loads.worth[:, worker]
    peaks = loads.peak
    rows = np.flatnonzero((worth > 0) & (peaks <= left))
    rows = rows[np.argsort(-worth[rows] / np.maximum(peaks[rows], 1.0), kind="stable")]
    moves: list[Move] = []
    for row, servable, peak in zip(
        rows.tolist(), loads.items.servable[rows].tolist(), peaks[rows].tolist(), strict=True
    ):
        if peak <= left and servable not in but:
            moves.append(loads.move(row, worker))
            left -= board.facts.servables[servable].nbytes
            if len(moves) == _TOGETHER:
                break
    return moves


def _admissible(board: Board, leaver: Leaver, move: Move) -> bool:
    """Whether one may leave for the sake of the other: what shall be in memory gives way to an absent one only."""
    return leaver.move.kind is not Kind.EVICT or move.kind is Kind.LOAD or not board.facts.need[leaver.move.servable]


def _greedy(board: Board, leavers: list[Leaver], needed: float) -> list[Leaver]:
    """Those that lose least for their bytes, as far as their new homes have room; none where all are too little."""
    chosen: dict[int, Leaver] = {}
    taken: dict[int, float] = {}
    for leaver in leavers:
        servable, home = leaver.move.servable, leaver.move.target
        if servable in chosen:
            continue
        if home != NOWHERE:
            if board.free[home] - taken.get(home, 0.0) < board.facts.servables[servable].peak:
                continue
            taken[home] = taken.get(home, 0.0) + leaver.nbytes
        chosen[servable] = leaver
        needed -= leaver.nbytes
        if needed <= 0:
            return list(chosen.values())
    return []


def _few(leavers: list[Leaver], needed: float) -> list[Leaver]:
    """The one or two that lose least of those that are enough."""
    if not leavers:
        return []
    losses = np.array([leaver.loss for leaver in leavers])
    nbytes = np.array([leaver.nbytes for leaver in leavers])
    names = np.array([leaver.move.servable for leaver in leavers])
    both, lost = nbytes[:, None] + nbytes, losses[:, None] + losses
    same = names[:, None] == names
    np.fill_diagonal(both, nbytes)
    np.fill_diagonal(lost, losses)
    np.fill_diagonal(same, False)
    lost = np.where((both >= needed) & ~same, lost, np.inf)
    first, second = divmod(int(lost.argmin()), len(leavers))
    if lost[first, second] == np.inf:
        return []
    return [leavers[first]] if first == second else [leavers[first], leavers[second]]


def _spared(chosen: list[Leaver], needed: float) -> list[Leaver]:
    """Without those that the others can do without, the dearest first."""
    spare = sum(leaver.nbytes for leaver in chosen) - needed
    for leaver in sorted(chosen, key=lambda leaver: -leaver.loss):
        if leaver.loss > 0 and leaver.nbytes <= spare:
            chosen.remove(leaver)
            spare -= leaver.nbytes
    return chosen
