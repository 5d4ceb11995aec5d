"""Moving averages of what is asked of servables: a fast one and a slow one. Pure."""

from __future__ import annotations

from math import exp

from tfpool.placement.snapshot import NOTHING, Demand

FAST_SECONDS = 2.0
SLOW_SECONDS = 10.0
FORGOTTEN = 1e-4


class Average:
    """An exponential moving average of a rate with time constant ``seconds``.

    It begins without a bias: what has been seen counts in full, however short it is.
    """

    __slots__ = ("_seconds", "_value", "_weight")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._value = 0.0
        self._weight = 0.0

    def add(self, rate: float, elapsed: float) -> None:
        """The rate was this for ``elapsed`` seconds."""
        share = 1 - exp(-elapsed / self._seconds)
        self._value += share * (rate - self._value)
        self._weight += share * (1 - self._weight)

    @property
    def rate(self) -> float:
        value = self._value / self._weight if self._weight else 0.0
        return value if value > FORGOTTEN else 0.0


class Rates:
    """What is asked of one servable, counted in requests and rows since its beginning.

    ``since`` is when the counting began, ``asked_at`` when it was last seen to be asked for (seconds on one clock).
    """

    __slots__ = ("_asks", "_averages", "_rows", "_seen", "asked_at")

    def __init__(self, asks: int, rows: int, since: float) -> None:
        self._asks, self._rows, self._seen = asks, rows, since
        self.asked_at = since
        self._averages = [Average(seconds) for seconds in (FAST_SECONDS, FAST_SECONDS, SLOW_SECONDS, SLOW_SECONDS)]

    def look(self, asks: int, rows: int, now: float) -> None:
        """The counters stand here now."""
        elapsed = now - self._seen
        if elapsed <= 0:
            return
        if asks != self._asks:
            self.asked_at = now
        rates = ((asks - self._asks) / elapsed, (rows - self._rows) / elapsed)
        for average, rate in zip(self._averages, (*rates, *rates), strict=True):
            average.add(rate, elapsed)
        self._asks, self._rows, self._seen = asks, rows, now

    @property
    def quiet(self) -> bool:
        """Whether nothing is left of what was asked."""
        return not any(average.rate for average in self._averages)

    @property
    def fast(self) -> Demand:
        return self._demand(0)

    @property
    def slow(self) -> Demand:
        return self._demand(2)

    def _demand(self, first: int) -> Demand:
        asks, rows = self._averages[first].rate, self._averages[first + 1].rate
        return Demand(asks, rows) if asks or rows else NOTHING
