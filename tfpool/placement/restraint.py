"""What holds the planner back: residence, reversals, and the budgets of a minute. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.snapshot import REFORMS, Hold, Kind, Rules

_RESIDENCE_LOADS = 5.0  # load times, for each unit of hysteresis
_RESIDENCE_SECONDS = 2.5
_REVERSAL_SECONDS = 180.0
_ON_THE_WAY_SECONDS = 30.0
_REVERSAL = 10.0
_ALONE = 20.0
_CROWD = 10.0  # requests that wait: more are only at a worker with too much to do
_LOADING = frozenset({Kind.LOAD, Kind.REPLICATE, Kind.MIGRATE, Kind.INLINE})


def agreed(fast: Any, slow: Any) -> Any:
    """The gain (in requests that wait) that both averages see: numbers, or arrays of them.

    The fast one is believed a small part of its gain alone, less what is lost by the slow one, where a crowd is
    relieved: there the other would be waited for too long.
    """
    return np.maximum(np.minimum(fast, slow), (fast - _CROWD) / _ALONE + np.minimum(slow, 0.0))


class Restraint:
    """``moves`` and ``nbytes`` are what the minute still allows. ``under_way``: a step was taken of late,
    maybe for the sake of others that have not been taken yet."""

    def __init__(self, board: Board, rules: Rules) -> None:
        self.rules = rules
        self._facts = board.facts
        snapshot = board.facts.snapshot
        minute = [past for past in snapshot.past if snapshot.now - past.when < 60.0]
        self.moves = rules.moves_per_minute - len(minute)
        self.nbytes = rules.bytes_per_minute - sum(past.nbytes for past in minute if past.kind in _LOADING)
        self.under_way = any(snapshot.now - past.when < _ON_THE_WAY_SECONDS for past in minute)
        lately = [past for past in snapshot.past if snapshot.now - past.when < _REVERSAL_SECONDS]
        self._left = {(past.handle, past.source) for past in lately if past.kind not in REFORMS}
        self._mapped = {past.handle for past in lately if past.kind is Kind.MAP}
        self._inlined = {(past.handle, past.target) for past in lately if past.kind is Kind.INLINE}

    def rests(self, servable: int, worker: int) -> bool:
        """Whether a servable came to a worker so recently that it shall stay, as it need not without hysteresis; or has
        just been inlined there."""
        if (servable, worker) in self._facts.fresh:
            return True
        view = self._facts.servables[servable]
        replica = view.on.get(self._facts.workers[worker].name)
        if replica is None or replica.hold is not Hold.SERVES:
            return replica is not None
        stay = self.rules.hysteresis * max(_RESIDENCE_SECONDS, _RESIDENCE_LOADS * view.load_seconds)
        return self._facts.snapshot.now - replica.since < stay

    def caution(self, servable: int, target: int) -> float:
        """How many times its cost a move must gain: more where it undoes one of the last minutes."""
        return self.rules.hysteresis * (_REVERSAL if self.left(servable, target) else 1.0)

    def helps(self, servable: int, source: int, target: int) -> bool:
        """Whether a servable may leave ``source`` for the sake of another one: not to and fro."""
        return not self.left(servable, source) and (target < 0 or not self.left(servable, target))

    def left(self, servable: int, worker: int) -> bool:
        """Whether a servable has left a worker of late."""
        return (self._facts.servables[servable].handle, self._facts.workers[worker].name) in self._left

    def in_vain(self, servable: int, worker: int) -> bool:
        """Whether a replica of a servable has given up its inlined form of late, or that one has been told to take it
        before."""
        handle = self._facts.servables[servable].handle
        return handle in self._mapped or (handle, self._facts.workers[worker].name) in self._inlined

    def affords(self, kind: Kind, nbytes: int) -> bool:
        """Whether the minute has a step left, and the bytes that it loads. Half of its steps are not for forms that are
        inlined: moves are more urgent."""
        kept = self.rules.moves_per_minute // 2 if kind is Kind.INLINE else 0
        return self.moves > kept and (kind not in _LOADING or nbytes <= self.nbytes)
