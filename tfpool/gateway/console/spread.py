"""How long things took between two looks at a histogram: counts by bucket, and quantiles of those. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import ceil
from typing import Any

from tfpool.telemetry.histogram import BOUNDS

Histogram = Mapping[str, Any]
"""A snapshot of :class:`tfpool.telemetry.histogram.Histogram`."""


class Spread:
    """What came in between two snapshots of a histogram, or of several: ``counts[i]`` took at most ``BOUNDS[i]``."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(BOUNDS)
        self.total = 0

    def add(self, before: Histogram | None, now: Histogram) -> bool:
        """Take in what came between two snapshots; whether there was anything."""
        grown: int = now["count"] - (before["count"] if before else 0)
        if grown <= 0:
            return False
        self.total += grown
        for index, more in enumerate(now["buckets"]):
            self.counts[index] += more
        for index in range(len(now["buckets"]), len(BOUNDS)):
            self.counts[index] += now["count"]
        if before:
            for index, less in enumerate(before["buckets"]):
                self.counts[index] -= less
            for index in range(len(before["buckets"]), len(BOUNDS)):
                self.counts[index] -= before["count"]
        return True

    def quantile(self, q: float) -> float:
        """Microseconds that a share ``q`` (0 to 1) did not exceed, evenly spread within a bucket."""
        rank = max(1, ceil(q * self.total))
        index = bisect_left(self.counts, rank)
        if index == len(BOUNDS):
            return BOUNDS[-1]
        lower, before = (BOUNDS[index - 1], self.counts[index - 1]) if index else (1.0, 0)
        share = (rank - before) / max(1, self.counts[index] - before)
        return float(lower * (BOUNDS[index] / lower) ** share)

    def row(self) -> dict[str, float] | None:
        """``p50`` and ``p99`` in microseconds; None where nothing came in."""
        if not self.total:
            return None
        return {"p50": round(self.quantile(0.5), 1), "p99": round(self.quantile(0.99), 1)}
