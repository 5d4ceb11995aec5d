"""Models that are loaded when somebody asks: how long who asks waits, with a store of compiled models and without.

Both are beside an ideal LRU cache on the same requests: of as many bytes as the pool may fill with models, which take
what SavedModels take here when nothing else goes on; each load begins at once, and disturbs nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from bench import pool, variants
from bench.arrivals import poisson
from bench.caches import Played, Stock, play, waits
from bench.errors import BenchError
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.scenarios.zipf import EXPONENT, MOST_UNIQUE, Residency, Watch, zipf
from bench.steady import Notes, ms
from bench.variants import Variant
from bench.variety import Asker
from tfpool.settings import STORE_OFF
from tfpool.testing.placement_policies import LruCache
from tfpool.wire.tensors import Array

MODELS, QUICK_MODELS = 100, 6
SHARES: Mapping[Form, Sequence[float]] = {Form.QUICK: (1 / 3,), Form.NORMAL: (1 / 3,), Form.FULL: (0.1, 1 / 3, 1.0)}
RATE = 4.0  # requests a second
SECONDS, QUICK_SECONDS = 45.0, 4.0
WORKERS = 2
_KINDS = ("mobilenet_v2", "patches")
_SAMPLED, _QUICK_SAMPLED = 20, 4  # models whose memory is measured
_LEAST_LOADS = 2  # that a worker has room for
_KEPT_FREE = 0.1  # of a budget
_LOOK_SECONDS = 0.25
_PLAIN, _STORED = "plain", "stored"

_FAILED = "failed"
_COLD_COST = "waiting for loads, beside LRU with the standard loader"
_TARGETS = {_FAILED: Target(0.0, on="ours"), MOST_UNIQUE: Target(1.0), _COLD_COST: Target(0.5)}


def _named(share: float, what: str) -> str:
    return f"memory for {100 * share:.0f} %: {what}"


TARGETS = {_named(share, what): target for share in SHARES[Form.FULL] for what, target in _TARGETS.items()}


def measure(settings: Settings) -> Outcome:
    """Two workers, one client. For each share of the bytes of all models, two new pools with the same budget get the
    same requests, and none of their models is in memory: one without a store, one with it."""
    shares = SHARES[settings.form]
    measured = {_named(share, what) for share in shares for what in _TARGETS}
    sheet = Sheet({name: target for name, target in TARGETS.items() if name in measured})
    count = (QUICK_MODELS if settings.quick else MODELS) // len(_KINDS)
    by_kind = [variants.make(settings, kind, count) for kind in _KINDS]
    models = [model for pair in zip(*by_kind, strict=True) for model in pair]
    stores = {_PLAIN: STORE_OFF, _STORED: variants.store_of(settings)}
    variants.build(settings, models, stores[_STORED])
    sizes = _sizes(settings, models[: _QUICK_SAMPLED if settings.quick else _SAMPLED])
    for number in settings.repeats():
        asked = Asked.of(settings, len(models), number)
        for share in shares:
            room, seen = sizes.room(models, share), {}
            for name in stores if number % 2 == 0 else reversed(stores):
                settings.progress.say(_named(share, f"{len(asked.picks)} requests to {len(models)} models, {name}"))
                seen[name] = _run(settings, models, stores[name], budget(sizes.empty, room), asked)
            _add(sheet, share, seen[_STORED], seen[_PLAIN], ideal(asked, sizes.stock(models), room))
            _weigh(sheet, share, seen[_STORED], models, sizes)
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


# -- memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of SavedModels: bytes of empty workers together, and of the largest load; by kind, bytes and seconds of one."""

    empty: int
    load: int
    each: Mapping[str, int]
    seconds: Mapping[str, float]

    def stock(self, models: Sequence[Variant]) -> Stock:
        """These, as caches know them."""
        return Stock([self.each[model.kind] for model in models], [self.seconds[model.kind] for model in models])

    def room(self, models: Sequence[Variant], share: float) -> int:
        """Bytes for a share of the models, but for some loads at least."""
        return max(round(share * self.stock(models).total), _LEAST_LOADS * WORKERS * self.load)


def _sizes(settings: Settings, models: Sequence[Variant]) -> Sizes:
    """What these models take, loaded one by one while nothing else goes on; they stand for all."""
    with pool.configure(settings, _tables(models), WORKERS) as served, Asker(served, models) as asker:
        settings.progress.say(f"measuring {len(models)} models")
        asker.in_turn(range(len(models)))
        if (notes := asker.collect()).failed:
            raise BenchError(f"got no answer from {notes.failed} of {len(models)} models, one by one: {notes.errors}")
        rows, workers = served.client().models(), served.client().workers()
    told = _by_kind(models, rows, "memory_bytes")
    empty = sum(worker["memory"]["base"] for worker in workers)
    held = sum(worker["memory"]["unique"] for worker in workers) - empty
    whole = held / sum(told[model.kind] for model in models)  # what is there, of what each load was seen to add
    each = {kind: round(whole * nbytes) for kind, nbytes in told.items()}
    return Sizes(empty, max(row["peak_bytes"] for row in rows), each, _by_kind(models, rows, "load_seconds"))


def _tables(models: Sequence[Variant]) -> list[dict[str, Any]]:
    return [{"name": model.name, "base_path": model.base, "preload": False} for model in models]


def _by_kind(models: Sequence[Variant], rows: Sequence[Mapping[str, Any]], what: str) -> dict[str, float]:
    """The median of what a pool tells of the models of each kind that it has loaded."""
    told = {row["name"]: row[what] for row in rows if row[what]}
    kinds = {model.kind for model in models if model.name in told}
    return {kind: median(told[m.name] for m in models if m.kind == kind and m.name in told) for kind in kinds}


def budget(empty: int, room: int) -> int:
    """Bytes for workers that take ``empty`` themselves and may hold models of ``room`` bytes."""
    return round((empty + room) / (1 - _KEPT_FREE))


# -- what becomes of the requests ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What became of one pool's requests: of each that was answered the seconds that it waited for a load. ``held`` are
    MB of the fullest worker and of its budget, ``most`` the bytes of all."""

    notes: Notes
    waited: Array
    loads: int
    evictions: int
    held: tuple[float, float] = (0.0, 0.0)
    most: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, cold: bool | None = None) -> Array:
        """Increasing, of all, or of those that waited for a load or did not."""
        chosen = self.notes.seconds if cold is None else self.notes.seconds[(self.waited > 0) == cold]
        found: Array = np.sort(chosen)
        return found


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
        stats, rows = served.client().stats(), served.client().models()
    residency = Residency(watch.changes())
    names = [models[asked.picks[number]].name for number in notes.numbers]
    waited = [residency.wait(name, due) for name, due in zip(names, notes.due, strict=True)]
    forms = [form for row in rows for form in row["forms"].values()]
    told = {
        "budget_mb": nbytes / 1e6,
        "load_seconds": _by_kind(models, rows, "load_seconds"),
        "models_at_once": residency.most,
        "workers_replaced": len(watch.pids) - WORKERS,
        "forms_at_the_end": {form: forms.count(form) for form in sorted(set(forms))},
    }
    return Seen(
        notes,
        np.minimum(waited, notes.seconds),
        stats["loads"],
        stats["evictions"],
        watch.fullest(lambda look: look.unique),
        max(sum(look.unique for look in sample.values()) for sample in watch.samples),
        told,
    )


@dataclass(frozen=True)
class Ideal:
    """An LRU cache on the same requests: the seconds that each waits for a load, and what was loaded."""

    waited: Sequence[float]
    played: Played


def ideal(asked: Asked, stock: Stock, room: int) -> Ideal:
    """LRU in ``room`` bytes."""
    played = play(LruCache(), stock, asked.picks, room)
    return Ideal(waits(played, stock, asked.moments.tolist(), asked.picks), played)


def _add(sheet: Sheet, share: float, ours: Seen, plain: Seen, lru: Ideal) -> None:
    sheet.cost(_named(share, _FAILED), "", ours.notes.failed, plain.notes.failed, {"errors": list(ours.notes.errors)})
    waited = 1e3 * float(np.mean(ours.waited))
    sheet.cost(_named(share, _COLD_COST), "ms/req", waited, 1e3 * float(np.mean(lru.waited)))
    sheet.cost(_named(share, "waiting for loads"), "ms/req", waited, 1e3 * float(np.mean(plain.waited)))
    for name, cold in (("a cold request", True), ("any request", None)):
        mine, its = ours.seconds(cold), plain.seconds(cold)
        for q in (0.5, 0.99):
            sheet.cost(_named(share, f"{name}, p{100 * q:.0f}"), "ms", ms(mine, q), ms(its, q))
    for name, other in (("", plain.waited), (", beside LRU with the standard loader", np.array(lru.waited))):
        sheet.cost(_named(share, f"cold requests{name}"), "%", _cold(ours.waited), _cold(other))
    sheet.cost(_named(share, "loads"), "", ours.loads, plain.loads, {_STORED: ours.told, _PLAIN: plain.told})
    sheet.cost(_named(share, "evictions"), "", ours.evictions, plain.evictions)
    sheet.cost(_named(share, MOST_UNIQUE), "MB", *ours.held)


def _cold(waited: Array) -> float:
    """Percent of requests that waited."""
    return 100 * float(np.mean(waited > 0))


def _weigh(sheet: Sheet, share: float, ours: Seen, models: Sequence[Variant], sizes: Sizes) -> None:
    """What ours held, beside all models from their SavedModels: reckoned from those that were measured."""
    mb = {kind: nbytes / 1e6 for kind, nbytes in sizes.each.items()}
    detail = {"empty_mb": sizes.empty / 1e6, "mb": mb, "load_seconds": sizes.seconds}
    name = _named(share, "most in memory, beside everything loaded plain (reckoned)")
    sheet.cost(name, "MB", ours.most / 1e6, (sizes.empty + sizes.stock(models).total) / 1e6, detail)


SCENARIO = Scenario(
    "coldstart",
    f"{MODELS} models on demand, memory for some, Zipf({EXPONENT}): from the store, beside SavedModels and LRU",
    measure,
    targets=TARGETS,
    experiment=6,
    repeats=dict.fromkeys(Form, 1),
)
