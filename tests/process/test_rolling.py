"""Workers are replaced one after the other, and nobody who asks notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.steady import Tap
from tfpool.client.sync import Client
from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.settings import Loading
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, aside, until
from tfpool.testing.moving import Crowd, held, homes, migrate, migrations, patiently, pids, quick, settled

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 60.0


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes."""
    return (BASE_BYTES + nbytes) * 10 // 9


def restart_all(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.admin("restart_all", timeout=SOON)
    return found


def placed(client: Client) -> dict[str, list[str]]:
    """What each worker holds."""
    return {row["name"]: row["models"] for row in client.workers()}


@pytest.mark.parametrize("workers", [2, 3])
def test_all_workers_are_replaced_under_load(make_pool: MakePool, workers: int) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("double", {"max_batch_size": 16, "nbytes": 4 * MIB}),
        ("slow", {"max_batch_size": 4, "nbytes": 4 * MIB}),
        ("numbered", {"nbytes": 4 * MIB}),
        ("echo", {"replicas": (2, 2), "nbytes": 4 * MIB}),
        ("text", {"preload": Loading.LAZY}),
    ]
    pool = make_pool(kinds, workers=workers)
    with pool.client(timeout=SOON) as client:
        settled(client, "echo", workers)  # its second replica may still load when the pool is ready
        tap, before, where = Tap(client), pids(client), placed(client)
        with Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=16), Crowd(client, "numbered", 1, _four):
            rows = restart_all(client)
            crowd.served()
        after = pids(client)
        assert sorted(row["name"] for row in rows) == sorted(before)
        assert after == {row["name"]: row["pid"] for row in rows}
        assert not set(after.values()) & set(before.values()), "every process is another"
        assert placed(client) == where, "models are back where they were"
        assert tap.twice == 0
        assert {row["by"] for row in migrations(client)} == {"restart"}
        assert all(row["deaths"] == 0 for row in client.workers())
        until(lambda: sum(held(client).values()) == 20 * MIB, what="nothing is in memory twice")


def _four(dice: np.random.Generator) -> Any:
    return dice.random((1, 4), np.float32)


def test_a_worker_that_is_alone_is_replaced_while_requests_wait(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"max_batch_size": 16}), ("slow", {"max_batch_size": 4})], workers=1)
    with pool.client(timeout=SOON) as client:
        before = pids(client)
        with Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=8):
            restart_all(client)
            crowd.served()
        assert set(pids(client)) == set(before)
        assert pids(client)["cpu0"] != before["cpu0"]
        assert placed(client) == {"cpu0": ["double:1", "slow:1"]}


def test_what_fits_nowhere_else_waits_where_it_is(make_pool: MakePool) -> None:
    pool = make_pool(
        [
            ("double", {"max_batch_size": 16, "nbytes": 30 * MIB, "pin": ("cpu0",)}),
            ("slow", {"max_batch_size": 4, "nbytes": 30 * MIB}),
        ],
        memory=filled(40 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        before, where = pids(client), placed(client)
        with Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=16) as slow:
            restart_all(client)
            crowd.served()
            slow.served()
        assert not set(pids(client).values()) & set(before.values())
        assert placed(client) == where
        assert client.stats()["evictions"] == 0
        assert max(held(client).values()) <= 30 * MIB


def test_one_worker_is_replaced_and_the_other_is_left_alone(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"max_batch_size": 16}), ("slow", {"max_batch_size": 4}), ("numbered", {})])
    with pool.client(timeout=SOON) as client:
        before, where = pids(client), placed(client)
        with Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=16):
            row = client.restart("cpu0", timeout=SOON)
            crowd.served()
        after = pids(client)
        assert (row["name"], row["pid"]) == ("cpu0", after["cpu0"])
        assert after["cpu0"] != before["cpu0"]
        assert after["cpu1"] == before["cpu1"]
        assert placed(client) == where
        with pytest.raises(NotFound, match="no worker 'cpu9'; there are cpu0, cpu1"):
            client.restart("cpu9")


def test_a_restart_moves_models_away_first(make_pool: MakePool) -> None:
    """A request never waits for a process to come up: the other worker serves before the old process goes."""
    pool = make_pool([("double", {"max_batch_size": 16})])
    gate = Orders(pool.base("double") / "1").hold
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        (home,) = settled(client, "double")
        old = pids(client)[home]
        gate.touch()
        with aside(lambda: client.restart(home, timeout=SOON)) as failures:
            until(lambda: len(homes(client, "double")) == 2, what="it loads on the other one")
            crowd.served()
            assert pids(client)[home] == old
            gate.unlink()
        assert failures == []
        assert pids(client)[home] != old
        assert homes(client, "double") == [home]


def test_a_drained_worker_is_left_under_load(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"max_batch_size": 16}), ("slow", {"max_batch_size": 4}), ("numbered", {})])
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=16):
        (home,) = settled(client, "double")
        row = client.drain(home, timeout=SOON)
        assert row["models"] == []
        crowd.served()
        with pytest.raises(FailedPrecondition, match=home):
            migrate(client, "double", home)
        assert homes(client, "double") != [home]


@pytest.mark.parametrize("victim", ["the one that is replaced", "the one that takes over"])
def test_a_worker_dies_in_the_middle_of_it(make_pool: MakePool, victim: str) -> None:
    pool = make_pool([("double", {"max_batch_size": 16, "nbytes": 8 * MIB}), ("slow", {"max_batch_size": 4})])
    gate = Orders(pool.base("double") / "1").hold
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd, Crowd(client, "slow", 1, quick, lanes=16):
        (home,) = settled(client, "double")
        other = next(name for name in pids(client) if name != home)
        gate.touch()
        with aside(lambda: client.restart(home, timeout=SOON)) as failures:
            until(lambda: len(homes(client, "double")) == 2)
            os.kill(pids(client)[home if victim == "the one that is replaced" else other], signal.SIGKILL)
            until(lambda: sum(row["deaths"] for row in client.workers()) == 1)
            gate.unlink()
        assert all(isinstance(error, TfpoolError) for error in failures)
        crowd.served()
        assert len(settled(client, "double")) == len(settled(client, "slow")) == 1
        until(lambda: sum(held(client).values()) == 8 * MIB, what="nothing is in memory twice")
        restart_all(client)
        assert len(settled(client, "double")) == 1


def test_a_broker_dies_in_the_middle_of_it(make_pool: MakePool) -> None:
    """What was begun may be left half done, but no worker stays out of service."""
    pool = make_pool([("double", {"max_batch_size": 16, "nbytes": 8 * MIB}), ("slow", {"max_batch_size": 4})])
    gate = Orders(pool.base("double") / "1").hold
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        gate.touch()
        with aside(lambda: restart_all(client)) as failures:
            until(lambda: len(homes(client, "double")) == 2)
            broker = pool.broker_pid()
            os.kill(broker, signal.SIGKILL)
            until(lambda: not os.path.exists(f"/proc/{broker}"))
            patiently(lambda: client.workers())
            gate.unlink()
        assert all(isinstance(error, TfpoolError) for error in failures)
        crowd.served()
        until(lambda: len(patiently(lambda: pids(client))) == 2, SOON)
        (home,) = settled(client, "double")
        until(lambda: sum(held(client).values()) == 8 * MIB, what="nothing is in memory twice")
        migrate(client, "double", next(name for name in pids(client) if name != home))
        crowd.served()
