"""A model moves to and fro under load, and whoever takes part in that is killed: whether anybody fails, and whether
anything is left behind.

Every answer is compared with TensorFlow's. The moments are random, so that each phase of a move is met; which ones were
is in the detail.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench import pool
from bench.processes import footprint, session
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.scenarios.faults import silences, until
from bench.steady import Notes, Steady
from tfpool.errors import TfpoolError
from tfpool.testing.leaks import Traces, left_behind

WORKERS = 2
IN_FLIGHT = 64
TIMES: Mapping[Form, int] = {Form.QUICK: 1, Form.NORMAL: 10, Form.FULL: 20}
_MODEL = "ballast_100mb"
_PAUSE_SECONDS = (0.1, 0.4)
_MOVE_SECONDS = 60.0
_LONGEST_SHARE = 1.2  # of a quiet move, within which the blow falls
_OTHERS = 3  # supervisor, zygote, broker
_LET_GO_SECONDS = 5.0  # within which a model that is to go has left a worker's memory
_STEP_SECONDS = 0.02
_MOVED_BYTES = 50 << 20  # a worker that has so many more than the other has the model

QUIET, SOURCE, TARGET, BROKER = "nobody killed", "source killed", "target killed", "broker killed"

TARGETS = {
    f"{part}: {what}": Target(0.0, on="ours")
    for part in (QUIET, SOURCE, TARGET, BROKER)
    for what in ("failed requests", "answers too many", "models too many", "processes too many", "left behind")
}


def measure(settings: Settings) -> Outcome:
    """A pool of its own for each part, one client process."""
    sheet = Sheet(TARGETS)
    times = TIMES[settings.form]
    for number in settings.repeats():
        longest = 0.0
        for part in (QUIET, SOURCE, TARGET, BROKER):
            trial = Trial(settings, part, Random(number), longest)
            with trial.going_on():
                for turn in range(times):
                    settings.progress.say(f"{part}: {turn + 1} of {times}")
                    trial.move()
            longest = longest or _LONGEST_SHARE * max(trial.took)
            _add(sheet, trial)
    return sheet.outcome()


@dataclass
class Trial:
    """What is done to one pool, and what came of it.

    ``took`` are the seconds of moves, and ``cleared`` those from when all was well until one process alone had the
    model in memory; ``doubled`` counts moves after which that did not come. ``moments`` are when somebody was killed,
    ``phases`` how far the move was then.
    """

    settings: Settings
    part: str
    dice: Random
    longest: float
    took: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    cleared: list[float] = field(default_factory=list)
    doubled: int = 0
    notes: Notes | None = None
    most_processes: int = 0
    left: list[str] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """A pool under load, for as long as the block; then what is left of it."""
        before = Traces.now()
        model = {"name": _MODEL, "base_path": self.settings.models.paths[_MODEL], "replicas": 1}
        with (
            pool.configure(self.settings, [model], WORKERS, policy="static") as self.served,
            Steady(self.served, [_MODEL], self.settings.models.samples[_MODEL], strict=True) as load,
        ):
            leader = self.served.pid
            load.closed(IN_FLIGHT)
            time.sleep(self.settings.warm_up)
            yield
            time.sleep(self.settings.warm_up)
            self.most_processes = len(session(leader))
            self.notes = load.stop()
        self.left = [*left_behind(before), *(f"{name} ({pid})" for pid, name in session(leader).items())]

    def move(self) -> None:
        """Move the model to the other worker, and kill somebody meanwhile; until all is well again."""
        rows = until(lambda: self.well(), "every worker is ready, and one has the model")
        source, target = sorted(rows, key=lambda row: not row["models"])
        time.sleep(self.dice.uniform(*_PAUSE_SECONDS))
        mover = threading.Thread(target=self._move, args=(target["name"],))
        mover.start()
        if self.part != QUIET:
            time.sleep(self.dice.uniform(0.0, self.longest))
            dead = self._kill(source["pid"], target["pid"])
            until(lambda: self._is_gone(dead), f"process {dead} is given up")
        mover.join()
        until(lambda: self.well(), "every worker is ready, and one has the model")
        self._await_one()

    def _move(self, target: str) -> None:
        begun = time.monotonic()
        try:
            self.served.client().admin("migrate", model=_MODEL, to=target, timeout=_MOVE_SECONDS)
        except TfpoolError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["done"] += 1
            self.took.append(time.monotonic() - begun)

    def _kill(self, source: int, target: int) -> int:
        """Kill whom this part kills; the process."""
        broker = next(pid for pid, name in session(self.served.pid).items() if name.startswith("tfpool-broker"))
        moves = self.served.client().call("plan")["migrations"]
        self.phases[max(moves, key=lambda row: int(row["id"]))["phase"] if moves else "before"] += 1
        pid = {SOURCE: source, TARGET: target, BROKER: broker}[self.part]
        os.kill(pid, signal.SIGKILL)
        self.moments.append(time.monotonic())
        return pid

    def _is_gone(self, pid: int) -> bool:
        with suppress(TfpoolError):
            rows = self.served.client().call("workers", timeout=1.0)
            return pid not in session(self.served.pid) and all(row["pid"] != pid for row in rows)
        return False

    def well(self) -> list[dict[str, Any]]:
        """The workers, if all are ready, one of them has the model, and nothing moves."""
        with suppress(TfpoolError):
            client = self.served.client()
            rows: list[dict[str, Any]] = client.call("workers", timeout=1.0)
            moves = client.call("plan", timeout=1.0)["migrations"]
            (row,) = client.call("status", model=_MODEL, timeout=1.0)
            over = all(move["phase"] in ("DONE", "ABORTED") for move in moves)
            ready = len(rows) == WORKERS and all(one["state"] == "READY" and one["pid"] for one in rows)
            if ready and over and row["state"] == "AVAILABLE" and sum(bool(one["models"]) for one in rows) == 1:
                return rows
        return []

    def _await_one(self) -> None:
        begun = time.monotonic()
        while len(self._holders()) != 1 and time.monotonic() < begun + _LET_GO_SECONDS:
            time.sleep(_STEP_SECONDS)
        self.cleared.append(time.monotonic() - begun)
        self.doubled += self.cleared[-1] >= _LET_GO_SECONDS

    def _holders(self) -> list[int]:
        """Processes that have the model in memory, by what the kernel says."""
        sizes = {row["pid"]: footprint(row["pid"]).unique for row in self.served.client().workers()}
        return [pid for pid, size in sizes.items() if size > _MOVED_BYTES]


def _add(sheet: Sheet, trial: Trial) -> None:
    notes, part = trial.notes, trial.part
    assert notes is not None
    sheet.rate(f"{part}: answers, all compared", "", notes.checked)
    sheet.cost(f"{part}: failed requests", "", notes.failed, detail={"errors": list(notes.errors)})
    sheet.cost(f"{part}: answers too many", "", notes.twice)
    sheet.cost(f"{part}: models too many", "", trial.doubled)
    sheet.cost(f"{part}: longest in the memory of two", "s", max(trial.cleared))
    sheet.cost(f"{part}: slowest request", "s", float(notes.seconds.max()))
    detail = {"moves": dict(trial.outcomes), "killed_at": dict(trial.phases), "seconds": trial.took}
    sheet.cost(f"{part}: slowest move", "s", max(trial.took, default=0.0), detail=detail)
    if trial.moments:
        sheet.cost(f"{part}: longest without an answer", "s", max(silences(notes, trial.moments)))
    sheet.cost(f"{part}: processes too many", "", trial.most_processes - WORKERS - _OTHERS)
    sheet.cost(f"{part}: left behind", "", len(trial.left), detail={"what": trial.left})


SCENARIO = Scenario(
    "moves",
    f"a model of 100 MB moves between {WORKERS} workers, {IN_FLIGHT} in flight; source, target or broker are killed",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=8,
    repeats=dict.fromkeys(Form, 1),
)
