"""What one gateway counts: requests by model, kind, protocol and outcome, and how long they took."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from tfpool.errors import Code

if TYPE_CHECKING:
    from tfpool.gateway.serving import Call

BOUNDS_US = tuple(round(10 * 1.8**i, 3) for i in range(33))


class Latency:
    """A histogram: ``counts[i]`` took at most ``BOUNDS_US[i]`` microseconds, the last one longer."""

    __slots__ = ("counts", "total_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.total_us = 0.0

    def add(self, seconds: float) -> None:
        microseconds = seconds * 1e6
        self.counts[bisect_left(BOUNDS_US, microseconds)] += 1
        self.total_us += microseconds


class Meters:
    """``requests`` by (model, api, entry, code), ``latency`` by (model, api, entry)."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str, int], int] = {}
        self.latency: dict[tuple[str, str, str], Latency] = {}

    def served(self, call: Call, code: Code, seconds: float) -> None:
        """A request is over."""
        kind = (call.target.model, call.api, call.entry)
        outcome = (*kind, int(code))
        self.requests[outcome] = self.requests.get(outcome, 0) + 1
        found = self.latency.get(kind)
        if found is None:
            found = self.latency[kind] = Latency()
        found.add(seconds)
