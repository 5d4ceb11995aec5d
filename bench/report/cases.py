"""Points sorted for tables and plots: by model and load, then by level, then by system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.points import CLIENT, QUANTILES, Point
from bench.scenario import Spread

CLOSED = "closed"


@dataclass(frozen=True)
class Repeats:
    """What one system did under one load, again and again."""

    points: Sequence[Point]

    @property
    def system(self) -> str:
        return self.points[0].system

    @property
    def rate(self) -> Spread:
        """Requests answered a second."""
        return Spread(tuple(point.rate for point in self.points))

    def latency_ms(self, q: float) -> Spread | None:
        """The latency at one of QUANTILES; None where none was taken."""
        taken = tuple(point.at_us(q) / 1e3 for point in self.points if point.quantiles_us)
        return Spread(taken) if taken else None

    def quantiles_ms(self) -> list[float]:
        """The median latency at each of QUANTILES; none where none was taken."""
        return [spread.median for q in QUANTILES if (spread := self.latency_ms(q))]

    def cpu_us(self) -> dict[str, float]:
        """CPU time a request, by role."""
        return _by_role([point.cpu_us for point in self.points])

    def server_cpu_us(self) -> Spread | None:
        """CPU time a request of all who serve it."""
        return _known(point.server_cpu_us for point in self.points)

    def client_cpu_us(self) -> Spread | None:
        """CPU time a request of who makes the load."""
        return _known(point.cpu_us.get(CLIENT, 0.0) for point in self.points)

    def memory_mb(self) -> dict[str, float]:
        """PSS by role, of all its processes together."""
        return _by_role([point.memory_mb for point in self.points])

    def all_memory_mb(self) -> Spread | None:
        """PSS of all its processes."""
        return _known(sum(point.memory_mb.values()) for point in self.points)

    @property
    def failed(self) -> int:
        """Requests without an answer, in all repeats."""
        return sum(point.failed for point in self.points)


@dataclass(frozen=True)
class Case:
    """All that was measured with one model under one kind of load, by level."""

    model: str
    load: str
    levels: Mapping[float, Sequence[Repeats]]

    @property
    def title(self) -> str:
        return f"{self.model}, {'closed loops' if self.load == CLOSED else self.load}"

    @property
    def closed(self) -> bool:
        return self.load == CLOSED

    def level_text(self, level: float) -> str:
        """``64 in flight``, or ``70 % load``."""
        return f"{level:g} in flight" if self.closed else f"{100 * level:g} % load"

    def systems(self) -> list[str]:
        """In the order in which they first came."""
        return list(dict.fromkeys(repeats.system for some in self.levels.values() for repeats in some))

    def of(self, system: str) -> dict[float, Repeats]:
        """One system's, by level."""
        return {level: one for level, some in self.levels.items() for one in some if one.system == system}

    def telling(self, has: Callable[[Repeats], object]) -> float | None:
        """The level at which most systems have something; of several the one in the middle."""
        counts = {level: sum(map(bool, map(has, some))) for level, some in self.levels.items()}
        if not (most := max(counts.values())):
            return None
        fullest = [level for level, count in counts.items() if count == most]
        return fullest[len(fullest) // 2]


def cases(points: Sequence[Point]) -> list[Case]:
    """Models and loads in the order in which they first came, levels from the least."""
    grouped: dict[tuple[str, str], dict[float, dict[str, list[Point]]]] = {}
    for point in points:
        levels = grouped.setdefault((point.model, point.load), {})
        levels.setdefault(point.level, {}).setdefault(point.system, []).append(point)
    return [
        Case(*key, {level: [Repeats(some) for some in levels[level].values()] for level in sorted(levels)})
        for key, levels in grouped.items()
    ]


def _known(values: Iterable[float]) -> Spread | None:
    known = tuple(values)
    return Spread(known) if any(known) else None


def _by_role(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians; processes of the same role, which have a number after its name, count together."""
    summed: list[dict[str, float]] = []
    for one in measured:
        sums: dict[str, float] = {}
        for name, value in one.items():
            role = name.rstrip("0123456789").rstrip(" -") or name
            sums[role] = sums.get(role, 0.0) + value
        summed.append(sums)
    roles = dict.fromkeys(role for sums in summed for role in sums)
    return {role: median(sums[role] for sums in summed if role in sums) for role in roles}
