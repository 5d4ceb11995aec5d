"""A large model comes and goes many times: what of it stays in memory."""

from __future__ import annotations

import tfpool
from bench import pool
from bench.processes import footprint
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Steady, ms

CYCLES, QUICK_CYCLES = 200, 5
RATE = 50.0
_SMALL, _LARGE = "half_plus_two", "ballast_100mb"

TARGETS = {
    "failures of the other model": Target(0.0, on="ours"),
    "PSS of the worker at the end, beside before the first load": Target(1.1),
}


def measure(settings: Settings) -> Outcome:
    """One worker, which also answers a small model; once, whatever the repeats."""
    sheet = Sheet(TARGETS)
    with (
        pool.start(settings, _SMALL) as served,
        Steady(served, [_SMALL], settings.models.samples[_SMALL]) as load,
    ):
        client = served.client()
        client.add({"name": _LARGE, "base_path": settings.models.paths[_LARGE], "preload": "explicit"})
        load.open(RATE)
        before = _pss(served)
        after: list[dict[str, float]] = []
        workers, held, seconds = set(), 0.0, 0.0
        for number in range(QUICK_CYCLES if settings.quick else CYCLES):
            settings.progress.say(f"cycle {number + 1}")
            seconds += client.load(_LARGE)["load_seconds"]
            held = max(held, _pss(served)["worker 1"])
            client.unload(_LARGE)
            after.append(_pss(served))
            workers.add(client.workers()[0]["pid"])
        notes = load.stop()
        told = {"before": before, "after": after}
        sheet.cost("failures of the other model", "", notes.failed, detail={"errors": list(notes.errors)})
        sheet.cost("p99 of the other model", "ms", ms(notes.within((0.0, float("inf"))), 0.99))
        for name, first in (("before the first load", before), ("after the first unload", after[0])):
            for what, role in (("the worker", "worker 1"), ("the pool", "pool")):
                sheet.cost(f"PSS of {what} at the end, beside {name}", "MB", after[-1][role], first[role], told)
        sheet.cost("most PSS of the worker, model loaded", "MB", held)
        sheet.cost("workers replaced", "", len(workers) - 1)
        sheet.cost("a load", "s", seconds / len(after))
    return sheet.outcome()


def _pss(served: tfpool.Pool) -> dict[str, float]:
    """MB of every process, by what it is, and of the pool as a whole."""
    found = {name: footprint(pid).pss / 1e6 for name, pid in pool.processes(served).items()}
    return {**found, "pool": sum(found.values())}


SCENARIO = Scenario(
    "cycles",
    f"{CYCLES} loads and unloads of a 100 MB model: memory at the end, beside that before",
    measure,
    (_SMALL, _LARGE),
    TARGETS,
)
