"""What a game of :mod:`tfpool.placement.whatif` comes to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests ``asked`` are served, lost, or still wait. ``cold`` ones came when their model served nowhere, and all
    together waited ``cold_seconds`` for loads; ``crowded`` ones met a worker that was asked for more than it can do.

    ``loads`` are those that requests caused, ``moves`` are replicas that the policy brought in, ``moved_bytes`` in all;
    ``reversed`` ones took a model that served elsewhere back to a worker that it had been told to leave within two
    minutes before; ``refused`` steps were impossible.
    ``reforms`` are replicas that the policy had change their form.
    ``busy`` is the share of its time that a worker ran or loaded. Waiting is in seconds, without the run itself.
    """

    seconds: float
    asked: float
    served: float
    lost: float
    waiting: float
    cold: float
    cold_seconds: float
    crowded: float
    loads: int
    evictions: int
    moves: int
    reversed: int
    refused: int
    moved_bytes: int
    reforms: int
    busy: Mapping[str, float]
    mean_wait: float
    p99_wait: float

    @property
    def cold_share(self) -> float:
        return self._share(self.cold)

    @property
    def served_share(self) -> float:
        return self._share(self.served)

    @property
    def crowded_share(self) -> float:
        return self._share(self.crowded)

    def _share(self, count: float) -> float:
        return count / self.asked if self.asked else 0.0


class Tally:
    """Counts while the game goes on; the names are those of the outcome."""

    def __init__(self) -> None:
        self.asked = self.served = self.lost = 0.0
        self.cold = self.cold_seconds = self.crowded = 0.0
        self.loads = self.evictions = self.moves = self.reversed = self.refused = self.moved_bytes = 0
        self.reforms = 0
        self._waits: dict[float, float] = {}
        self._waited = 0.0

    def waited(self, count: float, seconds: float) -> None:
        """So many requests have waited for so long."""
        self._waited += count * seconds
        near = float(f"{seconds:.2g}")  # enough for a quantile
        self._waits[near] = self._waits.get(near, 0.0) + count

    def outcome(self, seconds: float, waiting: float, busy: Mapping[str, float]) -> Outcome:
        """What it is after so many seconds, while so many requests wait."""
        waited = sum(self._waits.values())
        return Outcome(
            seconds,
            self.asked,
            self.served,
            self.lost,
            waiting,
            self.cold,
            self.cold_seconds,
            self.crowded,
            self.loads,
            self.evictions,
            self.moves,
            self.reversed,
            self.refused,
            self.moved_bytes,
            self.reforms,
            busy,
            self._waited / waited if waited else 0.0,
            self._quantile(0.99),
        )

    def _quantile(self, share: float) -> float:
        left = share * sum(self._waits.values())
        for value in sorted(self._waits):
            left -= self._waits[value]
            if left <= 0:
                return value
        return max(self._waits, default=0.0)
