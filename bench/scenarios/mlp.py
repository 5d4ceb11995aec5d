"""A model that computes: how much of what one TensorFlow thread can do is left with a server around it."""

from __future__ import annotations

from bench import loads, pool
from bench.inprocess import Roofline
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target

IN_FLIGHT = (64, 256)
_MODEL = "mlp"

TARGETS = {"64 in flight": Target(0.7), "256 in flight": Target(0.9, aim=0.97)}


def measure(settings: Settings) -> Outcome:
    """One worker, one client process, one row a request."""
    sheet = Sheet(TARGETS)
    with (
        Roofline(settings, _MODEL) as roofline,
        pool.start(settings, _MODEL) as served,
        loads.on(settings, served, _MODEL) as fleet,
    ):
        best = {"best_batch": roofline.best, "roofline_scan": roofline.scan}
        for _ in settings.repeats():
            for in_flight in IN_FLIGHT:
                reference = roofline.rate(settings)
                ours = fleet.measure(settings, in_flight)
                where = f"{in_flight} in flight"
                sheet.rate(where, "rows/s", ours.rate, reference, {"ours": ours.detail(), **best})
                sheet.cost(f"p50, {where}", "ms", ours.p50_us / 1e3)
                sheet.cost(f"p99, {where}", "ms", ours.p99_us / 1e3)
    return sheet.outcome()


SCENARIO = Scenario(
    "mlp", "256-1024-1024-128 MLP, one worker, beside TensorFlow in process on one thread", measure, (_MODEL,), TARGETS
)
