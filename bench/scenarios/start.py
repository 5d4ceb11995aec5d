"""How soon a worker that was killed is replaced, and what a worker costs in memory."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

import tfpool
from bench import pool
from bench.errors import WrongAnswer
from bench.processes import footprint
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from tfpool.errors import Unavailable

WORKERS = 2
_MODEL = "half_plus_two"
_PATIENCE_SECONDS = 30.0
_STEP_SECONDS = 0.005

TARGETS = {
    "killed to serving": Target(0.5, on="ours"),
    "unique memory, new worker": Target(60.0, on="ours"),
    "unique memory, other worker": Target(60.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """Each of two workers has a small model of its own and is killed once: a second death would be held back."""
    sheet = Sheet(TARGETS)
    paths = {f"model_{number}": settings.models.paths[_MODEL] for number in range(WORKERS)}
    with ExitStack() as stack:
        for number in settings.repeats():
            if number % WORKERS == 0:
                stack.close()
                served = stack.enter_context(pool.serve(settings, paths, WORKERS))
            row, *others = _rotated(served.client().workers(), number)
            settings.progress.say(f"killing {row['name']}")
            ready, serving = _replace(served.client(), row)
            sheet.cost("killed to ready", "s", ready)
            sheet.cost("killed to serving", "s", serving)
            for name, worker in (("new worker", _row(served.client(), row["name"])), ("other worker", others[0])):
                told = worker["memory"]["unique"] / 1e6
                unique = footprint(worker["pid"]).unique / 1e6
                sheet.cost(f"unique memory, {name}", "MB", unique, detail={"told_by_the_pool": told})
    return sheet.outcome()


def _rotated(rows: list[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    return rows[by % len(rows) :] + rows[: by % len(rows)]


def _replace(client: tfpool.Client, row: dict[str, Any]) -> tuple[float, float]:
    """Kill a worker: seconds until another process is ready in its place, and until that one's model answers."""
    model = row["models"][0].partition(":")[0]
    killed = time.monotonic()
    os.kill(row["pid"], signal.SIGKILL)
    while (now := _row(client, row["name"]))["pid"] in (0, row["pid"]) or now["state"] != "READY":
        if time.monotonic() > killed + _PATIENCE_SECONDS:
            raise Unavailable(f"{row['name']} was not replaced within {_PATIENCE_SECONDS:g} s: it is {now['state']}")
        time.sleep(_STEP_SECONDS)
    ready = time.monotonic() - killed
    (answer,) = client.predict(model, np.ones(1, np.float32), timeout=_PATIENCE_SECONDS).values()
    serving = time.monotonic() - killed
    if not np.allclose(answer, 2.5):
        raise WrongAnswer(f"{model} gave {answer} for 1, expected 2.5")
    return ready, serving


def _row(client: tfpool.Client, name: str) -> dict[str, Any]:
    return next(row for row in client.workers() if row["name"] == name)


SCENARIO = Scenario("start", "SIGKILL to one of two workers, until its replacement serves", measure, (_MODEL,), TARGETS)
