"""What a run says: a table a scenario, and one JSON document with everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench import machine
from bench.scenario import Figure, Scenario, Settings, Spread, Target

SCHEMA = 1
_STYLES = {"ok": "green", "missed": "bold red"}


@dataclass(frozen=True)
class Result:
    """What became of one scenario; ``error`` says why it gave no figures."""

    scenario: Scenario
    seconds: float
    figures: Sequence[Figure] = ()
    error: str = ""


# -- JSON ----------------------------------------------------------------------------------------------------------


def preamble() -> dict[str, Any]:
    """Where and when; to be taken before the run, whose load would show."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(),
    }


def document(preamble: dict[str, Any], settings: Settings, results: Sequence[Result]) -> dict[str, Any]:
    """The whole run."""
    chosen = {"seconds": settings.seconds, "repeat": settings.repeat, "quick": settings.quick}
    return {**preamble, "settings": chosen, "scenarios": [_result(result) for result in results]}


def _result(result: Result) -> dict[str, Any]:
    return {
        "name": result.scenario.name,
        "description": result.scenario.description,
        "seconds": round(result.seconds, 1),
        "error": result.error or None,
        "figures": [_figure(figure) for figure in result.figures],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "higher_is_better": figure.higher_is_better,
        "ours": _spread(figure.ours),
        "reference": _spread(figure.reference),
        "ratio": _spread(figure.ratio),
        "target": asdict(figure.target) if figure.target else None,
        "verdict": figure.verdict or None,
        "aimed": figure.aimed,
        "detail": [dict(item) for item in figure.detail],
    }


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {"median": spread.median, "min": spread.least, "max": spread.most, "values": list(spread.values)}


# -- tables --------------------------------------------------------------------------------------------------------


def table(result: Result) -> Table:
    """The figures of one scenario: medians, and least..most of the repeats."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("figure", overflow="fold")
    for column in ("ours", "reference", "ratio (min..max)", "target"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("")
    for figure in result.figures:
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
