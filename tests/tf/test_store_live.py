"""Real pools with a store: plain at first, mapped from then on, and always the same answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.store.shelf import Shelf
from tfpool.testing.fake_worker import until

pytestmark = pytest.mark.process
LONG = 60.0
X = np.linspace(-1, 1, 3 * 256, dtype=np.float32).reshape(3, 256)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_samples: Callable[..., dict[str, str]]) -> dict[str, str]:
    return make_samples(tmp_path_factory.mktemp("stored"), "mlp", "counter")


@contextmanager
def pool(models: dict[str, str], store: Path, workers: int = 1) -> Iterator[tfpool.Pool]:
    with tfpool.Pool(models, workers=workers, store=str(store)) as made:
        yield made


def row(client: tfpool.Client, model: str = "mlp") -> dict[str, Any]:
    found: dict[str, Any] = client.models()[[r["name"] for r in client.models()].index(model)]
    return found


def forms(client: tfpool.Client, model: str = "mlp") -> set[str]:
    return set(row(client, model)["forms"].values())


def mapped_files(pid: int, store: Path) -> set[str]:
    with open(f"/proc/{pid}/maps") as file:
        return {line.split()[-1] for line in file if str(store) in line}


def test_a_pool_compiles_what_it_serves_and_changes_over(models: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pool(models, store) as first:
        client = first.client()
        plain = client.predict("mlp", X)["y"]
        until(lambda: forms(client) == {"mapped"} or not np.array_equal(client.predict("mlp", X)["y"], plain), LONG)
        assert forms(client) == {"mapped"}
        np.testing.assert_allclose(client.predict("mlp", X)["y"], plain, rtol=1e-5, atol=1e-5)
        pid = client.workers()[0]["pid"]
        assert mapped_files(pid, store), "its weights are pages of the store's file"
        until(lambda: row(client, "counter")["store"]["state"] == "refused", LONG)
        assert forms(client, "counter") == {"plain"}
        assert "changes variables" in row(client, "counter")["store"]["reason"]
    with pool({"mlp": models["mlp"]}, store, workers=2) as second:
        client = second.client()
        assert forms(client) == {"mapped"}, "loaded from the store at once"
        np.testing.assert_allclose(client.predict("mlp", X)["y"], plain, rtol=1e-5, atol=1e-5)
        home = row(client)["workers"][0]
        other = next(w["name"] for w in client.workers() if w["name"] != home)
        client.migrate("mlp", to=other)
        assert row(client)["forms"] == {other: "mapped"}
        old = next(w["pid"] for w in client.workers() if w["name"] == home)
        until(lambda: not mapped_files(old, store), LONG, "unloading lets go of the mapping")
        pid = next(w["pid"] for w in client.workers() if w["name"] == other)
        os.kill(pid, signal.SIGKILL)
        np.testing.assert_allclose(client.predict("mlp", X, timeout=LONG)["y"], plain, rtol=1e-5, atol=1e-5)
        assert forms(client) == {"mapped"}


def test_a_corrupt_entry_is_made_again(models: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    only = {"mlp": models["mlp"]}
    with pool(only, store) as first:
        plain = first.client().predict("mlp", X)["y"]
        until(lambda: forms(first.client()) == {"mapped"}, LONG)
    shelf = Shelf(str(store))
    (key,) = shelf.keys()
    weights = store / "entries" / key / "weights.bin"
    weights.chmod(0o600)
    with open(weights, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 64)
    with pool(only, store) as second:
        client = second.client()
        np.testing.assert_allclose(client.predict("mlp", X)["y"], plain, rtol=1e-5, atol=1e-5)
        until(lambda: forms(client) == {"mapped"}, LONG)
        np.testing.assert_allclose(client.predict("mlp", X)["y"], plain, rtol=1e-5, atol=1e-5)
    entry = shelf.entry(key)
    assert entry is not None
    shelf.verify(entry)


def test_without_a_store_nothing_is_compiled(models: dict[str, str]) -> None:
    with tfpool.Pool({"mlp": models["mlp"]}, workers=1, store="off") as made:
        client = made.client()
        client.predict("mlp", X)
        assert forms(client) == {"plain"}
        assert row(client)["store"] == {"state": "off", "reason": "there is no store"}
