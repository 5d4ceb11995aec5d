"""Two replicas that change places, where neither move alone would help. Pure."""

from __future__ import annotations

import numpy as np

from tfpool.placement.cost import queues
from tfpool.placement.ground import NOWHERE, Ground, Items
from tfpool.placement.moves import Move
from tfpool.placement.restraint import agreed
from tfpool.placement.snapshot import Kind

_BUSIEST = 3


def swaps(ground: Ground, items: Items, most: int) -> list[tuple[float, list[Move]]]:
    """The best exchanges of one of the busiest workers with any other, the best first: what each seems to be worth,
    and its moves in an order for which there is memory. ``items`` are replicas that may move."""
    found: list[tuple[float, list[Move]]] = []
    for worker in np.argsort(-ground.load.max(axis=0), kind="stable")[:_BUSIEST].tolist():
        found += _with(ground, items, worker, most)
    found.sort(key=lambda swap: -swap[0])
    return found[:most]


def _with(ground: Ground, items: Items, worker: int, most: int) -> list[tuple[float, list[Move]]]:
    mine, theirs = np.flatnonzero(items.source == worker), np.flatnonzero(items.source != worker)
    goes, comes, others = items.servable[mine], items.servable[theirs], items.source[theirs]
    ways = _possible(ground, worker, goes, comes, others)
    if not ways.any():
        return []
    worth = np.where(ways > 0, _worth(ground, items, worker, mine, theirs), -np.inf).ravel()
    count = min(most, int((worth > 0).sum()))
    found = []
    for at in np.argsort(-worth, kind="stable")[:count].tolist():
        row, column = divmod(at, len(theirs))
        out = Move(Kind.MIGRATE, int(goes[row]), worker, int(others[column]))
        back = Move(Kind.MIGRATE, int(comes[column]), int(others[column]), worker)
        found.append((float(worth[at]), _ordered(ground, out, back, int(ways[row, column]))))
    return found


def _ordered(ground: Ground, out: Move, back: Move, way: int) -> list[Move]:
    if way == 1:
        return [out, back]
    if way == 2:
        return [back, out]
    views = ground.board.facts.servables
    first, last = sorted((out, back), key=lambda move: views[move.servable].fast.asks)
    aside = Move(Kind.EVICT, first.servable, first.source, NOWHERE)
    return [aside, last, Move(Kind.LOAD, first.servable, NOWHERE, first.target)]


def _worth(ground: Ground, items: Items, worker: int, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    goes, comes, others = items.servable[mine], items.servable[theirs], items.source[theirs]
    out, back = items.share[:, mine, None], items.share[:, None, theirs]
    slower = ground.seconds[goes][:, others] / ground.seconds[goes, worker][:, None]
    faster = ground.seconds[comes, worker] / ground.seconds[comes, others]
    before = ground.queue[:, worker][:, None, None] + ground.queue[:, None, others]
    here = queues(ground.load[:, worker][:, None, None] - out + back * faster)
    there = queues(ground.load[:, None, others] - back + out * slower)
    busy = ground.loading
    takes = ground.load_seconds[goes][:, None] * busy[others] + ground.load_seconds[comes] * busy[worker]
    rules = ground.restraint.rules
    gains = before - here - there
    worth: np.ndarray = agreed(gains[0], gains[1]) * rules.horizon - rules.hysteresis * takes
    return worth


def _possible(ground: Ground, worker: int, goes: np.ndarray, comes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[mine, theirs]: 1 where the first may go before the second comes, 2 where the second comes first, 3 where one of
    them, each with no other replica, must be out of memory meanwhile, else 0."""
    may = ground.may[goes][:, others] & ground.may[comes, worker]
    there, here = ground.free[others], ground.free[worker]
    comes_then = ground.peak[comes] <= here + ground.nbytes[goes][:, None]
    goes_then = ground.peak[goes][:, None] <= there + ground.nbytes[comes]
    first = (ground.peak[goes][:, None] <= there) & comes_then
    second = (ground.peak[comes] <= here) & goes_then
    third = comes_then & goes_then & ground.single[goes][:, None] & ground.single[comes]
    ways: np.ndarray = np.where(may, np.select([first, second, third], [1, 2, 3], 0), 0)
    return ways
