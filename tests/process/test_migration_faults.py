"""Workers and brokers die, and loads fail, in every phase of a move: nobody who asks is told of it, and in the end each
model is where it should be, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from bench.steady import Tap
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, FailedPrecondition, TfpoolError, Unavailable
from tfpool.testing.fake_worker import FakePool, Orders, loads, until
from tfpool.testing.moving import (
    GATES,
    OVER,
    Crowd,
    held,
    homes,
    migrate,
    migrations,
    patiently,
    pids,
    quick,
    settled,
    under_way,
)

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
MIB = 1 << 20
SOON = 30.0
SLOW = ("slow", {"max_batch_size": 1, "nbytes": 8 * MIB})
BESIDE = ("double", {"max_batch_size": 16, "replicas": (2, 2)})


def kill(pool: FakePool, client: Client, name: str) -> None:
    """SIGKILL to a worker, or to the broker; returns when there is another. A worker that runs something all the while
    comes to the next broker when it has done so."""
    if name == "broker":
        old = pool.broker_pid()
        os.kill(old, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{old}"))
        until(lambda: patiently(lambda: pids(client)), SOON, "the next broker has a worker")
    else:
        old = pids(client)[name]
        os.kill(old, signal.SIGKILL)
        until(lambda: pids(client).get(name) not in (None, old), SOON, f"{name} is replaced")


def moving(client: Client) -> tuple[str, str]:
    """Where the slow model is, and where it shall go."""
    (source,) = settled(client, "slow")
    return source, next(name for name in pids(client) if name != source)


def check(client: Client) -> str:
    """Both models are where they should be, and nowhere else; the worker that has the slow one."""
    (home,) = settled(client, "slow")
    until(lambda: held(client) == {"cpu0": 0, "cpu1": 0, home: 8 * MIB}, SOON, "one worker has it in memory")
    assert settled(client, "double") == ["cpu0", "cpu1"]
    assert all(row["phase"] in OVER for row in migrations(client))
    until(lambda: client.stats()["shm"]["quarantined"] == 0, SOON)
    return home


@pytest.mark.parametrize("at", GATES)
@pytest.mark.parametrize("victim", ["source", "target", "broker"])
def test_somebody_dies_in_the_middle_of_a_move(make_pool: MakePool, victim: str, at: str) -> None:
    pool = make_pool([SLOW, BESIDE])
    with pool.client(timeout=SOON) as client:
        tap = Tap(client)
        with Crowd(client, "slow", 1, quick) as crowd, Crowd(client, lanes=16) as beside:
            source, to = moving(client)
            with under_way(pool, client, "slow", to, at) as failures:
                kill(pool, client, {"source": source, "target": to}.get(victim, victim))
                beside.served()
            for both in (crowd, beside):
                both.served()
            home = check(client)
        assert tap.twice == 0
        assert all(isinstance(error, Unavailable | DeadlineExceeded | FailedPrecondition) for error in failures)
        if victim == "source":
            assert (home, failures) == (to, []), "it was on its way there"
        migrate(client, "slow", source if home == to else to)
        assert check(client) != home, "it can move again"


def test_both_workers_die_in_the_middle_of_a_move(make_pool: MakePool) -> None:
    pool = make_pool([SLOW, BESIDE])
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, quick) as crowd:
        _, to = moving(client)
        with under_way(pool, client, "slow", to, "LOADING"):
            old = pids(client)
            for pid in old.values():
                os.kill(pid, signal.SIGKILL)
            until(lambda: len(pids(client)) == 2 and not set(pids(client).values()) & set(old.values()), SOON)
        crowd.served()
        check(client)


def test_broker_and_target_die_at_once(make_pool: MakePool) -> None:
    pool = make_pool([SLOW, BESIDE])
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, quick) as crowd:
        _, to = moving(client)
        with under_way(pool, client, "slow", to, "WARMING"):
            old = pids(client)[to]
            os.kill(old, signal.SIGKILL)
            kill(pool, client, "broker")
            until(lambda: patiently(lambda: pids(client)).get(to) not in (None, old), SOON)
        crowd.served()
        check(client)


def test_a_load_fails_on_the_target(make_pool: MakePool) -> None:
    """The source serves on, and no worker tries again by itself."""
    pool = make_pool([SLOW, BESIDE])
    fail = Orders(pool.base("slow") / "1").fail
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, quick) as crowd:
        source, to = moving(client)
        fail.write_text("no such weights")
        with pytest.raises(FailedPrecondition, match="no such weights"):
            migrate(client, "slow", to)
        assert homes(client, "slow") == [source]
        assert client.status("slow")[0]["state"] == "AVAILABLE"
        (told,) = migrations(client, "slow")
        assert (told["phase"], told["source"], told["target"]) == ("ABORTED", source, to)
        assert "no such weights" in told["error"]
        crowd.served()
        fail.unlink()
        assert len(loads(pool.base("slow"))) == 2
        migrate(client, "slow", to)
        assert check(client) == to


def test_a_load_kills_the_target(make_pool: MakePool) -> None:
    pool = make_pool([SLOW, BESIDE])
    deadly = Orders(pool.base("slow") / "1").deadly
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, quick) as crowd:
        source, to = moving(client)
        pid = pids(client)[source]
        deadly.touch()
        with pytest.raises(TfpoolError, match=r"slow:1|died"):
            migrate(client, "slow", to)
        until(lambda: len(pids(client)) == 2, SOON, "the target is replaced")
        crowd.served()
        assert homes(client, "slow") == [source]
        assert pids(client)[source] == pid
        assert sum(row["deaths"] for row in client.workers()) <= 2
        deadly.unlink()
        assert check(client) == source
        assert client.predict("slow", np.float32([0.0]))["y"].tolist() == [0.0]


def test_a_target_that_dies_again_and_again(make_pool: MakePool) -> None:
    pool = make_pool([SLOW, BESIDE])
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, quick) as crowd:
        source, to = moving(client)
        for _ in range(3):
            with under_way(pool, client, "slow", to, "LOADING") as failures:
                kill(pool, client, to)
            assert len(failures) == 1
            crowd.served()
            assert check(client) == source
        migrate(client, "slow", to)
        assert check(client) == to
