"""Replicas change their form where they are, whoever dies or is told to go meanwhile; and what that takes of memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import TfpoolError
from tfpool.settings import Loading
from tfpool.store.manifest import MANIFEST, WEIGHTS
from tfpool.store.shelf import ENTRIES, Shelf
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, aside, loads, until, version
from tfpool.testing.moving import Crowd, held, homes, patiently, pids, quick

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 30.0
LANES = 4
STORE: dict[str, Any] = {"store": {}}
LAZY = {"preload": Loading.LAZY}


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes beside a worker's own."""
    return (BASE_BYTES + nbytes) * 10 // 9


def forms(client: Client, model: str = "double") -> list[str]:
    """In which forms a model is held, by worker."""
    return [form for row in client.status(model) for _, form in sorted(row["forms"].items())]


def store(client: Client, model: str = "double") -> dict[str, Any]:
    """How the newest version of a model stands with the store."""
    found: dict[str, Any] = client.status(model)[-1]["store"]
    return found


def mapped(client: Client) -> dict[str, int]:
    """Each worker's part of the files that they map."""
    return {row["name"]: row["memory"]["mapped"] for row in client.workers()}


def entries(pool: FakePool) -> list[Path]:
    shelf = Shelf(pool.settings.store.directory)
    return [Path(shelf.directory, ENTRIES, key) for key in sorted(shelf.keys())]


def changing(make_pool: MakePool, **options: Any) -> FakePool:
    """A pool whose model is loading what was compiled, and waits."""
    pool = make_pool([("double", {"opening": "", **options.pop("double", {})})], **{**STORE, **options})
    until(lambda: pool.recipe("double").forms(), SOON)
    return pool


def release(pool: FakePool, model: str = "double") -> None:
    pool.recipe(model).opening.unlink()


def rebuilt(client: Client, pool: FakePool, model: str = "double") -> None:
    """The model serves from the store again."""
    until(lambda: forms(client, model) == ["mapped"], 2 * SOON, "it serves from the store")
    assert store(client, model)["state"] == "compiled"


# -- a change is under way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_worker_dies_meanwhile(make_pool: MakePool, concurrency: int) -> None:
    pool = changing(make_pool, workers=1, load_concurrency=concurrency)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        old = pids(client)["cpu0"]
        os.kill(old, signal.SIGKILL)
        until(lambda: len(pool.recipe("double").forms()) == 2, SOON, "the next one loads what was compiled at once")
        release(pool)
        until(lambda: forms(client) == ["mapped"], SOON)
        crowd.served(20)
        assert store(client)["state"] == "compiled"
    assert loads(pool.base("double")) == [1]
    assert pool.recipe("double").runs() == 1


def test_the_broker_dies_meanwhile(make_pool: MakePool) -> None:
    """The next one learns the form, and what it takes, though it has not asked for it."""
    pool = changing(make_pool, workers=1, double={"nbytes": 8 * MIB, "private": 2 * MIB, "weights": 4 * MIB})
    with pool.client(timeout=SOON) as client, Crowd(client, "double", 2, lanes=LANES) as crowd:
        pool.kill_broker()
        until(lambda: patiently(lambda: forms(client)) == ["plain"], SOON)
        crowd.served(20)
        release(pool)
        until(lambda: forms(client) == ["mapped"], SOON)
        until(lambda: held(client) == {"cpu0": 2 * MIB}, SOON)
        assert mapped(client) == {"cpu0": 4 * MIB}
        crowd.served(20)
        assert loads(pool.base("double")) == [1]


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("how", ["unload", "remove", "drain", "migrate"])
def test_the_model_goes_meanwhile(make_pool: MakePool, how: str, concurrency: int) -> None:
    pool = changing(make_pool, load_concurrency=concurrency, double={"nbytes": 8 * MIB, "private": 2 * MIB})
    with pool.client(timeout=SOON) as client:
        (home,) = homes(client, "double")
        there = next(name for name in pids(client) if name != home)

        def go() -> None:
            if how == "unload":
                client.unload("double")
            elif how == "remove":
                client.remove("double")
            elif how == "drain":
                client.drain(home)
            else:
                client.migrate("double", there)

        with aside(go) as failures:
            if how in ("drain", "migrate"):
                with Crowd(client, lanes=LANES) as crowd:
                    until(lambda: len(pool.recipe("double").forms()) == 2, SOON, "it loads elsewhere")
                    release(pool)
                    until(lambda: homes(client, "double") == [there], SOON)
                    crowd.served(20)
            else:
                until(lambda: not client.workers()[0]["models"] or store_state(client) != "AVAILABLE", SOON)
                release(pool)
        assert failures == []
        kept = {there: 2 * MIB} if how in ("drain", "migrate") else {}
        until(lambda: held(client) == {"cpu0": 0, "cpu1": 0, **kept}, SOON, "both forms are gone")
        until(lambda: sum(mapped(client).values()) == (MIB if kept else 0), SOON)
        if not kept:
            client.add({"name": "double", "base_path": str(pool.base("double"))}) if how == "remove" else None
            client.load("double")
            assert forms(client) == ["mapped"]
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


def store_state(client: Client) -> str:
    try:
        return str(client.status("double")[0]["state"])
    except TfpoolError:
        return "gone"


def test_another_version_comes_meanwhile(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"opening": ""})], workers=1, **STORE)
    until(lambda: pool.recipe("numbered").forms(), SOON)
    with pool.client(timeout=SOON) as client:
        version(pool.base("numbered"), 2)
        until(lambda: {2} <= {row["version"] for row in client.status("numbered")}, SOON)
        release(pool, "numbered")
        until(lambda: forms(client, "numbered") == ["mapped"], SOON)
        until(lambda: [row["version"] for row in client.status("numbered")] == [2], SOON)
        until(lambda: forms(client, "numbered") == ["mapped"], SOON)
        assert client.predict("numbered", X)["y"].tolist() == (2 * X).tolist()


def test_it_runs_while_the_old_form_is_closed(make_pool: MakePool) -> None:
    """A run that began in the old form ends there; what comes after it runs in the new one."""
    pool = make_pool([("slow", {"opening": "", "max_batch_size": 1})], workers=1, **STORE)
    until(lambda: pool.recipe("slow").forms(), SOON)
    with pool.client(timeout=SOON) as client:
        reply = client.submit("slow", np.array([1.0], np.float32))
        until(lambda: client.stats()["shm"]["leased"], SOON)
        release(pool, "slow")
        with Crowd(client, "slow", 1, quick, lanes=LANES) as crowd:
            until(lambda: forms(client, "slow") == ["mapped"], SOON)
            crowd.served(20)
        assert reply.result(SOON)["y"].tolist() == [1.0]


def test_a_change_that_hangs_ends_its_worker_and_blames_nobody_else(make_pool: MakePool) -> None:
    pool = make_pool(
        [("double", {"opening": ""}), ("echo", {"preload": Loading.EXPLICIT})],
        workers=1,
        load_timeout_s=2.0,
        **STORE,
    )
    until(lambda: pool.recipe("double").forms(), SOON)
    with pool.client(timeout=SOON) as client:
        old = pids(client)["cpu0"]
        with aside(lambda: client.load("echo", timeout=SOON)) as failures, Crowd(client, lanes=LANES) as crowd:
            until(lambda: pids(client).get("cpu0") not in (None, old), SOON, "the worker is replaced")
            release(pool)
            crowd.served(20)
        assert failures == []
        assert client.status("echo")[0]["state"] == "AVAILABLE"
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


# -- what was compiled cannot be used --------------------------------------------------------------------------------


def test_one_that_cannot_be_loaded_is_made_again(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"unfit": "a bad graph", "nbytes": 8 * MIB})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        until(lambda: "a bad graph" in store(client)["reason"], SOON)
        assert forms(client) == ["plain"]
        assert held(client) == {"cpu0": 8 * MIB}
        assert entries(pool) == []
        pool.recipe("double").unfit.unlink()
        crowd.served(20)
        rebuilt(client, pool)
        assert pool.recipe("double").runs() == 2
        assert loads(pool.base("double")) == [1]


@pytest.mark.parametrize("what", [MANIFEST, WEIGHTS, "all of it"])
def test_an_entry_is_spoilt_while_it_is_in_use(make_pool: MakePool, what: str) -> None:
    pool = make_pool([("double", {})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client:
        with Crowd(client, lanes=LANES) as crowd:
            rebuilt(client, pool)
            (entry,) = entries(pool)
            if what == "all of it":
                Shelf(pool.settings.store.directory).remove(entry.name)
            else:
                (entry / what).write_bytes(b"x" * (entry / what).stat().st_size)
            crowd.served(20)
            assert forms(client) == ["mapped"]
        client.unload("double")
        client.load("double")
        with Crowd(client, lanes=LANES) as crowd:
            crowd.served(20)
            rebuilt(client, pool)
        assert pool.recipe("double").runs() == 2


@pytest.mark.parametrize("crowded", ["", "first", "last"])
@pytest.mark.parametrize("when", ["a change", "a load"])
def test_one_that_kills_its_worker_is_not_used_again(make_pool: MakePool, when: str, crowded: str) -> None:
    """The SavedModel serves instead, whatever else the worker runs; who ran there meanwhile is not blamed."""
    deadly = str(int(signal.SIGSEGV))
    kinds = [("double", {"deadly": deadly} if when == "a change" else {}), ("slow", {"max_batch_size": 1})]
    pool = make_pool(kinds[::-1] if crowded == "first" else kinds, workers=1, **STORE)
    with pool.client(timeout=SOON) as client:
        if when == "a load":
            rebuilt(client, pool)
            pool.recipe("double").deadly.write_text(deadly)
        with Crowd(client, "slow", 1, steady_rows, LANES) if crowded else nullcontext():
            if when == "a load":
                client.unload("double")
                client.load("double", timeout=SOON)
            until(lambda: store(client)["state"] == "refused", SOON)
            assert "killed worker cpu0 by signal 11" in store(client)["reason"]
            until(lambda: forms(client) == ["plain"], SOON)
            assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        assert client.workers()[0]["deaths"] <= 2
        assert client.status("slow")[0]["crashes"] <= 1
        until(lambda: client.status("slow")[0]["state"] == "AVAILABLE", SOON)


def steady_rows(_: np.random.Generator) -> Any:
    return np.array([0.02], np.float32)


# -- memory --------------------------------------------------------------------------------------------------------


def test_pages_count_once_a_host(make_pool: MakePool) -> None:
    sizes = {"nbytes": 30 * MIB, "private": 2 * MIB, "weights": 12 * MIB}
    pool = make_pool([("double", {"replicas": (2, 2), **sizes})], **STORE)
    with pool.client(timeout=SOON) as client:
        until(lambda: forms(client) == ["mapped", "mapped"], SOON)
        assert mapped(client) == {"cpu0": 6 * MIB, "cpu1": 6 * MIB}
        until(lambda: held(client) == {"cpu0": 2 * MIB, "cpu1": 2 * MIB}, SOON)
        client.drain("cpu1")
        until(lambda: mapped(client) == {"cpu0": 12 * MIB, "cpu1": 0}, SOON)
        (row,) = client.status("double")
        assert row["memory_bytes"] == 2 * MIB
        pool.kill_broker()  # the next one knows nothing of the drain
        until(lambda: patiently(lambda: mapped(client)) == {"cpu0": 6 * MIB, "cpu1": 6 * MIB}, SOON)


def test_a_failed_change_gives_its_memory_back(make_pool: MakePool) -> None:
    """There is room for the other model only when nothing is kept for the change."""
    sizes = {"nbytes": 10 * MIB, "private": 10 * MIB, "weights": 4 * MIB}
    pool = make_pool(
        [("double", {"unfit": "no", **sizes}), ("echo", {"nbytes": 10 * MIB, **LAZY, "refuse": "never"})],
        workers=1,
        memory=filled(26 * MIB),
        **STORE,
    )
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        until(lambda: "no" in store(client)["reason"].split(), SOON)
        crowd.served(20)
        client.predict("echo", X, signature="float32")
        until(lambda: held(client) == {"cpu0": 20 * MIB}, SOON)
        assert client.stats()["evictions"] == 0


@contextmanager
def within(client: Client, budget: int) -> Iterator[Callable[[], None]]:
    """A look at the workers, none of which has more than its budget."""

    def look() -> None:
        for row in client.workers():
            memory = row["memory"]
            assert memory["unique"] + memory["mapped"] <= budget, memory

    yield look
    look()


def test_many_mapped_models_keep_to_a_small_budget(make_pool: MakePool) -> None:
    sizes = {"nbytes": 12 * MIB, "private": MIB, "weights": 6 * MIB, **LAZY}
    kinds = [("double", {"name": f"m{i}", **sizes}) for i in range(20)]
    budget = filled(40 * MIB)
    pool = make_pool(kinds, memory=budget, **STORE)
    with pool.client(timeout=SOON) as client, within(client, budget) as look:
        until(lambda: all(row["store"]["state"] == "compiled" for row in client.models()), 2 * SOON)
        for turn in range(3):
            for i in range(20):
                assert client.predict(f"m{i}", turn * X)["y"].tolist() == (2 * turn * X).tolist()
                look()
        found = [row["forms"] for row in client.models()]
        assert {form for row in found for form in row.values()} == {"mapped"}
        assert 8 <= sum(map(bool, found)) <= 10, "five or so on each worker"
        assert all(not (pool.base(f"m{i}") / "loads").exists() for i in range(20))
        stats = client.stats()
        assert stats["evictions"] == stats["loads"] - sum(map(bool, found)), "none went for nothing"


def test_one_that_is_pushed_out_while_it_changes(make_pool: MakePool) -> None:
    kinds = [("double", {"opening": "", "nbytes": 10 * MIB, "private": MIB})]
    kinds += [("echo", {"nbytes": 18 * MIB, "refuse": "never", **LAZY})]
    pool = make_pool(kinds, workers=1, memory=filled(20 * MIB), load_concurrency=2, **STORE)
    until(lambda: pool.recipe("double").forms(), SOON)
    with pool.client(timeout=SOON) as client:
        reply = client.submit("echo", X, signature="float32")
        until(lambda: store_state(client) == "UNLOADED" or client.stats()["evictions"], SOON)
        release(pool)
        assert reply.result(SOON)["y"].tolist() == X.tolist()
        until(lambda: held(client) == {"cpu0": 18 * MIB}, SOON)
        assert mapped(client) == {"cpu0": 0}
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        assert forms(client) == ["mapped"]


def test_the_old_form_counts_until_it_is_closed(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"nbytes": 10 * MIB, "linger": "", "private": MIB})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client:
        until(lambda: forms(client) == ["mapped"], SOON)
        until(lambda: held(client) == {"cpu0": 11 * MIB}, SOON)
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        Orders(pool.base("double") / "1").linger.unlink()
        until(lambda: held(client) == {"cpu0": MIB}, SOON)
