"""Answers in time: the scheduler beside rules that batch by a fixed size and timeout, one by one, or by feel.

In virtual time, 20 models on two workers. The best rule of the grid is found for each game by itself. In a game each
request has a deadline of 2, 5 or 10 times what its model takes for one row, or (mixed) one of these at random.

Then live, one model on one worker, in bursts: a pool that is told of the deadlines, beside the same that is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import pool
from bench.arrivals import bursts
from bench.games import AIMD, DEADLINES, MODELS, OURS, PATTERNS, WORKERS, best, judge
from bench.open import Stream
from bench.rules import ONE_BY_ONE
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.team import Team

LOADS, QUICK_LOADS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0), (1.0, 2.0)
SHOWN = 2.0
GAME_SECONDS, QUICK_GAME_SECONDS = 10.0, 2.0
ANSWER_SECONDS = 1800.0
LIVE = ("2x", "5x", "10x")
_MODEL = "deep"
_LOAD = "load with 99 % in time"
_LEAST = "least of ours beside any rule, in any game"

TARGETS = {
    **{f"{pattern}, in time at load {SHOWN:g}": Target(1.5) for pattern in ("bursts", "surges")},
    **{f"{pattern}, {_LOAD}": Target(1.5) for pattern in ("bursts", "surges")},
    _LEAST: Target(0.98, on="ours"),
}


@dataclass(frozen=True)
class Judged:
    """By rule: the share (%) in time at each load, and the load that is borne."""

    shares: Sequence[Mapping[str, float]]
    borne: Mapping[str, float]


def measure(settings: Settings) -> Outcome:
    """Ratios are to the best rule of the grid; those of a pattern are of the means over its deadlines."""
    sheet = Sheet(TARGETS)
    loads = QUICK_LOADS if settings.quick else LOADS
    with (
        Team(judge) as team,
        pool.start(settings, _MODEL) as served,
        Stream(served, _MODEL, settings.models.samples[_MODEL]) as stream,
    ):
        stream.capacity(1, settings.window)
        alone = served.client().stats()["models"][_MODEL]["run_us"]["p50"] * 1e-6
        for number in settings.repeats():
            least: list[tuple[float, str]] = []
            for pattern in PATTERNS:
                settings.progress.say(pattern)
                seconds = QUICK_GAME_SECONDS if settings.quick else GAME_SECONDS
                orders = [[[pattern, name, seconds, number], loads, settings.quick] for name in DEADLINES]
                found = {}
                for name, judged in zip(DEADLINES, team.answers(orders, ANSWER_SECONDS), strict=True):
                    found[name] = Judged(*judged)
                    beside = ratios(loads, found[name].shares)
                    least += [(ratio, f"{pattern}, {name}, {what}") for ratio, what in beside]
                at = {name: each.shares[loads.index(SHOWN)] for name, each in found.items()}
                curves = {name: list(each.shares) for name, each in found.items()}
                _add(sheet, f"{pattern}, in time at load {SHOWN:g}", "%", at, {"loads": loads, "shares": curves})
                _add(sheet, f"{pattern}, {_LOAD}", "x", {name: each.borne for name, each in found.items()})
            ratio, where = min(least)
            sheet.rate(_LEAST, "x", ratio, detail={"where": where})
            for name in LIVE:
                settings.progress.say(f"live, deadlines {name}")
                _live(settings, sheet, stream, number, name, alone)
    return sheet.outcome()


def ratios(loads: Sequence[float], shares: Sequence[Mapping[str, float]]) -> Iterable[tuple[float, str]]:
    """Ours over every other rule that answered anything in time, at every load, and which that was."""
    for load, found in zip(loads, shares, strict=True):
        for name, share in found.items():
            if name != OURS and share:
                yield found[OURS] / share, f"load {load:g}, {name}"


def _add(
    sheet: Sheet, what: str, unit: str, found: Mapping[str, Mapping[str, float]], told: Mapping[str, Any] | None = None
) -> None:
    """Ours beside the best of the grid, for each of the deadlines and on average."""
    ours = [values[OURS] for values in found.values()]
    others = [values[best(values)] for values in found.values()]
    for name, mine, other, values in zip(found, ours, others, found.values(), strict=True):
        more = {"best": best(values), AIMD: values[AIMD], ONE_BY_ONE: values[ONE_BY_ONE]}
        sheet.rate(f"{what}, deadlines {name}", unit, mine, other, more)
    sheet.rate(what, unit, sum(ours) / len(ours), sum(others) / len(others), told)


def _live(settings: Settings, sheet: Sheet, stream: Stream, number: int, name: str, alone: float) -> None:
    """One deadline; a run of one row takes ``alone`` seconds. The same moments for both."""
    (times,) = DEADLINES[name]
    allowed, window = times * alone, settings.window
    moments = bursts(SHOWN / alone, window, np.random.default_rng(number))
    blind = stream.send(moments, window, None)
    ours = stream.send(moments, window, allowed)
    told = {"run_ms": alone * 1e3, "ours": ours.told(), "blind": blind.told()}
    what = f"live, bursts, in time at load {SHOWN:g}, deadlines {name}"
    sheet.rate(what, "%", ours.share(allowed), blind.share(allowed), told)


SCENARIO = Scenario(
    "goodput",
    f"{MODELS} models on {WORKERS} virtual workers, deadlines and bursts: answers in time, beside fixed rules",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=4,
    repeats=dict.fromkeys(Form, 1),
)
