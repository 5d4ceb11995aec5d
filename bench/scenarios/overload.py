"""More is asked than the pool can do: what it still answers in time, and whether a quiet model notices."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

import tfpool
from bench import pool
from bench.arrivals import poisson
from bench.open import Stream
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

FACTORS = (0.5, 1.0, 2.0, 3.0)
DEADLINE_SECONDS = 0.2
ROWS = 32  # a request: or the messages would take the CPUs that the runs need
QUIET_RATE = 100.0
IN_FLIGHT = 64
_MODEL = "deep"
_MOST = FACTORS[-1]
_POOLS = {2: "apart", 1: "together"}

TARGETS = {
    f"apart, in time at {_MOST:g}x, beside the peak": Target(0.85),
    f"apart, begun late at {_MOST:g}x": Target(0.0, on="ours"),
    f"apart, p99 of the quiet model at {_MOST:g}x, beside alone": Target(2.0),
    f"apart, the quiet model's failures at {_MOST:g}x": Target(0.0, on="ours"),
    f"together, in time at {_MOST:g}x, beside the peak": Target(0.85),
    f"together, begun late at {_MOST:g}x": Target(0.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """Two models, on two workers (apart) and on one (together), a client process each; Poisson."""
    sheet = Sheet(TARGETS)
    paths = dict.fromkeys(("busy", "quiet"), settings.models.paths[_MODEL])
    samples = settings.models.samples[_MODEL]
    with ExitStack() as stack:
        cases = []
        for workers, name in _POOLS.items():
            served = stack.enter_context(pool.serve(settings, paths, workers))
            busy = stack.enter_context(Stream(served, "busy", samples, ROWS))
            quiet = stack.enter_context(Stream(served, "quiet", samples))
            settings.progress.say(f"{name}: what is the most")
            cases.append((name, served, busy, quiet, busy.capacity(IN_FLIGHT, settings.window)))
        for number in settings.repeats():
            for name, served, busy, quiet, capacity in cases:
                _measure(settings, sheet, number, name, served, busy, quiet, capacity)
    return sheet.outcome()


def _measure(
    settings: Settings,
    sheet: Sheet,
    number: int,
    name: str,
    served: tfpool.Pool,
    busy: Stream,
    quiet: Stream,
    capacity: float,
) -> None:
    random, window = np.random.default_rng(number), settings.window
    settings.progress.say(f"{name}: the quiet model alone")
    alone = quiet.send(poisson(QUIET_RATE, window, random), window, DEADLINE_SECONDS)
    runs = []
    for factor in FACTORS:
        settings.progress.say(f"{name}: {factor:g} times what it can do")
        before = _begun_late(served)
        busy.begin(poisson(factor * capacity, window, random), window, DEADLINE_SECONDS)
        beside = quiet.send(poisson(QUIET_RATE, window, random), window, DEADLINE_SECONDS)
        runs.append((factor, busy.collect(), beside, _begun_late(served) - before))
    peak = max(traffic.on_time(DEADLINE_SECONDS) for _, traffic, _, _ in runs) / window
    sheet.rate(f"{name}, capacity", "req/s", capacity)
    for factor, traffic, beside, late in runs:
        goodput, told = traffic.on_time(DEADLINE_SECONDS) / window, {"busy": traffic.told(), "quiet": beside.told()}
        p99 = f"{name}, p99 of the quiet model at {factor:g}x, beside alone"
        sheet.rate(f"{name}, in time at {factor:g}x, beside the peak", "req/s", goodput, peak, told)
        sheet.cost(f"{name}, begun late at {factor:g}x", "", late)
        sheet.cost(p99, "ms", beside.ms(0.99), alone.ms(0.99))
        sheet.cost(f"{name}, the quiet model's failures at {factor:g}x", "", beside.failed)
        sheet.cost(f"{name}, p99 of how late requests left at {factor:g}x", "ms", traffic.late_ms(0.99))


def _begun_late(served: tfpool.Pool) -> int:
    """Requests whose run has begun after their deadline, so far."""
    return sum(int(model["late_starts"]) for model in served.client().stats()["models"].values())


SCENARIO = Scenario(
    "overload",
    f"0.5 to {_MOST:g} times what a worker can do, deadlines of {DEADLINE_SECONDS * 1e3:g} ms; a quiet model beside",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=8,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 2},
)
