"""Who decides where models are: the planner beside other policies on the same demand, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from tfpool.placement.tally import Outcome as Played
from tfpool.testing.placement_game import OURS, POLICIES, STATIC, play
from tfpool.testing.traces import TRACES, Trace, rotating

ORACLE = "oracle"
BORNE_P99 = 1.0  # seconds of waiting
_LEAST, _MOST = 0.3, 1.2
_HALVINGS, _QUICK_HALVINGS = 5, 1
_QUICK_SECONDS = 40.0
_HOUR_SECONDS = 3600.0
_BORNE = f"rotating, load that is borne with p99 of waiting <= {BORNE_P99:g} s"
_REVERSED = "moves that are reversed, all traces"

TARGETS = {
    _BORNE: Target(1.3),
    _REVERSED: Target(5.0, on="ours"),
}

# name, unit, whether more is better, how to tell it
_FIGURES: tuple[tuple[str, str, bool, Callable[[Played], float]], ...] = (
    ("served", "%", True, lambda outcome: 100 * outcome.served_share),
    ("cold", "%", False, lambda outcome: 100 * outcome.cold_share),
    ("met an overloaded worker", "%", False, lambda outcome: 100 * outcome.crowded_share),
    ("waiting, mean", "ms", False, lambda outcome: 1e3 * outcome.mean_wait),
    ("waiting, p99", "ms", False, lambda outcome: 1e3 * outcome.p99_wait),
)


def measure(settings: Settings) -> Outcome:
    """Each repeat draws its traces anew. Ours is beside the best of the others for each figure by itself, but the
    oracle, which is told in the detail."""
    sheet = Sheet(TARGETS)
    for number in settings.repeats():
        moves = back = 0
        for name, make in TRACES.items():
            settings.progress.say(name)
            trace = _shorter(settings, make(number))
            found = {policy: play(trace, player(trace)) for policy, player in POLICIES.items()}
            for what, unit, more, tell in _FIGURES:
                values = {policy: tell(outcome) for policy, outcome in found.items()}
                if any(value for policy, value in values.items() if policy != ORACLE):
                    _add(sheet, f"{name}, {what}", unit, more, values)
            told = {policy: asdict(outcome) for policy, outcome in found.items()}
            hourly = found[OURS].moves / trace.seconds * _HOUR_SECONDS
            sheet.cost(f"{name}, moves an hour", "", hourly, detail=told)
            moves, back = moves + found[OURS].moves, back + found[OURS].reversed
        sheet.cost(_REVERSED, "%", 100 * back / moves if moves else 0.0, detail={"moves": moves, "reversed": back})
        settings.progress.say("load that is borne")
        borne = {policy: bears(settings, policy, number) for policy in (OURS, STATIC)}
        sheet.rate(_BORNE, "x", borne[OURS], borne[STATIC])
    return sheet.outcome()


def _shorter(settings: Settings, trace: Trace) -> Trace:
    """The beginning of a trace where a glance will do."""
    ticks = round(_QUICK_SECONDS / trace.world.tick)
    return replace(trace, counts=trace.counts[:ticks]) if settings.quick else trace


def bears(settings: Settings, policy: str, seed: int) -> float:
    """The greatest load of the rotating trace at which a policy serves all, and hardly any waits for long."""
    low, high = _LEAST, _MOST
    for _ in range(_QUICK_HALVINGS if settings.quick else _HALVINGS):
        load = (low * high) ** 0.5
        trace = _shorter(settings, rotating(seed, load))
        if play(trace, POLICIES[policy](trace)).p99_wait <= BORNE_P99:
            low = load
        else:
            high = load
    return low


def _add(sheet: Sheet, what: str, unit: str, more: bool, values: Mapping[str, float]) -> None:
    others = {policy: value for policy, value in values.items() if policy not in (OURS, ORACLE)}
    best = (max if more else min)(others, key=lambda policy: others[policy])
    add = sheet.rate if more else sheet.cost
    add(what, unit, values[OURS], others[best], {"best": best, **values})


SCENARIO = Scenario(
    "placement",
    "where models are, in virtual time: the planner beside static, LRU, greedy and an oracle on four traces",
    measure,
    targets=TARGETS,
    experiment=7,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 3},
)
