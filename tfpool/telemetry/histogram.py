"""A histogram of microseconds with exponential buckets, 10 % wide, from 1 µs to 1000 s.

Others count by coarser buckets: those that end at :data:`BOUNDS`, each 46 % wide, which are sums of the fine ones.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import ceil, exp, log
from typing import Any

_LOWEST, _HIGHEST = 1.0, 1e9
_SCALE = 1.0 / log(1.1)
BUCKETS = int(log(_HIGHEST) * _SCALE) + 1
_STEP = 4
BOUNDS = tuple(1.1**end for end in range(_STEP, BUCKETS, _STEP))
"""Where the coarse buckets end, in microseconds; the last has no end."""


class Histogram:
    """Counts of microseconds; count, mean and maximum are exact, quantiles within 5 %."""

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.total = 0.0
        self.max = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count ``value`` microseconds, ``count`` times."""
        if value < _LOWEST:
            index = 0
        elif value < _HIGHEST:
            index = int(log(value) * _SCALE)
        else:
            index = BUCKETS - 1
        self._counts[index] += count
        self.count += count
        self.total += value * count
        if value > self.max:
            self.max = value

    @property
    def mean(self) -> float:
        """Microseconds; 0 when nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """Microseconds that a share ``q`` (0 to 1) of the values does not exceed; 0 when nothing was counted."""
        return self._quantile(list(accumulate(self._counts)), q)

    def _quantile(self, ends: list[int], q: float) -> float:
        if not self.count:
            return 0.0
        index = bisect_left(ends, max(1, ceil(q * self.count)))
        return min(exp((index + 0.5) / _SCALE), self.max)

    def snapshot(self) -> dict[str, Any]:
        """``count`` and, in microseconds, ``total``, ``mean``, ``p50``, ``p90``, ``p99``, ``p999`` and ``max``.

        ``buckets`` counts the values up to each of :data:`BOUNDS`; it ends where all of them are counted.
        """
        ends = list(accumulate(self._counts))
        coarse = ends[_STEP - 1 :: _STEP]
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "p50": self._quantile(ends, 0.5),
            "p90": self._quantile(ends, 0.9),
            "p99": self._quantile(ends, 0.99),
            "p999": self._quantile(ends, 0.999),
            "max": self.max,
            "buckets": coarse[: bisect_left(coarse, self.count) + 1] if self.count else [],
        }
