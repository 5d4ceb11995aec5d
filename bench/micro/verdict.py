"""Which ratios moved, and whether that is more than chance. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil
from statistics import median

from bench.micro.baseline import Entry
from bench.points import quantile
from bench.scenario import Spread


class Verdict(Enum):
    """WORSE and BETTER: three quarters of the repeats are beyond the tolerance. UNSURE: the median is, but not so many,
    or there is a reason to doubt them.
    NEW ones are not in the baseline, GONE ones only there; ABSENT ones cannot be measured here."""

    OK = "ok"
    WORSE = "WORSE"
    BETTER = "better"
    UNSURE = "too noisy to tell"
    NEW = "not in the baseline"
    GONE = "no longer measured"
    ABSENT = "not measured here"


@dataclass(frozen=True)
class Row:
    """An entry of the baseline beside what was found now, each if there is one."""

    name: str
    before: Entry | None
    now: Spread | None
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """The share by which the median is above (worse) or below (better) the baseline."""
        return None if self.before is None or self.now is None else self.now.median / self.before.ratio - 1.0


def judge(
    before: Mapping[str, Entry],
    now: Mapping[str, Sequence[float]],
    absent: Collection[str] = (),
    doubtful: Collection[str] = (),
) -> list[Row]:
    """A row for each name, those of ``now`` first.

    ``absent`` are names that cannot be measured here, ``doubtful`` those whose ratios say nothing about ours.
    """
    rows = [_judged(name, before.get(name), Spread(tuple(ratios)), name in doubtful) for name, ratios in now.items()]
    return rows + [
        Row(name, entry, None, Verdict.ABSENT if name in absent else Verdict.GONE)
        for name, entry in before.items()
        if name not in now
    ]


def entry(ratios: Sequence[float], tolerance: float) -> Entry:
    """Of a new baseline."""
    spread = Spread(tuple(ratios))
    return Entry(round(spread.median, 4), round(spread.least, 4), round(spread.most, 4), tolerance)


def too_noisy(ratios: Sequence[float], tolerance: float) -> bool:
    """Whether the middle half of the repeats lies further apart than half of the tolerance: then the median may as well
    be another by chance."""
    low, high = _middle(ratios)
    return high - low > median(ratios) * tolerance / 2


def _judged(name: str, before: Entry | None, now: Spread, doubtful: bool) -> Row:
    if before is None:
        return Row(name, None, now, Verdict.NEW)
    low, high = _middle(now.values)
    known, allowed = before.ratio, before.tolerance
    if _beyond(now.median, known, allowed):
        verdict = Verdict.WORSE if _beyond(low, known, allowed) and not doubtful else Verdict.UNSURE
    elif _beyond(known, now.median, allowed):
        verdict = Verdict.BETTER if _beyond(known, high, allowed) and not doubtful else Verdict.UNSURE
    else:
        verdict = Verdict.OK
    return Row(name, before, now, verdict)


def _beyond(greater: float, less: float, tolerance: float) -> bool:
    return greater > less * (1.0 + tolerance)


def _middle(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which the middle half lies."""
    ordered = sorted(ratios)
    return quantile(ordered, 0.25), ordered[-max(1, ceil(0.25 * len(ordered)))]
