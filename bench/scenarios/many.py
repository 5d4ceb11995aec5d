"""Very many models at once: whether all are in memory and answer, and what that takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tfpool
from bench import pool, variants
from bench.errors import WrongAnswer
from bench.processes import footprint
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.steady import Notes, ms
from bench.variants import Variant, answers_of
from bench.variety import Asker, twins
from tfpool.settings import STORE_OFF
from tfpool.settings import Form as ModelForm

MODELS: Mapping[Form, int] = {Form.QUICK: 6, Form.NORMAL: 100, Form.FULL: 300}
PLAIN_MODELS, QUICK_PLAIN_MODELS = 20, 2
ROUNDS = 3  # of requests to models in memory
WORKERS = 2
IDLE_SECONDS = 86_400.0
_KIND = "mobilenet_v2"
_LOOK_SECONDS = 0.5

_MAPPED = "models in memory and mapped, beside those that there are"
_MEMORY = "memory of all processes; plain: reckoned from fewer models"
_FAILED = "failed"

TARGETS = {
    _MAPPED: Target(1.0),
    _FAILED: Target(0.0, on="ours"),
    _MEMORY: Target(6000.0, on="ours"),  # of the most models
}


def measure(settings: Settings) -> Outcome:
    """Two workers, one client. Every request to a model is compared with TensorFlow in process, and no two models give
    the same answers."""
    sheet = Sheet({name: target for name, target in TARGETS.items() if settings.full or name != _MEMORY})
    models = variants.make(settings, _KIND, MODELS[settings.form])
    if same := twins([answers_of(model) for model in models]):
        raise WrongAnswer(f"models {same[:3]} cannot be told from each other")
    store = variants.store_of(settings)
    built = variants.build(settings, models, store)
    alone = variants.build(settings, models[:1], str(Path(settings.directory, "many-alone")))
    for number in settings.repeats():
        plain = _run(settings, models[: QUICK_PLAIN_MODELS if settings.quick else PLAIN_MODELS], STORE_OFF)
        mapped = _run(settings, models, store)
        _add(sheet, len(models), mapped, plain)
        if number == 0:
            told = {"compiled": len(built.each), "seconds": built.seconds, "processes": len(os.sched_getaffinity(0))}
            sheet.cost("compiling one model, alone", "s", alone.seconds, detail=told)
    return sheet.outcome()


@dataclass(frozen=True)
class Seen:
    """``half`` and ``full`` are bytes (PSS) by process, when half of the models were in memory and when all were;
    ``first`` are the requests that loaded the others, ``warm`` those that followed. ``forms`` has the form of each
    model, and None for one that is not in memory."""

    models: int
    half: Mapping[str, int]
    full: Mapping[str, int]
    first: Notes
    warm: Notes
    forms: Sequence[str | None]

    @property
    def total(self) -> int:
        return sum(self.full.values())

    @property
    def each(self) -> float:
        """Bytes a model: what the first ones add for all is not theirs."""
        return (self.total - sum(self.half.values())) / (self.models - self.models // 2)

    def of(self, models: int) -> float:
        """Bytes for so many models."""
        return self.total + self.each * (models - self.models)

    def told(self) -> dict[str, Any]:
        """For a figure's detail."""
        return {
            "models": self.models,
            "mb_half": {name: round(nbytes / 1e6, 1) for name, nbytes in self.half.items()},
            "mb": {name: round(nbytes / 1e6, 1) for name, nbytes in self.full.items()},
            "checked": self.first.checked + self.warm.checked,
        }


def _run(settings: Settings, models: Sequence[Variant], store: str) -> Seen:
    """A pool that has none of the models in memory until somebody asks."""
    form = ModelForm.PLAIN if store == STORE_OFF else ModelForm.MAPPED
    tables = [{"name": model.name, "base_path": model.base, "preload": False, "form": form.value} for model in models]
    with (
        pool.configure(settings, tables, WORKERS, store=store, idle_s=IDLE_SECONDS) as served,
        Asker(served, models) as asker,
    ):
        what = f"{len(models)} models, {form.value}"
        _asked(settings, asker, f"loading {what}", range(len(models) // 2))
        half = _memory(served)
        first = _asked(settings, asker, f"loading {what}", range(len(models) // 2, len(models)))
        warm = _asked(settings, asker, f"asking {what}", [*range(len(models))] * ROUNDS)
        forms = [next(iter(row["forms"].values()), None) for row in served.client().models()]
        return Seen(len(models), half, _memory(served), first, warm, forms)


def _asked(settings: Settings, asker: Asker, what: str, picks: Sequence[int]) -> Notes:
    settings.progress.say(what)
    asker.in_turn(picks)
    while not asker.over(_LOOK_SECONDS):
        pass
    return asker.collect()


def _memory(served: tfpool.Pool) -> dict[str, int]:
    """PSS of each process of a pool: a page counts once, however many of them map it."""
    found = {}
    for name, pid in pool.processes(served).items():
        with suppress(OSError):  # it has ended meanwhile
            found[name] = footprint(pid).pss
    return found


def _add(sheet: Sheet, models: int, ours: Seen, plain: Seen) -> None:
    failed, told = ours.first.failed + ours.warm.failed, {"ours": ours.told(), "plain": plain.told()}
    sheet.rate(_MAPPED, "", ours.forms.count(ModelForm.MAPPED.value), models)
    sheet.cost(_FAILED, "", failed, detail={"errors": [*ours.first.errors, *ours.warm.errors]})
    sheet.cost(_MEMORY, "MB", ours.total / 1e6, plain.of(models) / 1e6, told)
    sheet.cost("memory of a model", "MB", ours.each / 1e6, plain.each / 1e6)
    for name, notes, reference in (
        ("a first request, which loads the model", ours.first, plain.first),
        ("a request to a model in memory", ours.warm, plain.warm),
    ):
        mine, its = np.sort(notes.seconds), np.sort(reference.seconds)
        sheet.cost(f"{name}, p50", "ms", ms(mine, 0.5), ms(its, 0.5))
        sheet.cost(f"{name}, p99", "ms", ms(mine, 0.99), ms(its, 0.99))


SCENARIO = Scenario(
    "many",
    f"up to {MODELS[Form.FULL]} MobileNetV2s in the store, all in memory; beside {PLAIN_MODELS} from their SavedModels",
    measure,
    targets=TARGETS,
    experiment=6,
    repeats=dict.fromkeys(Form, 1),
)
