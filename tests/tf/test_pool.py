"""The embedded pool: starts, serves, refuses, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tfpool
from tfpool.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tfpool.supervisor import embedded

pytestmark = pytest.mark.process
Members = Callable[[int], list[int]]
X = np.array([1.0, 2.0, 5.0], np.float32)


@pytest.fixture(scope="module")
def pool(sample_models: dict[str, str]) -> Iterator[tfpool.Pool]:
    models = {name: sample_models[name] for name in ("half_plus_two", "string_length")}
    with tfpool.Pool(models, workers=1, max_batch_size=8) as made:
        yield made


def _gone(members: Members, leader: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not members(leader)


def _interpreter(directory: Path, script: str) -> str:
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# -- serving -------------------------------------------------------------------------------------------------------


def test_a_pool_serves_through_its_own_client(pool: tfpool.Pool) -> None:
    assert pool.client().predict("half_plus_two", X)["y"].tolist() == [3.5, 4.0, 5.5]  # version 2


def test_the_own_client_outlives_a_with_statement(pool: tfpool.Pool) -> None:
    with pool.client() as client:
        client.models()
    assert pool.client() is client
    assert pool.client().predict("half_plus_two", X)["y"].shape == (3,)


def test_many_threads_share_the_own_client(pool: tfpool.Pool) -> None:
    answers: list[list[float]] = []

    def ask() -> None:
        answers.extend(pool.client().predict("half_plus_two", X)["y"].tolist() for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [[3.5, 4.0, 5.5]] * 80


def test_an_async_client(pool: tfpool.Pool) -> None:
    async def ask() -> list[bytes]:
        async with pool.async_client() as client:
            outputs = await client.predict("string_length", np.array([b"ab"], object))
            return list(outputs["upper"].tolist())

    assert asyncio.run(ask()) == [b"AB"]


def test_settings_reach_the_pool(pool: tfpool.Pool) -> None:
    assert pool.client().status("half_plus_two")[0]["batching"]["max_batch_size"] == 8
    assert len(pool.client().workers()) == 1


def test_the_directory_is_private_and_the_path_short(pool: tfpool.Pool) -> None:
    directory = os.path.dirname(pool.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert len(pool.admin_endpoint) < 100


def test_a_long_temporary_directory_is_left_for_a_short_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    directory = embedded._private_directory()
    os.rmdir(directory)
    assert directory.startswith("/tmp/")


def test_the_log_is_kept(pool: tfpool.Pool) -> None:
    assert "model.available" in pool.log()


def test_after_a_fork_the_child_refuses_and_the_pool_lives(pool: tfpool.Pool) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            pool.client()
        except FailedPrecondition as error:
            pool.close()
            status = 0 if "forked" in error.message else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.client().predict("half_plus_two", X)["y"].shape == (3,)


# -- ending --------------------------------------------------------------------------------------------------------


def test_closing_ends_every_process_and_removes_the_directory(
    sample_models: dict[str, str], session_members: Members
) -> None:
    pool = tfpool.Pool({"half": sample_models["half_plus_two"]}, workers=1)
    directory = os.path.dirname(pool.endpoint.removeprefix("ipc://"))
    assert len(session_members(pool.pid)) == 4
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 10
    assert not session_members(pool.pid)
    assert not os.path.exists(directory)
    pool.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        pool.client()


_OWNER = """
import os, signal, sys, threading, time
{first}
import tfpool
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
pool = tfpool.Pool({{"half": sys.argv[1]}}, workers=1)
print(pool.pid, pool.endpoint, pool.client().predict("half", [1.0])["y"].tolist(), flush=True)
{last}
"""


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [
        ("", "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import tensorflow as tf; tf.constant(1.0) + 1.0", "sys.exit(0)", 0),
    ],
    ids=["killed", "with-tensorflow"],
)
@pytest.mark.slow
def test_the_pool_ends_with_its_owner(
    sample_models: dict[str, str], session_members: Members, first: str, last: str, status: int
) -> None:
    script = _OWNER.format(first=first, last=last)
    command = [sys.executable, "-c", script, sample_models["half_plus_two"]]
    owner = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert owner.returncode == status, owner.stderr[-2000:]
    pid, endpoint, answer = owner.stdout.split()
    assert answer == "[3.5]"
    assert _gone(session_members, int(pid))
    assert not os.path.exists(os.path.dirname(endpoint.removeprefix("ipc://")))


# -- failing -------------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_load_raises_its_error(sample_models: dict[str, str], tmp_path: Path) -> None:
    models = {"half": sample_models["half_plus_two"], "gone": str(tmp_path / "gone")}
    with pytest.raises(NotFound, match="gone: no such directory"):
        tfpool.Pool(models, workers=1)


def test_strict_is_optional(sample_models: dict[str, str]) -> None:
    models = {"half": sample_models["half_plus_two"], "broken": sample_models["truncated"]}
    with tfpool.Pool(models, workers=1, strict=False) as pool:
        states = {row["name"]: row["state"] for row in pool.client().models()}
        assert states == {"half": "AVAILABLE", "broken": "FAILED"}
        with pytest.raises(FailedPrecondition, match="failed to load"):
            pool.client().predict("broken", X)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, InvalidArgument, "neither models nor config"),
        ({"models": {"a": "/"}, "workers": 0}, InvalidArgument, "workers"),
        ({"models": {"a": "/"}, "memory_budget": "much"}, InvalidArgument, "memory_budget"),
        ({"models": {"a": "/"}, "listen": ["ipc://x"]}, InvalidArgument, "own endpoints"),
        ({"models": {"a b": "/"}}, InvalidArgument, "name"),
        ({"models": {"a": "/"}, "wrkers": 1}, TypeError, "wrkers"),
        ({"config": "/nowhere.toml"}, NotFound, "no such file"),
    ],
)
def test_bad_settings_are_refused_at_once(
    settings: dict[str, object], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error, match=match):
        tfpool.Pool(**settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_pool_that_ends_early_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", _interpreter(tmp_path, "echo kaput >&2; exit 3"))
    with pytest.raises(Unavailable, match=r"status 3.*\n *kaput"):
        tfpool.Pool({"a": "/"}, timeout=20)


def test_a_pool_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'trap "" TERM; echo starting >&2; while :; do sleep 0.2; done'
    monkeypatch.setattr(sys, "executable", _interpreter(tmp_path, script))
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.5)
    with pytest.raises(DeadlineExceeded, match=r"not ready within 0.5 s.*\n *starting"):
        tfpool.Pool({"a": "/"}, timeout=0.5)
