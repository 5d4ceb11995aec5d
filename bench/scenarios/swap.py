"""A new version takes over while the model is in use: whether anybody fails, and who notices."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import tfpool
from bench import pool
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, Span, Steady, ms
from tfpool.errors import Unavailable
from tfpool.wire.tensors import Array

IN_FLIGHT = 64
SWAPS = 2  # a repeat
_MODELS = ("half_plus_two", "mlp")
_AROUND_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_STEP_SECONDS = 0.02

TARGETS = {
    name: target
    for model in _MODELS
    for name, target in (
        (f"{model}, failures", Target(0.0, on="ours")),
        (f"{model}, p99 around a swap, beside quiet", Target(1.5)),
    )
}


def measure(settings: Settings) -> Outcome:
    """One worker, one client process, one model at a time under load."""
    sheet = Sheet(TARGETS)
    homes = {model: Path(settings.directory, "swap", model) for model in _MODELS}
    for model, home in homes.items():
        _move_in(settings, model, home, 1)
    with ExitStack() as stack:
        served = stack.enter_context(pool.serve(settings, {m: str(home) for m, home in homes.items()}, 1))
        loads = {m: stack.enter_context(Steady(served, [m], settings.models.samples[m])) for m in _MODELS}
        for number in settings.repeats():
            for model, load in loads.items():
                settings.progress.say(f"swapping {model}")
                load.closed(IN_FLIGHT)
                time.sleep(settings.warm_up)
                begun, swaps = time.monotonic(), []
                for version in range(2 + number * SWAPS, 2 + (number + 1) * SWAPS):
                    time.sleep(settings.window + _AROUND_SECONDS)
                    swaps.append(_swap(settings, served.client(), model, homes[model], version))
                time.sleep(settings.window + _AROUND_SECONDS)
                ended = time.monotonic()
                _add(sheet, model, load.stop(), (begun, ended), swaps)
    return sheet.outcome()


def _move_in(settings: Settings, model: str, home: Path, version: int) -> None:
    """A new version is there all at once: a copy of the first."""
    apart = Path(settings.directory, "apart")
    shutil.copytree(Path(settings.models.paths[model], "1"), apart, copy_function=shutil.copy)
    home.mkdir(parents=True, exist_ok=True)
    os.rename(apart, home / str(version))


def _swap(settings: Settings, client: tfpool.Client, model: str, home: Path, version: int) -> Span:
    """Move a version in; from then until it serves and the one before it has left."""
    _move_in(settings, model, home, version)
    moved = time.monotonic()
    while [(row["version"], row["state"]) for row in client.status(model)] != [(version, "AVAILABLE")]:
        if time.monotonic() > moved + _PATIENCE_SECONDS:
            raise Unavailable(
                f"{model}:{version} does not serve alone after {_PATIENCE_SECONDS:g} s: {client.models()}"
            )
        time.sleep(_STEP_SECONDS)
    return moved, time.monotonic()


def around(swap: Span) -> Span:
    """The second around a swap; all of it where it takes longer."""
    spare = max(0.0, _AROUND_SECONDS - (swap[1] - swap[0])) / 2
    return swap[0] - spare, swap[1] + spare


def between(whole: Span, taken: Sequence[Span]) -> list[Span]:
    """What is left of a span without others that lie in it, in their order."""
    edges = [whole[0], *(edge for span in taken for edge in span), whole[1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _add(sheet: Sheet, model: str, notes: Notes, whole: Span, swaps: Sequence[Span]) -> None:
    seconds = [around(swap) for swap in swaps]
    busy, quiet = notes.within(*seconds), notes.within(*between(whole, seconds))
    each = {"p99_ms_of_each_swap": [ms(notes.within(second), 0.99) for second in seconds]}
    sheet.cost(f"{model}, failures", "", notes.failed, detail={"errors": list(notes.errors)})
    sheet.cost(f"{model}, p99 around a swap, beside quiet", "ms", ms(busy, 0.99), ms(quiet, 0.99), each)
    sheet.cost(f"{model}, longest around a swap, beside quiet", "ms", ms(busy, 1.0), ms(quiet, 1.0))
    sheet.rate(
        f"{model}, rate around a swap, beside quiet",
        "req/s",
        _rate(busy, seconds),
        _rate(quiet, between(whole, seconds)),
    )
    sheet.cost(f"{model}, moved in until it serves alone", "s", sum(end - begin for begin, end in swaps) / len(swaps))


def _rate(found: Array, spans: Sequence[Span]) -> float:
    return len(found) / sum(end - begin for begin, end in spans)


SCENARIO = Scenario(
    "swap",
    "new versions move in under 64 in flight: the second around each, beside the quiet ones",
    measure,
    _MODELS,
    TARGETS,
)
