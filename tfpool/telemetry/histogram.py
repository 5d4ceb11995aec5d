"""A histogram of durations with a bounded relative error, small enough for one a model. Pure.

Bucket ``i`` counts microseconds in ``[1.1**i, 1.1**(i+1))`` and is read as its geometric middle, which is within 5 %
of everything in it. The first bucket also takes what is below 1, the last what is above 1e9 (17 minutes).
"""

from __future__ import annotations

from math import ceil, exp, log

_LOWEST, _HIGHEST = 1.0, 1e9
_SCALE = 1.0 / log(1.1)
BUCKETS = int(log(_HIGHEST) * _SCALE) + 1


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
        rank = max(1, ceil(q * self.count))
        for index, count in enumerate(self._counts):
            rank -= count
            if rank <= 0:
                return min(exp((index + 0.5) / _SCALE), self.max)
        return self.max

    def snapshot(self) -> dict[str, float]:
        """``count`` and, in microseconds, ``mean``, ``p50``, ``p90``, ``p99``, ``p999`` and ``max``."""
        return {
            "count": self.count,
            "mean": self.mean,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "p999": self.quantile(0.999),
            "max": self.max,
        }
