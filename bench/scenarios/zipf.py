"""Many models, memory for few of them: what the budget costs, and whether it is kept."""

from __future__ import annotations

import json
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tfpool
from bench import pool
from bench.caches import Stock, play
from bench.processes import footprint
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, Steady, ms
from tfpool.testing.placement_policies import LruCache
from tfpool.wire.tensors import Array

MODELS, QUICK_MODELS = 200, 40
ROOM = 20  # models that the budget has room for, in all workers together
REQUESTS, QUICK_REQUESTS = 1000, 100
IN_FLIGHT = 16
EXPONENT = 1.0
WORKERS = 2
_SAMPLE_SECONDS = 0.1
_MODEL = "ballast_5mb"

MOST_UNIQUE = "most that a worker had to itself, beside its budget"
_MOST_ADDED = "most PSS that models added, beside what the budget has for them"

TARGETS = {
    "failures": Target(0.0, on="ours"),
    MOST_UNIQUE: Target(1.0),
    _MOST_ADDED: Target(1.0),
    "evictions, beside an ideal LRU": Target(1.2),
}


def measure(settings: Settings) -> Outcome:
    """Two workers, one client process. Each repeat has a pool, and a sequence of requests, of its own."""
    sheet = Sheet(TARGETS)
    models = _copies(settings, QUICK_MODELS if settings.quick else MODELS)
    budget = _budget(settings, models)
    for number in settings.repeats():
        picks = zipf(len(models), QUICK_REQUESTS if settings.quick else REQUESTS, number)
        with (
            pool.configure(
                settings, models, WORKERS, memory_budget=budget, log_level="info", log_format="json"
            ) as served,
            Steady(served, [model["name"] for model in models], settings.models.samples[_MODEL]) as load,
        ):
            settings.progress.say(f"{len(picks)} requests to {len(models)} models")
            watch = Watch(served)
            watch.look()
            load.pick(IN_FLIGHT, picks)
            begun = time.monotonic()
            while not load.over(_SAMPLE_SECONDS):
                watch.look()
            took = time.monotonic() - begun
            notes = load.collect()
            watch.look()
            _add(sheet, served, watch, notes, picks, took)
    return sheet.outcome()


def _copies(settings: Settings, number: int) -> list[dict[str, Any]]:
    """``[[model]]`` tables of models that differ to who looks at their files."""
    found = []
    for index in range(number):
        home = Path(settings.directory, "zipf", f"m{index:03}")
        shutil.copytree(settings.models.paths[_MODEL], home, copy_function=shutil.copy)
        found.append({"name": home.name, "base_path": str(home), "preload": False})
    return found


def _budget(settings: Settings, models: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that the workers have to themselves when they hold as many models as there shall be room for."""
    with pool.configure(settings, models[:ROOM], WORKERS) as served:
        client = served.client()
        for model in models[:ROOM]:
            client.load(model["name"])
        return WORKERS * max(footprint(row["pid"]).unique for row in client.workers())


def zipf(models: int, requests: int, seed: int) -> list[int]:
    """A model for each request; model n is asked for in proportion to 1 / (n + 1)."""
    weights = 1.0 / np.arange(1, models + 1) ** EXPONENT
    chosen: list[int] = np.random.default_rng(seed).choice(models, requests, p=weights / weights.sum()).tolist()
    return chosen


def lru(picks: Sequence[int], room: int) -> tuple[int, int]:
    """Loads and evictions of a cache that keeps the ``room`` models that were asked for last."""
    alike = [1] * (max(picks) + 1)
    played = play(LruCache(), Stock(alike, alike), picks, room)
    return played.loads, played.evictions


# -- what is seen meanwhile ----------------------------------------------------------------------------------------


class Look(NamedTuple):
    """Bytes of a worker: PSS, what it alone has, what the pool knows of that, and its budget."""

    pss: int
    unique: int
    known: int
    budget: int


@dataclass
class Watch:
    """Looks at a pool: its workers' memory, and its log, which says when which model was in memory.

    ``added`` has the PSS that a worker has over the one it had when it was empty, in MB, and the MB of its budget
    that are for models. The rest of its PSS is its share of TensorFlow's own pages.
    """

    served: tfpool.Pool
    samples: list[dict[str, Look]] = field(default_factory=list)
    added: list[tuple[float, float]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    _empty: dict[int, int] = field(default_factory=dict)
    _lines: dict[str, None] = field(default_factory=dict)

    def look(self) -> None:
        """One sample of all workers."""
        self._lines |= dict.fromkeys(self.served.log().splitlines())
        sample = {}
        for row in self.served.client().workers():
            with suppress(OSError):  # it is being replaced
                found, told = footprint(row["pid"]), row["memory"]
                sample[row["name"]] = Look(found.pss, found.unique, told["unique"], told["budget"])
                self.pids.add(row["pid"])
                before = self._empty.setdefault(row["pid"], found.pss)
                self.added.append(((found.pss - before) / 1e6, (told["budget"] - told["base"]) / 1e6))
        self.samples.append(sample)

    def fullest(self, tell: Callable[[Look], int]) -> tuple[float, float]:
        """MB of the worker that was the nearest to its budget, or the farthest over it, and the MB of that."""
        looks = (look for sample in self.samples for look in sample.values())
        return fullest((tell(look) / 1e6, look.budget / 1e6) for look in looks)

    def changes(self) -> Iterator[tuple[float, str, bool]]:
        """When (monotonic seconds) which model came to be in memory, or left it."""
        offset = time.time() - time.monotonic()
        for line in self._lines:
            with suppress(ValueError):  # cut in the middle
                fields = json.loads(line)
                if fields["event"] in ("model.available", "model.evicted"):
                    moment = datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).timestamp()
                    yield moment - offset, fields["model"], fields["event"] == "model.available"


class Residency:
    """Which models were in memory when, from :meth:`Watch.changes`."""

    def __init__(self, changes: Iterable[tuple[float, str, bool]]) -> None:
        self._of: dict[str, tuple[list[float], list[bool]]] = {}
        here: set[str] = set()
        self.most = 0
        for moment, model, came in sorted(changes):
            moments, states = self._of.setdefault(model, ([], []))
            moments.append(moment)
            states.append(came)
            here = here | {model} if came else here - {model}
            self.most = max(self.most, len(here))

    def cold(self, model: str, moment: float) -> bool:
        """Whether a request of this moment has to wait for a load."""
        return self.wait(model, moment) > 0

    def wait(self, model: str, moment: float) -> float:
        """Seconds from a moment until a model is in memory; infinite where it never is."""
        moments, states = self._of.get(model, ([], []))
        after = bisect_right(moments, moment)
        if after and states[after - 1]:
            return 0.0
        return next((came - moment for came, here in zip(moments[after:], states[after:], strict=True) if here), inf)


def fullest(shares: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of pairs of what is there and what may be, the one with the most of what may be."""
    return max(shares, key=lambda share: share[0] / share[1])


def _add(sheet: Sheet, served: tfpool.Pool, watch: Watch, notes: Notes, picks: Sequence[int], took: float) -> None:
    residency = Residency(watch.changes())
    told = served.client().stats()
    names = [f"m{picks[number]:03}" for number in notes.numbers]
    cold = np.array([residency.cold(name, due) for name, due in zip(names, notes.due, strict=True)], bool)
    loads, evictions = lru(picks, ROOM)
    sheet.rate("requests", "req/s", len(notes.due) / took)
    sheet.cost("failures", "", notes.failed, detail={"errors": list(notes.errors)})
    sheet.cost("most PSS of a worker, beside its budget", "MB", *watch.fullest(lambda look: look.pss))
    sheet.cost(MOST_UNIQUE, "MB", *watch.fullest(lambda look: look.unique))
    sheet.cost("most that the pool knew of, beside its budget", "MB", *watch.fullest(lambda look: look.known))
    sheet.cost(_MOST_ADDED, "MB", *fullest(watch.added))
    sheet.rate("most models at once, beside those with room", "", residency.most, ROOM)
    sheet.cost("evictions, beside an ideal LRU", "", told["evictions"], evictions)
    sheet.cost("loads, beside an ideal LRU", "", told["loads"], loads)
    sheet.cost("cold requests", "%", 100 * float(np.mean(cold)))
    for name, chosen in (("cold", cold), ("warm", ~cold)):
        seconds: Array = np.sort(notes.seconds[chosen])
        sheet.cost(f"{name} p50", "ms", ms(seconds, 0.5))
        sheet.cost(f"{name} p99", "ms", ms(seconds, 0.99))
    sheet.cost("workers replaced", "", len(watch.pids) - WORKERS)


SCENARIO = Scenario(
    "zipf",
    f"{MODELS} models of 5 MB, memory for {ROOM} of them, Zipf({EXPONENT}), {IN_FLIGHT} in flight",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=6,
    repeats=dict.fromkeys(Form, 1),
)
