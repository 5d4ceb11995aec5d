"""A cost of ours beside a roofline of the same nature, so that the speed of the machine cancels out.

Both are measured in one process, in turns of some milliseconds. Times are of the CPU, and the quick quarter of the
turns is what counts: whoever else uses the machine makes some of them slower, and none quicker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.points import quantile

Turn = Callable[[], float]
TURNS = 16
_TURN_SECONDS = 0.004
_QUICK = 0.25


@dataclass(frozen=True)
class Pair:
    """``ours`` and ``roofline`` do a turn of their work, and give the seconds of a unit of it."""

    name: str
    ours: Turn
    roofline: Turn
    turns: int = TURNS

    def ratio(self) -> float:
        """Ours over the roofline: 1 is as good as it."""
        self.ours(), self.roofline()  # the first turns find cold caches
        ours, roofline = [], []
        for _ in range(self.turns):
            roofline.append(self.roofline())
            ours.append(self.ours())
        return quantile(sorted(ours), _QUICK) / quantile(sorted(roofline), _QUICK)


def timed(work: Callable[[], object]) -> Turn:
    """CPU seconds of a call of ``work``, which a turn makes as often as it has time for, once at least."""
    work()
    calls = max(1, round(_TURN_SECONDS / _seconds(work, 1) / 8))
    calls = max(1, round(_TURN_SECONDS / _seconds(work, calls)))
    return lambda: _seconds(work, calls)


def _seconds(work: Callable[[], object], calls: int) -> float:
    numbers = range(calls)
    begun = time.thread_time()
    for _ in numbers:
        work()
    return (time.thread_time() - begun) / calls
