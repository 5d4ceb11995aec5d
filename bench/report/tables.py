"""What a run says on a terminal: a table of figures a scenario, and one of what each system did under each load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.points import CLIENT, Point
from bench.report.document import Result
from bench.scenario import Figure, Spread, Target

_STYLES = {"ok": "green", "missed": "bold red"}


def figures(result: Result) -> Table:
    """The figures of one scenario: medians, and least..most of the repeats."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("figure", overflow="fold")
    for column in ("ours", "reference", "ratio (min..max)", "target"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("")
    for figure in result.outcome.figures:
        ratio = figure.ratio
        made.add_row(
            f"{figure.name}, {figure.unit}" if figure.unit else figure.name,
            number(figure.ours.median) if ratio else with_spread(figure.ours),
            number(figure.reference.median) if figure.reference else "",
            with_spread(ratio) if ratio else "",
            target_text(figure.target, figure.higher_is_better),
            Text(verdict_text(figure), style=_STYLES.get(figure.verdict, "")),
        )
    return made


def number(value: float) -> str:
    """Three digits that count: ``67,200``, ``1.73``, ``0.00123``."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def with_spread(spread: Spread) -> str:
    """The median, and least..most where there are several."""
    if len(spread.values) == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.least)}..{number(spread.most)})"


def target_text(target: Target | None, higher_is_better: bool) -> str:
    """``>= 1.7x (aim 2.3)``; without the x where it is on our own value."""
    if target is None:
        return ""
    unit = "x" if target.on == "ratio" else ""
    aim = f" (aim {number(target.aim)})" if target.aim is not None else ""
    return f"{'>=' if higher_is_better else '<='} {number(target.bound)}{unit}{aim}"


def verdict_text(figure: Figure) -> str:
    """``ok``, ``missed``, or ``ok, aim`` where what we aim for is reached."""
    return f"{figure.verdict}, aim" if figure.aimed else figure.verdict


def points(found: Sequence[Point]) -> Table:
    """What each system did under each load: medians over the repeats."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("model", "load", "system"):
        made.add_column(column)
    for column in ("req/s", "p50 ms", "p99 ms", "server CPU us/req", "client CPU us/req", "memory MB"):
        made.add_column(column, justify="right", no_wrap=True)
    for (model, load, level), same in groupby(sorted(found, key=_case), key=_case):
        where = f"{level:g} in flight" if load == "closed" else f"{load} at {100 * level:g} %"
        for system, repeats in grouped(list(same)).items():
            made.add_row(model, where, system, *_cells(repeats))
            model = where = ""
    return made


def grouped(points: Sequence[Point]) -> Mapping[str, Sequence[Point]]:
    """By system, in the order in which they first came."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.system, []).append(point)
    return found


def _case(point: Point) -> tuple[str, str, float]:
    return point.model, point.load, point.level


def _cells(repeats: Sequence[Point]) -> list[str]:
    columns = (
        [point.rate for point in repeats],
        [point.at_us(0.5) / 1e3 for point in repeats],
        [point.at_us(0.99) / 1e3 for point in repeats],
        [point.server_cpu_us for point in repeats],
        [point.cpu_us.get(CLIENT, 0.0) for point in repeats],
        [sum(point.memory_mb.values()) for point in repeats],
    )
    return [number(median(values)) if any(values) else "" for values in columns]
