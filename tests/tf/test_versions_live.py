"""Versions of real SavedModels: replaced under load, loaded when asked for, pushed out, reloaded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import tfpool
from tfpool.errors import TfpoolError
from tfpool.testing import models
from tfpool.testing.fake_worker import until

pytestmark = pytest.mark.tf

X = np.float32([1.0, 2.0])


def _moved_in(aside: Path, base: str, version: int, offset: float) -> None:
    made = models.make_half_plus_two(str(aside), version, offset)
    os.rename(Path(made, str(version)), Path(base, str(version)))


def test_a_version_is_replaced_under_load(tmp_path: Path) -> None:
    base = models.make_half_plus_two(str(tmp_path / "served"))
    with tfpool.Pool(models={"half": base}, workers=1, poll_s=0.1) as pool:
        client, stop, failures, answers = pool.client(), threading.Event(), [], set()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers.add(float(client.predict("half", X)["y"][0]))
                except TfpoolError as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            _moved_in(tmp_path / "aside", base, 2, 3.0)
            until(lambda: [row["version"] for row in client.models()] == [2])
            until(lambda: 3.5 in answers)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert answers == {2.5, 3.5}


def test_models_share_a_budget_that_holds_one_of_them(tmp_path: Path) -> None:
    """Each is loaded when it is asked for, and leaves for the other; what they take is measured."""
    paths = {name: models.make_large(str(tmp_path / name)) for name in ("a", "b")}
    tables = "".join(f'[[model]]\nname = "{n}"\nbase_path = "{p}"\npreload = false\n' for n, p in paths.items())
    config = tmp_path / "pool.toml"
    config.write_text(f'[pool]\nworkers = 1\nmemory_budget = "220MiB"\n{tables}')
    with tfpool.Pool(config=str(config)) as pool:
        client = pool.client()
        assert {row["state"] for row in client.models()} == {"UNLOADED"}
        signature = client.metadata("a")["signatures"][0]
        (tensor,) = signature["inputs"]
        row = np.zeros([1 if size < 0 else size for size in tensor["shape"]], tensor["dtype"])
        for name in "abab":
            client.predict(name, {tensor["name"]: row})
            (worker,) = client.workers()
            assert worker["models"] == [f"{name}:1"]
            assert worker["memory"]["unique"] <= worker["memory"]["budget"]
        assert client.stats()["evictions"] == 3
