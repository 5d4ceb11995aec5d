from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tfpool.broker.notebook import Notebook
from tfpool.broker.registry import Version
from tfpool.cpus import resolve_workers
from tfpool.repository.memo import Footprint
from tfpool.settings import BatchingSettings, ModelSettings, PoolSettings, ServerSettings, Settings, WorkerSettings
from tfpool.types import ModelKey

CONFIGURED = (
    ModelSettings("m", "/m", labels=(("stable", ((1, 1),)),), shadow=(2, 0.5)),
    ModelSettings("n", "/n"),
)


def settings(path: Path | None) -> Settings:
    server = ServerSettings(("ipc:///x",), "ipc:///y", state_file=str(path) if path else None)
    workers = resolve_workers(PoolSettings(), (0,), (WorkerSettings("w"),))
    return Settings(server, PoolSettings(), workers, BatchingSettings(max_batch_size=5), CONFIGURED)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state"


def again(book: Notebook, file: Path) -> Notebook:
    """What the next broker finds."""
    book.close()
    return Notebook(settings(file))


def models(book: Notebook) -> dict[str, ModelSettings]:
    return {found.name: book.over(found) for found in book.models()}


def version(name: str, number: int) -> Version:
    return Version(ModelKey(name, number), "/", CONFIGURED[0])


def table(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "base_path": f"/{name}", **more}


def test_without_a_file_it_remembers_while_it_lives(file: Path) -> None:
    book = Notebook(settings(None))
    book.took_out("n")
    book.save()
    book.close()
    assert set(models(book)) == {"m"}
    assert not file.exists()


def test_labels_and_shadows_lie_over_the_configuration(file: Path) -> None:
    book = Notebook(settings(file))
    assert models(book)["m"].labels == (("stable", ((1, 1),)),)
    book.labelled("m", {"prod": "1:9,2:1"})
    book.shadowed("n", "3:10")
    book = again(book, file)
    found = models(book)
    assert (found["m"].labels, found["m"].shadow) == ((("prod", ((1, 9), (2, 1))),), (2, 0.5))
    assert found["n"].shadow == (3, 0.1)
    book.labelled("m", {})
    book.shadowed("n", "")
    found = models(again(book, file))
    assert (found["m"].labels, found["n"].shadow) == ((), None)


def test_a_configured_shadow_that_was_ended_stays_ended_while_the_broker_lives() -> None:
    book = Notebook(settings(None))
    book.shadowed("m", "")
    assert models(book)["m"].shadow is None


def test_models_that_came_and_went(file: Path) -> None:
    book = Notebook(settings(file))
    book.added(table("o", batching={"max_batch_size": 2}))
    book.added(table("p"))
    book.took_out("n")
    book.took_out("p")
    book = again(book, file)
    assert book.removed == ["n", "p"]
    found = models(book)
    assert set(found) == {"m", "o"}
    assert found["o"].batching.max_batch_size == 2
    book.added(table("n", preload=False))
    book.took_out("m")
    book = again(book, file)
    assert set(models(book)) == {"o", "n"}
    assert models(book)["n"].base_path == "/n"
    assert models(book)["n"].batching.max_batch_size == 5, "as the configuration has it"


def test_what_was_said_of_a_model_goes_with_it(file: Path) -> None:
    book = Notebook(settings(file))
    book.labelled("m", {"x": "1"})
    book.unloaded(version("m", 1))
    book.unloaded(version("n", 1))
    book.took_out("m")
    book.added(table("m"))
    book = again(book, file)
    assert models(book)["m"].labels == ()
    assert (book.was_unloaded(version("m", 1)), book.was_unloaded(version("n", 1))) == (False, True)


def test_unloaded_versions(file: Path) -> None:
    book = Notebook(settings(file))
    for _ in range(2):
        book.unloaded(version("m", 1))
    book.unloaded(version("m", 2))
    book.loaded(version("m", 2))
    book.loaded(version("m", 7))
    book = again(book, file)
    assert [book.was_unloaded(version("m", number)) for number in (1, 2, 7)] == [True, False, False]


def test_a_reload_starts_a_new_page(file: Path) -> None:
    book = Notebook(settings(file))
    book.labelled("m", {"x": "1"})
    book.shadowed("m", "4:1")
    book.unloaded(version("m", 1))
    book.added(table("old"))
    book.measured("print", Footprint(1, 2, 3.0))
    book.reloaded({"m": table("m"), "new": table("new")})
    book = again(book, file)
    found = models(book)
    assert set(found) == {"m", "new"}
    assert (found["m"].labels, found["m"].shadow) == ((), None)
    assert not book.was_unloaded(version("m", 1))
    assert book.footprints == {"print": Footprint(1, 2, 3.0)}, "what was measured holds on"


def test_what_cannot_be_read_is_passed_over(file: Path) -> None:
    file.write_text(json.dumps({"version": 1, "models": {"bad": {"name": "bad"}, "good": table("good")}}))
    book = Notebook(settings(file))
    assert set(models(book)) == {"m", "n", "good"}
    book.close()
