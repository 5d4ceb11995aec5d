"""What moved from one run to another, and how small a move could have been seen.

A figure with a reference is compared by its ratio, in which the machine's speed cancels; another by its own value, in
which it does not. The change is the quotient of the geometric means over the repeats. Its uncertainty is Student's
interval for the difference of the means of the logarithms, with the variance of both runs pooled, at CONFIDENCE. A
change is a move where it is outside of that interval around none, and at least FLOOR: what differs between two runs of
the same code (how memory lies, the hour) does not show in the repeats within one. One repeat a run tells nothing of
the noise: then only a change of more than UNKNOWN counts.

Figures that are zero, negative or infinite have no logarithm. They move where the values of both runs do not overlap,
which one repeat shows for whole numbers only: those are counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import mean, median

from scipy.special import stdtrit  # type: ignore[import-untyped]

from bench.report.reading import BadRun, Measured, Run
from bench.scenario import Figure, Spread

CONFIDENCE = 0.99
FLOOR = 1.05
ENOUGH = 1.10  # who could have seen this and saw nothing says "same"
UNKNOWN = 2.0
UNSTEADY = 1.2  # most over least of a reference within a run
_EQUAL = 1e-9


class Verdict(Enum):
    """What became of a figure."""

    WORSE = "worse"
    BETTER = "better"
    NOISY = "too noisy to tell"
    SAME = "same"


@dataclass(frozen=True)
class Change:
    """One figure in both runs.

    ``before`` and ``after`` are ratios to a reference if ``relative``, else own values. ``factor`` is after over
    before, and ``seen`` the least factor, in either direction, that would have counted; both None where there are no
    logarithms.
    """

    scenario: str
    figure: Figure
    before: Spread
    after: Spread
    relative: bool
    factor: float | None
    seen: float | None
    verdict: Verdict
    judged: tuple[str, str]

    @property
    def repeated(self) -> bool:
        """Whether there was more than one value in either run to know the noise from."""
        return len(self.before.values) + len(self.after.values) > 2

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the factor, at CONFIDENCE."""
        if self.factor is None or self.seen is None:
            return None
        return self.factor / self.seen, self.factor * self.seen


@dataclass(frozen=True)
class Comparison:
    """``alone`` names what only one of the runs has; ``warnings`` say why to trust less."""

    changes: Sequence[Change]
    alone: Sequence[str]
    warnings: Sequence[str]

    def of(self, verdict: Verdict) -> list[Change]:
        """The greatest changes first."""
        found = [change for change in self.changes if change.verdict is verdict]
        return sorted(found, key=lambda change: -abs(math.log(change.factor)) if change.factor else -math.inf)


def compare(before: Run, after: Run) -> Comparison:
    """All figures that both have. Raises BadRun where there is none."""
    both = [name for name in before.scenarios if name in after.scenarios]
    changes, alone = [], []
    for run, other in ((before, after), (after, before)):
        alone += [f"{name}: only in {run.file}" for name in run.scenarios if name not in other.scenarios]
    for name in both:
        old, new = before.scenarios[name], after.scenarios[name]
        for run, measured in ((before, old), (after, new)):
            if measured.error:
                alone.append(f"{name}: failed in {run.file}")
        changes += [_change(name, *pair) for pair in _pairs(old, new)]
        if not (old.error or new.error):
            alone += _unpaired(before, old, new) + _unpaired(after, new, old)
    if not changes:
        names = [", ".join(run.scenarios) or "nothing" for run in (before, after)]
        raise BadRun(f"no figure is in both: {before.file} has {names[0]}, {after.file} has {names[1]}")
    return Comparison(changes, alone, list(_warnings(before, after, changes)))


def _pairs(old: Measured, new: Measured) -> Iterator[tuple[Figure, Figure]]:
    known = {_identity(figure): figure for figure in new.outcome.figures}
    return ((figure, known[_identity(figure)]) for figure in old.outcome.figures if _identity(figure) in known)


def _unpaired(run: Run, has: Measured, lacks: Measured) -> list[str]:
    known = set(map(_identity, lacks.outcome.figures))
    missing = [figure for figure in has.outcome.figures if _identity(figure) not in known]
    return [f"{has.name}: {one.name}{', ' if one.unit else ''}{one.unit}: only in {run.file}" for one in missing]


def _identity(figure: Figure) -> tuple[str, str, bool]:
    return figure.name, figure.unit, figure.higher_is_better


# -- one figure ----------------------------------------------------------------------------------------------------


def _change(scenario: str, old: Figure, new: Figure) -> Change:
    relative = old.ratio is not None and new.ratio is not None and _logarithmic(old.ratio, new.ratio)
    before, after = (old.ratio or old.ours, new.ratio or new.ours) if relative else (old.ours, new.ours)
    factor = seen = None
    if _logarithmic(before, after):
        shift, bound = _shift([math.log(v) for v in before.values], [math.log(v) for v in after.values])
        factor, seen = _exp(shift), _exp(bound)
        moved = abs(shift) > bound
        rises = shift > 0
        same = abs(shift) < _EQUAL or bound <= math.log(ENOUGH)
    else:
        moved, rises = _apart(before, after), after.median > before.median
        same = before.values == after.values or before.least == before.most == after.least == after.most
    if moved:
        verdict = Verdict.BETTER if rises == new.higher_is_better else Verdict.WORSE
    else:
        verdict = Verdict.SAME if same else Verdict.NOISY
    judged = old.verdict, new.verdict
    return Change(scenario, new, before, after, relative, factor, seen, verdict, judged)


def _logarithmic(*spreads: Spread) -> bool:
    return all(0 < value < math.inf for spread in spreads for value in spread.values)


def _shift(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Difference of the means, and the least one that would count."""
    shift, freedom = mean(new) - mean(old), len(old) + len(new) - 2
    if freedom == 0:
        return shift, math.log(UNKNOWN)
    variance = (_squares(old) + _squares(new)) / freedom
    error = math.sqrt(variance * (1 / len(old) + 1 / len(new)))
    return shift, max(math.log(FLOOR), float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error)


def _squares(values: Sequence[float]) -> float:
    """Of the distances from their mean."""
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # what is more is no float


def _apart(before: Spread, after: Spread) -> bool:
    """Whether the values of the two do not overlap, and are enough or counts."""
    telling = min(len(before.values), len(after.values)) > 1 or all(
        value == math.inf or value.is_integer() for value in (*before.values, *after.values)
    )
    return telling and (before.most < after.least or after.most < before.least)


# -- the runs ------------------------------------------------------------------------------------------------------


def _warnings(before: Run, after: Run, changes: Sequence[Change]) -> Iterator[str]:
    for run in (before, after):
        for doubt in run.doubts():
            yield f"{run.file}: {doubt}"
    for what, old, new in _differences(before, after):
        yield f"{what} differ: {old} and {new}"
    for run in (before, after):
        yield from _unsteady(run)
    own = sum(not change.relative and change.factor is not None for change in changes)
    if own:
        yield f"figures compared by their own value, with the speed of the machine in it: {own} (those not in x)"
    speeds = list(_speeds(before, after))
    if speeds and (drift := median(speeds)) and max(drift, 1 / drift) > FLOOR:
        yield f"by the references, the machine was {drift:.2f}x as fast in {after.file} as in {before.file}"
    single = sum(not change.repeated for change in changes)
    if single:
        yield f"figures with one repeat in each run, of which only changes above {UNKNOWN:g}x are told: {single}"


def _differences(before: Run, after: Run) -> Iterator[tuple[str, str, str]]:
    if before.form is not after.form:
        yield "forms", before.form.value, after.form.value
    machines = [f"{run.machine.cpu}, {run.machine.cores} cores" for run in (before, after)]
    if machines[0] != machines[1]:
        yield "machines", machines[0], machines[1]
    if before.machine.kernel != after.machine.kernel:
        yield "kernels", before.machine.kernel, after.machine.kernel
    for name in dict.fromkeys((*before.versions, *after.versions)):
        versions = [run.versions.get(name, "none") for run in (before, after)]
        if versions[0] != versions[1]:
            yield f"versions of {name}", versions[0], versions[1]


def _unsteady(run: Run) -> Iterator[str]:
    references = {
        f"{measured.name}: {figure.name}": figure.reference
        for measured in run.scenarios.values()
        for figure in measured.outcome.figures
        if figure.reference and len(figure.reference.values) > 1 and _logarithmic(figure.reference)
    }
    spreads = {name: spread.most / spread.least for name, spread in references.items()}
    if unsteady := [name for name, spread in spreads.items() if spread > UNSTEADY]:
        worst = max(unsteady, key=spreads.__getitem__)
        yield (
            f"{run.file}: {len(unsteady)} of {len(references)} references moved by more than "
            f"{100 * (UNSTEADY - 1):.0f} % between repeats, most {worst} ({spreads[worst]:.2g}x): "
            "the machine was not quiet"
        )


def _speeds(before: Run, after: Run) -> Iterator[float]:
    """How much faster each reference was after than before."""
    for name in before.scenarios.keys() & after.scenarios.keys():
        for old, new in _pairs(before.scenarios[name], after.scenarios[name]):
            if old.reference and new.reference and _logarithmic(old.reference, new.reference):
                factor = new.reference.median / old.reference.median
                yield factor if new.higher_is_better else 1 / factor
