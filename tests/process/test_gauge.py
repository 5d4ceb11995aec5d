"""What workers tell of their memory, as the pool shows it, and what a budget makes of a GPU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import ResourceExhausted
from tfpool.settings import Loading
from tfpool.testing.fake_worker import BASE_BYTES, GPU_BASE_BYTES, SHARED_BYTES, FakePool, until

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 15.0
LAZY = {"preload": Loading.LAZY}


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes."""
    return nbytes * 10 // 9


def worker(client: Client) -> dict[str, Any]:
    """The only worker."""
    (row,) = client.workers()
    return row


def told(held: int, budget: int | None = None, residue: int = 0, gpu: int | None = None) -> dict[str, int | None]:
    """What a worker's row says whose models hold so many bytes."""
    return {
        "rss": BASE_BYTES + SHARED_BYTES + held,
        "unique": BASE_BYTES + held,
        "pss": BASE_BYTES + SHARED_BYTES // 2 + held,
        "gpu": gpu,
        "base": BASE_BYTES if gpu is None else GPU_BASE_BYTES,
        "budget": budget,
        "residue": residue,
        "mapped": 0,
    }


def test_what_a_worker_holds_and_what_stays_behind(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"nbytes": 30 * MIB, "residue": 20 * MIB})], workers=1)
    with pool.client(timeout=SOON) as client:
        until(lambda: worker(client)["memory"] == told(30 * MIB), SOON)
        client.unload("numbered")
        until(lambda: worker(client)["memory"] == told(20 * MIB, residue=20 * MIB), SOON)
    pool.kill_broker()
    with pool.client(timeout=SOON) as client:
        until(lambda: worker(client)["pid"], SOON)
        assert worker(client)["memory"]["base"] == BASE_BYTES, "the worker knows what it was when it was empty"


def test_a_budget_bounds_the_memory_of_a_gpu(make_pool: MakePool) -> None:
    """TensorFlow gives none of it back, so that the room for another model is that of another process."""
    budget = filled(GPU_BASE_BYTES + 40 * MIB)
    kinds = [("numbered", {"name": f"m{i}", "nbytes": 90 * MIB, "gpu_nbytes": 30 * MIB, **LAZY}) for i in range(2)]
    pool = make_pool(kinds, workers=1, memory=budget, device="gpu:0")
    with pool.client(timeout=SOON) as client:
        assert (worker(client)["name"], worker(client)["device"]) == ("gpu0", "gpu:0")
        assert worker(client)["memory"] == told(0, budget, gpu=GPU_BASE_BYTES)
        for name in ("m0", "m1"):  # until they are measured, their files are too small to be kept out
            client.predict(name, X)
        pids = []
        for name in ("m0", "m1", "m0"):
            assert client.predict(name, X)["y"].tolist() == X.tolist()
            until(lambda: worker(client)["memory"] == told(90 * MIB, budget, gpu=GPU_BASE_BYTES + 30 * MIB), SOON)
            (row,) = client.status(name)
            assert (row["memory_bytes"], row["peak_bytes"]) == (30 * MIB, 30 * MIB)
            pids.append(worker(client)["pid"])
        assert len(set(pids)) == 3


def test_a_model_that_never_fits_a_gpu_says_so(make_pool: MakePool) -> None:
    models = [("numbered", {"name": "large", "gpu_nbytes": 50 * MIB, **LAZY})]
    pool = make_pool(models, workers=1, memory=filled(GPU_BASE_BYTES + 40 * MIB), device="gpu:0", load_retries=0)
    refusal = r"was measured to take 50.0 MiB; worker gpu0 has 40.0 MiB"
    with pool.client(timeout=SOON) as client, pytest.raises(ResourceExhausted, match=refusal):
        client.load("large", timeout=SOON)
