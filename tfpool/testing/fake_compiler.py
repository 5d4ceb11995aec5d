"""Compiled forms of fake models: the store, its entries and the way to them are the real ones, the graphs are not.

How a model is compiled, and how its forms are loaded, is told by files beside its versions: see :class:`Recipe`. They
are no part of a version, so that they may come and go without its files having changed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfpool.compiler import main as compiler
from tfpool.errors import FailedPrecondition
from tfpool.settings import Form
from tfpool.store import identity
from tfpool.store.manifest import GRAPH, WEIGHTS, Compiled, Cost, Manifest, Weight
from tfpool.store.shelf import Entry, Shelf
from tfpool.testing.fake_models import memory, signatures_of
from tfpool.types import DType
from tfpool.worker import compiled
from tfpool.worker.loader import Loaded

STAGES = ("load", "freeze", "prove", "measure")
FORMS_MADE = (Form.PLAIN, Form.MAPPED, Form.INLINED)
_DEFAULT_BYTES = 1 << 20
_STEP_SECONDS = 0.01


class Recipe:
    """Files beside a model's versions that tell how it is compiled, and how what was compiled is loaded."""

    def __init__(self, base: str | Path) -> None:
        self.base = Path(base)
        self.refuse = self.base / "compile_refuse"
        """It cannot be compiled, for the reason that this says."""
        self.crash = self.base / "compile_crash"
        """The compiler fails with this text."""
        self.waits = self.base / "compile_waits"
        """The compiler waits in the stage that this names until it is gone."""
        self.dies = self.base / "compile_dies"
        """The compiler is killed in the stage that this names, once."""
        self.weights = self.base / "compile_weights"
        """Bytes of the weights' file; a MiB without it."""
        self.gain = self.base / "compile_gain"
        """How many times the rows a second the inlined form is said to run."""
        self.opening = self.base / "open_hold"
        """The load of a compiled form waits until it is gone."""
        self.unfit = self.base / "open_fail"
        """A compiled form cannot be loaded, for the reason that this says."""
        self.deadly = self.base / "open_deadly"
        """The load of a compiled form kills its worker by the signal of this number."""
        self.closing = self.base / "open_linger"
        """The unload of a compiled form waits until it is gone."""
        self.opened = self.base / "opened"
        """The forms that have been loaded, or begun to be: a line each, version and form."""
        self.compiled = self.base / "compiled"
        """The versions that have been compiled, or begun to be: a line each."""
        self.private = self.base / "open_bytes"
        """What the mapped form takes of the worker's memory; nothing without it."""

    def forms(self) -> list[str]:
        """Of each load of a compiled form, ``VERSION FORM``."""
        return self.opened.read_text().splitlines() if self.opened.exists() else []

    def runs(self) -> int:
        """How many compilations have begun."""
        return len(self.compiled.read_text().splitlines()) if self.compiled.exists() else 0


def install() -> None:
    """Have this process, and those that it forks, compile numpy functions."""
    vars(compiler)["_compile"] = _compile
    vars(compiler)["_check_memory"] = lambda nbytes: None
    compiled.open_entry = open_entry


def _compile(
    path: str, shelf: Shelf, draft: str, about: Manifest, threads: int, stateful: Sequence[str], say: compiler.Say
) -> Manifest:
    """Write files that hold nothing, but for the text of the graph."""
    recipe = Recipe(Path(path).parent)
    with open(recipe.compiled, "a") as file:
        print(Path(path).name, file=file)
    text = (Path(path) / "saved_model.pb").read_bytes()
    for stage in STAGES:
        say(stage)
        _obey(recipe, stage)
    if recipe.refuse.exists():
        raise FailedPrecondition(recipe.refuse.read_text())
    if recipe.crash.exists():
        raise ValueError(recipe.crash.read_text())
    nbytes = _number(recipe.weights, _DEFAULT_BYTES)
    (Path(draft) / GRAPH).write_bytes(text)
    with open(Path(draft) / WEIGHTS, "wb") as file:
        file.truncate(nbytes)
    private = _number(recipe.private, 0)
    sizes = {Form.PLAIN: nbytes, Form.MAPPED: private, Form.INLINED: private + nbytes}
    return replace(
        about,
        signatures=tuple(
            Compiled(one.spec, ("",) * len(one.spec.inputs), ("",) * len(one.fetch_of), one.fetch_of)
            for one in signatures_of(path)
        ),
        weights=(Weight(int(DType.FLOAT), (nbytes // 4,), 0, nbytes),),
        digests={name: identity.digest(os.path.join(draft, name)) for name in (GRAPH, WEIGHTS)},
        costs={form: Cost(sizes[form], sizes[form], 0.01, threads) for form in FORMS_MADE},
        gain=float(recipe.gain.read_text()) if recipe.gain.exists() else 1.0,
    )


def open_entry(shelf: Shelf, entry: Entry, form: Form, config: Any) -> Loaded:
    """The model that was compiled, checked as a real one is."""
    path = entry.manifest.source
    recipe = Recipe(Path(path).parent)
    with open(recipe.opened, "a") as file:
        print(Path(path).name, form.value, file=file)
    shelf.trust(entry)
    _while_there(recipe.opening)
    if recipe.deadly.exists():
        signal.raise_signal(int(recipe.deadly.read_text() or signal.SIGSEGV))  # of this thread: it goes no further
    if recipe.unfit.exists():
        raise FailedPrecondition(f"{entry.path}: {recipe.unfit.read_text()}")
    nbytes = entry.manifest.costs[form].nbytes
    return Loaded(_Session(recipe, nbytes), signatures_of(path, Path(entry.graph)), {})


class _Session:
    """Holds the memory of its form until it is closed."""

    def __init__(self, recipe: Recipe, nbytes: int) -> None:
        self._recipe = recipe
        self._nbytes = nbytes
        memory.held += nbytes

    def close(self) -> None:
        _while_there(self._recipe.closing)
        memory.held -= self._nbytes


def _obey(recipe: Recipe, stage: str) -> None:
    while _text(recipe.waits) == stage:
        time.sleep(_STEP_SECONDS)
    if _text(recipe.dies) == stage:
        recipe.dies.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _text(file: Path) -> str:
    with suppress(FileNotFoundError):
        return file.read_text()
    return ""


def _while_there(file: Path) -> None:
    while file.exists():
        time.sleep(_STEP_SECONDS)


def _number(file: Path, default: int) -> int:
    return int(file.read_text()) if file.exists() else default
