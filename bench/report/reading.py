"""JSON files of runs, read back; what is none is refused with what was got and what was expected."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import BenchError
from bench.points import QUANTILES, Point
from bench.report.document import SCHEMA
from bench.scenario import Figure, Form, Outcome, Spread, Target

LIMIT_BYTES = 256 << 20
QUIET_LOAD = 0.5  # of the cores

_T = TypeVar("_T", bound="str | bool | list[Any] | dict[str, Any]")


class BadRun(BenchError):
    """A file that is no run of ours; the message says why."""


@dataclass(frozen=True)
class Machine:
    """``load_average`` is that of the minute before the run."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    load_average: float


@dataclass(frozen=True)
class Measured:
    """One scenario of a run; ``error`` says why it gave no figures."""

    name: str
    experiment: int
    description: str
    seconds: float
    outcome: Outcome
    error: str


@dataclass(frozen=True)
class Run:
    """One file. ``revision`` is empty where it was measured outside of git; versions that were not there are left
    out."""

    file: str
    date: datetime
    form: Form
    revision: str
    dirty: bool
    machine: Machine
    versions: Mapping[str, str]
    scenarios: Mapping[str, Measured]

    def doubts(self) -> list[str]:
        """Why its figures deserve less trust."""
        machine = self.machine
        found = []
        if self.form is Form.QUICK:
            found.append("the quick form only shows that everything works: windows are too short to measure")
        if machine.load_average > QUIET_LOAD * machine.cores:
            found.append(
                f"the machine was busy before the run: load average {machine.load_average:g} on {machine.cores} cores"
            )
        if self.dirty:
            found.append("files differed from the commit")
        return found


def read(path: Path) -> Run:
    """One run. Raises BadRun for what is none and OSError for what cannot be read."""
    size = path.stat().st_size
    if size > LIMIT_BYTES:
        raise BadRun(f"{path.name}: {size:,} bytes, expected at most {LIMIT_BYTES:,}")
    try:
        whole = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadRun(f"{path.name}: not JSON: {error}") from None
    return _run(_Node(whole, path.name))


@dataclass(frozen=True)
class _Node:
    """A value of the document, and where it stands there."""

    value: Any
    where: str

    def __getitem__(self, key: str) -> _Node:
        known = self._as(dict, "an object")
        if key not in known:
            raise BadRun(f"{self.where}: has no {key!r}")
        return _Node(known[key], f"{self.where}: {key}")

    def get(self, key: str) -> _Node | None:
        """None for null."""
        found = self[key]
        return None if found.value is None else found

    def each(self) -> list[_Node]:
        values = self._as(list, "a list")
        return [_Node(value, f"{self.where}[{number}]") for number, value in enumerate(values)]

    def items(self) -> dict[str, _Node]:
        known = self._as(dict, "an object")
        return {_printable(key): _Node(value, f"{self.where}: {_printable(key)}") for key, value in known.items()}

    def text(self) -> str:
        return _printable(self._as(str, "a text"))

    def flag(self) -> bool:
        return self._as(bool, "true or false")

    def whole(self) -> int:
        number = self.number()
        if number != int(number):
            raise self.unlike("a whole number")
        return int(number)

    def number(self) -> float:
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            try:
                number = float(self.value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise self.unlike("a finite number")

    def unlike(self, expected: str) -> BadRun:
        return BadRun(f"{self.where}: got {reprlib.repr(self.value)}, expected {expected}")

    def _as(self, kind: type[_T], expected: str) -> _T:
        if not isinstance(self.value, kind):
            raise self.unlike(expected)
        return self.value


def _printable(text: str) -> str:
    """Nothing in it moves a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _run(node: _Node) -> Run:
    if node["schema"].value != SCHEMA:
        raise node["schema"].unlike(f"{SCHEMA}: measure again with this version")
    commit, scenarios = node["commit"].items(), [_measured(each) for each in node["scenarios"].each()]
    return Run(
        file=_printable(node.where),
        date=_date(node["date"]),
        form=_form(node["form"]),
        revision=commit["revision"].text() if "revision" in commit else "",
        dirty="dirty" in commit and commit["dirty"].flag(),
        machine=_machine(node["machine"]),
        versions={name: each.text() for name, each in node["versions"].items().items() if each.value is not None},
        scenarios={measured.name: measured for measured in scenarios},
    )


def _date(node: _Node) -> datetime:
    try:
        date = datetime.fromisoformat(node.text())
    except ValueError:
        raise node.unlike("a date") from None
    if date.tzinfo is None:
        raise node.unlike("a date with its offset from UTC")
    return date


def _form(node: _Node) -> Form:
    try:
        return Form(node.text())
    except ValueError:
        raise node.unlike(f"one of {', '.join(form.value for form in Form)}") from None


def _machine(node: _Node) -> Machine:
    return Machine(
        cpu=node["cpu"].text(),
        cores=node["cores"].whole(),
        memory_bytes=node["memory_bytes"].whole(),
        kernel=node["kernel"].text(),
        load_average=node["load_average"].number(),
    )


def _measured(node: _Node) -> Measured:
    error = node.get("error")
    return Measured(
        name=node["name"].text(),
        experiment=node["experiment"].whole(),
        description=node["description"].text(),
        seconds=node["seconds"].number(),
        outcome=Outcome(
            figures=[_figure(each) for each in node["figures"].each()],
            points=[_point(each) for each in node["points"].each()],
            absent={system: why.text() for system, why in node["absent"].items().items()},
        ),
        error=error.text() if error else "",
    )


def _figure(node: _Node) -> Figure:
    """Ratio and verdict follow from the rest; the detail stays in the file."""
    reference, target = node.get("reference"), node.get("target")
    figure = Figure(
        name=node["name"].text(),
        unit=node["unit"].text(),
        ours=_spread(node["ours"]),
        reference=_spread(reference) if reference else None,
        target=_target(target) if target else None,
        higher_is_better=node["higher_is_better"].flag(),
    )
    if figure.reference and len(figure.reference.values) != len(figure.ours.values):
        raise BadRun(
            f"{node.where}: {len(figure.ours.values)} values of ours and {len(figure.reference.values)} of the "
            "reference, expected as many"
        )
    if figure.target and figure.target.on == "ratio" and not figure.reference:
        raise BadRun(f"{node.where}: its target is on a ratio, and it has no reference")
    return figure


def _spread(node: _Node) -> Spread:
    values = tuple(each.number() for each in node["values"].each())
    if not values:
        raise BadRun(f"{node.where}: has no values")
    return Spread(values)


def _target(node: _Node) -> Target:
    aim, on = node.get("aim"), node["on"].text()
    if on not in ("ratio", "ours"):
        raise node["on"].unlike("ratio or ours")
    return Target(node["bound"].number(), aim.number() if aim else None, "ours" if on == "ours" else "ratio")


def _point(node: _Node) -> Point:
    quantiles = [each.number() for each in node["quantiles_us"].each()]
    if len(quantiles) not in (0, len(QUANTILES)):
        raise BadRun(f"{node.where}: {len(quantiles)} quantiles, expected none or {len(QUANTILES)}")
    return Point(
        system=node["system"].text(),
        model=node["model"].text(),
        load=node["load"].text(),
        level=node["level"].number(),
        rate=node["rate"].number(),
        quantiles_us=quantiles,
        cpu_us={role: spent.number() for role, spent in node["cpu_us"].items().items()},
        memory_mb={role: held.number() for role, held in node["memory_mb"].items().items()},
        failed=node["failed"].whole(),
    )
