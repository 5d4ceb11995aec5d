"""Which form of a model a worker loads, from a real store with entries of fake models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tfpool.broker.stored import look_up, touch
from tfpool.compiler import main as compiler
from tfpool.compiler.main import Outcome, compile_model
from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.settings import Form
from tfpool.store.manifest import MANIFEST, WEIGHTS
from tfpool.store.shelf import ENTRIES, Shelf
from tfpool.testing import fake_compiler, fake_worker
from tfpool.testing.fake_compiler import Recipe
from tfpool.worker import compiled, loader
from tfpool.worker.opening import Opener

MIB = 1 << 20
PLAIN, MAPPED = {"form": "plain", "stateful": []}, {"form": "mapped", "stateful": []}


class Place:
    """A model, and a store."""

    def __init__(self, directory: Path) -> None:
        fake_worker.model(directory, "written", nbytes=MIB, weights=4 * MIB, private=2 * MIB)
        self.base = directory / "written"
        self.path = str(self.base / "1")
        self.recipe = Recipe(self.base)
        self.store = str(directory / "store")
        self.shelf = Shelf(self.store)
        self.opener = Opener(self.store, None, 1)

    def compile(self) -> Outcome:
        return compile_model(self.path, self.shelf, 1, 1 << 30, say=lambda stage: None).outcome

    def entry(self) -> Path:
        (key,) = sorted(self.shelf.keys())
        return Path(self.store, ENTRIES, key)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(compiler, "_compile", fake_compiler._compile)
    monkeypatch.setattr(compiler, "_check_memory", lambda nbytes: None)
    monkeypatch.setattr(compiled, "open_entry", fake_compiler.open_entry)
    monkeypatch.setattr(loader, "load", fake_worker.load)
    return Place(tmp_path)


@pytest.mark.parametrize("form", Form)
def test_it_loads_the_form_that_it_is_asked_for(place: Place, form: Form) -> None:
    assert place.compile() is Outcome.COMPILED
    opened = place.opener.open(place.path, {**MAPPED, "form": form.value})
    assert opened.form is form
    assert opened.note == ""
    assert opened.shared == (4 * MIB if form is Form.MAPPED else 0)
    assert opened.stamp
    opened.loaded.close()


@pytest.mark.parametrize(
    ("options", "store"),
    [(MAPPED, False), (MAPPED, True), ({**MAPPED, "stateful": ["x"]}, True), ({"stateful": []}, True)],
)
def test_without_anything_to_use_it_loads_the_original(place: Place, options: dict[str, Any], store: bool) -> None:
    opener = place.opener if store else Opener("", None, 1)
    opened = opener.open(place.path, options)
    assert (opened.form, opened.entry, opened.shared) == (Form.PLAIN, None, 0)
    opened.loaded.close()


def test_a_refusal_is_noted(place: Place) -> None:
    place.recipe.refuse.write_text("it counts")
    assert place.compile() is Outcome.REFUSED
    opened = place.opener.open(place.path, MAPPED)
    assert (opened.form, opened.note) == (Form.PLAIN, "it counts")
    opened.loaded.close()
    with pytest.raises(FailedPrecondition, match="it counts"):
        place.opener.reopen(place.path, MAPPED, opened.stamp)
    seen = look_up(place.store, place.path)
    assert seen is not None
    assert (seen.usable, seen.refusal, seen.shared, seen.footprint(Form.MAPPED)) == (False, "it counts", 0, None)


@pytest.mark.parametrize("what", ["weights", "unfit"])
def test_an_entry_that_cannot_be_loaded_leaves_the_store(place: Place, what: str) -> None:
    place.compile()
    if what == "unfit":
        place.recipe.unfit.write_text("no such op")
    else:
        (place.entry() / WEIGHTS).write_bytes(b"x")
    opened = place.opener.open(place.path, MAPPED)
    assert opened.form is Form.PLAIN
    assert "is to be made again" in opened.note
    assert place.shelf.keys() == []
    opened.loaded.close()


def test_a_corrupt_manifest_is_as_good_as_none(place: Place) -> None:
    place.compile()
    (place.entry() / MANIFEST).write_bytes(b"{}")
    opened = place.opener.open(place.path, MAPPED)
    assert opened.form is Form.PLAIN
    opened.loaded.close()
    assert look_up(place.store, place.path) is None
    assert place.compile() is Outcome.COMPILED
    opened = place.opener.open(place.path, MAPPED)
    assert opened.form is Form.MAPPED
    opened.loaded.close()


def test_to_open_another_form_loads_that_or_nothing(place: Place) -> None:
    opened = place.opener.open(place.path, MAPPED)
    assert opened.form is Form.PLAIN
    with pytest.raises(NotFound, match="does not have it"):
        place.opener.reopen(place.path, MAPPED, opened.stamp)
    place.compile()
    for form in (Form.MAPPED, Form.INLINED):
        again = place.opener.reopen(place.path, {**MAPPED, "form": form.value}, opened.stamp)
        assert (again.form, again.stamp) == (form, opened.stamp)
        again.loaded.close()
    with pytest.raises(TfpoolError, match="no store"):
        Opener("", None, 1).reopen(place.path, MAPPED, opened.stamp)
    opened.loaded.close()
    assert fake_worker.loads(place.base) == [1], "the original was loaded once"


@pytest.mark.parametrize("change", ["other bytes", "the same bytes again", "gone"])
def test_files_that_have_changed_are_not_opened_in_another_form(place: Place, change: str) -> None:
    opened = place.opener.open(place.path, MAPPED)
    opened.loaded.close()
    graph = Path(place.path) / "saved_model.pb"
    if change == "gone":
        place.compile()
        graph.unlink()
    else:
        graph.write_text("5" if change == "other bytes" else graph.read_text())
        place.compile()
    with pytest.raises(TfpoolError, match="changed since it was loaded"):
        place.opener.reopen(place.path, MAPPED, opened.stamp)
    assert place.recipe.forms() == []


def test_what_the_store_has_in_short(place: Place) -> None:
    assert look_up(place.store, place.path) is None
    place.recipe.gain.write_text("1.25")
    place.compile()
    seen = look_up(place.store, place.path)
    assert seen is not None
    mapped, inlined = seen.footprint(Form.MAPPED), seen.footprint(Form.INLINED)
    assert mapped is not None
    assert inlined is not None
    assert (seen.usable, seen.gain, seen.shared) == (True, 1.25, 4 * MIB)
    assert (mapped.nbytes, mapped.shared) == (2 * MIB, 4 * MIB)
    assert (inlined.nbytes, inlined.shared) == (6 * MIB, 0)
    manifest = place.entry() / MANIFEST
    os.utime(manifest, (1.0, 1.0))
    touch(place.store, [seen.key, "0" * 32])
    assert manifest.stat().st_mtime > 1.0
