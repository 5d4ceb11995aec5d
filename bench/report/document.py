"""One JSON document with everything that a run found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import isfinite
from typing import Any

from bench import machine
from bench.scenario import NOTHING, Figure, Form, Outcome, Scenario, Spread

SCHEMA = 2


@dataclass(frozen=True)
class Result:
    """What became of one scenario; ``error`` says why it gave no figures."""

    scenario: Scenario
    seconds: float
    outcome: Outcome = NOTHING
    error: str = ""


def preamble() -> dict[str, Any]:
    """Where and when; to be taken before the run, whose load would show."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(),
    }


def document(preamble: dict[str, Any], form: Form, results: Sequence[Result]) -> dict[str, Any]:
    """The whole run."""
    return {**preamble, "form": form.value, "scenarios": [_result(result) for result in results]}


def _result(result: Result) -> dict[str, Any]:
    return {
        "name": result.scenario.name,
        "experiment": result.scenario.experiment,
        "description": result.scenario.description,
        "seconds": round(result.seconds, 1),
        "error": result.error or None,
        "absent": dict(result.outcome.absent),
        "figures": [_figure(figure) for figure in result.outcome.figures],
        "points": [point.document() for point in result.outcome.points],
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
    told = [value if isfinite(value) else None for value in (spread.median, spread.least, spread.most, *spread.values)]
    return {"median": told[0], "min": told[1], "max": told[2], "values": told[3:]}
