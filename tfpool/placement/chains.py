"""What could be done to a board: single moves, and moves that only help together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.cost import queue
from tfpool.placement.exchange import exchanges
from tfpool.placement.ground import NOWHERE, Ground, Items
from tfpool.placement.leaving import Exits
from tfpool.placement.making_room import fill_up, make_room, make_way
from tfpool.placement.moves import Move, Table, rested, tables
from tfpool.placement.repack import repack
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import Kind
from tfpool.placement.swaps import swaps
from tfpool.placement.weighing import LEAST_WORTH, Chain, weigh

_LOOKED_AT = 16
_CLEARLY = 0.003  # what moving many must save of all the cost
_APART = 0.05  # of a worker: two that change places, or roles, only seem to gain
_NEARLY = 0.8  # a move that is worth nearly as much is better than a replica: it takes no memory


def best_chain(board: Board, restraint: Restraint) -> Chain | None:
    """The chain that is worth most, of those whose first move the minute still allows; None where none is."""
    if _settled(board, restraint):
        return None
    ground = Ground(board, restraint)
    replicas, absent = ground.replicas(), ground.absent()
    may_go = rested(ground, replicas)
    found = {table.kind: table for table in tables(ground, replicas, may_go, absent)}
    best = _best(board, restraint, _proposals(ground, may_go, found))
    short = any(((table.needed > 0) & (table.worth > -np.inf)).any() for table in found.values())
    if short and (best is None or restraint.under_way):
        least = max(LEAST_WORTH, _CLEARLY * board.cost()[0] * restraint.rules.horizon, best.worth if best else 0.0)
        moves = repack(board, restraint)
        other = weigh(board, restraint, moves) if moves and _affords(board, restraint, moves[0]) else None
        if other is not None and other.worth > least:
            return other
    return best


def _best(board: Board, restraint: Restraint, proposals: Iterable[list[Move]]) -> Chain | None:
    best: Chain | None = None
    plain: Chain | None = None  # the best single move
    for moves in proposals:
        if not moves or not _allowed(board, restraint, moves):
            continue
        chain = weigh(board, restraint, moves)
        if chain is None or chain.worth <= LEAST_WORTH or not _clear(board, restraint, chain):
            continue
        if best is None or chain.worth > best.worth:
            best = chain
        first = moves[0]
        lone = len(moves) == 1 and first.kind is Kind.MIGRATE
        if lone and restraint.helps(first.servable, first.source, first.target):
            plain = chain if plain is None or chain.worth > plain.worth else plain
    if best and plain and len(best.moves) == 1 and best.moves[0].kind is Kind.REPLICATE:
        return plain if plain.worth >= _NEARLY * best.worth else best
    return best


def _allowed(board: Board, restraint: Restraint, moves: list[Move]) -> bool:
    if not _affords(board, restraint, moves[0]):
        return False
    helpers = [move for move in moves[:-1] if move.source != NOWHERE]
    return all(restraint.helps(helper.servable, helper.source, helper.target) for helper in helpers)


def _affords(board: Board, restraint: Restraint, first: Move) -> bool:
    return restraint.affords(first.kind, board.facts.servables[first.servable].nbytes)


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
        bound = max(before[worker] for worker in touched) - _APART
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


def _proposals(ground: Ground, may_go: Items, found: dict[Kind, Table]) -> Iterator[list[Move]]:
    board, restraint = ground.board, ground.restraint
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
