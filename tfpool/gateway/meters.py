"""What one gateway counts: requests by model, kind, protocol and outcome, and how long they took.

Several gateways share a port, so their counts are put together: each makes a snapshot that others :meth:`Meters.add`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tfpool.errors import Code

if TYPE_CHECKING:
    from tfpool.gateway.serving import Call

BOUNDS_US = tuple(round(10 * 1.8**i, 3) for i in range(33))
MAX_SERIES = 2048
"""Of them; requests beyond are counted without a model's name."""
_CODES = max(Code) + 1

Kind = tuple[str, str, str]
Snapshot = dict[str, Any]


class Series:
    """The requests of one kind: ``codes[code]`` ended so, ``counts[i]`` took at most ``BOUNDS_US[i]`` microseconds, the
    last of them longer; ``total_us`` altogether."""

    __slots__ = ("codes", "counts", "total_us")

    def __init__(self) -> None:
        self.codes = [0] * _CODES
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.total_us = 0.0


class Meters:
    """``series`` by (model, api, entry); requests for models that nobody knows share the name ``""``.

    ``responses[n]`` counts HTTP responses of status n00 to n99. ``in_flight`` requests have begun and are not over.
    ``gauges`` are read when somebody looks.
    """

    def __init__(self) -> None:
        self.series: dict[Kind, Series] = {}
        self.responses = [0] * 6
        self.in_flight = 0
        self.gauges: dict[str, Callable[[], float]] = {"in_flight": lambda: self.in_flight}
        self._names: set[str] = set()

    def served(self, call: Call, code: Code, seconds: float) -> None:
        """A request is over."""
        found = self.series.get((call.target.model, call.api, call.entry))
        if found is None:
            found = self._make(call, code)
        microseconds = seconds * 1e6
        found.codes[code] += 1
        found.counts[bisect_left(BOUNDS_US, microseconds)] += 1
        found.total_us += microseconds

    def know(self, names: Iterable[str]) -> None:
        """These models exist: count failed requests by their names too."""
        self._names.update(names)

    def keep(self, names: Iterable[str]) -> None:
        """These models exist, and no others: forget what was counted of those."""
        self._names = {*names, ""}
        for kind in [kind for kind in self.series if kind[0] not in self._names]:
            del self.series[kind]

    def snapshot(self) -> Snapshot:
        """All of it, as JSON has it."""
        return {
            "series": [[*kind, one.codes, one.counts, one.total_us] for kind, one in self.series.items()],
            "responses": list(self.responses),
            "gauges": {name: read() for name, read in self.gauges.items()},
        }

    def add(self, snapshot: Snapshot) -> None:
        """Count what another has counted; its gauges are its own."""
        for model, api, entry, codes, counts, total_us in snapshot["series"]:
            found = self.series.setdefault((model, api, entry), Series())
            found.codes = [mine + more for mine, more in zip(found.codes, codes, strict=True)]
            found.counts = [mine + more for mine, more in zip(found.counts, counts, strict=True)]
            found.total_us += total_us
            self._names.add(model)
        for status, count in enumerate(snapshot["responses"]):
            self.responses[status] += count  # in place: the server counts in the same list

    def _make(self, call: Call, code: Code) -> Series:
        """The name is the caller's: it counts only where there is such a model, or anybody could fill the memory."""
        model = call.target.model
        if (code is not Code.OK and model not in self._names) or len(self.series) >= MAX_SERIES:
            model = ""
        self._names.add(model)
        return self.series.setdefault((model, call.api, call.entry), Series())
