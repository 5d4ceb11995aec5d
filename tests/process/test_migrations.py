"""Migrations by hand: models move while they are asked, and nobody who asks notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.steady import Tap
from tfpool.client.sync import Client
from tfpool.errors import FailedPrecondition, NotFound, ResourceExhausted, TfpoolError
from tfpool.settings import Loading
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, aside, loads, until, version
from tfpool.testing.moving import (
    Crowd,
    held,
    homes,
    let_go,
    migrate,
    migrations,
    phase,
    pids,
    quick,
    settled,
    under_way,
)

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 20.0


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes."""
    return (BASE_BYTES + nbytes) * 10 // 9


def other(client: Client, model: str) -> tuple[str, str]:
    """The worker that holds a model, and one that does not."""
    (home,) = settled(client, model)
    return home, next(name for name in sorted(pids(client)) if name != home)


# -- under load ----------------------------------------------------------------------------------------------------


def test_a_model_moves_to_and_fro_while_it_is_asked(make_pool: MakePool) -> None:
    """Small and large requests; none fails, none is answered twice, and the model is never on two workers for long."""
    pool = make_pool([("double", {"max_batch_size": 16, "nbytes": 8 * MIB}), ("slow", {})])
    with pool.client(timeout=SOON) as client:
        tap, pid = Tap(client), pids(client)
        with Crowd(client) as crowd:
            for _ in range(6):
                home, to = other(client, "double")
                crowd.served()
                row = migrate(client, "double", to)
                assert (row["workers"], row["state"]) == ([to], "AVAILABLE")
                assert row["load_seconds"] >= 0
                assert homes(client, "double") == [to]
                until(lambda home=home, to=to: held(client) == {home: 0, to: 8 * MIB}, what="memory comes back")
        assert tap.twice == 0
        assert pids(client) == pid
        assert len(loads(pool.base("double"))) == 7, "each move loads it once"
        told = migrations(client, "double")
        assert [(row["phase"], row["by"], row["kind"]) for row in told] == [("DONE", "hand", "migrate")] * 6
        assert [row["target"] for row in told[1:]] == [row["source"] for row in told[:-1]]
        assert client.stats()["shm"]["quarantined"] == 0


def test_models_move_past_each_other(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"max_batch_size": 16}), ("slow", {})])
    with pool.client(timeout=SOON) as client, Crowd(client), Crowd(client, "slow", 1, quick, lanes=8) as crowd:
        for _ in range(3):
            (at, to), (slow_at, slow_to) = other(client, "double"), other(client, "slow")
            with aside(lambda to=slow_to: migrate(client, "slow", to)) as failures:
                migrate(client, "double", to)
            assert failures == []
            assert (homes(client, "double"), homes(client, "slow")) == ([to], [slow_to])
            assert (at, slow_at) != (to, slow_to)
            crowd.served()


def test_what_runs_on_the_source_ends_there(make_pool: MakePool) -> None:
    """A long batch holds the move up, and nobody else: what comes meanwhile goes to the target."""
    pool = make_pool([("slow", {"max_batch_size": 1})])
    with pool.client(timeout=SOON) as client:
        _, to = other(client, "slow")
        long = client.submit("slow", np.float32([1.5]))
        until(lambda: client.stats()["shm"]["leased"])
        with aside(lambda: migrate(client, "slow", to)) as failures:
            until(lambda: phase(client, "slow") == "DRAINING", what="it serves on the target")
            for _ in range(20):
                assert client.predict("slow", np.float32([0.001]))["y"].tolist() == [np.float32(0.001)]
            assert not long.done()
            assert phase(client, "slow") == "DRAINING"
        assert failures == []
        assert long.done(), "the source let go when it had answered"
        assert long.result(0)["y"].tolist() == [1.5]
        assert homes(client, "slow") == [to]


def test_one_of_two_replicas_moves(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"replicas": (2, 2), "max_batch_size": 16})], workers=3)
    with pool.client(timeout=SOON) as client:
        first, second = settled(client, "double", 3)
        (free,) = set(pids(client)) - {first, second}
        with Crowd(client) as crowd:
            with pytest.raises(FailedPrecondition, match=rf"double:1 .*{free}.* served by {first}, {second}"):
                migrate(client, "double", first, source=free)
            row = migrate(client, "double", free, source=second)
            crowd.served()
        assert sorted(row["workers"]) == sorted([first, free])
        assert settled(client, "double", 3) == sorted([first, free])


# -- what cannot be ------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_and_nothing_changes(make_pool: MakePool) -> None:
    pool = make_pool(
        [
            ("double", {"nbytes": 10 * MIB}),
            ("numbered", {"nbytes": 10 * MIB, "versions": (1, 2), "version_policy": "all", "pin": ("cpu0",)}),
            ("slow", {"nbytes": 30 * MIB, "pin": ("cpu1",)}),
            ("counter", {"nbytes": MIB, "pin": ()}),
            ("text", {"preload": Loading.EXPLICIT}),
        ],
        memory=filled(40 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        client.wait_ready()
        home, to = other(client, "double")
        before = {row["name"]: row["models"] for row in client.workers()}
        (stateful,) = homes(client, "counter")
        elsewhere = next(name for name in pids(client) if name != stateful)
        refusals: list[tuple[type[TfpoolError], str, str, str, dict[str, Any]]] = [
            (NotFound, "no worker 'cpu9'; there are cpu0, cpu1", "double", "cpu9", {}),
            (NotFound, "no worker 'cpu9'; there are cpu0, cpu1", "double", to, {"source": "cpu9"}),
            (NotFound, "no model 'nobody'", "nobody", to, {}),
            (NotFound, "7", "double", to, {"version": 7}),
            (FailedPrecondition, f"{home}", "double", home, {}),
            (FailedPrecondition, f"{to}", "double", home, {"source": to}),
            (FailedPrecondition, "pin", "numbered", "cpu1", {"version": 1}),
            (FailedPrecondition, "counter:1", "counter", elsewhere, {}),
            (TfpoolError, "text:1", "text", to, {}),
        ]
        for kind, why, model, target, more in refusals:
            with pytest.raises(kind, match=why):
                migrate(client, model, target, **more)
        assert {row["name"]: row["models"] for row in client.workers()} == before
        assert all(row["phase"] in ("DONE", "ABORTED") for row in migrations(client))
        assert all(row["state"] == "AVAILABLE" for row in client.models() if row["name"] != "text")


def test_a_full_worker_takes_nothing(make_pool: MakePool) -> None:
    """And says what it has: a move by hand pushes nobody out."""
    pool = make_pool(
        [
            ("double", {"nbytes": 20 * MIB, "pin": ("cpu0",)}),
            ("numbered", {"nbytes": 30 * MIB, "pin": ("cpu1",)}),
            ("slow", {"nbytes": 15 * MIB, "preload": Loading.EXPLICIT}),
        ],
        memory=filled(40 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        client.load("slow")
        assert homes(client, "slow") == ["cpu0"], "where there is room for it"
        with pytest.raises(ResourceExhausted, match=r"worker cpu1 has no room for slow:1"):
            migrate(client, "slow", "cpu1")
        assert homes(client, "slow") == ["cpu0"]
        assert client.stats()["evictions"] == 0
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()


def test_memory_is_reserved_before_the_load_has_begun(make_pool: MakePool) -> None:
    pool = make_pool(
        [("double", {"nbytes": 25 * MIB}), ("numbered", {"nbytes": 25 * MIB}), ("slow", {"nbytes": MIB})],
        workers=3,
        memory=filled(40 * MIB),
    )
    with pool.client(timeout=SOON) as client:
        taken = {*settled(client, "double", 3), *settled(client, "numbered", 3)}
        (free,) = set(pids(client)) - taken
        gate = Orders(pool.base("double") / "1").hold
        gate.touch()
        with aside(lambda: migrate(client, "double", free)) as failures:
            until(lambda: phase(client, "double") == "LOADING")
            with pytest.raises(ResourceExhausted, match=rf"{free}"):
                migrate(client, "numbered", free)
            gate.unlink()
        assert failures == []
        assert (homes(client, "double"), len(homes(client, "numbered"))) == ([free], 1)
        assert max(held(client).values()) <= 40 * MIB


# -- while other things happen -------------------------------------------------------------------------------------


def test_a_model_that_still_loads_stays_where_it_is(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"preload": Loading.EXPLICIT, "hold": ""}), ("slow", {})])
    gate = Orders(pool.base("double") / "1").hold
    with pool.client(timeout=SOON) as client:
        with aside(lambda: client.load("double", timeout=SOON)) as failures:
            (home,) = until(lambda: homes(client, "double"))
            to = next(name for name in pids(client) if name != home)
            with pytest.raises(FailedPrecondition, match="double:1"):
                migrate(client, "double", to)
            gate.unlink()
        assert failures == []
        assert settled(client, "double") == [home]
        migrate(client, "double", to)
        assert homes(client, "double") == [to]


def test_two_ask_for_the_same_move(make_pool: MakePool) -> None:
    """It is made once; the second is told so, or waits for the same end."""
    pool = make_pool([("double", {"max_batch_size": 16})], workers=3)
    gate = Orders(pool.base("double") / "1").hold
    with pool.client(timeout=SOON) as client, Crowd(client):
        (home,) = settled(client, "double", 3)
        to, third = sorted(set(pids(client)) - {home})
        gate.touch()
        with aside(lambda: migrate(client, "double", to)) as first:
            until(lambda: phase(client, "double") == "LOADING")
            with aside(lambda: migrate(client, "double", to)) as second:
                with pytest.raises(FailedPrecondition, match="double:1"):
                    migrate(client, "double", third)
                gate.unlink()
        assert first == []
        assert all(isinstance(error, FailedPrecondition) for error in second)
        assert settled(client, "double", 3) == [to]
        assert len(loads(pool.base("double"))) == 2


@pytest.mark.parametrize("at", ["LOADING", "WARMING", "DRAINING", "UNLOADING"])
@pytest.mark.parametrize("change", ["unload", "remove"])
def test_a_model_goes_while_it_moves(make_pool: MakePool, at: str, change: str) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1, "nbytes": 8 * MIB}), ("double", {})])
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        _, to = other(client, "slow")
        with under_way(pool, client, "slow", to, at) as failures:
            verb = client.unload if change == "unload" else client.remove
            with aside(lambda: verb("slow")) as refused:
                until(lambda: _refuses(client), what="nobody is let in any more")
                let_go(pool, "slow")
        assert refused == []
        assert all("slow:1 was unloaded" in error.message for error in failures)
        assert homes(client, "slow") == []
        until(lambda: set(held(client).values()) == {0}, what="both have let go")
        assert all(row["phase"] in ("DONE", "ABORTED") for row in migrations(client))
        crowd.served()


def test_a_new_version_comes_while_the_old_one_moves(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"nbytes": 8 * MIB}), ("double", {})])
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        _, to = other(client, "numbered")
        stop, surprises = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                try:
                    assert client.predict("numbered", X)["y"][0, 0] in (1, 2)
                except Exception as error:
                    surprises.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        with under_way(pool, client, "numbered", to, "LOADING") as failures:
            version(pool.base("numbered"), 2, nbytes=8 * MIB)
            until(lambda: client.predict("numbered", X)["y"][0, 0] == 2, SOON, "version 2 serves")
            let_go(pool, "numbered")
        stop.set()
        asking.join()
        assert surprises == []
        assert all("numbered:1 was unloaded" in error.message for error in failures)
        until(lambda: homes(client, "numbered", 1) == [], what="version 1 has left")
        (home,) = settled(client, "numbered")
        until(lambda: held(client)[home] == 8 * MIB and sum(held(client).values()) == 8 * MIB, SOON)
        crowd.served()


def test_other_files_come_while_it_moves(make_pool: MakePool) -> None:
    """Wherever it ends, every worker that has it has the new ones."""
    pool = make_pool([("numbered", {"nbytes": 8 * MIB}), ("double", {})])
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        _, to = other(client, "numbered")
        with under_way(pool, client, "numbered", to, "LOADING") as failures:
            (pool.base("numbered") / "1" / "bytes").write_text(str(6 * MIB))
            (pool.base("numbered") / "1" / "saved_model.pb").write_text("others")
            seen = client.stats()["messages"]
            until(lambda: client.stats()["messages"] > seen)
            let_go(pool, "numbered")
        assert all(isinstance(error, TfpoolError) for error in failures)
        until(lambda: sorted(held(client).values()) == [0, 6 * MIB], SOON, "the new files' size, once")
        assert len(settled(client, "numbered")) == 1
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()
        crowd.served()


def test_a_cold_model_has_to_be_loaded_first(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"preload": Loading.LAZY}), ("slow", {})])
    with pool.client(timeout=SOON) as client:
        with pytest.raises(
            FailedPrecondition, match=r"double:1 is UNLOADED, expected AVAILABLE; `tfpool load double:1`"
        ):
            migrate(client, "double", "cpu1")
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        _, to = other(client, "double")
        assert migrate(client, "double", to)["workers"] == [to]


def test_a_reload_in_the_middle_of_a_move(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1}), ("double", {})])
    tables = [{"name": name, "base_path": str(pool.base(name))} for name in ("slow", "double")]
    with pool.client(timeout=SOON) as client, Crowd(client) as crowd:
        _, to = other(client, "slow")
        with under_way(pool, client, "slow", to, "LOADING") as failures:
            client.reload({"model": [{**tables[0], "batching": {"max_batch_size": 2}}, tables[1]]}, timeout=SOON)
            let_go(pool, "slow")
        assert all(isinstance(error, FailedPrecondition) for error in failures)
        assert len(settled(client, "slow")) == 1
        assert client.status("slow")[0]["batching"]["max_batch_size"] == 2
        crowd.served()


def _refuses(client: Client) -> bool:
    try:
        client.predict("slow", np.float32([0.0]), timeout=0.5)
    except NotFound:
        return True
    except TfpoolError:
        pass
    return False
