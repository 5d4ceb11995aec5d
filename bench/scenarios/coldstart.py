"""Models that are loaded when somebody asks: how long who asks waits, with a store of compiled models and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import pool, variants
from bench.arrivals import poisson
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from bench.scenarios.zipf import EXPONENT, Residency, Watch, zipf
from bench.steady import Notes, ms
from bench.variants import Variant
from bench.variety import Asker
from tfpool.settings import STORE_OFF, Form
from tfpool.wire.tensors import Array

MODELS, QUICK_MODELS = 200, 12
ROOM = 1 / 3  # of the models have room in the budget
RATE = 3.0  # requests a second
SECONDS, QUICK_SECONDS = 100.0, 4.0
WORKERS = 2
_KINDS = ("mobilenet_v2", "patches")
_SAMPLED = 20  # models whose memory is measured
_LEAST_LOADS = 2  # that a worker has room for
_KEPT_FREE = 0.1  # of a budget
_LOOK_SECONDS = 0.25
_PLAIN, _STORED, _SAME = "plain", "stored", "stored, memory as plain has"

TARGETS = {
    "failed": Target(0.0, on="ours"),
    "failed, with the memory that plain has": Target(0.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """Two workers, one client. Each repeat has the same requests for three new pools, none of whose models is in
    memory: without a store; with one, and room for as many models; with one, and as many bytes."""
    sheet = Sheet(TARGETS)
    count = QUICK_MODELS if settings.quick else MODELS
    by_kind = [variants.make(settings, kind, count // len(_KINDS)) for kind in _KINDS]
    models = [model for pair in zip(*by_kind, strict=True) for model in pair]
    store = variants.store_of(settings)
    variants.build(settings, models, store)
    budgets = {where: _budget(settings, models, where) for where in (STORE_OFF, store)}
    runs = {
        _PLAIN: (STORE_OFF, budgets[STORE_OFF]),
        _STORED: (store, budgets[store]),
        _SAME: (store, budgets[STORE_OFF]),
    }
    for number in settings.repeats():
        asked = Asked.of(settings, len(models), number)
        seen = {}
        for name in (*runs,) if number % 2 == 0 else reversed(runs):
            settings.progress.say(f"{len(asked.picks)} requests to {len(models)} models, {name}")
            seen[name] = _run(settings, models, *runs[name], asked)
        _add(sheet, seen[_STORED], seen[_PLAIN], "")
        _add(sheet, seen[_SAME], seen[_PLAIN], ", with the memory that plain has")
    return sheet.outcome()


@dataclass(frozen=True)
class Asked:
    """Which model is asked when (seconds from the beginning)."""

    moments: Array
    picks: Sequence[int]

    @classmethod
    def of(cls, settings: Settings, models: int, seed: int) -> Asked:
        """Poisson, and Zipf over the models in their order."""
        seconds = settings.seconds or (QUICK_SECONDS if settings.quick else SECONDS)
        moments = poisson(RATE, seconds, np.random.default_rng(seed))
        return cls(moments, zipf(models, len(moments), seed))


@dataclass(frozen=True)
class Seen:
    """What became of one pool's requests; ``cold`` says which of those that were answered waited for a load."""

    notes: Notes
    cold: Array
    loads: int
    evictions: int
    told: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, cold: bool | None = None) -> Array:
        """Increasing, of all, or of those that waited for a load or did not."""
        chosen = self.notes.seconds if cold is None else self.notes.seconds[self.cold == cold]
        found: Array = np.sort(chosen)
        return found


def _tables(models: Sequence[Variant]) -> list[dict[str, Any]]:
    return [{"name": model.name, "base_path": model.base, "preload": False} for model in models]


def _budget(settings: Settings, models: Sequence[Variant], store: str) -> int:
    """Bytes that the workers have to themselves when they hold a share of the models, as some of them tell."""
    some = models[:_SAMPLED]
    with pool.configure(settings, _tables(some), WORKERS, store=store) as served, Asker(served, some) as asker:
        asker.in_turn(range(len(some)))
        asker.collect()
        rows, workers = served.client().models(), served.client().workers()
    told = [worker["memory"] for worker in workers]
    empty = sum(memory["base"] for memory in told)
    each = (sum(memory["unique"] + memory["mapped"] for memory in told) - empty) / len(some)
    return budget(empty, each * round(ROOM * len(models)), max(row["peak_bytes"] + _shared(row) for row in rows))


def _shared(row: Mapping[str, Any]) -> int:
    """Bytes of the file that a model maps."""
    return int(row["store"]["shared_bytes"]) if Form.MAPPED.value in row["forms"].values() else 0


def budget(empty: int, models: float, load: int) -> int:
    """Bytes for workers that take ``empty`` themselves and hold ``models`` (bytes), where a load takes ``load``."""
    return round((empty + max(models, _LEAST_LOADS * WORKERS * load)) / (1 - _KEPT_FREE))


def _run(settings: Settings, models: Sequence[Variant], store: str, nbytes: int, asked: Asked) -> Seen:
    with (
        pool.configure(
            settings,
            _tables(models),
            WORKERS,
            store=store,
            memory_budget=nbytes,
            log_level="info",
            log_format="json",
        ) as served,
        Asker(served, models) as asker,
    ):
        watch = Watch(served)
        watch.look()
        asker.roam(asked.moments, asked.picks)
        while not asker.over(_LOOK_SECONDS):
            watch.look()
        notes = asker.collect()
        watch.look()
        stats = served.client().stats()
        forms = [form for row in served.client().models() for form in row["forms"].values()]
    residency = Residency(watch.changes())
    names = [models[asked.picks[number]].name for number in notes.numbers]
    cold = np.array([residency.cold(name, due) for name, due in zip(names, notes.due, strict=True)], bool)
    told = {
        "budget_mb": nbytes / 1e6,
        "models_at_once": residency.most,
        "workers_replaced": len(watch.pids) - WORKERS,
        "forms_at_the_end": {form: forms.count(form) for form in sorted(set(forms))},
    }
    return Seen(notes, cold, stats["loads"], stats["evictions"], told)


def _add(sheet: Sheet, ours: Seen, plain: Seen, which: str) -> None:
    sheet.cost(f"failed{which}", "", ours.notes.failed, plain.notes.failed, {"errors": list(ours.notes.errors)})
    for name, cold in (("a cold request", True), ("any request", None)):
        mine, its = ours.seconds(cold), plain.seconds(cold)
        for q in (0.5, 0.99):
            sheet.cost(f"{name}, p{100 * q:.0f}{which}", "ms", ms(mine, q), ms(its, q))
    share, its_share = 100 * float(np.mean(ours.cold)), 100 * float(np.mean(plain.cold))
    sheet.cost(f"cold requests{which}", "%", share, its_share)
    sheet.cost(f"loads{which}", "", ours.loads, plain.loads, {"ours": ours.told, "plain": plain.told})
    sheet.cost(f"evictions{which}", "", ours.evictions, plain.evictions)


SCENARIO = Scenario(
    "coldstart",
    f"{MODELS} models on demand, memory for a third, Zipf({EXPONENT}): from the store, beside their SavedModels",
    measure,
    targets=TARGETS,
)
