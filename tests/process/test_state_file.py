"""What was changed at run time comes back: after a broker's death, and with a state file after a restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import NotFound
from tfpool.testing.fake_worker import FakePool, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
SOON = 15.0


def states(client: Client) -> dict[str, str]:
    return {f"{row['name']}:{row['version']}": row["state"] for row in client.models() if row["state"] != "DRAINING"}


def answers(client: Client, model: str = "numbered", **options: str) -> int:
    return int(client.predict(model, X, timeout=SOON, **options)["y"][0, 0])  # type: ignore[arg-type]


def change(pool: FakePool) -> None:
    """Some of everything that can be changed at run time."""
    base = pool.base("numbered")
    version(base.with_name("double-more"), 1)
    version(base.with_name("double-never"), 1)
    with pool.client(timeout=SOON) as client:
        client.add({"name": "more", "base_path": str(base.with_name("double-more"))}, timeout=SOON)
        client.add({"name": "never", "base_path": str(base.with_name("double-never"))}, timeout=SOON)
        client.remove("never")
        client.remove("slow")
        client.label("numbered", {"stable": "1", "prod": "1:3,2:1"})
        client.shadow("numbered", "1:50")
        client.unload("double")
        client.shadow("more", None)


def check(client: Client) -> None:
    expected = {"numbered:1": "AVAILABLE", "numbered:2": "AVAILABLE", "more:1": "AVAILABLE", "double:1": "UNLOADED"}
    assert states(client) == expected
    assert (answers(client, label="stable"), answers(client, "more")) == (1, 2)
    assert client.status("numbered")[0]["label_splits"] == {"stable": "1", "prod": "1:3,2:1"}
    assert client.status("numbered")[0]["shadow"]["share"] == 0.5
    with pytest.raises(NotFound, match="double:1 is unloaded"):
        client.predict("double", X)
    with pytest.raises(NotFound, match="no model 'slow'"):
        client.predict("slow", X)


MODELS = [("numbered", {"versions": (1, 2), "version_policy": "all"}), ("double", {}), ("slow", {})]


def test_a_new_broker_knows_what_was_changed(make_pool: MakePool) -> None:
    pool = make_pool(MODELS)
    change(pool)
    for _ in range(2):
        pool.kill_broker('"double", 1')
        with pool.client(timeout=SOON) as client:
            check(client)
            shown = client.workers()
            assert sum(len(worker["models"]) for worker in shown) == 3
    pool.close()
    assert not list(pool.directory.glob("*.state*")), "without a state file, nothing is left"
    pool.start()
    with pool.client(timeout=SOON) as client:
        assert set(states(client)) == {"numbered:1", "numbered:2", "double:1", "slow:1"}


def test_a_state_file_outlives_the_pool(make_pool: MakePool, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    pool = make_pool(MODELS, server={"state_file": str(file)})
    change(pool)
    pool.close()
    assert '"double", 1' in file.read_text(), "what was changed last is written at the end"
    pool.start()
    with pool.client(timeout=SOON) as client:
        check(client)
        assert client.load("double", timeout=SOON)["state"] == "AVAILABLE"
        base = pool.base("numbered")
        tables = {"model": [{"name": "numbered", "base_path": str(base)}], "batching": {"max_batch_size": 7}}
        client.reload(tables, timeout=SOON)
    pool.close()
    pool.start()
    with pool.client(timeout=SOON) as client:
        assert states(client) == {"numbered:2": "AVAILABLE"}
        assert client.status("numbered")[0]["label_splits"] == {}
        assert client.status("numbered")[0]["batching"]["max_batch_size"] == 7, "as the reload had it"


@pytest.mark.parametrize("content", ["", '{"version": 99}', '{"version": 1, "labels": 3}'])
def test_a_state_file_that_is_damaged_is_set_aside(make_pool: MakePool, tmp_path: Path, content: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(content)
    pool = make_pool([("double", {})], server={"state_file": str(file)}, workers=1)
    with pool.client(timeout=SOON) as client:
        assert answers(client, "double") == 2
    assert file.with_name("state.json.corrupt").read_text() == content
    pool.close()
    assert json.loads(file.read_text())["version"] == 1


def test_what_no_longer_makes_sense_is_passed_over(make_pool: MakePool, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    known = {
        "version": 1,
        "labels": {"nobody": {"x": "1"}, "double": {"stable": "1"}},
        "models": {"odd": {"name": "odd", "base_path": "/odd", "nonsense": 1}},
        "removed": ["ghost"],
        "unloaded": [["ghost", 1], ["double", 99]],
    }
    file.write_text(json.dumps(known))
    pool = make_pool([("double", {})], server={"state_file": str(file)}, workers=1)
    with pool.client(timeout=SOON) as client:
        assert states(client) == {"double:1": "AVAILABLE"}
        assert answers(client, "double", label="stable") == 2
    assert "memory.ignored" in pool.log()


def test_models_of_a_root_come_and_go(make_pool: MakePool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    version(root / "double", 1)
    (root / "notes").mkdir()
    (root / ".hidden").mkdir()
    (root / "file").touch()
    pool = make_pool([("numbered", {})], server={"models_root": str(root)})
    with pool.client(timeout=SOON) as client:
        assert states(client) == {"numbered:1": "AVAILABLE", "double:1": "AVAILABLE"}, "from the first moment"
        version(root / "add-up", 1)
        version(root / "numbered", 9)  # a name that is taken
        until(lambda: states(client).get("add-up:1") == "AVAILABLE", SOON)
        assert answers(client) == 1
        client.label("double", {"stable": "1"})
        shutil.rmtree(root / "double")
        until(lambda: "double:1" not in states(client), SOON)
        with pytest.raises(NotFound, match="no model 'double'"):
            answers(client, "double")
        version(root / "double", 2)
        until(lambda: states(client).get("double:2") == "AVAILABLE", SOON)
        client.remove("double")
        version(root / "double", 3)
        version(root / "echo", 1)
        until(lambda: states(client).get("echo:1") == "AVAILABLE", SOON)
        assert not [name for name in states(client) if name.startswith("double")], "what was removed stays away"
    pool.kill_broker("removed")
    with pool.client(timeout=SOON) as client:
        assert set(states(client)) == {"numbered:1", "add-up:1", "echo:1"}
        client.add({"name": "double", "base_path": str(root / "double")}, timeout=SOON)
        assert states(client)["double:3"] == "AVAILABLE"
        root.rename(tmp_path / "away")
        assert answers(client, "double") == 2
        assert answers(client) == 1
