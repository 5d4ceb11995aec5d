"""How far the planner's placements are from the best there are, and what a plan takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from time import perf_counter

from bench.children import Channel, Child
from bench.optimum import TIGHT, make_pool, optimum
from bench.points import quantile
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.team import Team
from tfpool.placement.board import cost
from tfpool.placement.planner import after, plan
from tfpool.placement.snapshot import Rules, Snapshot

POOLS: Mapping[Form, int] = {Form.QUICK: 2, Form.NORMAL: 12, Form.FULL: 40}
SOLVER_SECONDS = 20.0
LARGE = (1000, 64)
_PLANS, _QUICK_PLANS = 20, 5
_PATIENCE_SECONDS = 300.0
_MOST_STEPS = 600
_STEP_SECONDS = 5.0
_PAUSE_SECONDS = 600.0
_PAUSES = 6
_BETTER = 0.999
_FREE = Rules(hysteresis=0.0, moves_per_minute=1 << 30, bytes_per_minute=1 << 62)

TARGETS = {
    "gap to the optimum, median": Target(2.0, on="ours"),
    "gap to the optimum, p95": Target(5.0, on="ours"),
    f"a plan, {LARGE[0]:,} models on {LARGE[1]} workers, median": Target(100.0, on="ours"),
    f"a plan, {LARGE[0]:,} models on {LARGE[1]} workers, worst": Target(100.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """One process, no pool, once: nothing but the times would change from repeat to repeat."""
    sheet = Sheet(TARGETS)
    seeds = range(POOLS[settings.form])
    pools = []
    with Team(work) as team:
        for pool in team.answers([["gap", seed] for seed in seeds], _PATIENCE_SECONDS):
            pools.append(pool)
            settings.progress.say(f"pool {len(pools)} of {len(seeds)}")
    settings.progress.say(f"{LARGE[0]:,} models, {LARGE[1]} workers")
    with Child(work) as child:
        plans = range(_QUICK_PLANS if settings.quick else _PLANS)
        times = sorted(child.ask(["large", seed], _PATIENCE_SECONDS) for seed in plans)
    for _ in range(settings.repeat):
        settings.progress.step()
    gaps = sorted(pool["gap"] for pool in pools)
    sheet.cost("gap to the optimum, median", "%", median(gaps), detail={"pools": pools})
    sheet.cost("gap to the optimum, p95", "%", quantile(gaps, 0.95))
    proven = [pool["gap"] for pool in pools if pool["tight"]]
    sheet.cost("gap where the bound is tight, median", "%", median(proven or gaps))
    sheet.cost("gap where the bound is tight, p95", "%", quantile(sorted(proven or gaps), 0.95))
    sheet.cost("pools whose bound is not tight", "", len(gaps) - len(proven))
    sheet.cost("steps to the end, median", "", median(pool["steps"] for pool in pools))
    name = f"a plan, {LARGE[0]:,} models on {LARGE[1]} workers"
    sheet.cost(f"{name}, median", "ms", median(times))
    sheet.cost(f"{name}, worst", "ms", times[-1])
    return sheet.outcome()


def work(channel: Channel) -> None:
    """The child: what was asked, of the pool with a seed."""
    while (asked := channel.hear()) is not None:
        what, seed = asked
        channel.say(_gap(seed) if what == "gap" else _time(seed))


def _gap(seed: int) -> dict[str, object]:
    start = make_pool(seed)
    ours, steps = settle(start)
    reached = cost(ours, "fast")
    best = optimum(start, SOLVER_SECONDS, reached)
    gap = (reached - best.bound) / max(best.bound, 1e-9) * 100
    counts = {"models": len(start.servables), "workers": len(start.workers), "steps": steps}
    costs = {"start": cost(start, "fast"), "ours": reached, "bound": best.bound, "found": best.found}
    return {"seed": seed, **counts, **costs, "gap": gap, "tight": best.tight or reached <= best.bound * TIGHT}


def settle(snapshot: Snapshot) -> tuple[Snapshot, int]:
    """Where the planner's steps lead without hysteresis and budgets, and how many they are: until it has found none,
    and after some long pauses nothing that is better."""
    snapshot = replace(snapshot, now=_PAUSE_SECONDS / 2)
    steps = quiet = 0
    least = float("inf")
    while steps < _MOST_STEPS and quiet < _PAUSES:
        step = plan(snapshot, _FREE)
        if step is None:
            reached = cost(snapshot, "fast")
            quiet = 0 if reached < least * _BETTER else quiet + 1
            least = min(least, reached)
            snapshot = replace(snapshot, now=(snapshot.now // _PAUSE_SECONDS + 1) * _PAUSE_SECONDS, past=())
            continue
        steps += 1
        done = after(snapshot, step)
        snapshot = replace(done, now=done.now + _STEP_SECONDS, past=done.past[-120:])
    return snapshot, steps


def _time(seed: int) -> float:
    """Milliseconds of one plan of a large pool, which has much to do."""
    snapshot = make_pool(seed, *LARGE)
    started = perf_counter()
    plan(snapshot, Rules())
    return (perf_counter() - started) * 1e3


SCENARIO = Scenario(
    "gap",
    f"the planner alone: its placements of up to {POOLS[Form.FULL]} pools beside the optimum, and the time of a plan",
    measure,
    targets=TARGETS,
    experiment=7,
    repeats=dict.fromkeys(Form, 1),
)
