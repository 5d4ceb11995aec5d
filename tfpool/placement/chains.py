"""What could be done to a board: single moves, and moves that only help together. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.cost import queue
from tfpool.placement.exchange import exchanges
from tfpool.placement.ground import Ground
from tfpool.placement.leaving import Exits
from tfpool.placement.making_room import fill_up, make_room, make_way
from tfpool.placement.moves import Move, rested, tables
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import Kind
from tfpool.placement.swaps import swaps
from tfpool.placement.weighing import LEAST_WORTH, Chain, weigh

_LOOKED_AT = 16
_CLEARLY = 0.05  # of a worker: two that change places, or roles, only seem to gain
_NEARLY = 0.8  # a move that is worth nearly as much is better than a replica: it takes no memory


def best_chain(board: Board, restraint: Restraint) -> Chain | None:
    """The chain that is worth most, of those whose first move the minute still allows; None where none is."""
    if _settled(board, restraint):
        return None
    best: Chain | None = None
    plain: Chain | None = None  # the best single move
    for moves in _proposals(board, restraint):
        first = moves[0]
        if not restraint.affords(first.kind, board.facts.servables[first.servable].nbytes):
            continue
        helpers = [move for move in moves[:-1] if move.kind is not Kind.LOAD]
        if not all(restraint.helps(helper.servable, helper.source, helper.target) for helper in helpers):
            continue
        chain = weigh(board, restraint, moves)
        if chain is None or chain.worth <= LEAST_WORTH or not _clear(board, restraint, chain):
            continue
        if best is None or chain.worth > best.worth:
            best = chain
        lone = len(moves) == 1 and first.kind is Kind.MIGRATE
        if lone and restraint.helps(first.servable, first.source, first.target):
            plain = chain if plain is None or chain.worth > plain.worth else plain
    if best and plain and len(best.moves) == 1 and best.moves[0].kind is Kind.REPLICATE:
        return plain if plain.worth >= _NEARLY * best.worth else best
    return best


def _clear(board: Board, restraint: Restraint, chain: Chain) -> bool:
    """Whether a move between workers leaves the one that gets more to do clearly less busy than the other was, and
    whether several moves leave all of them so, by both averages. Without hysteresis anything is clear; so is what keeps
    crashers apart."""
    only_moves = all(move.kind is Kind.MIGRATE for move in chain.moves)
    crashers = any(board.facts.servables[move.servable].crashes for move in chain.moves)
    if not restraint.rules.hysteresis or not only_moves or crashers:
        return True
    touched = {worker for move in chain.moves for worker in (move.source, move.target)}
    for before, after in zip(board.load, chain.board.load, strict=True):
        bound = max(before[worker] for worker in touched) - _CLEARLY
        single = len(chain.moves) == 1
        if any(after[w] > (max(before[w], bound) if single else bound) for w in touched):
            return False
    return True


def _settled(board: Board, restraint: Restraint) -> bool:
    """Whether nothing could gain enough, not even work that is spread evenly over all workers."""
    facts, rules = board.facts, restraint.rules
    numbers = range(len(facts.servables))
    if not facts.workers or any(len(board.on[n]) < board.least(n) for n in numbers):
        return not facts.workers
    work = sum(rate * min(seconds) for rate, seconds in zip(facts.rates[0], facts.seconds, strict=True))
    least = len(facts.workers) * queue(work / len(facts.workers)) + sum(board.spread(n)[0] for n in numbers)
    loads = [view.load_seconds for view, still in zip(facts.servables, facts.still, strict=True) if not still]
    gain = (board.cost()[0] - least) * rules.horizon
    return gain <= max(LEAST_WORTH, rules.hysteresis * min(loads, default=gain))


def _proposals(board: Board, restraint: Restraint) -> Iterator[list[Move]]:
    ground = Ground(board, restraint)
    replicas = ground.replicas()
    may_go, absent = rested(ground, replicas), ground.absent()
    found = {table.kind: table for table in tables(ground, replicas, may_go, absent)}
    loads = found.get(Kind.LOAD)
    exits = Exits(ground, may_go, found.get(Kind.MIGRATE))
    for table in found.values():
        fitting = np.where(table.needed <= 0, table.worth, -np.inf)
        yield from ([move] for _, move in table.best(fitting, _LOOKED_AT))
        lacking = np.where(table.needed > 0, table.worth - exits.losses(table.needed), -np.inf)
        for _, move in table.best(lacking, _LOOKED_AT):
            yield from make_room(board, exits, move)
    if loads is not None:
        yield from fill_up(board, loads, _LOOKED_AT)
        yield from make_way(board, exits, loads, _LOOKED_AT)
    if Kind.MIGRATE in found:
        yield from exchanges(board, restraint, found[Kind.MIGRATE], loads, _LOOKED_AT)
    for _, moves in swaps(ground, may_go, _LOOKED_AT):
        yield moves
