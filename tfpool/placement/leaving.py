"""How servables may leave a worker for the sake of others, and what is lost by that. Pure.

They go to a worker that has room, or they are one replica of several, or nobody will serve them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfpool.placement.ground import NOWHERE, Ground, Items
from tfpool.placement.moves import Move, Table
from tfpool.placement.snapshot import Kind


class Leaver(NamedTuple):
    """A replica that could leave, how, and the seconds of waiting that are lost by it (below 0: saved)."""

    loss: float
    nbytes: int
    move: Move


class Exits:
    """``by_worker`` has the ways out of each, those that lose least for their bytes first."""

    def __init__(self, ground: Ground, may_go: Items, migrations: Table | None) -> None:
        self._ground = ground
        self.by_worker: dict[int, list[Leaver]] = {}
        if migrations is not None:
            self._home(migrations)
            self._away(may_go)
        for leavers in self.by_worker.values():
            leavers.sort(key=lambda leaver: (leaver.loss / max(1, leaver.nbytes), leaver.move.servable))

    def losses(self, needed: np.ndarray) -> np.ndarray:
        """About the least that is lost where so many bytes are needed: [..., workers] of bytes; inf for too many."""
        least = np.full(needed.shape, np.inf)
        for worker, leavers in self.by_worker.items():
            seen: set[int] = set()
            nbytes, lost = [0.0], [0.0]
            for leaver in leavers:
                if leaver.move.servable not in seen:
                    seen.add(leaver.move.servable)
                    nbytes.append(nbytes[-1] + leaver.nbytes)
                    lost.append(lost[-1] + max(0.0, leaver.loss))
            least[..., worker] = np.interp(needed[..., worker], nbytes, lost, right=np.inf)
        return np.where(needed <= 0, 0.0, least)

    def _add(self, loss: float, move: Move) -> None:
        nbytes = self._ground.board.facts.servables[move.servable].nbytes
        self.by_worker.setdefault(move.source, []).append(Leaver(loss, nbytes, move))

    def _home(self, table: Table) -> None:
        fitting = np.where(table.needed <= 0, table.worth, -np.inf)
        for row, (target, worth) in enumerate(
            zip(fitting.argmax(axis=1).tolist(), fitting.max(axis=1).tolist(), strict=True)
        ):
            if worth > -np.inf:
                self._add(-worth, table.move(row, target))

    def _away(self, may_go: Items) -> None:
        ground, board = self._ground, self._ground.board
        facts, rules = board.facts, ground.restraint.rules
        relief = ground.departure(may_go).min(axis=0)
        for servable, worker, less in zip(
            may_go.servable.tolist(), may_go.source.tolist(), relief.tolist(), strict=True
        ):
            view, held = facts.servables[servable], board.on[servable]
            if len(held) == 1:
                missed = board.missed(servable)
                again = view.load_seconds * min(1.0, max(view.fast.asks, view.slow.asks) * rules.horizon)
                loss = (missed - less) * rules.horizon + rules.hysteresis * again
                self._add(loss, Move(Kind.EVICT, servable, worker, NOWHERE))
            elif len(held) > max(1, view.replicas[0], facts.need[servable]):
                rise = max(board.copy().shift(servable, [w for w in held if w != worker]))
                self._add(rise * rules.horizon, Move(Kind.DROP, servable, worker, NOWHERE))
