"""The planner in a pool that is asked: models come to where they are needed, and leave where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.placement.journal import Entry, Reader
from tfpool.placement.snapshot import Kind, Step
from tfpool.settings import PlacementPolicy
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, loads, until
from tfpool.testing.moving import Crowd, held, homes, migrate, migrations, pids, settled, steady

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 20.0
LATER = 60.0
AUTO = {"policy": PlacementPolicy.AUTO, "interval_s": 0.1, "hysteresis": 1.0}
SLOW = {"max_batch_size": 1}


def filled(nbytes: int) -> int:
    """The budget of which loads may fill so many bytes."""
    return (BASE_BYTES + nbytes) * 10 // 9


def light(dice: np.random.Generator) -> Any:
    """A row that is done at once."""
    return dice.random(1, np.float32) * np.float32(1e-6)


def plan(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.call("plan")
    return found


def together(client: Client, models: list[str], at: str = "cpu0") -> None:
    """Have one worker hold all of these."""
    for model in models:
        if settled(client, model) != [at]:
            migrate(client, model, at)


def decisions(journal: Path) -> list[Entry]:
    """The lines that are whole."""
    reader = Reader()
    text = journal.read_text() if journal.exists() else ""
    return [reader.read(line) for line in text.rpartition("\n")[0].splitlines()]


def steps(journal: Path) -> list[Step]:
    return [entry.step for entry in decisions(journal) if entry.step is not None]


# -- by itself -----------------------------------------------------------------------------------------------------


def test_a_hot_model_has_a_second_replica_while_it_is_hot(make_pool: MakePool) -> None:
    pool = make_pool([("slow", SLOW), ("double", {})], placement=AUTO)
    with pool.client(timeout=SOON) as client:
        assert len(settled(client, "slow")) == 1
        with Crowd(client, "slow", 1, steady, lanes=8) as crowd:
            until(lambda: len(homes(client, "slow")) == 2, LATER, "it has a second replica")
            crowd.served()
            busy = {row["name"]: row["busy"] for row in client.workers()}
            until(lambda: min(row["busy"] for row in client.workers()) > 0.5, LATER, f"both work: {busy}")
        until(lambda: len(homes(client, "slow")) == 1, LATER, "one of them has left")
        assert client.predict("slow", np.float32([0.0]))["y"].tolist() == [0.0]
        kinds = [row["kind"] for row in migrations(client, "slow")]
        assert (kinds[0], kinds[-1]) == ("replicate", "drop")
        assert {row["by"] for row in migrations(client)} == {"planner"}
        assert all(row["reason"] for row in migrations(client))


def test_no_more_replicas_than_the_settings_allow(make_pool: MakePool) -> None:
    models = [("slow", {**SLOW, "replicas": (1, 1)}), ("slow", {**SLOW, "name": "two"})]
    pool = make_pool(models, workers=3, placement={**AUTO, "max_replicas": 2})
    with (
        pool.client(timeout=SOON) as client,
        Crowd(client, "slow", 1, steady, lanes=8),
        Crowd(client, "two", 1, steady, lanes=16) as crowd,
    ):
        until(lambda: len(homes(client, "two")) == 2, LATER, "it has a second replica")
        crowd.served(200)
        assert (len(homes(client, "slow")), len(homes(client, "two"))) == (1, 2)


def test_a_model_leaves_a_worker_that_is_too_busy(make_pool: MakePool) -> None:
    once = {**SLOW, "replicas": (1, 1)}
    pool = make_pool([("slow", {**once, "name": "a"}), ("slow", {**once, "name": "b"}), ("double", {})], placement=AUTO)
    with pool.client(timeout=SOON) as client:
        together(client, ["a", "b"])
        with Crowd(client, "a", 1, steady, lanes=4) as one, Crowd(client, "b", 1, steady, lanes=4) as other:
            until(lambda: homes(client, "a") != homes(client, "b"), LATER, "they are apart")
            one.served(32)
            other.served(32)
            before = len(migrations(client))
            one.served(50)
            moves = [row for row in migrations(client)[before:] if row["model"] in "ab"]
            assert moves == [], "and stay so"


def test_room_is_made_where_all_that_is_free_lies_apart(make_pool: MakePool, tmp_path: Path) -> None:
    """Two workers have 20 MiB left each: one of their models, which are in use, moves to the other one, so that 30 MiB
    find room."""
    once = {**SLOW, "nbytes": 20 * MIB, "replicas": (1, 1)}
    pool = make_pool(
        [("slow", {"name": "a", **once}), ("slow", {"name": "b", **once}), ("numbered", {"nbytes": 30 * MIB})],
        memory=filled(42 * MIB),
        placement=AUTO,
        server={"state_file": str(tmp_path / "state")},
    )
    pool.close()
    pool.start()  # all sizes are known from now on
    with (
        pool.client(timeout=LATER) as client,
        Crowd(client, "a", 1, light, lanes=1) as one,
        Crowd(client, "b", 1, light, lanes=1) as other,
    ):
        until(lambda: len(homes(client, "numbered")) == 1, LATER, "it has found room")
        assert settled(client, "a") == settled(client, "b") != settled(client, "numbered")
        (move,) = (row for row in migrations(client) if row["kind"] == "migrate")
        assert "to make room for numbered:1" in move["reason"]
        assert client.stats()["evictions"] == 0
        one.served()
        other.served()
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()
        assert max(held(client).values()) <= 42 * MIB


def test_what_may_leave_memory_does_and_wakes(make_pool: MakePool) -> None:
    """What shall have a replica stays, though nobody asks for it."""
    kinds = [("double", {"replicas": (0, 1), "nbytes": 4 * MIB}), ("numbered", {"nbytes": 4 * MIB}), ("slow", SLOW)]
    pool = make_pool(kinds, placement={**AUTO, "idle_s": 0.5})
    with pool.client(timeout=SOON) as client:
        for count in (1, 2):
            assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
            assert len(loads(pool.base("double"))) == count
            until(lambda: homes(client, "double") == [], LATER, "nobody asks for it")
            until(lambda: sum(held(client).values()) == 4 * MIB, SOON, "its memory comes back")
            assert client.status("double")[0]["state"] == "UNLOADED"
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        evicted = [row for row in migrations(client, "double") if row["kind"] == "evict"]
        assert len(evicted) == 2
        assert "nobody has asked" in evicted[0]["reason"]
        assert len(homes(client, "numbered")) == 1


# -- when it is told to keep out of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PlacementPolicy.STATIC, PlacementPolicy.ADVISE])
def test_nothing_moves_by_itself_where_it_shall_not(
    make_pool: MakePool, tmp_path: Path, policy: PlacementPolicy
) -> None:
    journal = tmp_path / "journal"
    pool = make_pool([("slow", SLOW), ("double", {})], placement={**AUTO, "policy": policy, "journal": str(journal)})
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, steady, lanes=8):
        home = settled(client, "slow")
        until(lambda: any(step["model"] == "slow" for step in plan(client)["steps"]), LATER, "it is seen")
        seen = len(client.call("plan")["migrations"]), client.stats()["loads"]
        until(lambda: len(steps(journal)) >= 5, LATER, "it would be moved")
        assert (len(client.call("plan")["migrations"]), client.stats()["loads"]) == seen
        assert settled(client, "slow") == home


def test_a_plan_is_carried_out_when_somebody_says_so(make_pool: MakePool) -> None:
    pool = make_pool([("slow", SLOW), ("double", {})], placement={**AUTO, "policy": PlacementPolicy.ADVISE})
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, steady, lanes=8) as crowd:
        shown = until(lambda: plan(client)["steps"], LATER, "there is something to do")
        assert shown[0]["kind"] == "replicate"
        assert shown[0]["model"] == "slow"
        assert shown[0]["gain"] > shown[0]["cost"]
        done = client.admin("apply", timeout=LATER)["steps"]
        assert [step["outcome"] for step in done] == ["DONE"] * len(done)
        assert done[0]["kind"] == "replicate"
        assert len(homes(client, "slow")) == 2
        assert {row["by"] for row in migrations(client)} == {"plan"}
        crowd.served()


# -- what is written down ------------------------------------------------------------------------------------------


def test_decisions_are_written_down(make_pool: MakePool, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    pool = make_pool([("slow", SLOW), ("double", {})], placement={**AUTO, "journal": str(journal)})
    with pool.client(timeout=SOON) as client:
        with Crowd(client, "slow", 1, steady, lanes=8):
            until(lambda: len(homes(client, "slow")) == 2, LATER)
        pool.kill_broker()
        until(lambda: decisions(journal))
    assert pool.close() == 0
    assert Kind.REPLICATE in [step.kind for step in steps(journal)]
    assert {view.name for view in decisions(journal)[-1].snapshot.workers} == {"cpu0", "cpu1"}


def test_a_journal_that_cannot_be_written_stops_nobody(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    pool = make_pool([("slow", SLOW)], placement={**AUTO, "journal": str(tmp_path / "journal")})
    with pool.client(timeout=SOON) as client, Crowd(client, "slow", 1, steady, lanes=8) as crowd:
        until(lambda: len(homes(client, "slow")) == 2, LATER)
        crowd.served()
        assert len(pids(client)) == 2
