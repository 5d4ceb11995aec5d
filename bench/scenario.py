"""What a scenario is and what it gives: figures of ours beside a reference, their spread over repeats, a verdict.

A repeat measures the reference, then ours, so that a drift of the machine meets both. Ratios are taken within a
repeat; what is judged is their median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any, Literal, Protocol

from bench.points import Point

Verdict = Literal["ok", "missed", ""]

WINDOW_SECONDS = 3.0
QUICK_SECONDS = 0.3


class Form(Enum):
    """How thorough a run is: to see that it works (under a minute a scenario), for every day, or to be published."""

    QUICK = "quick"
    NORMAL = "normal"
    FULL = "full"


@dataclass(frozen=True)
class Target:
    """The bound that a figure should keep, and the better one that we aim for.

    It is on the ratio to the reference, or with ``on="ours"`` on our own value.
    """

    bound: float
    aim: float | None = None
    on: Literal["ratio", "ours"] = "ratio"


@dataclass(frozen=True)
class Spread:
    """The values of the repeats, in their order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``detail`` has what else the repeats told, an item a repeat."""

    name: str
    unit: str
    ours: Spread
    reference: Spread | None = None
    target: Target | None = None
    higher_is_better: bool = True
    detail: tuple[Mapping[str, Any], ...] = ()

    @property
    def ratio(self) -> Spread | None:
        """Ours over the reference, within each repeat; infinite over nothing, but nothing over nothing is the same."""
        if self.reference is None:
            return None
        pairs = zip(self.ours.values, self.reference.values, strict=True)
        return Spread(tuple(a / b if b else math.inf if a else 1.0 for a, b in pairs))

    @property
    def verdict(self) -> Verdict:
        """Whether the median keeps the target; empty where there is none."""
        return "" if self.target is None else "ok" if self._keeps(self.target.bound) else "missed"

    @property
    def aimed(self) -> bool:
        """Whether the median reaches what we aim for."""
        return self.target is not None and self.target.aim is not None and self._keeps(self.target.aim)

    def _keeps(self, bound: float) -> bool:
        assert self.target is not None
        judged = self.ours if self.target.on == "ours" else self.ratio
        if judged is None:
            raise ValueError(f"{self.name}: its target is on a ratio, and it has no reference")
        return judged.median >= bound if self.higher_is_better else judged.median <= bound


@dataclass(frozen=True)
class Outcome:
    """What a scenario found. ``points`` are what systems did under loads; ``absent`` says of those that could not be
    measured why."""

    figures: Sequence[Figure]
    points: Sequence[Point] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


NOTHING = Outcome(())


class Progress(Protocol):
    """Who is told how far a scenario is."""

    def say(self, text: str) -> None: ...

    def step(self) -> None: ...

    def more(self, steps: int) -> None: ...


@dataclass(frozen=True)
class Models:
    """Where the models of a run lie, and files of rows x with the answers y that TensorFlow gives; by model."""

    paths: Mapping[str, str]
    samples: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """How long to measure, how often, and with what. ``seconds`` None leaves the length to the scenario."""

    models: Models
    directory: str
    progress: Progress
    seconds: float | None = None
    repeat: int = 1
    form: Form = Form.NORMAL

    @property
    def quick(self) -> bool:
        return self.form is Form.QUICK

    @property
    def full(self) -> bool:
        return self.form is Form.FULL

    @property
    def window(self) -> float:
        """Seconds of one measurement."""
        return self.seconds or (QUICK_SECONDS if self.quick else WINDOW_SECONDS)

    @property
    def warm_up(self) -> float:
        """Seconds of load before each measurement."""
        return max(0.2, min(1.0, self.window / 2))

    def repeats(self) -> Iterator[int]:
        """The numbers of the repeats, as the progress bar follows them."""
        for number in range(self.repeat):
            yield number
            self.progress.step()


@dataclass(frozen=True)
class Scenario:
    """A measurement. ``models`` are the names of those it needs, ``targets`` are by the name of the figure.

    ``experiment`` is the number of the published experiment that it belongs to, 0 for one that is for us alone;
    ``repeats`` is how often it measures unless told otherwise.
    """

    name: str
    description: str
    measure: Callable[[Settings], Outcome]
    models: tuple[str, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    experiment: int = 0
    repeats: Mapping[Form, int] = field(default_factory=lambda: REPEATS)


REPEATS: Mapping[Form, int] = {Form.QUICK: 1, Form.NORMAL: 3, Form.FULL: 5}


@dataclass
class _Row:
    unit: str
    higher_is_better: bool
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    detail: list[Mapping[str, Any]] = field(default_factory=list)


class Sheet:
    """Collects values by figure while the repeats go on."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = dict(targets)
        self._rows: dict[str, _Row] = {}
        self._points: list[Point] = []
        self._absent: dict[str, str] = {}

    def rate(
        self, name: str, unit: str, ours: float, reference: float | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """One repeat's value of the figure ``name``, of which more is better."""
        self._add(name, unit, ours, reference, detail, True)

    def cost(
        self, name: str, unit: str, ours: float, reference: float | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """One repeat's value of the figure ``name``, of which less is better."""
        self._add(name, unit, ours, reference, detail, False)

    def expect(self, targets: Mapping[str, Target]) -> None:
        """More targets, of figures that can be had in this run."""
        self._targets |= targets

    def point(self, point: Point) -> None:
        """What a system did under a load, of one repeat."""
        self._points.append(point)

    def lack(self, system: str, why: str) -> None:
        """A system that could not be measured."""
        self._absent[system] = why

    def _add(
        self,
        name: str,
        unit: str,
        ours: float,
        reference: float | None,
        detail: Mapping[str, Any] | None,
        higher_is_better: bool,
    ) -> None:
        row = self._rows.setdefault(name, _Row(unit, higher_is_better))
        row.ours.append(ours)
        if reference is not None:
            row.reference.append(reference)
        if detail is not None:
            row.detail.append(detail)

    def outcome(self) -> Outcome:
        """All that was found; figures in the order in which they first came. Raises ValueError for a target without
        its figure."""
        if missing := set(self._targets) - set(self._rows):
            raise ValueError(f"no figure was measured for the targets {', '.join(sorted(missing))}")
        figures = [
            Figure(
                name,
                row.unit,
                Spread(tuple(row.ours)),
                Spread(tuple(row.reference)) if row.reference else None,
                self._targets.get(name),
                row.higher_is_better,
                tuple(row.detail),
            )
            for name, row in self._rows.items()
        ]
        return Outcome(figures, self._points, self._absent)
