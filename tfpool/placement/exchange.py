"""A replica goes to a worker that is full of what has less to do, and some of that comes to where it was. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.ground import NOWHERE
from tfpool.placement.making_room import fill
from tfpool.placement.moves import Move, Table
from tfpool.placement.restraint import Restraint
from tfpool.placement.snapshot import Kind


def exchanges(
    board: Board, restraint: Restraint, migrations: Table, loads: Table | None, most: int
) -> Iterator[list[Move]]:
    """For the moves that would be best if there were memory: those in the way move to the other worker while it has
    room; the others are out of memory until it has."""
    lacking = np.where(migrations.needed > 0, migrations.worth, -np.inf)
    for _, move in migrations.best(lacking, most):
        moves = _around(board, restraint, move)
        if not moves:
            continue
        yield moves
        if loads is not None:
            left = board.free[move.source] + sum(_leaves(board, other, move.source) for other in moves)
            if more := fill(board, loads, {other.servable for other in moves}, move.source, left):
                yield [*moves, *more]


def _around(board: Board, restraint: Restraint, move: Move) -> list[Move]:
    """``move`` with those before it that make room, and those after it that come back; nothing where it cannot be."""
    facts = board.facts
    goes, here, there = facts.servables[move.servable], move.source, move.target
    needed = goes.peak - board.free[there]
    first: list[Move] = []
    last: list[Move] = []
    left = board.free[here]
    for servable in _idlest(board, restraint, there, here):
        if needed <= 0:
            break
        view = facts.servables[servable]
        if view.peak <= left:
            first.append(Move(Kind.MIGRATE, servable, there, here))
            left -= view.nbytes
        elif view.peak <= left + goes.nbytes - sum(facts.servables[other.servable].nbytes for other in last):
            first.append(Move(Kind.EVICT, servable, there, NOWHERE))
            last.append(Move(Kind.LOAD, servable, NOWHERE, here))
        else:
            continue
        needed -= view.nbytes
    return [*first, move, *last] if needed <= 0 else []


def _idlest(board: Board, restraint: Restraint, worker: int, other: int) -> list[int]:
    """The servables that only ``worker`` serves and that may go to ``other``, those first that have least to do for
    their bytes."""
    facts = board.facts
    able = [
        servable
        for servable, held in enumerate(board.on)
        if held == (worker,)
        and not facts.still[servable]
        and facts.may(servable, other)
        and not restraint.rests(servable, worker)
    ]
    return sorted(
        able, key=lambda n: max(board.share[n][0][0], board.share[n][1][0]) / max(1, facts.servables[n].nbytes)
    )


def _leaves(board: Board, move: Move, worker: int) -> int:
    """Bytes that a move gives back to a worker."""
    return board.facts.servables[move.servable].nbytes * ((move.source == worker) - (move.target == worker))
