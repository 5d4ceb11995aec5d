"""Many models under traffic of every shape: what waits in bursts and clumps, beside Poisson at the same mean rate.

The pool is told of no deadlines, so that none of the requests may fail; what is answered within a deadline is counted.
The recording in ``configs/trace.csv`` is an example that was made so: 60 s of a Poisson process whose rate is
20 (1 + 0.8 sin(2 pi t / 30)) a second, models by Zipf, and a crowd between 40 and 43 s: as many requests for one model
as make it 1,500 in all. Here it is replayed faster, over and over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

import numpy as np

import tfpool
from bench import loads, pool
from bench.arrivals import Schedule, bursts, gamma, poisson, trace
from bench.children import ROOT
from bench.crowd import zipf_shares
from bench.open import Stream, capacity
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.scenarios.rotate import Ranks, rotating
from bench.senders import Together, Traffic
from bench.systems import OURS
from tfpool.wire.tensors import Array

MODELS = 20
WORKERS = 1
CLIENTS = 2
IN_FLIGHT = 64  # of all clients
LEVELS, FULL_LEVELS = (0.5,), (0.5, 0.8)
SECONDS, QUICK_SECONDS = 10.0, 1.0
DEADLINE_SECONDS = 0.1
CV = 4.0
TURNS = 3  # of ranks that rotate
POISSON = "poisson"
_MODEL = "mlp"
_FAILED = "failed requests"

TARGETS = {_FAILED: Target(0.0, on="ours")}

Moments = Callable[[float, float, np.random.Generator], Array]


def mixed(arrivals: Moments, rate: float, seconds: float, seed: int) -> Schedule:
    """All models by Zipf, at random; what chance made of the mean rate is put right by going faster or slower."""
    random = np.random.default_rng(seed)
    moments = arrivals(rate, seconds, random)
    return Schedule(moments, random.choice(MODELS, len(moments), p=zipf_shares(MODELS)), seconds).scaled(rate)


def rotated(rate: float, seconds: float, seed: int) -> Schedule:
    """Poisson, and Zipf whose ranks move on."""
    ranks = Ranks(rotating(MODELS, TURNS, seed), seconds / TURNS)
    moments, picks = ranks.arrivals(rate, seed)
    return Schedule(moments, np.array(picks, int), ranks.seconds).scaled(rate)


def replayed(rate: float, seconds: float, seed: int) -> Schedule:
    """The recording; ``seed`` changes nothing."""
    return trace(ROOT / "configs" / "trace.csv").scaled(rate).lasting(seconds).scaled(rate)


def clumps(rate: float, seconds: float, random: np.random.Generator) -> Array:
    return gamma(rate, seconds, CV, random)


PATTERNS: Mapping[str, Callable[[float, float, int], Schedule]] = {
    POISSON: partial(mixed, poisson),
    "bursts": partial(mixed, bursts),
    f"gamma, cv {CV:g}": partial(mixed, clumps),
    "rotating zipf": rotated,
    "trace": replayed,
}


def measure(settings: Settings) -> Outcome:
    """One pool, several client processes that are one load. Levels are shares of what a closed loop got."""
    sheet = Sheet(TARGETS)
    names = [f"m{number:02}" for number in range(MODELS)]
    seconds = settings.seconds or (QUICK_SECONDS if settings.quick else SECONDS)
    with ExitStack() as stack:
        paths = dict.fromkeys(names, settings.models.paths[_MODEL])
        served = stack.enter_context(pool.serve(settings, paths, WORKERS))
        samples = settings.models.samples[_MODEL]
        streams = [stack.enter_context(Stream(served, names, samples)) for _ in range(CLIENTS)]
        settings.progress.say("what the pool bears")
        picks = mixed(poisson, 1000.0, 1.0, 0).picks.tolist()
        most = capacity(streams, IN_FLIGHT // CLIENTS, seconds, picks)
        for number in settings.repeats():
            sheet.rate("load 1 is", "req/s", most)
            for level in FULL_LEVELS if settings.full else LEVELS:
                seen = {}
                for name, pattern in PATTERNS.items():
                    settings.progress.say(f"{name} at {100 * level:g} %")
                    schedule = pattern(level * most, seconds, number)
                    seen[name] = _send(sheet, served, Together(streams), name, level, schedule)
                _add(sheet, level, seen)
    return sheet.outcome()


def _send(sheet: Sheet, served: tfpool.Pool, load: Together, name: str, level: float, schedule: Schedule) -> Traffic:
    meter = loads.meter(served)
    before = meter()
    traffic = load.send(schedule, None)
    served_us = {role: 1e6 * (now - before[role]) / len(schedule.moments) for role, now in meter().items()}
    sheet.point(traffic.point(OURS, f"{MODELS} x {_MODEL}", name, level, served_us))
    return traffic


def _add(sheet: Sheet, level: float, seen: Mapping[str, Traffic]) -> None:
    even = seen[POISSON]
    for name, traffic in seen.items():
        where = f"{name} at {100 * level:g} %"
        for q, what in ((0.5, "p50"), (0.99, "p99")):
            beside = ", beside poisson" if traffic is not even else ""
            reference = even.ms(q) if beside else None
            sheet.cost(f"{where}, {what}{beside}", "ms", traffic.ms(q), reference)
        in_time = traffic.share(DEADLINE_SECONDS)
        sheet.rate(f"{where}, within {1e3 * DEADLINE_SECONDS:g} ms", "%", in_time, detail=traffic.told())
        sheet.cost(f"{where}, p99 of how late requests left", "ms", traffic.late_ms(0.99))
    errors = {name: traffic.errors for name, traffic in seen.items() if traffic.failed}
    sheet.cost(_FAILED, "", sum(traffic.failed for traffic in seen.values()), detail={"level": level, **errors})


SCENARIO = Scenario(
    "traffic",
    f"{MODELS} MLPs on one worker, {CLIENTS} client processes: bursts, clumps, ranks that rotate, a recording",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=4,
    repeats={Form.QUICK: 1, Form.NORMAL: 3, Form.FULL: 3},
)
