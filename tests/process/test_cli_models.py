"""Commands that change models, on a live pool: their texts, their JSON, their exit statuses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tfpool.cli.main import main
from tfpool.client.sync import Client
from tfpool.testing.fake_worker import FakePool, model, until, version

pytestmark = pytest.mark.process
X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[FakePool]:
    with FakePool(directory, [model(directory, "numbered", versions=(1, 2), version_policy="all")]) as made:
        yield made


class Shell:
    """Types commands, for one pool."""

    def __init__(self, pool: FakePool) -> None:
        self._runner = CliRunner(env={"TFPOOL_ENDPOINT": pool.endpoint, "TFPOOL_ADMIN": pool.admin})

    def __call__(self, *words: str, status: int = 0) -> str:
        """What a command prints on stdout; with another ``status``, its error."""
        result = self._runner.invoke(main, list(words))
        assert result.exit_code == status, (result.output, result.exception)
        return result.stderr if status else result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(pool: FakePool) -> Shell:
    return Shell(pool)


def test_label(shell: Shell) -> None:
    assert shell("label", "numbered") == "numbered has no label\n"
    assert shell("label", "numbered", "stable=1", "prod=1:90,2:10") == "stable = 1\nprod = 1:90,2:10\n"
    assert shell.json("label", "numbered") == {"name": "numbered", "labels": {"stable": "1", "prod": "1:90,2:10"}}
    assert shell("label", "numbered", "--remove", "prod") == "stable = 1\n"
    assert "expected a version that serves" in shell("label", "numbered", "x=9", status=1)
    assert "has no label 'prod'; it has stable" in shell("label", "numbered", "--remove", "prod", status=1)
    assert "expected LABEL=VERSION" in shell("label", "numbered", "stable", status=2)
    assert shell.json("label", "numbered", "--remove", "stable") == {"name": "numbered", "labels": {}}


def test_add_and_remove(shell: Shell, pool: FakePool) -> None:
    base = pool.base("numbered").with_name("double")
    version(base, 1, nbytes=5 << 20)
    assert re.fullmatch(r"double:1 serves on cpu\d \(load: .*, 5.*MB\)\n", shell("add", f"double={base}"))
    assert shell("remove", "double") == "double is removed\n"
    assert "no model 'double'; there are numbered" in shell("remove", "double", status=1)
    assert shell("add", f"double={base}", "--lazy") == "double:1 is there, and UNLOADED\n"
    (row,) = shell.json("add", f"double={base}", "--lazy")
    assert (row["name"], row["version"], row["loaded"], row["state"]) == ("double", 1, "on demand", "UNLOADED")
    assert "there is a model 'double' already" in shell("add", f"double={base}", status=1)
    assert shell.json("remove", "double") == {"name": "double", "removed": True}
    assert "nothing was changed: new: /nowhere: no such directory" in shell("add", "new=/nowhere", status=1)
    assert shell("add", "new", status=2)


def test_load_and_unload(shell: Shell) -> None:
    assert shell("unload", "numbered:1") == "numbered:1 is unloaded\n"
    (row,) = shell.json("unload", "numbered:1")
    assert (row["state"], row["loaded"], row["workers"]) == ("UNLOADED", "off", [])
    assert re.match(r"numbered:1 serves on cpu\d \(load: ", shell("load", "numbered:1"))
    assert shell.json("load", "numbered:1")["state"] == "AVAILABLE"
    assert "has no version 9; it has 1, 2" in shell("load", "numbered:9", status=1)


def test_reload(shell: Shell, pool: FakePool, tmp_path: Path) -> None:
    base = pool.base("numbered")
    other = base.with_name("double-other")
    version(other, 1)
    file = tmp_path / "pool.toml"
    tables = [f'[[model]]\nname = "numbered"\nbase_path = "{base}"\nversion_policy = "all"\n']
    file.write_text("\n".join([*tables, f'[[model]]\nname = "other"\nbase_path = "{other}"\n']))
    assert shell("reload", str(file)) == "reloaded: 2 models, 1 model added\n"
    file.write_text(tables[0])
    changed = shell.json("reload", str(file))
    assert (changed["added"], changed["removed"], len(changed["models"])) == ([], ["other"], 2)
    tfs = tmp_path / "models.config"
    tfs.write_text(f'model_config_list {{ config {{ name: "numbered" base_path: "{base}" }} }}')
    assert shell("reload", str(tfs)) == "reloaded: 1 model\n"
    until(lambda: [row["version"] for row in shell.json("models")] == [2])
    file.write_text('[[model]]\nname = "numbered"\nbase_path = "/nowhere"\n')
    assert "nothing was changed: " in shell("reload", str(file), status=1)
    assert "no such file" in shell("reload", str(tmp_path / "none.toml"), status=1)
    file.write_text("\n".join(tables))
    shell("reload", str(file))


def test_shadow(shell: Shell, pool: FakePool) -> None:
    assert shell("shadow", "numbered") == "numbered has no shadow\n"
    begun = "numbered sends 1 of its requests to version 1 too: 0 compared, greatest difference 0\n"
    assert shell("shadow", "numbered", "1:100") == begun
    with pool.client() as client:
        client.predict("numbered", X)
    until(lambda: shell.json("shadow", "numbered")["shadow"]["compared"] == 1)
    line = shell("shadow", "numbered")
    assert line == (
        "numbered sends 1 of its requests to version 1 too: 1 compared, greatest difference 1, "
        "argmax differs in 0 of 2 rows\n"
    )
    assert "1 compared" in shell("shadow", "numbered", "--off")
    assert shell.json("shadow", "numbered") == {"name": "numbered", "shadow": None}
    assert shell("shadow", "numbered", "1:5", "--off", status=2)
    assert "expected VERSION:PERCENT" in shell("shadow", "numbered", "1", status=1)


def test_record(shell: Shell, pool: FakePool, tmp_path: Path) -> None:
    file = tmp_path / "requests"
    stop = threading.Event()

    def ask() -> None:
        with pool.client() as client:
            while not stop.is_set():
                client.predict("numbered", X)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wrote = shell("record", "numbered", "--count", "3", "-o", str(file))
        assert wrote == f"wrote 3 requests of numbered:2 to {file}\n"
        assert "is there already; write over it with --force" in shell("record", "numbered", "-o", str(file), status=1)
        written = shell.json("record", "numbered:2", "--count", "2", "-o", str(file), "--force")
        assert written == {"model": "numbered", "version": 2, "file": str(file), "records": 2}
    finally:
        stop.set()
        thread.join()
    assert "answered no request in 0.2 s: nothing written" in shell(
        "record", "numbered", "--seconds", "0.2", "-o", str(tmp_path / "none"), status=1
    )
    assert not (tmp_path / "none").exists()


def test_every_state_is_shown(shell: Shell, pool: FakePool) -> None:
    base = pool.base("numbered")
    failing = version(base.with_name("double-failing"), 1, fail="torn")
    shell("add", f"failing={failing.parent}", status=1)
    held = version(base, 3, hold="")
    until(lambda: [row["state"] for row in shell.json("models")] == ["AVAILABLE", "AVAILABLE", "LOADING"])
    assert "LOADING" in shell("models")
    broken = version(base, 4, fail="torn")
    until(lambda: [row["version"] for row in shell.json("models")] == [1, 2, 3, 4])
    (held / "hold").unlink()
    until(lambda: [row["state"] for row in shell.json("models")] == ["AVAILABLE"] * 3 + ["FAILED"])
    rows = shell.json("models")
    assert rows[3]["error"] == f"{broken}: torn"
    assert [row["workers"] != [] for row in rows] == [True, True, True, False]
    assert all(row["load_seconds"] is not None for row in rows[:3])
    assert "torn" in shell("models")
    assert "torn" in shell("status", "numbered")
    client: Client
    with pool.client() as client:
        assert client.predict("numbered", X)["y"][0, 0] == 3
