"""The commands, as programs, against a pool that ``python -m tfpool serve`` started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.process
Members = Callable[[int], list[int]]


@dataclass
class Served:
    """A pool's process, and a way to run commands against it."""

    process: subprocess.Popen[str]
    endpoint: str

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        made = subprocess.run(
            [sys.executable, "-m", "tfpool", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TFPOOL_ENDPOINT": self.endpoint},
        )
        assert made.returncode == status, made.stdout + made.stderr
        return made

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)


def _serve(directory: Path, *arguments: str) -> Served:
    endpoint = f"ipc://{directory}/pool"
    command = [sys.executable, "-m", "tfpool", "serve", "--listen", endpoint, *arguments]
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    return Served(process, endpoint)


def _end(served: Served) -> None:
    if served.process.poll() is None:
        served.process.terminate()
        try:
            served.process.wait(12)
        except subprocess.TimeoutExpired:
            served.process.kill()
            served.process.wait()
    if served.process.stdout is not None:
        served.process.stdout.close()


@pytest.fixture(scope="module")
def pool(sample_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("pool")
    models = [f"--model={name}={sample_models[name]}" for name in ("half_plus_two", "string_length")]
    served = _serve(directory, *models, f"--model=gone={directory}/gone", "--workers", "2")
    try:
        ready = served.json("wait", "--timeout", "60")
        assert [row["name"] for row in ready["failed"]] == ["gone"]
        yield served
    finally:
        _end(served)


@pytest.fixture
def small_pool(sample_models: dict[str, str], tmp_path: Path) -> Iterator[Served]:
    served = _serve(tmp_path, "--model", f"half={sample_models['half_plus_two']}", "--workers", "1")
    try:
        served.run("wait", "--timeout", "60")
        yield served
    finally:
        _end(served)


def test_one_line_says_that_it_serves(small_pool: Served, tmp_path: Path) -> None:
    assert small_pool.process.stdout is not None
    line = small_pool.process.stdout.readline()
    assert line == f"serving 1 model on {small_pool.endpoint} with 1 worker\n"
    small_pool.process.terminate()
    assert small_pool.process.stdout.read() == ""
    assert "model.available" in (tmp_path / "log").read_text()


def test_models_json(pool: Served) -> None:
    rows = {row["name"]: row for row in pool.json("models")}
    assert set(rows) == {"half_plus_two", "string_length", "gone"}
    half = rows["half_plus_two"]
    assert (half["version"], half["state"], half["error"]) == (2, "AVAILABLE", None)
    assert half["load_seconds"] > 0
    assert len(half["workers"]) == 1
    assert "no such directory" in rows["gone"]["error"]


def test_tables_are_not_cut_where_there_is_no_terminal(pool: Served) -> None:
    text = pool.run("models").stdout
    assert "half_plus_two" in text
    assert "/gone: no such directory" in text
    assert "…" not in text
    assert "\x1b" not in text


def test_status(pool: Served) -> None:
    pool.run("predict", "half_plus_two", "-j", "[1, 2]")
    stats = pool.json("status")
    assert stats["models"]["half_plus_two"]["requests"] >= 1
    (row,) = pool.json("status", "half_plus_two")
    assert row["signatures"][0]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1]}]
    text = pool.run("status", "half_plus_two").stdout
    assert "serving_default" in text
    assert "P99.9" in text
    assert "2 of 2 READY" in pool.run("status").stdout
    assert "NOT_FOUND" in pool.run("status", "half_plus_two:7", status=1).stderr


def test_workers(pool: Served) -> None:
    rows = pool.json("workers")
    assert [row["name"] for row in rows] == ["cpu0", "cpu1"]
    assert all(row["state"] == "READY" and row["pid"] and row["memory"]["unique"] for row in rows)
    assert "cpu1" in pool.run("workers").stdout


def test_queues(pool: Served) -> None:
    pool.run("predict", "string_length", "-j", '["a"]')
    rows = [row for row in pool.json("queues") if row["model"] == "string_length"]
    assert rows[0]["signature"] == "serving_default"
    assert rows[0]["rows"] == 0
    assert "string_length" in pool.run("queues").stdout


def test_top(pool: Served) -> None:
    text = pool.run("top", "--count", "2", "--interval", "0.2").stdout
    assert text.count("REQ/S") == 2
    assert "cpu0" in text


def test_predict_with_json(pool: Served, tmp_path: Path) -> None:
    document = pool.json("predict", "half_plus_two", "-j", '{"x": [1, 2, 5]}')
    assert document["outputs"] == {"y": [3.5, 4.0, 5.5]}
    assert document["dtypes"] == {"y": "float32"}
    request = tmp_path / "request.json"
    request.write_text('[{"b64": "//8A"}, "é"]')
    document = pool.json("predict", "string_length", "-j", f"@{request}")
    assert document["outputs"] == {"length": [3, 2], "upper": [{"b64": "//8A"}, "é"]}
    assert "[3.5 4.  5.5]" in pool.run("predict", "half_plus_two", "-j", "[1, 2, 5]").stdout


def test_predict_with_files(pool: Served, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1, np.nan, np.inf], np.float32))
    out = tmp_path / "out"
    document = pool.json("predict", "half_plus_two", "-i", f"x={tmp_path}/x.npy")
    assert document["outputs"]["y"] == [3.5, "NaN", "Infinity"]
    document = pool.json("predict", "half_plus_two", "-i", f"x={tmp_path}/x.npy", "-o", str(out))
    np.testing.assert_array_equal(np.load(document["files"]["y"]), np.array([3.5, np.nan, np.inf], np.float32))
    pool.run("predict", "string_length", "-j", '["ab"]', "-o", str(out))
    assert json.loads((out / "upper.json").read_text()) == ["AB"]
    assert np.load(out / "length.npy").tolist() == [2]


def test_predict_errors(pool: Served) -> None:
    assert "INVALID_ARGUMENT" in pool.run("predict", "half_plus_two", "-j", '{"z": [1]}', status=1).stderr
    assert "NOT_FOUND" in pool.run("predict", "half_plus_two", "--version", "9", "-j", "[1]", status=1).stderr
    failed = pool.run("predict", "gone", "-j", "[1]", status=1)
    assert "no such directory" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_load_and_unload(pool: Served) -> None:
    row = pool.json("load", "half_plus_two:1")
    assert (row["version"], row["state"]) == (1, "AVAILABLE")
    assert pool.json("predict", "half_plus_two:1", "-j", "[1]")["outputs"]["y"] == [2.5]
    assert [row["version"] for row in pool.json("unload", "half_plus_two:1")] == [1]
    assert "NOT_FOUND" in pool.run("predict", "half_plus_two:1", "-j", "[1]", status=1).stderr
    assert "has no version 9" in pool.run("load", "half_plus_two:9", status=1).stderr


def test_restart(pool: Served) -> None:
    before = {row["name"]: row["pid"] for row in pool.json("workers")}
    row = pool.json("restart", "cpu0")
    assert row["state"] == "READY"
    assert row["pid"] != before["cpu0"]
    assert pool.json("predict", "half_plus_two", "-j", "[1]")["outputs"]["y"] == [3.5]
    assert "NOT_FOUND" in pool.run("restart", "cpu9", status=1).stderr


def test_a_second_pool_is_refused(pool: Served, sample_models: dict[str, str]) -> None:
    arguments = ("serve", "--listen", pool.endpoint, "--model", f"half={sample_models['half_plus_two']}")
    assert "another pool" in pool.run(*arguments, status=1).stderr


def test_drain(pool: Served) -> None:
    pool.json("drain", "cpu1")
    assert pool.json("workers")[1]["models"] == []
    assert all(row["workers"] == ["cpu0"] for row in pool.json("models") if row["state"] == "AVAILABLE")


def test_shutdown(small_pool: Served, tmp_path: Path, session_members: Members) -> None:
    assert small_pool.json("shutdown")["stopped"]
    assert small_pool.process.wait(5) == 0
    assert not session_members(small_pool.process.pid)
    assert sorted(os.listdir(tmp_path)) == ["log"]
    assert "no pool listens" in small_pool.run("models", status=1).stderr


def test_sigterm_ends_it_all(small_pool: Served, session_members: Members) -> None:
    assert len(session_members(small_pool.process.pid)) == 4
    started = time.monotonic()
    small_pool.process.send_signal(signal.SIGTERM)
    assert small_pool.process.wait(10) == 0
    assert time.monotonic() - started < 10
    assert not session_members(small_pool.process.pid)
