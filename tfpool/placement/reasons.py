"""Why a step is taken, in one sentence with figures. Pure."""

from __future__ import annotations

from tfpool.placement.board import Board
from tfpool.placement.ground import NOWHERE
from tfpool.placement.moves import Move
from tfpool.placement.snapshot import Inlined, Kind
from tfpool.placement.weighing import Chain


def explain(board: Board, chain: Chain) -> str:
    """Why the first move of a chain is made."""
    move = chain.moves[0]
    if len(chain.moves) > 1:
        return _first_of_several(board, chain)
    if move.kind is Kind.LOAD:
        return _load(board, move)
    if move.kind is Kind.MIGRATE:
        return _migrate(board, chain.board, move)
    return _replicate(board, chain.board, move)


def inlining(board: Board, servable: int, worker: int, form: Inlined) -> str:
    """Why a replica is inlined."""
    part = max(share[board.on[servable].index(worker)] for share in board.share[servable])
    after = max(loads[worker] for loads in board.load) - part * (1 - 1 / form.gain)
    return (
        f"{_name(board, worker)} is {_percent(board, worker)} busy; inlined it ({part * 100:.0f} % of a worker) runs "
        f"{form.gain:.2f} times as fast, which leaves {after * 100:.0f} %"
    )


def making_way(board: Board, chain: Chain) -> str:
    """Why a replica is mapped for the sake of the first move of a chain."""
    move = chain.moves[0]
    view = board.facts.servables[move.servable]
    room = f"to make room for {view.name} on {_name(board, move.target)}, which needs {_size(view.peak)} there"
    return f"{room}; mapped it keeps less, and serves on"


def _load(board: Board, move: Move) -> str:
    view, where = board.facts.servables[move.servable], _name(board, move.target)
    if view.fast.asks <= 0 and view.slow.asks <= 0:
        return f"it shall be in memory, and {where} has room for it"
    asks = f"{min(view.fast.asks, view.slow.asks):.3g} to {max(view.fast.asks, view.slow.asks):.3g} requests/s"
    return f"{asks} come for it, it serves nowhere, and {where} ({_percent(board, move.target)} busy) has room for it"


def _migrate(board: Board, after: Board, move: Move) -> str:
    source, target = move.source, move.target
    part = max(board.share[move.servable][which][board.on[move.servable].index(source)] for which in (0, 1))
    return (
        f"{_name(board, source)} is {_percent(board, source)} busy, {_name(board, target)} {_percent(board, target)}; "
        f"moving it ({part * 100:.0f} % of a worker) leaves {_percent(after, source)} and {_percent(after, target)}"
    )


def _replicate(board: Board, after: Board, move: Move) -> str:
    held, target = board.on[move.servable], move.target
    if len(held) < board.least(move.servable):
        return f"it shall have {board.least(move.servable)} replicas and has {len(held)}"
    busiest = max(held, key=lambda worker: max(board.load[0][worker], board.load[1][worker]))
    work = max(sum(share) for share in board.share[move.servable])
    return (
        f"{_name(board, busiest)} is {_percent(board, busiest)} busy, {_name(board, target)} "
        f"{_percent(board, target)}; one more replica of it ({work * 100:.0f} % of a worker) leaves "
        f"{_percent(after, busiest)} and {_percent(after, target)}"
    )


def _first_of_several(board: Board, chain: Chain) -> str:
    move, last = chain.moves[0], chain.moves[-1]
    view = board.facts.servables[last.servable]
    goal = f"to make room for {view.name} on {_name(board, last.target)}"
    if move.kind is Kind.MIGRATE and last.kind is Kind.MIGRATE and len(chain.moves) == 2 and move.target == last.source:
        loads = f"{_percent(board, move.source)} and {_percent(board, last.source)} busy"
        leaves = f"{_percent(chain.board, move.source)} and {_percent(chain.board, last.source)}"
        return (
            f"{_name(board, move.source)} and {_name(board, last.source)} are {loads}; it goes first, then "
            f"{view.name} comes in its place, which leaves {leaves}"
        )
    if move.kind is Kind.MIGRATE:
        return f"{goal}, which needs {_size(view.peak)} there; {_name(board, move.target)} has room for this one"
    mine = board.facts.servables[move.servable]
    what = f"{max(view.fast.asks, view.slow.asks):.3g} requests/s against {max(mine.fast.asks, mine.slow.asks):.3g}"
    spared = "others go on serving it" if move.kind is Kind.DROP else what
    return f"{goal}, which needs {_size(view.peak)} there; {spared}"


def _name(board: Board, worker: int) -> str:
    return board.facts.workers[worker].name if worker != NOWHERE else ""


def _percent(board: Board, worker: int) -> str:
    return f"{max(board.load[0][worker], board.load[1][worker]) * 100:.0f} %"


def _size(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.0f} MiB"
