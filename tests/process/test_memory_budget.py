"""Memory that workers may use: who is pushed out, who is not, and what is said of models that never fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import ResourceExhausted, TfpoolError
from tfpool.settings import Loading
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes."""
    return nbytes * 10 // 9


SOON = 15.0
LAZY = {"preload": Loading.LAZY}


def states(client: Client) -> dict[str, str]:
    return {row["name"]: row["state"] for row in client.models() if row["state"] != "DRAINING"}


def held(client: Client) -> list[int]:
    """Bytes that each worker has beyond those of an empty one."""
    return [worker["memory"]["unique"] - BASE_BYTES for worker in client.workers()]


@contextmanager
def watched(pool: FakePool, budget: int) -> Iterator[None]:
    """No worker tells of more than its budget, all the while."""
    stop, most = threading.Event(), [0]

    def look() -> None:
        with pool.client() as client:
            while not stop.is_set():
                most[0] = max(most[0], *held(client))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert most[0] <= budget, "above the budget"


def test_more_models_than_fit_take_turns(make_pool: MakePool) -> None:
    budget = 36 * MIB
    kinds = [("numbered", {"name": f"m{i}", "nbytes": 10 * MIB, **LAZY}) for i in range(8)]
    pool = make_pool(kinds, workers=1, memory=filled(BASE_BYTES + budget))
    with pool.client(timeout=SOON) as client, watched(pool, budget):
        for turn in range(3):
            for i in range(8):
                assert client.predict(f"m{i}", X * turn)["y"].tolist() == (X * turn).tolist()
        stats = client.stats()
        assert stats["loads"] > 8
        assert stats["evictions"] == stats["loads"] - list(states(client).values()).count("AVAILABLE")
        replies = [client.submit(f"m{i % 8}", X * i) for i in range(200)]
        for i, reply in enumerate(replies):
            assert reply.result(SOON)["y"].tolist() == (X * i).tolist()
        assert set(states(client).values()) == {"AVAILABLE", "UNLOADED"}
        assert 2 <= list(states(client).values()).count("AVAILABLE") <= 3


def test_what_is_only_preloaded_pushes_nobody_out(make_pool: MakePool) -> None:
    kinds = [("numbered", {"name": f"m{i}", "nbytes": 10 * MIB}) for i in range(6)]
    pool = make_pool(kinds, workers=2, memory=filled(BASE_BYTES + 21 * MIB))
    with pool.client(timeout=SOON) as client:
        found = states(client)
        assert 2 <= list(found.values()).count("AVAILABLE") <= 4
        assert client.stats()["evictions"] == 0
        (left, *_) = [name for name, state in found.items() if state == "UNLOADED"]
        assert {row["loaded"] for row in client.status(left)} == {"on demand"}
        assert client.predict(left, X)["y"].tolist() == X.tolist()
        assert client.stats()["evictions"] <= 1, "it may fit beside what the other worker has"
        assert max(held(client)) <= 21 * MIB


def test_what_is_in_use_stays(make_pool: MakePool) -> None:
    pool = make_pool(
        [("slow", {"nbytes": 10 * MIB}), ("numbered", {"nbytes": 20 * MIB, **LAZY}), ("double", {"nbytes": 10 * MIB})],
        workers=1,
        memory=filled(BASE_BYTES + 25 * MIB),
        load_concurrency=2,
    )
    with pool.client(timeout=SOON) as client:
        client.predict("numbered", X)
        client.predict("slow", np.float32([0.0]))
        client.predict("double", X)
        slow = [client.submit("slow", np.float32([0.4])) for _ in range(2)]
        until(lambda: client.stats()["shm"]["leased"])
        cold = client.submit("numbered", X)
        done_first: list[bool] = []
        cold.add_done_callback(lambda reply: done_first.extend(one.done() for one in slow))
        assert states(client)["slow"] == "AVAILABLE"
        assert cold.result(SOON)["y"].tolist() == X.tolist()
        assert done_first == [True, True], "it came when there was room"
        assert [reply.result(0)["y"].tolist() for reply in slow] == [[np.float32(0.4)]] * 2


def test_what_never_fits_says_so_and_the_others_serve(make_pool: MakePool) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("numbered", {"name": "large", "nbytes": 50 * MIB}),
        ("numbered", {"name": "lazy", "nbytes": 60 * MIB, **LAZY}),
        ("numbered", {"name": "small", "nbytes": 10 * MIB}),
    ]
    pool = make_pool(kinds, workers=1, memory=filled(BASE_BYTES + 40 * MIB), load_retries=0)
    with pool.client(timeout=SOON) as client:
        numbers = r"large:1 failed to load: it was measured to take 50.0 MiB; worker cpu0 has 40.0 MiB for models"
        until(lambda: states(client)["large"] == "FAILED")
        (row,) = client.status("large")
        with pytest.raises(ResourceExhausted, match=numbers):
            client.predict("large", X)
        assert "50.0 MiB" in row["error"]
        with pytest.raises(ResourceExhausted, match=r"lazy:1 failed to load: it was measured to take 60.0 MiB"):
            client.predict("lazy", X)
        with pytest.raises(ResourceExhausted, match=r"it was measured to take 50.0 MiB"):
            client.load("large", timeout=SOON)
        assert client.predict("small", X)["y"].tolist() == X.tolist()
        until(lambda: held(client) == [10 * MIB])
        base = pool.base("small").with_name("numbered-huge")
        version(base, 1, nbytes=100 * MIB)
        with pytest.raises(ResourceExhausted, match=r"nothing was changed: .*100.0 MiB"):
            client.add({"name": "huge", "base_path": str(base)}, timeout=SOON)
        assert client.predict("small", X)["y"].tolist() == X.tolist()
        (pool.base("large") / "1" / "bytes").write_text(str(5 * MIB))
        (pool.base("large") / "1" / "saved_model.pb").write_text("smaller")
        until(lambda: states(client)["large"] == "AVAILABLE", SOON)


def test_a_model_that_never_fits_is_asked_for_all_the_while(make_pool: MakePool) -> None:
    """Whoever asks while it comes and goes is told, too."""
    pool = make_pool(
        [("numbered", {"nbytes": 50 * MIB, "hold": "", **LAZY})], workers=1, memory=filled(BASE_BYTES + 40 * MIB)
    )
    with pool.client(timeout=SOON) as client:
        outcomes: list[str] = []

        def ask() -> None:
            with pool.client(timeout=5.0) as asking:
                while len(outcomes) < 400:
                    try:
                        asking.predict("numbered", X)
                        outcomes.append("served")
                    except TfpoolError as error:
                        outcomes.append(type(error).__name__)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: states(client) == {"numbered": "LOADING"})
        Orders(pool.base("numbered") / "1").hold.unlink()
        for thread in threads:
            thread.join()
        assert set(outcomes) <= {"ResourceExhausted", "served"}


def test_a_worker_that_keeps_memory_is_replaced_without_a_failed_request(make_pool: MakePool) -> None:
    pool = make_pool(
        [("numbered", {"nbytes": 30 * MIB, "residue": 20 * MIB}), ("double", {}), ("slow", {})],
        workers=1,
        residue_limit=15 * MIB,
    )
    with pool.client(timeout=SOON) as client:
        stop, failures = threading.Event(), []

        def ask() -> None:
            with pool.client(timeout=SOON) as asking:
                while not stop.is_set():
                    try:
                        assert asking.predict("double", X)["y"].tolist() == (2 * X).tolist()
                        asking.predict("slow", np.float32([0.01]))
                    except Exception as error:
                        failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        (before,) = client.workers()
        client.unload("numbered")
        until(lambda: client.workers()[0]["pid"] not in (before["pid"], 0), SOON)
        until(lambda: states(client) == {"numbered": "UNLOADED", "double": "AVAILABLE", "slow": "AVAILABLE"}, SOON)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert held(client) == [0]
        assert client.workers()[0]["deaths"] == 0


def test_replicas_leave_one_after_the_other(make_pool: MakePool) -> None:
    """One that others serve too may go, and the last of them as well."""
    two = {"replicas": (2, 2)}
    pool = make_pool(
        [
            ("numbered", {"name": "twice", "nbytes": 20 * MIB, **two}),
            ("numbered", {"name": "first", "nbytes": 15 * MIB, **LAZY}),
            ("numbered", {"name": "second", "nbytes": 15 * MIB, **LAZY}),
        ],
        memory=filled(BASE_BYTES + 30 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        for _ in range(3):
            for name in ("first", "second", "twice", "second", "first"):
                assert client.predict(name, X)["y"].tolist() == X.tolist()
        assert max(held(client)) <= 30 * MIB


def test_a_drained_worker_keeps_what_does_not_fit_elsewhere(make_pool: MakePool) -> None:
    pool = make_pool(
        [("numbered", {"nbytes": 30 * MIB, "pin": ("cpu0",)}), ("double", {"nbytes": MIB})],
        memory=filled(BASE_BYTES + 40 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        with pytest.raises(TfpoolError, match="no worker can take numbered:1"):
            client.drain("cpu0", timeout=SOON)
        assert {worker["name"]: worker["state"] for worker in client.workers()} == {"cpu0": "READY", "cpu1": "READY"}
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()
        assert states(client) == {"numbered": "AVAILABLE", "double": "AVAILABLE"}


def test_sizes_are_remembered(make_pool: MakePool) -> None:
    """What was measured once is known before the next load, also by another broker."""
    pool = make_pool(
        [("numbered", {"nbytes": 50 * MIB})], workers=1, memory=filled(BASE_BYTES + 40 * MIB), load_retries=0
    )
    with pool.client(timeout=SOON) as client:
        until(lambda: states(client) == {"numbered": "FAILED"})
    pool.kill_broker(str(50 * MIB))
    with pool.client(timeout=SOON) as client:
        until(lambda: states(client) == {"numbered": "FAILED"})
        with pytest.raises(ResourceExhausted, match=r"was measured to take 50.0 MiB"):
            client.predict("numbered", X)
        assert client.stats()["loads"] == 0
