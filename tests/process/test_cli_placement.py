"""plan, migrate and restart on a live pool: their texts, their JSON, their exit statuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tfpool.cli.main import main
from tfpool.testing.fake_worker import FakePool, aside, model, until
from tfpool.testing.moving import Crowd, steady

pytestmark = pytest.mark.process
MIB = 1 << 20
X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[FakePool]:
    """Two workers; nothing moves by itself."""
    models = [
        model(directory, "double", nbytes=8 * MIB),
        model(directory, "echo"),
        model(directory, "slow", max_batch_size=1),
    ]
    with FakePool(directory, models, memory=1 << 30) as made:
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

    def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in self.json("workers")}

    def home(self, name: str) -> str:
        """The one worker that holds a model, once it is one."""
        found: list[str] = until(lambda: len(on := self.json("status", name)[0]["workers"]) == 1 and on)
        return found[0]


@pytest.fixture
def shell(pool: FakePool) -> Shell:
    return Shell(pool)


def away(shell: Shell, name: str) -> tuple[str, str]:
    """Where a model is, and where it is not."""
    home = shell.home(name)
    return home, next(worker for worker in shell.pids() if worker != home)


def test_migrate(shell: Shell) -> None:
    home, to = away(shell, "double")
    said = shell("migrate", "double", "--to", to)
    assert re.fullmatch(rf"double:1 serves on {to} \(load: .+, 8\.4 MB; moved in .+\)\n", said)
    assert shell.home("double") == to
    assert f"move double:1 {home} -> {to}\n" in shell("plan", "--history")
    row = shell.json("migrate", "double:1", "--from", to, "--to", home)
    assert (row["name"], row["version"], row["workers"]) == ("double", 1, [home])
    assert row["seconds"] > 0
    assert row["load_seconds"] >= 0
    moves = shell.json("plan", "--history")[-2:]
    assert [(move["source"], move["target"], move["phase"], move["by"]) for move in moves] == [
        (home, to, "DONE", "hand"),
        (to, home, "DONE", "hand"),
    ]


def test_what_cannot_be_migrated(shell: Shell) -> None:
    home, to = away(shell, "echo")
    assert "no worker 'cpu9'; there are cpu0, cpu1" in shell("migrate", "echo", "--to", "cpu9", status=1)
    assert "no model 'none'" in shell("migrate", "none", "--to", to, status=1)
    assert f"echo:1 is on {home} already" in shell("migrate", "echo", "--to", home, status=1)
    assert f"cannot leave {to}" in shell("migrate", "echo", "--to", home, "--from", to, status=1)
    assert "has no version 7" in shell("migrate", "echo:7", "--to", to, status=1)
    assert shell.home("echo") == home


def test_a_migration_is_seen_while_it_is_under_way(shell: Shell, pool: FakePool) -> None:
    home, to = away(shell, "echo")
    hold = pool.base("echo") / "1" / "hold"
    hold.write_text("")
    try:
        with aside(lambda: shell("migrate", "echo", "--to", to)) as errors:
            until(lambda: any(move["phase"] == "LOADING" for move in shell.json("plan", "--history")))
            assert re.search(rf" LOADING +.* hand +move echo:1 {home} -> {to}\n", shell("plan"))
            assert re.search(r" LOADING ", shell("top", "--count", "1", "--interval", "0.01"))
            hold.unlink()
    finally:
        hold.unlink(missing_ok=True)
    assert errors == []
    assert shell.home("echo") == to


def test_nothing_to_do(shell: Shell) -> None:
    found = shell.json("plan")
    assert (found["policy"], found["steps"]) == ("static", [])
    assert [row["name"] for row in found["workers"]] == ["cpu0", "cpu1"]
    text = shell("plan")
    assert text.startswith(f"nothing to do: {found['note']}\n")
    assert re.search(r"^cpu0 +\S* +\d+ % of \d+\.\d MB +\S* +\d+ %$", text, re.MULTILINE)
    assert shell("plan", "--apply").startswith("nothing to do")
    assert shell.json("plan", "--apply") == {"steps": []}


def test_a_plan_is_carried_out(shell: Shell, pool: FakePool) -> None:
    home = shell.home("slow")
    with pool.client(timeout=20.0) as client, Crowd(client, "slow", factor=1, draw=steady, lanes=8) as crowd:
        (step, *_) = until(lambda: shell.json("plan")["steps"], 20.0)
        assert step["model"] == "slow"
        assert "slow:1" in shell("plan", "--dry-run")
        assert shell.home("slow") == home
        text = shell("plan", "--apply")
        assert "\nreplicate slow:1 on " in text
        assert re.search(r"\d+ steps? done\n$", text)
        crowd.served()
    assert len(shell.json("status", "slow")[0]["workers"]) == 2
    assert any(move["by"] == "plan" for move in shell.json("plan", "--history"))


def test_workers_are_replaced(shell: Shell) -> None:
    before = shell.pids()
    assert re.search(r"^cpu0 is back with pid \d+ and \d models?\n$", shell("restart", "cpu0"), re.MULTILINE)
    between = shell.pids()
    assert between["cpu0"] != before["cpu0"]
    assert between["cpu1"] == before["cpu1"]
    said = shell("restart", "--all")
    assert re.search(r"^cpu0 is back with .*\ncpu1 is back with .*\n$", said, re.MULTILINE)
    rows = shell.json("restart", "--all")
    assert {row["name"] for row in rows} == {"cpu0", "cpu1"}
    assert all(row["pid"] not in {*before.values(), *between.values()} for row in rows)
    assert {row["state"] for row in shell.json("models")} == {"AVAILABLE"}
    assert "no worker 'cpu9'" in shell("restart", "cpu9", status=1)


def test_status_tells_what_is_asked(shell: Shell, pool: FakePool) -> None:
    with pool.client() as client:
        client.predict("double", X)
        until(lambda: client.predict("double", X) and shell.json("status", "double")[0]["rate"]["asks"] > 0)
    text = shell("status", "double")
    assert re.search(r"^  asked for: .* req/s, .* rows/s; slower average: ", text, re.MULTILINE)
    assert re.search(r"^  replicas: 1, may be 1 to 2$", text, re.MULTILINE)
    (row,) = [row for row in shell.json("models") if row["name"] == "double"]
    assert row["replicas"] == [1, 2]


def test_drain(shell: Shell) -> None:
    assert shell("drain", "cpu1") == "cpu1 holds no model any more\n"
    assert all("cpu1" not in row["workers"] for row in shell.json("models"))
    home, _ = away(shell, "echo")
    assert home == "cpu0"
