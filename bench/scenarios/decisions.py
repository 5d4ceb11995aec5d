"""What a decision costs: the scheduler alone, in virtual time, with more workers and models than a host has."""

from __future__ import annotations

from bench.children import Child
from bench.crowd import EXPONENT, decide
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

WORKERS = 1000
MODELS = (100, 1000, 10_000)
TOGETHER = 16  # completions that a busy broker takes in before it decides
_PATIENCE_SECONDS = 600.0
_MOST, _LEAST = f"{MODELS[-1]:,} models", f"{MODELS[0]:,} models"

TARGETS = {
    f"decisions, busy, {_MOST}": Target(100_000, on="ours"),
    f"p99 of a decision, {_MOST}": Target(50.0, on="ours"),
    f"a decision, {_MOST}, beside {_LEAST}": Target(1.25),
    f"a decision, busy, {_MOST}, beside {_LEAST}": Target(1.25),
}


def measure(settings: Settings) -> Outcome:
    """One core, no pool. A decision is a batch that is sent; its cost is that of all events that led to it."""
    sheet = Sheet(TARGETS)
    with Child(decide) as child:
        for number in settings.repeats():
            each: dict[tuple[str, int], float] = {}
            for models in MODELS:
                settings.progress.say(f"{WORKERS:,} workers, {models:,} models")
                costs = child.ask([WORKERS, models, number, settings.window, [1, TOGETHER]], _PATIENCE_SECONDS)
                for what, cost in zip(("", "busy, "), costs, strict=True):
                    name = f"{what}{models:,} models"
                    each[what, models] = cost["seconds"] / cost["decisions"] * 1e6
                    sheet.rate(f"decisions, {name}", "/s", 1e6 / each[what, models], detail=cost)
                    sheet.rate(f"events, {name}", "/s", cost["events"] / cost["seconds"])
                    sheet.cost(f"p50 of a decision, {name}", "us", cost["p50_us"])
                    sheet.cost(f"p99 of a decision, {name}", "us", cost["p99_us"])
            for what in ("", "busy, "):
                most, least = each[what, MODELS[-1]], each[what, MODELS[0]]
                sheet.cost(f"a decision, {what}{_MOST}, beside {_LEAST}", "us", most, least)
    return sheet.outcome()


SCENARIO = Scenario(
    "decisions",
    f"the scheduler alone: {WORKERS:,} virtual workers, up to {MODELS[-1]:,} models, Zipf({EXPONENT:g})",
    measure,
    targets=TARGETS,
    experiment=5,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 2},
)
