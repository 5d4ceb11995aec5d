"""What one system did under one load: the rows of tables and the dots of plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)

CLIENT = "client"  # the role that makes the load


@dataclass(frozen=True)
class Point:
    """One repeat's measurement.

    ``load`` is ``closed``, whose ``level`` is requests in flight, or the name of an arrival process, whose ``level``
    is the share (0 to 1) of what the roofline can do. ``rate`` counts requests answered a second; ``quantiles_us``
    are latencies at :data:`QUANTILES`, in open loops from when a request was due. By role: ``cpu_us``, CPU time a
    request, of the role ``client`` and of those who serve it, and ``memory_mb``, PSS. ``failed`` counts requests
    without an answer.
    """

    system: str
    model: str
    load: str
    level: float
    rate: float
    quantiles_us: Sequence[float] = ()
    cpu_us: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    failed: int = 0

    def at_us(self, q: float) -> float:
        """The latency at one of :data:`QUANTILES`; 0 where none was taken."""
        return self.quantiles_us[QUANTILES.index(q)] if self.quantiles_us else 0.0

    @property
    def server_cpu_us(self) -> float:
        """CPU time a request of all who serve it."""
        return sum(spent for role, spent in self.cpu_us.items() if role != CLIENT)

    def document(self) -> dict[str, Any]:
        """For JSON; :func:`read` takes it back."""
        return asdict(self)


def read(document: Mapping[str, Any]) -> Point:
    """A point from JSON. Raises TypeError for what is none."""
    return Point(**document)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value that a share ``q`` does not exceed; 0 where there is none."""
    return ordered[max(1, ceil(q * len(ordered))) - 1] if ordered else 0.0


def at_quantiles(ordered: Sequence[float]) -> list[float]:
    """Increasing values at :data:`QUANTILES`; none of none."""
    return [quantile(ordered, q) for q in QUANTILES] if ordered else []
