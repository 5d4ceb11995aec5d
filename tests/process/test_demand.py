"""Models that are loaded when they are needed, or by hand, and unloaded by hand: nobody waits in vain."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tfpool.settings import Loading
from tfpool.testing.fake_worker import FakePool, Orders, aside, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
SOON = 15.0
LAZY = {"preload": Loading.LAZY}
EXPLICIT = {"preload": Loading.EXPLICIT}


def states(client: Client, model: str = "numbered") -> dict[int, str]:
    return {row["version"]: row["state"] for row in client.status(model)}


def orders(pool: FakePool, number: int = 1, model: str = "numbered") -> Orders:
    return Orders(pool.base(model) / str(number))


def parked(pool: FakePool, client: Client, model: str = "numbered", number: int = 1) -> None:
    """Wait until a request has begun a load, which waits for its ``hold`` file to go."""
    until(lambda: states(client, model)[number] in ("LOADING", "NEW"), SOON)


# -- lazy ----------------------------------------------------------------------------------------------------------


def test_a_hundred_cold_requests_cost_one_load(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {**LAZY, "hold": ""})])
    clients = [pool.client(timeout=SOON) for _ in range(5)]
    assert states(clients[0]) == {1: "UNLOADED"}
    assert clients[0].stats()["loads"] == 0
    replies = [client.submit("numbered", X * i) for i in range(20) for client in clients]
    parked(pool, clients[0])
    orders(pool).hold.unlink()
    for place, reply in enumerate(replies):
        assert reply.result(SOON)["y"].tolist() == (X * (place // 5)).tolist()
    assert clients[0].stats()["loads"] == 1
    assert states(clients[0]) == {1: "AVAILABLE"}
    large = np.ones((50, 4), np.float32)
    assert clients[0].predict("numbered", large)["y"].shape == (50, 4)
    for client in clients:
        client.close()


def test_cold_requests_by_reference_and_of_every_kind_wait_too(make_pool: MakePool) -> None:
    pool = make_pool([("add", {**LAZY, "hold": ""}), ("double", {**LAZY, "hold": ""}), ("matrix", LAZY)])
    with pool.client(timeout=SOON) as client:
        a, b, s = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32), np.array([b"xy", b"z"], object)
        added = client.submit("add", {"a": a, "b": b, "s": s})
        large = np.ones((2, 100_000), np.float32)
        doubled = client.submit("double", large)
        for name in ("add", "double"):
            parked(pool, client, name)
            orders(pool, model=name).hold.unlink()
        assert added.result(SOON)["text"].tolist() == [b"x", b"z"]
        assert doubled.result(SOON)["y"].tolist() == (2 * large).tolist()
        whole = client.predict("matrix", np.eye(3, dtype=np.float32))
        assert whole["trace"] == 3.0


def test_a_cold_load_that_fails_refuses_all_with_the_reason(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {**LAZY, "hold": "", "fail": "torn"}), ("killer", LAZY)], load_retries=0)
    with pool.client(timeout=SOON) as client:
        replies = [client.submit("numbered", X) for _ in range(20)]
        parked(pool, client)
        orders(pool).hold.unlink()
        for reply in replies:
            with pytest.raises(FailedPrecondition, match=r"numbered:1 failed to load: .*torn"):
                reply.result(SOON)
        assert client.stats()["loads"] == 1
        with pytest.raises(FailedPrecondition, match="killed 2 workers"):
            client.predict("killer", X)
        orders(pool).fail.unlink()
        assert client.load("numbered", timeout=SOON)["state"] == "AVAILABLE"
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()


def test_those_who_wait_are_refused_in_time_cancelled_and_forgotten(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {**LAZY, "hold": "", "max_queue_rows": 10})], workers=1)
    with pool.client(timeout=SOON) as client:
        gone = pool.client(timeout=SOON)
        of_the_gone = [gone.submit("numbered", X) for _ in range(4)]
        kept = client.submit("numbered", X)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.predict("numbered", X, timeout=0.2)
        assert 0.15 < time.monotonic() - began < 2.0
        cancelled = [client.submit("numbered", X) for _ in range(3)]
        until(lambda: states(client))  # what is asked later is answered later
        full = r"numbered:1 is not loaded yet, and 8 rows wait for it; max_queue_rows is 10"
        with pytest.raises(ResourceExhausted, match=full):
            client.predict("numbered", np.ones((3, 4), np.float32))
        with pytest.raises(ResourceExhausted, match="max_queue_rows is 10"):
            client.predict("numbered", np.ones((11, 4), np.float32))
        for reply in cancelled:
            reply.cancel()
        assert all(reply.cancelled() for reply in cancelled)
        gone.close()
        assert all(
            reply.cancelled() or isinstance(reply.exception(SOON), (Cancelled, Unavailable)) for reply in of_the_gone
        )
        room = np.ones((9, 4), np.float32)

        def made() -> bool:
            more = client.submit("numbered", room)
            states(client)
            return not more.done()

        until(made)  # by those who left
        orders(pool).hold.unlink()
        assert kept.result(SOON)["y"].tolist() == X.tolist()


def test_a_cold_model_whose_worker_dies_while_it_loads(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {**LAZY, "hold": ""})], workers=1)
    with pool.client(timeout=SOON) as client:
        reply = client.submit("numbered", X)
        until(lambda: states(client) == {1: "LOADING"})
        os.kill(client.workers()[0]["pid"], 9)
        until(lambda: client.workers()[0]["deaths"] == 1)
        orders(pool).hold.unlink()
        assert reply.result(SOON)["y"].tolist() == X.tolist()


def test_a_cold_model_is_asked_for_while_its_worker_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", LAZY), ("slow", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        slow = client.submit("slow", np.float32([0.3]))
        until(lambda: client.stats()["shm"]["leased"])
        old = client.workers()[0]["pid"]
        with aside(lambda: client.restart("cpu0", timeout=SOON)):
            until(lambda: client.workers()[0]["state"] == "DRAINING")
            assert client.predict("numbered", X)["y"].tolist() == X.tolist()
        assert client.workers()[0]["pid"] != old
        assert slow.result(SOON)["y"].tolist() == [np.float32(0.3)]


def test_a_new_version_of_a_lazy_model(make_pool: MakePool) -> None:
    """One in use is followed without a gap; one that nobody has asked for is not loaded."""
    pool = make_pool([("numbered", LAZY), ("double", LAZY)])
    with pool.client(timeout=SOON) as client:
        assert client.predict("numbered", X)["y"][0, 0] == 1
        version(pool.base("numbered"), 3)
        version(pool.base("double"), 2)
        until(lambda: states(client) == {3: "AVAILABLE"}, SOON)
        until(lambda: states(client, "double") == {2: "UNLOADED"}, SOON)
        assert client.predict("numbered", X)["y"][0, 0] == 3
        assert client.stats()["loads"] == 2


def test_those_who_wait_for_the_newest_get_the_newest(make_pool: MakePool) -> None:
    """The version that they wait for is replaced before it was ever loaded."""
    pool = make_pool([("numbered", {**LAZY, "garbled": "not yet"})], load_retries=0, workers=1)
    with pool.client(timeout=SOON) as client:
        with pytest.raises(FailedPrecondition, match="not yet"):
            client.predict("numbered", X)
        version(pool.base("numbered"), 2)
        until(lambda: 2 in states(client))
        assert client.predict("numbered", X)["y"][0, 0] == 2


# -- explicit, and by hand -----------------------------------------------------------------------------------------


def test_an_explicit_model_waits_for_a_load(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", EXPLICIT)])
    with pool.client(timeout=SOON) as client:
        assert states(client) == {1: "UNLOADED"}
        with pytest.raises(NotFound, match="numbered:1 is unloaded; `tfpool load numbered:1` loads it"):
            client.predict("numbered", X)
        assert client.load("numbered", timeout=SOON)["state"] == "AVAILABLE"
        assert client.predict("numbered", X)["y"][0, 0] == 1
        version(pool.base("numbered"), 2)
        until(lambda: states(client) == {1: "AVAILABLE", 2: "UNLOADED"}, SOON)
        assert client.predict("numbered", X)["y"][0, 0] == 1
        client.load("numbered", timeout=SOON)
        until(lambda: states(client) == {2: "AVAILABLE"}, SOON)
        assert client.predict("numbered", X)["y"][0, 0] == 2


def test_an_unload_answers_what_waits_and_lasts(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1}), ("numbered", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        waiting = [client.submit("slow", np.float32([0.05])) for _ in range(6)]
        until(lambda: client.stats()["shm"]["leased"])
        (row,) = client.unload("slow")
        assert (row["state"], row["workers"]) == ("UNLOADED", [])
        assert [reply.result(0)["y"][0] for reply in waiting] == [np.float32(0.05)] * 6, "before the unload answers"
        with pytest.raises(NotFound, match="slow:1 is unloaded"):
            client.predict("slow", np.float32([0.0]))
        client.unload("numbered")
        version(pool.base("numbered"), 2)
        until(lambda: states(client) == {2: "UNLOADED"}, SOON)  # the old one holds nothing, so it may go
        with pytest.raises(NotFound, match="numbered:2 is unloaded"):
            client.predict("numbered", X)
        with pytest.raises(NotFound, match="has no version 7; it has 2"):
            client.unload("numbered", 7)
        for wrong in (0, -1, True, "1"):
            with pytest.raises(InvalidArgument):
                client.admin("unload", model="numbered", version=wrong)
        pool.kill_broker('"slow"')
        with pool.client(timeout=SOON) as again:
            assert states(again, "slow") == {1: "UNLOADED"}
            assert again.load("slow", timeout=SOON)["state"] == "AVAILABLE"
            assert again.predict("slow", np.float32([0.0]))["y"].tolist() == [0.0]


def test_load_and_unload_meet(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {**EXPLICIT, "hold": ""}), ("slow", {"max_batch_size": 1})], workers=1)
    with pool.client(timeout=SOON) as client, pool.client(timeout=SOON) as other:
        with aside(lambda: client.load("numbered", timeout=SOON)) as failures:
            until(lambda: states(other) == {1: "LOADING"}, SOON)
            with aside(lambda: other.unload("numbered")):
                until(lambda: states(other) == {1: "DRAINING"}, SOON)
                orders(pool).hold.unlink()
        assert [str(error) for error in failures] == ["numbered:1 was unloaded while it loaded"]
        assert states(other) == {1: "UNLOADED"}
        assert other.load("numbered", timeout=SOON)["state"] == "AVAILABLE"

        busy = [other.submit("slow", np.float32([0.1])) for _ in range(3)]
        until(lambda: other.stats()["shm"]["leased"])
        with aside(lambda: other.unload("slow")):
            until(lambda: states(client, "slow") == {1: "DRAINING"})
            assert client.load("slow", timeout=SOON)["state"] == "AVAILABLE"
            assert [reply.result(SOON)["y"][0] for reply in busy] == [np.float32(0.1)] * 3
            assert client.predict("slow", np.float32([0.0]))["y"].tolist() == [0.0]
            client.unload("slow")


def test_versions_outside_of_the_policy_by_hand(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": (1, 2, 3)})])
    with pool.client(timeout=SOON) as client:
        assert states(client) == {3: "AVAILABLE"}
        assert client.load("numbered", 1, timeout=SOON)["version"] == 1
        assert states(client) == {1: "AVAILABLE", 3: "AVAILABLE"}
        assert client.predict("numbered", X, version=1)["y"][0, 0] == 1
        with pytest.raises(NotFound, match="has no version 9; it has 1, 2, 3"):
            client.load("numbered", 9, timeout=SOON)
        client.unload("numbered", 3)
        assert client.predict("numbered", X)["y"][0, 0] == 1
        client.load("numbered", 3, timeout=SOON)
        client.unload("numbered", 1)
        until(lambda: states(client) == {3: "AVAILABLE"}, SOON)
        version(pool.base("numbered"), 4)
        until(lambda: states(client) == {4: "AVAILABLE"}, SOON)  # one that the policy asks for is not kept by a load
        shutil.rmtree(pool.base("numbered"))
        with pytest.raises(NotFound, match=r"no such directory|has no version"):
            client.load("numbered", 2, timeout=SOON)


def test_a_drained_worker_gives_up_what_it_could_not_load(make_pool: MakePool) -> None:
    pool = make_pool([("broken", {}), ("double", {})], load_retries=0)
    with pool.client(timeout=SOON) as client:
        for name in ("cpu0", "cpu1"):
            row = client.drain(name, timeout=SOON)
            assert row["models"] == []
            client.restart(name, timeout=SOON)
            until(lambda: all(worker["state"] == "READY" for worker in client.workers()))
        assert client.predict("double", X)["y"].shape == (1, 4)
