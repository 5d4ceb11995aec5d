"""Tables of what a run found: figures, and what each system did under each load; on a terminal, or for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.points import Point
from bench.report.cases import Case, Repeats, cases
from bench.report.document import Result
from bench.scenario import Figure, Spread, Target

STYLES = {"ok": "green", "ok, aim": "green", "missed": "bold red"}
_ANY_WIDTH = 10_000
_LEAST_NAME = 28  # columns; where names have less room, spreads go below the medians


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn. The first ``names`` columns and the last are texts, those between are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    title: str = ""


def figures(result: Result) -> Table:
    """The figures of one scenario, for a terminal."""
    return drawn(figure_grid(result.outcome.figures))


def points(found: Sequence[Point]) -> Group:
    """What each system did under each load, for a terminal: medians over the repeats."""
    return Group(*(drawn(point_grid(case, spreads=False)) for case in cases(found)))


def figure_grid(found: Sequence[Figure]) -> Grid:
    """Medians, and least..most of the repeats where there are several."""
    return Grid(("figure", "ours", "reference", "ratio (min..max)", "target", ""), [figure_row(one) for one in found])


def figure_row(figure: Figure) -> list[str]:
    """Name with unit, ours, reference, ratio, target, verdict."""
    ratio = figure.ratio
    return [
        f"{figure.name}, {figure.unit}" if figure.unit else figure.name,
        number(figure.ours.median) if ratio else with_spread(figure.ours),
        number(figure.reference.median) if figure.reference else "",
        with_spread(ratio) if ratio else "",
        target_text(figure.target, figure.higher_is_better),
        verdict_text(figure),
    ]


def point_grid(case: Case, *, spreads: bool) -> Grid:
    """Medians over the repeats, with least..most behind them if asked for; all in the units of the columns."""
    columns = [
        *("in flight" if case.closed else "load", "system"),
        *("req/s", "p50 ms", "p99 ms", "server CPU us/req", "client CPU us/req", "memory MB", "failed"),
    ]
    text = with_spread if spreads else _median
    rows = []
    for level, some in case.levels.items():
        where = f"{level:g}" if case.closed else f"{100 * level:g} %"
        for repeats in some:
            rows.append([where, repeats.system, *(text(one) if one else "" for one in _columns(repeats))])
            rows[-1].append(f"{repeats.failed:,}" if repeats.failed else "")
            where = where if spreads else ""
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Grid(columns, rows, names=2, title=case.title)


def _columns(repeats: Repeats) -> tuple[Spread | None, ...]:
    cpu = repeats.server_cpu_us(), repeats.client_cpu_us()
    return repeats.rate, repeats.latency_ms(0.5), repeats.latency_ms(0.99), *cpu, repeats.all_memory_mb()


def number(value: float) -> str:
    """Three digits that count: ``67,200``, ``1.73``, ``0.00123``."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def with_spread(spread: Spread) -> str:
    """The median, and least..most where they differ."""
    if spread.least == spread.most:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.least)}..{number(spread.most)})"


def _median(spread: Spread) -> str:
    return number(spread.median)


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


# -- on a terminal -------------------------------------------------------------------------------------------------


class _Fitting(Table):
    """Where it is too wide it is drawn as ``narrow``."""

    narrow: Table | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(max_width=_ANY_WIDTH), self).minimum
        if self.narrow is not None and needed > options.max_width:
            yield from self.narrow.__rich_console__(console, options)
        else:
            yield from super().__rich_console__(console, options)


def drawn(grid: Grid) -> Table:
    """For a terminal of any width from 80 columns on."""
    made, names = _drawn(grid, _LEAST_NAME), grid.names
    columns = [*grid.columns[:names], *(column.replace(" ", "\n") for column in grid.columns[names:])]
    rows = [[*row[:names], *(cell.replace(" (", "\n(") for cell in row[names:])] for row in grid.rows]
    made.narrow = _drawn(replace(grid, columns=columns, rows=rows), 0)
    return made


def _drawn(grid: Grid, least: int) -> _Fitting:
    made = _Fitting(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    if grid.title:
        made.title, made.title_justify, made.title_style = Text(f"\n{grid.title}"), "left", "bold"
    for place, column in enumerate(grid.columns):
        lines = [line for cell in (column, *(row[place] for row in grid.rows)) for line in cell.split("\n")]
        width = max(map(len, lines))
        if place < grid.names:
            made.add_column(column, overflow="fold", min_width=min(least, width))
        else:
            made.add_column(column, justify="right" if column else "left", no_wrap=True, min_width=width)
    for row in grid.rows:
        made.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return made
