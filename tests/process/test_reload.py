"""Reload, add and remove: all of it or nothing, and nobody who is served notices."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TfpoolError,
    Unavailable,
)
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, Orders, aside, model, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
SOON = 15.0


def table(base: Path | str, name: str = "numbered", **more: Any) -> dict[str, Any]:
    return {"name": name, "base_path": str(base), **more}


def states(client: Client) -> dict[str, str]:
    return {f"{row['name']}:{row['version']}": row["state"] for row in client.models() if row["state"] != "DRAINING"}


def answers(client: Client, model: str = "numbered", **options: Any) -> int:
    return int(client.predict(model, X, timeout=SOON, **options)["y"][0, 0])


# -- reload --------------------------------------------------------------------------------------------------------


def test_everything_changes_at_once(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": (1, 2)}), ("double", {}), ("slow", {})])
    base = pool.base("numbered")
    version(base.with_name("numbered-other"), 5, hold="")
    wanted = {
        "model": [
            table(base, version_policy="all", labels={"stable": "1"}),
            table(base.with_name("numbered-other"), "other"),
            table(pool.base("double"), "double"),
        ]
    }
    with pool.client(timeout=SOON) as client:
        changed: dict[str, Any] = {}
        with aside(lambda: changed.update(client.reload(wanted, timeout=SOON))) as failures:
            until(lambda: client.call("progress")["reload"] == {"versions": 3, "ready": 2}, SOON)
            assert states(client) == {"numbered:2": "AVAILABLE", "double:1": "AVAILABLE", "slow:1": "AVAILABLE"}
            with pytest.raises(NotFound):
                answers(client, version=1)
            with pytest.raises(FailedPrecondition, match="another reload is under way"):
                client.reload(wanted)
            with pytest.raises(FailedPrecondition, match="another reload is under way"):
                client.add(table(base, "more"))
            Orders(base.with_name("numbered-other") / "5").hold.unlink()
        assert failures == []
        assert (changed["added"], changed["removed"]) == (["other"], ["slow"])
        assert {row["name"] for row in changed["models"]} == {"numbered", "other", "double"}
        expected = ("numbered:1", "numbered:2", "other:5", "double:1")
        until(lambda: states(client) == dict.fromkeys(expected, "AVAILABLE"))
        assert (answers(client), answers(client, label="stable"), answers(client, "other")) == (2, 1, 5)
        with pytest.raises(NotFound, match="no model 'slow'"):
            client.predict("slow", np.float32([0.0]))
        version(base, 6)
        until(lambda: "numbered:6" in states(client), SOON)  # it is watched as before


def test_only_labels_change(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": (1, 2), "version_policy": "all"})])
    with pool.client(timeout=SOON) as client:
        loads = client.stats()["loads"]
        client.label("numbered", {"stable": "1", "old": "1"})
        client.reload({"model": [table(pool.base("numbered"), version_policy="all", labels={"stable": "2"})]})
        assert answers(client, label="stable") == 2
        with pytest.raises(NotFound, match="no label 'old'"):
            answers(client, label="old")
        assert client.stats()["loads"] == loads


@pytest.fixture(scope="module")
def one_pool(directory: Path) -> Iterator[FakePool]:
    """One that nothing changes."""
    models = [model(directory, "numbered", versions=(1, 2), nbytes=1 << 20)]
    version(directory / "double-good", 1, nbytes=5 << 20)
    version(directory / "double-torn", 1, fail="torn")
    version(directory / "double-garbled", 1, garbled="no graph")
    with FakePool(directory, models, workers=1) as made:
        yield made


@pytest.mark.parametrize(
    ("bad", "change", "kind", "why"),
    [
        ("torn", {}, FailedPrecondition, "torn:1: .*double-torn/1: torn"),
        ("garbled", {}, FailedPrecondition, "no graph"),
        ("missing", {}, NotFound, "double-missing: no such directory"),
        ("good", {"labels": {"stable": "9"}}, NotFound, "label 'stable' names version 9; .* has 1, 2"),
        ("good", {"version_policy": [7]}, NotFound, "no version that .*7.* asks for"),
        ("good", {"base_path": "/nowhere"}, NotFound, "/nowhere: no such directory"),
    ],
)
def test_nothing_changes_where_something_is_wrong(
    one_pool: FakePool, bad: str, change: dict[str, Any], kind: type[TfpoolError], why: str
) -> None:
    base = one_pool.base("numbered")
    settings = {"batching": {"max_batch_size": 2}, **change}
    names = dict.fromkeys(("good", bad))
    tables = [*(table(base.with_name(f"double-{name}"), name) for name in names), table(base, **settings)]
    with one_pool.client(timeout=SOON) as client:
        before = client.status("numbered")
        with pytest.raises(kind, match=f"nothing was changed: .*{why}"):
            client.reload({"model": tables}, timeout=SOON)
        assert states(client) == {"numbered:2": "AVAILABLE"}
        until(lambda: client.workers()[0]["memory"]["unique"] == BASE_BYTES + (1 << 20))
        until(lambda: client.workers()[0]["models"] == ["numbered:2"])
        after = client.status("numbered")
        for row in (*before, *after):
            for clock in ("meters", "rate", "idle_seconds"):
                row.pop(clock)
        assert after == before
        assert client.call("progress")["reload"] is None
        assert answers(client) == 2


@pytest.mark.parametrize(
    "tables",
    [
        {"model": 3},
        {"model": ["x"]},
        {"model": [{}]},
        {"model": [{"name": "m"}]},
        {"model": [{"name": 5, "base_path": "/m"}]},
        {"model": [{"name": "m", "base_path": "relative"}]},
        {"model": [{"name": "m", "base_path": "/m", "nonsense": 1}]},
        {"model": [{"name": "m", "base_path": "/m", "labels": {"": "1"}}]},
        {"model": [{"name": "m", "base_path": "/m", "pin": ["nobody"]}]},
        {"model": [{"name": "m", "base_path": "/m", "batching": {"max_batch_size": -1}}]},
        {"model": [{"name": "m", "base_path": "/m"}, {"name": "m", "base_path": "/n"}]},
        {"server": {}},
    ],
)
def test_garbage_is_refused(one_pool: FakePool, tables: Any) -> None:
    with one_pool.client(timeout=SOON) as client:
        with pytest.raises(InvalidArgument):
            client.admin("reload", tables=tables)
        if isinstance(tables.get("model"), list) and len(tables["model"]) == 1:
            with pytest.raises(InvalidArgument):
                client.admin("add", model=tables["model"][0])
        assert states(client) == {"numbered:2": "AVAILABLE"}


def test_a_moved_model_with_the_same_version(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": (2,)}), ("double", {})])
    base = pool.base("numbered")
    version(base.with_name("double-moved"), 2)
    stop, failures = threading.Event(), []

    def ask() -> None:
        with pool.client(timeout=SOON) as asking:
            while not stop.is_set():
                try:
                    asking.predict("numbered", X)
                except TfpoolError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    with pool.client(timeout=SOON) as client:
        client.reload({"model": [table(base.with_name("double-moved"))]}, timeout=SOON)
        assert set(client.predict("numbered", X)) == {"y"}, "the one that doubles"
        assert client.status("numbered")[-1]["base_path"] == str(base.with_name("double-moved"))
        version(base.with_name("double-moved"), 3)
        until(lambda: states(client) == {"numbered:3": "AVAILABLE"}, SOON)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_worker_dies_while_a_reload_loads(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {})], workers=1)
    base = pool.base("numbered")
    version(base.with_name("double-new"), 1, hold="")
    with pool.client(timeout=SOON) as client:
        with aside(lambda: client.add(table(base.with_name("double-new"), "new"), timeout=SOON)) as failures:
            until(lambda: "new:1" in client.workers()[0]["models"], SOON)
            os.kill(client.workers()[0]["pid"], 9)
            until(lambda: client.workers()[0]["deaths"] == 1)
            Orders(base.with_name("double-new") / "1").hold.unlink()
        assert failures == []
        assert answers(client) == 1
        assert answers(client, "new") == 2
        version(base.with_name("killer"), 1)
        with pytest.raises(TfpoolError, match=r"nothing was changed: .*killed 2 workers"):
            client.add(table(base.with_name("killer"), "killer"), timeout=SOON)
        until(lambda: states(client) == {"numbered:1": "AVAILABLE", "new:1": "AVAILABLE"}, SOON)


def test_batching_changes_live(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"max_queue_rows": 100})])
    base = pool.base("numbered")
    with pool.client(timeout=SOON) as client:
        loads = client.stats()["loads"]
        client.reload({"model": [table(base, batching={"max_batch_size": 2, "max_queue_rows": 4})]})
        assert client.stats()["loads"] == loads
        assert client.status("numbered")[0]["batching"]["max_batch_size"] == 2
        with pytest.raises(ResourceExhausted, match="has 5 rows, more than max_queue_rows"):
            client.predict("numbered", np.ones((5, 4), np.float32))
        assert client.predict("numbered", np.ones((4, 4), np.float32))["y"].shape == (4, 4)
        made = version(base, 3, hold="", batching="max_batch_size { value: 64 }")
        Orders(made).hold.unlink()
        until(lambda: states(client) == {"numbered:3": "AVAILABLE"}, SOON)
        client.reload({"model": [table(base, batching={"max_batch_size": 3, "max_queue_rows": 4})]})
        found = next(row for row in client.status("numbered") if row["version"] == 3)["batching"]
        assert (found["max_batch_size"], found["max_queue_rows"]) == (64, 640), "what a version says of itself stays"
        version(base, 4, batching="max_batch_size { value: -1 }")
        until(lambda: states(client) == {"numbered:3": "AVAILABLE", "numbered:4": "FAILED"}, SOON)


# -- add and remove ------------------------------------------------------------------------------------------------


def test_models_are_added_and_removed(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {})])
    base = pool.base("numbered")
    version(base.with_name("double"), 1)
    with pool.client(timeout=SOON) as client:
        added = client.add(table(base.with_name("double"), "double"), timeout=SOON)
        assert (added["added"], [row["state"] for row in added["models"]]) == (["double"], ["AVAILABLE"])
        assert answers(client, "double") == 2
        assert client.add(table(base.with_name("double"), "double"))["added"] == [], "it is there already"
        with pytest.raises(FailedPrecondition, match=f"there is a model 'double' already, at {base.parent}/double"):
            client.add(table(base, "double"))
        assert client.remove("double") == {"name": "double", "removed": True}
        with pytest.raises(NotFound, match="no model 'double'; there are numbered"):
            client.remove("double")
        assert all("double:1" not in worker["models"] for worker in client.workers())
        assert client.add(table(base.with_name("double"), "double", preload=False))["models"][0]["state"] == "UNLOADED"
        assert answers(client, "double") == 2
        assert client.add(table(base.with_name("double"), "third", preload="explicit"))["added"] == ["third"]
        with pytest.raises(NotFound, match="third:1 is unloaded"):
            answers(client, "third")


def test_a_model_is_removed_under_load(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1}), ("numbered", {"garbled": "x"})], workers=1, load_retries=0)
    with pool.client(timeout=SOON) as client:
        waiting = [client.submit("slow", np.float32([0.03])) for _ in range(10)]
        until(lambda: client.stats()["shm"]["leased"])
        with aside(lambda: client.remove("slow")) as failures:
            until(lambda: all(row["name"] != "slow" for row in client.models()))
            with pytest.raises(NotFound, match="no model 'slow'"):
                client.predict("slow", np.float32([0.0]))
        assert failures == []
        assert [reply.result(0)["y"][0] for reply in waiting] == [np.float32(0.03)] * 10
        client.remove("numbered")
        assert client.models() == []
        assert client.wait_ready(SOON) == {"models": 0, "failed": []}


def test_only_what_lies_in_allowed_roots_is_added(make_pool: MakePool, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "inner"
    version(inside / "double", 1)
    version(outside / "double", 1)
    (inside / "link").symlink_to(outside / "double")
    (outside / "double-back").symlink_to(inside / "double")
    pool = make_pool([("numbered", {})], server={"allowed_roots": (str(inside),)})
    with pool.client(timeout=SOON) as client:
        assert client.add(table(inside / "double", "good"))["added"] == ["good"]
        assert client.add(table(outside / "double-back", "back"))["added"] == ["back"]
        for path in (outside / "double", inside / "link", inside / ".." / "inner" / "double", "/"):
            with pytest.raises(PermissionDenied, match=r"nothing was changed: .* is outside of allowed_roots"):
                client.add(table(path, "bad"))
        assert {row["name"] for row in client.models()} == {"numbered", "good", "back"}


def test_those_who_ask_for_changes_may_leave(make_pool: MakePool) -> None:
    """What was begun goes on; the next comes in its turn."""
    pool = make_pool([("numbered", {})])
    base = pool.base("numbered")
    version(base.with_name("double"), 1, hold="")
    with pool.client(timeout=SOON) as client:
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.add(table(base.with_name("double"), "double"), timeout=0.2)
        Orders(base.with_name("double") / "1").hold.unlink()
        until(lambda: states(client).get("double:1") == "AVAILABLE", SOON)
        client.remove("double")


def test_links_that_lead_out_of_allowed_roots(make_pool: MakePool, tmp_path: Path) -> None:
    """A version with one fails alone, and says so; where the configuration itself says that models are is allowed."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    version(inside / "double", 1)
    version(outside / "double", 7)
    (inside / "double" / "2").symlink_to(outside / "double" / "7")
    pool = make_pool([("numbered", {"version_policy": "all"})], server={"allowed_roots": (str(inside),)})
    with pool.client(timeout=SOON) as client:
        with pytest.raises(PermissionDenied, match=r"nothing was changed: .*/2 leads to .*/7, which is outside"):
            client.add(table(inside / "double", "double", version_policy="all"))
        assert client.add(table(inside / "double", "double", version_policy=[1]))["added"] == ["double"]
        version(pool.base("numbered"), 2)
        (pool.base("numbered") / "3").symlink_to(outside / "double" / "7")
        (pool.base("numbered") / "4").symlink_to(pool.base("numbered") / "2")
        (pool.base("numbered") / "5").symlink_to(inside / "double" / "1")

        def states() -> dict[int, str]:
            return {row["version"]: row["state"] for row in client.status("numbered")}

        until(lambda: states().get(3) == "FAILED" and set(states()) == {1, 2, 3, 4, 5})
        until(lambda: [states()[n] for n in (1, 2, 4, 5)] == ["AVAILABLE"] * 4)
        (failed,) = [row for row in client.status("numbered") if row["version"] == 3]
        assert f"leads to {outside}/double/7, which is outside of allowed_roots" in str(failed["error"])
