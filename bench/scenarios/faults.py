"""Workers and brokers are killed, and workers hang, under load: whether anybody fails, and how long it is felt.

Every answer is compared with TensorFlow's. A client that has several answers to a request, or an answer to none,
counts them. In the end nothing may be left of a pool: no process, no descriptor, no shared memory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

import tfpool
from bench import pool
from bench.processes import session
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, Steady
from tfpool.errors import TfpoolError, Unavailable
from tfpool.testing.leaks import Traces, left_behind

WORKERS = 2
IN_FLIGHT = 64
KILLS: Mapping[Form, int] = {Form.QUICK: 3, Form.NORMAL: 20, Form.FULL: 60}
STOPS: Mapping[Form, int] = {Form.QUICK: 1, Form.NORMAL: 4, Form.FULL: 10}
BROKERS: Mapping[Form, int] = {Form.QUICK: 1, Form.NORMAL: 4, Form.FULL: 10}
HANG_SECONDS = 1.0
_MODEL = "mlp"
_EVERY_SECONDS = 1.0
_PAUSE_SECONDS = (0.2, 1.2)
_PATIENCE_SECONDS = 30.0
_STEP_SECONDS = 0.01
_OTHERS = 3  # supervisor, zygote, broker

KILLED, HUNG, BROKER = "workers killed", "workers hung", "brokers killed"

TARGETS = {
    **{
        f"{part}: {what}": Target(0.0, on="ours")
        for part in (KILLED, HUNG, BROKER)
        for what in ("failed requests", "answers too many", "processes too many", "left behind")
    },
    f"{KILLED}: slowest request": Target(1.0, on="ours"),
    f"{BROKER}: longest without an answer": Target(1.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """A pool of its own for each kind of fault, one client process; moments are random, of one seed a repeat."""
    sheet = Sheet(TARGETS)
    for number in settings.repeats():
        for part, times, hurt in ((KILLED, KILLS, _kill), (HUNG, STOPS, _stop), (BROKER, BROKERS, _kill_broker)):
            trial = Trial(settings, part, Random(number))
            with trial.going_on() as served:
                for turn in range(times[settings.form]):
                    settings.progress.say(f"{part}: {turn + 1} of {times[settings.form]}")
                    hurt(trial, served)
            _add(sheet, trial)
    return sheet.outcome()


@dataclass
class Trial:
    """What is done to one pool, and what came of it. ``moments`` are when, ``recoveries`` the seconds until all was
    well again."""

    settings: Settings
    part: str
    dice: Random
    moments: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    notes: Notes | None = None
    most_processes: int = 0
    left: list[str] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[tfpool.Pool]:
        """A pool under load, for as long as the block; then what is left of it."""
        before = Traces.now()
        model = {"name": _MODEL, "base_path": self.settings.models.paths[_MODEL], "replicas": WORKERS}
        with (
            pool.configure(self.settings, [model], WORKERS, hang_s=HANG_SECONDS) as served,
            Steady(served, [_MODEL], self.settings.models.samples[_MODEL], strict=True) as load,
        ):
            leader = served.pid
            load.closed(IN_FLIGHT)
            time.sleep(self.settings.warm_up)
            yield served
            until(lambda: well(served), f"{self.part}: the pool is well again")
            time.sleep(self.settings.warm_up)
            self.most_processes = len(session(leader))
            self.notes = load.stop()
        self.left = [*left_behind(before), *(f"{name} ({pid})" for pid, name in session(leader).items())]

    def pause(self) -> None:
        """Some time goes by."""
        time.sleep(self.dice.uniform(*_PAUSE_SECONDS))

    def signal(self, pid: int, number: signal.Signals) -> float:
        """Do it; when."""
        os.kill(pid, number)
        self.moments.append(time.monotonic())
        return self.moments[-1]


def _kill(trial: Trial, served: tfpool.Pool) -> None:
    """One worker, about every second; whether the others are well again is not waited for."""
    due = (trial.moments[-1] if trial.moments else time.monotonic()) + _EVERY_SECONDS
    time.sleep(max(0.0, due - time.monotonic()))
    trial.signal(trial.dice.choice(until(lambda: pids(served), "a worker lives")), signal.SIGKILL)


def _stop(trial: Trial, served: tfpool.Pool) -> None:
    """One worker stops where it is; until another process is in its place."""
    trial.pause()
    pid = trial.dice.choice(until(lambda: pids(served), "a worker lives"))
    stopped = trial.signal(pid, signal.SIGSTOP)
    until(lambda: pid not in pids(served) and well(served), f"worker {pid}, which hangs, is replaced")
    trial.recoveries.append(time.monotonic() - stopped)


def _kill_broker(trial: Trial, served: tfpool.Pool) -> None:
    """The broker; until the next one has all its workers."""
    trial.pause()
    broker = next(pid for pid, name in session(served.pid).items() if name.startswith("tfpool-broker"))
    killed = trial.signal(broker, signal.SIGKILL)
    until(lambda: broker not in session(served.pid) and well(served), "the next broker has its workers")
    trial.recoveries.append(time.monotonic() - killed)


def pids(served: tfpool.Pool) -> list[int]:
    """Of the workers that are ready."""
    return [row["pid"] for row in _workers(served) if row["state"] == "READY"]


def well(served: tfpool.Pool) -> bool:
    """Whether every worker is ready and has the model."""
    rows = _workers(served)
    return len(rows) == WORKERS and all(row["state"] == "READY" and row["models"] for row in rows)


def _workers(served: tfpool.Pool) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = served.client().call("workers", timeout=1.0)
    except TfpoolError:
        return []
    return rows


def until(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` gives, once that is true. Raises Unavailable when that takes too long."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > give_up:
            raise Unavailable(f"not within {_PATIENCE_SECONDS:g} s: {what}")
        time.sleep(_STEP_SECONDS)
    return found


def silences(notes: Notes, moments: Sequence[float]) -> list[float]:
    """For each moment, the longest time without an answer that ended after it and before the next one."""
    answers = np.sort(notes.due + notes.seconds)
    found = []
    for begin, end in zip(moments, [*moments[1:], float("inf")], strict=True):
        first, last = np.searchsorted(answers, [begin, end])
        found.append(float(np.diff(answers[max(0, first - 1) : last]).max(initial=0.0)))
    return found


def _add(sheet: Sheet, trial: Trial) -> None:
    notes, part = trial.notes, trial.part
    assert notes is not None
    quiet = silences(notes, trial.moments)
    sheet.rate(f"{part}: answers, all compared", "", notes.checked)
    sheet.cost(f"{part}: failed requests", "", notes.failed, detail={"errors": list(notes.errors)})
    sheet.cost(f"{part}: answers too many", "", notes.twice)
    sheet.cost(f"{part}: slowest request", "s", float(notes.seconds.max()))
    sheet.cost(f"{part}: longest without an answer", "s", max(quiet), detail={"each": quiet})
    if trial.recoveries:
        sheet.cost(f"{part}: until all is well", "s", max(trial.recoveries), detail={"each": trial.recoveries})
    sheet.cost(f"{part}: processes too many", "", trial.most_processes - WORKERS - _OTHERS)
    sheet.cost(f"{part}: left behind", "", len(trial.left), detail={"what": trial.left})


SCENARIO = Scenario(
    "faults",
    f"{WORKERS} workers, {IN_FLIGHT} in flight: workers and brokers are killed, workers hang",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=8,
    repeats=dict.fromkeys(Form, 1),
)
