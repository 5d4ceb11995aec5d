"""A broker that dies: its workers keep their models and serve the next one. And the zygote, with which they die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.cli.options import open_client
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, NotFound, TfpoolError, Unavailable
from tfpool.settings import Loading
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, loads, until, version
from tfpool.testing.leaks import children

pytestmark = pytest.mark.process
X = np.ones((2, 4), np.float32)
SOON = 20.0
MIB = 1 << 20
MakePool = Callable[..., FakePool]


def pids(client: Client) -> dict[str, int]:
    return {worker["name"]: worker["pid"] for worker in client.workers() if worker["state"] == "READY"}


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def patiently(ask: Callable[[], Any]) -> Any:
    """The answer, once there is a broker that gives one."""

    def answer() -> list[Any]:
        with suppress(Unavailable, DeadlineExceeded):
            return [ask()]
        return []

    return until(answer, SOON)[0]


def strike(pool: FakePool) -> None:
    """Kill the broker."""
    broker = pool.broker_pid()
    os.kill(broker, signal.SIGKILL)
    until(lambda: not alive(broker))


@contextmanager
def no_broker(pool: FakePool) -> Iterator[None]:
    """For as long as the block lasts: the supervisor sleeps, and the broker is dead."""
    pool.process.send_signal(signal.SIGSTOP)
    try:
        strike(pool)
        yield
    finally:
        pool.process.send_signal(signal.SIGCONT)


def zygote_pid(pool: FakePool) -> int:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            stat = Path(f"/proc/{name}/stat").read_text()
            if "(tfpool-zygote)" in stat and int(stat.rpartition(")")[2].split()[1]) == pool.process.pid:
                return int(name)
    raise AssertionError("the pool has no zygote")


# -- models stay ---------------------------------------------------------------------------------------------------


def test_models_are_not_loaded_again_and_workers_stay_whom_they_are(make_pool: MakePool) -> None:
    """Small and large requests go on while brokers die, the second of each pair before anybody has seen the first: none
    fails, and none is answered wrongly."""
    pool = make_pool([("double", {"replicas": (2, 2)}), ("echo", {}), ("slow", {})])
    with pool.client(timeout=SOON) as client:
        before = pids(client)
        memory = {worker["name"]: worker["memory"] for worker in client.workers()}
        stop, surprises, answered = threading.Event(), [], [0]

        def load(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                x = rng.random([(1, 3), (2, 20_000)][int(rng.integers(2))], np.float32)
                try:
                    if client.predict("double", x)["y"].tolist() != (2 * x).tolist():
                        surprises.append("a wrong answer")
                    answered[0] += 1
                except Exception as error:
                    surprises.append(error)

        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            for _ in range(2):
                strike(pool)
                until(lambda: _has_broker(pool), SOON)
            seen = answered[0]
            until(lambda seen=seen: answered[0] > seen + 20, SOON, "requests are answered")
        stop.set()
        for thread in threads:
            thread.join()
        assert surprises == []
        assert pids(client) == before
        assert {worker["name"]: worker["memory"] for worker in client.workers()} == memory
        assert [loads(pool.base(name)) for name in ("double", "echo", "slow")] == [[1, 1], [1], [1]]
        assert client.predict("echo", X, signature="float32")["y"].tolist() == X.tolist()
        assert all(row["state"] == "AVAILABLE" for row in client.models())


def _has_broker(pool: FakePool) -> bool:
    with suppress(AssertionError):
        return alive(pool.broker_pid())
    return False


def test_a_load_under_way_goes_on(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"preload": Loading.EXPLICIT, "hold": ""}), ("slow", {})], workers=1)
    orders = Orders(pool.base("double") / "1")
    with pool.client(timeout=SOON) as client:
        with pytest.raises(TfpoolError):
            client.load("double", timeout=0.2)
        until(lambda: client.status("double")[0]["state"] == "LOADING")
        for _ in range(2):
            strike(pool)
            patiently(lambda: client.predict("slow", np.float32([0.0]), timeout=1.0))
        until(lambda: client.status("double")[0]["state"] == "LOADING")
        orders.hold.unlink()
        until(lambda: client.status("double")[0]["state"] == "AVAILABLE")
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        assert loads(pool.base("double")) == [1]


def test_a_run_that_outlasts_the_broker(make_pool: MakePool) -> None:
    """Its worker comes when the new broker has given up waiting; what waits for it is answered all the same."""
    pool = make_pool([("slow", {}), ("double", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        client.submit("slow", np.float32([1.5]))
        until(lambda: client.queues())
        strike(pool)
        assert patiently(lambda: client.predict("double", X, timeout=5.0))["y"].tolist() == (2 * X).tolist()
        assert "workers.late" in pool.log()
        assert [loads(pool.base(name)) for name in ("slow", "double")] == [[1], [1]]


def test_what_was_loaded_and_unloaded_by_hand_stays_so(make_pool: MakePool) -> None:
    kinds = [("double", {"preload": Loading.LAZY}), ("echo", {"preload": Loading.EXPLICIT}), ("slow", {})]
    pool = make_pool([*kinds, ("text", {"preload": Loading.LAZY})])
    with pool.client(timeout=SOON) as client:
        client.predict("double", X)
        client.load("echo")
        client.unload("slow")
        pool.kill_broker("slow")
        states = {row["name"]: row["state"] for row in client.models()}
        assert states == {"double": "AVAILABLE", "echo": "AVAILABLE", "slow": "UNLOADED", "text": "UNLOADED"}
        with pytest.raises(NotFound, match="is unloaded"):
            client.predict("slow", np.float32([0.0]))
        assert [loads(pool.base(name)) for name in ("double", "echo", "slow")] == [[1], [1], [1]]


def test_memory_is_accounted_for_as_before(make_pool: MakePool) -> None:
    """A budget that has room for two of three models, before and after."""
    kinds = [("double", {"nbytes": 40 * MIB}), ("echo", {"nbytes": 40 * MIB}), ("text", {"nbytes": 40 * MIB})]
    pool = make_pool([(kind, {**keys, "preload": Loading.LAZY}) for kind, keys in kinds], workers=1, memory=140 * MIB)
    with pool.client(timeout=SOON) as client:
        ask = {
            "double": lambda: client.predict("double", X),
            "echo": lambda: client.predict("echo", X, signature="float32"),
            "text": lambda: client.predict("text", np.array([["a"]], object)),
        }
        ask["double"]()
        ask["echo"]()
        held = {"base": BASE_BYTES, "unique": BASE_BYTES + 80 * MIB}
        until(lambda: held.items() <= client.workers()[0]["memory"].items())
        pool.kill_broker("footprints")
        until(lambda: sorted(client.workers()[0]["models"]) == ["double:1", "echo:1"])
        assert held.items() <= client.workers()[0]["memory"].items()
        ask["echo"]()
        ask["text"]()
        until(lambda: len(client.workers()[0]["models"]) == 2, SOON, "one of the others has to go")
        assert "text:1" in client.workers()[0]["models"]
        assert [loads(pool.base(name)) for name in ask] == [[1], [1], [1]]


# -- the world has changed meanwhile -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["a new version", "other files", "the directory is gone"])
def test_the_disk_changed_while_there_was_no_broker(make_pool: MakePool, change: str) -> None:
    pool = make_pool([("numbered", {"nbytes": 8 * MIB}), ("double", {})], workers=1)
    base = pool.base("numbered")
    with pool.client(timeout=SOON) as client:
        with no_broker(pool):
            if change == "a new version":
                version(base, 2, nbytes=8 * MIB)
            elif change == "other files":
                (base / "1" / "saved_model.pb").write_text("others")
            else:
                version(base, 2, nbytes=8 * MIB)
                (base / "1").rename(base / "old")
        patiently(lambda: client.predict("double", X, timeout=1.0))
        newest = 1 if change == "other files" else 2
        patiently(lambda: client.predict("numbered", X, timeout=5.0))
        until(lambda: client.workers()[0]["models"] == ["double:1", f"numbered:{newest}"])
        until(lambda: client.workers()[0]["memory"]["unique"] == BASE_BYTES + 8 * MIB, SOON, "the old one has left")
        assert client.predict("numbered", X)["y"].tolist() == (newest * X).tolist()
        assert loads(base) == [1, newest]
        assert loads(pool.base("double")) == [1]


# -- workers die too -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["the worker first", "while there is no broker"])
def test_a_worker_dies_with_the_broker(make_pool: MakePool, order: str) -> None:
    pool = make_pool([("double", {"replicas": (2, 2)}), ("echo", {"replicas": (2, 2)})])
    with pool.client(timeout=SOON) as client:
        before = pids(client)
        if order == "the worker first":
            os.kill(before["cpu0"], signal.SIGKILL)
            os.kill(pool.broker_pid(), signal.SIGKILL)
        else:
            with no_broker(pool):
                os.kill(before["cpu0"], signal.SIGKILL)
        until(lambda: len(patiently(lambda: pids(client))) == 2, SOON)
        until(lambda: all(len(loads(pool.base(name))) == 3 for name in ("double", "echo")), SOON)
        after = pids(client)
        assert after["cpu1"] == before["cpu1"]
        assert after["cpu0"] != before["cpu0"]
        until(lambda: all(len(worker["models"]) == 2 for worker in client.workers()), SOON)
        assert client.stats()["shm"]["quarantined"] == 0
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        assert [loads(pool.base(name)) for name in ("double", "echo")] == [[1, 1, 1]] * 2


def test_a_worker_that_is_killed_all_the_time_is_always_replaced_at_once(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"replicas": (2, 2)})])
    with pool.client(timeout=SOON) as client:
        for _ in range(15):
            old = until(lambda: pids(client).get("cpu0"), SOON)
            os.kill(old, signal.SIGKILL)
            until(lambda old=old: pids(client).get("cpu0") not in (None, old), 2.0, "it is replaced")
        assert "halted" not in pool.log()
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


@pytest.mark.parametrize("times", [1, 3])
def test_the_zygote_dies(make_pool: MakePool, times: int) -> None:
    """And all workers with it; also when the next one dies before it has forked them."""
    pool = make_pool([("double", {"replicas": (2, 2)}), ("echo", {})])
    with pool.client(timeout=SOON) as client:
        before = pids(client)
        for _ in range(times):
            old = until(lambda: _quietly(lambda: zygote_pid(pool)))
            os.kill(old, signal.SIGKILL)
            until(lambda old=old: not alive(old))
        until(lambda: len(pids(client)) == 2 and not set(pids(client).values()) & set(before.values()), SOON)
        until(lambda: all(row["state"] == "AVAILABLE" for row in client.models()), SOON)
        assert client.predict("double", X, timeout=SOON)["y"].tolist() == (2 * X).tolist()
        assert client.stats()["shm"]["quarantined"] == 0
        assert "halted" not in pool.log()


def test_a_command_waits_for_the_next_broker(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})])
    for _ in range(3):
        old = pool.broker_pid()
        os.kill(old, signal.SIGKILL)
        until(lambda dead=old: not alive(dead))  # type: ignore[misc]
        with open_client(pool.endpoint) as client:
            assert client.predict("double", np.float32([[1.0]]), timeout=SOON)["y"].tolist() == [[2.0]]
    pool.close()
    with pytest.raises(Unavailable, match="no pool listens"):
        open_client(pool.endpoint)
    pool.start()


def _quietly(find: Callable[[], int]) -> int:
    with suppress(AssertionError):
        return find()
    return 0


def test_broker_and_zygote_die_at_once(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"replicas": (2, 2)})])
    with pool.client(timeout=SOON) as client:
        with no_broker(pool):
            os.kill(zygote_pid(pool), signal.SIGKILL)
        until(lambda: len(patiently(lambda: pids(client))) == 2, SOON)
        assert patiently(lambda: client.predict("double", X, timeout=2.0))["y"].tolist() == (2 * X).tolist()


def test_nothing_outlives_a_supervisor_that_dies_with_its_broker(make_pool: MakePool) -> None:
    """The workers, waiting at their lines for a broker, have nobody left."""
    pool = make_pool([("double", {})])
    with pool.client() as client:
        members = [zygote_pid(pool), *pids(client).values()]
    with no_broker(pool):
        pool.process.kill()
    pool.process.wait()
    until(lambda: not any(map(alive, members)), SOON)
    assert pool.process.pid not in children()
