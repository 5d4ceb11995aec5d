"""One model is asked for more than a worker can do: how soon a second worker helps, and how much."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import tfpool
from bench import pool
from bench.processes import cpu_seconds
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, Span, Steady, ms
from tfpool.errors import Unavailable

IN_FLIGHT = 64
WORKERS = 2
_MODEL = "patches"
_STEP_SECONDS = 0.05
_USED_SHARE = 0.5  # of a core, from which on a worker helps
_PATIENCE_SECONDS = 30.0
_ALONE, _BOTH, _OURS = "one worker", "two replicas from the beginning", "ours"

TARGETS = {
    "failed requests": Target(0.0, on="ours"),
    "until both workers are used": Target(5.0, on="ours"),
    "answers, beside one worker": Target(1.7),
}


def measure(settings: Settings) -> Outcome:
    """Three pools of two workers, one client process each; only one is asked at a time. Ours is a new one each time."""
    sheet = Sheet(TARGETS)
    samples = settings.models.samples[_MODEL]
    with ExitStack() as stack:
        others: dict[str, Steady] = {}
        for name, replicas in ((_ALONE, 1), (_BOTH, WORKERS)):
            others[name] = stack.enter_context(
                Steady(stack.enter_context(_pool(settings, replicas)), [_MODEL], samples)
            )
        for _ in settings.repeats():
            rates = {name: _rate(*_load(settings, name, load)[:2]) for name, load in others.items()}
            with _pool(settings, [1, WORKERS]) as served, Steady(served, [_MODEL], samples) as load:
                notes, span, used = _load(settings, _OURS, load, partial(_until_used, served))
                rate = _rate(notes, span)
                (row,) = served.client().status(_MODEL)
            sheet.cost("failed requests", "", notes.failed, detail={"errors": list(notes.errors)})
            sheet.cost("until both workers are used", "s", used)
            detail = {"replicas": row["workers"], **rates}
            sheet.rate("answers, beside one worker", "req/s", rate, rates[_ALONE], detail)
            sheet.rate("answers, beside two replicas from the beginning", "req/s", rate, rates[_BOTH])
            sheet.rate("two replicas from the beginning, beside one worker", "req/s", rates[_BOTH], rates[_ALONE])
            sheet.cost("p99 when both are used", "ms", ms(notes.within(span), 0.99))
    return sheet.outcome()


def _pool(settings: Settings, replicas: int | list[int]) -> tfpool.Pool:
    model = {"name": _MODEL, "base_path": settings.models.paths[_MODEL], "replicas": replicas}
    return pool.configure(settings, [model], WORKERS)


def _load(
    settings: Settings, name: str, load: Steady, first: Callable[[], float] = lambda: 0.0
) -> tuple[Notes, Span, float]:
    """A closed loop: what was noted, when it was measured, after ``first`` and a while, and what ``first`` said."""
    settings.progress.say(name)
    load.closed(IN_FLIGHT)
    said = first()
    time.sleep(settings.warm_up)
    begin = time.monotonic()
    time.sleep(settings.window)
    end = time.monotonic()
    return load.stop(), (begin, end), said


def _rate(notes: Notes, span: Span) -> float:
    return len(notes.within(span)) / (span[1] - span[0])


def _until_used(served: tfpool.Pool) -> float:
    """Seconds until no worker idles. Raises Unavailable when that takes too long."""
    pids = [row["pid"] for row in served.client().workers()]
    begun = now = time.monotonic()
    before = [cpu_seconds(pid) for pid in pids]
    while now < begun + _PATIENCE_SECONDS:
        time.sleep(_STEP_SECONDS)
        after, then = [cpu_seconds(pid) for pid in pids], now
        now = time.monotonic()
        if all(b - a > _USED_SHARE * (now - then) for a, b in zip(before, after, strict=True)):
            return now - begun
        before = after
    raise Unavailable(f"not within {_PATIENCE_SECONDS:g} s: {WORKERS} workers run {_MODEL}")


SCENARIO = Scenario(
    "hot",
    f"one model on {WORKERS} workers, {IN_FLIGHT} in flight: it has one replica at first",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=7,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 2},
)
