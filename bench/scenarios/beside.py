"""A large model comes and goes while a small one is in use: how much of it the small one's users notice."""

from __future__ import annotations

import time
from contextlib import ExitStack

import tfpool
from bench import pool
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, Span, Steady, ms

IN_FLIGHT = 64
SHARE = 0.3  # of a worker's time, at one row a batch
_SMALL, _LARGE = "mlp", "resnet50"
_LOOPS = ("open", "closed")

TARGETS = {
    f"2 workers, {loop}: {figure}": target
    for loop in _LOOPS
    for figure, target in (
        ("failures", Target(0.0, on="ours")),
        ("p99 while it loads, beside quiet", Target(1.3)),
    )
}


def measure(settings: Settings) -> Outcome:
    """One client process. Of two workers, the large model goes to the one that does not have the small one."""
    sheet = Sheet(TARGETS)
    with ExitStack() as stack:
        pools = []
        for workers in (2, 1):
            served = stack.enter_context(pool.start(settings, _SMALL, workers=workers))
            large = {"name": _LARGE, "base_path": settings.models.paths[_LARGE], "preload": "explicit"}
            served.client().add(large)
            load = stack.enter_context(Steady(served, [_SMALL], settings.models.samples[_SMALL]))
            name = f"{workers} workers" if workers > 1 else "1 worker"
            pools.append((name, served.client(), load, _rate_of(settings, served.client(), load)))
        for _ in settings.repeats():
            for name, client, load, rate in pools:
                for loop in _LOOPS:
                    settings.progress.say(f"{name}, {loop}, {_LARGE} comes and goes")
                    if loop == "open":
                        load.open(rate)
                    else:
                        load.closed(IN_FLIGHT)
                    time.sleep(settings.warm_up)
                    spans = _come_and_go(client, settings.window)
                    _add(sheet, f"{name}, {loop}", load.stop(), *spans)
    return sheet.outcome()


def _rate_of(settings: Settings, client: tfpool.Client, load: Steady) -> float:
    """Requests a second that keep a worker busy for its share, if each is run alone."""
    load.closed(1)
    time.sleep(settings.warm_up)
    load.stop()
    return SHARE / (float(client.stats()["models"][_SMALL]["run_us"]["p50"]) * 1e-6)


def _come_and_go(client: tfpool.Client, seconds: float) -> tuple[Span, Span, Span]:
    """Quiet for so many seconds, then a load, then an unload."""
    begun = time.monotonic()
    time.sleep(seconds)
    loading = time.monotonic()
    client.load(_LARGE)
    unloading = time.monotonic()
    client.unload(_LARGE)
    return (begun, loading), (loading, unloading), (unloading, time.monotonic())


def _add(sheet: Sheet, name: str, notes: Notes, quiet: Span, load: Span, unload: Span) -> None:
    calm, busy = notes.within(quiet), notes.within(load, unload)
    told = {
        "requests_a_second": {"quiet": _rate(notes, quiet), "load": _rate(notes, load), "unload": _rate(notes, unload)},
        "p99_ms": {"load": ms(notes.within(load), 0.99), "unload": ms(notes.within(unload), 0.99)},
        "seconds": {"load": load[1] - load[0], "unload": unload[1] - unload[0]},
    }
    sheet.cost(f"{name}: failures", "", notes.failed, detail={"errors": list(notes.errors)})
    sheet.cost(f"{name}: p50 while it loads, beside quiet", "ms", ms(busy, 0.5), ms(calm, 0.5))
    sheet.cost(f"{name}: p99 while it loads, beside quiet", "ms", ms(busy, 0.99), ms(calm, 0.99), told)
    sheet.cost(f"{name}: longest while it loads, beside quiet", "ms", ms(busy, 1.0), ms(calm, 1.0))


def _rate(notes: Notes, span: Span) -> float:
    return len(notes.within(span)) / (span[1] - span[0])


SCENARIO = Scenario(
    "beside",
    "ResNet50 is loaded and unloaded while an MLP answers, open (30 % load) and closed (64 in flight)",
    measure,
    (_SMALL, _LARGE),
    TARGETS,
)
