"""Workers that hang, and models that crash them: nobody else is harmed, and who does it all the time is stopped."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import FailedPrecondition, NotFound, ResourceExhausted, TfpoolError
from tfpool.testing.fake_models import EXIT_VALUE, FAULT_VALUE, FULL_VALUE, HANG_VALUE
from tfpool.testing.fake_worker import FakePool, until

pytestmark = pytest.mark.process
X = np.ones((2, 3), np.float32)
FINE = np.float32([1.0])
SOON = 30.0
MakePool = Callable[..., FakePool]
REPLICATED = {"replicas": (2, 2)}


def row_of(client: Client, model: str) -> dict[str, object]:
    (row,) = client.status(model)
    return row


def deaths(client: Client) -> int:
    return sum(worker["deaths"] for worker in client.workers())


def pid_of(client: Client, worker: str) -> int:
    return next(row["pid"] for row in client.workers() if row["name"] == worker)


def crash(client: Client, value: float) -> TfpoolError:
    """What somebody is told whose request crashes workers."""
    with pytest.raises(TfpoolError) as caught:
        client.predict("fault", np.float32([value]), timeout=SOON)
    return caught.value


# -- workers that hang ---------------------------------------------------------------------------------------------


def test_a_run_that_hangs_is_ended_and_what_waits_behind_it_is_answered(make_pool: MakePool) -> None:
    pool = make_pool([("fault", {**REPLICATED, "max_batch_size": 1}), ("double", {})], hang_s=0.2)
    with pool.client(timeout=SOON) as client:
        hanging = client.submit("fault", np.float32([HANG_VALUE]))
        others = [client.submit("fault", FINE) for _ in range(8)]
        assert [other.result(SOON)["y"].tolist() for other in others] == [[1.0]] * 8
        with pytest.raises(FailedPrecondition, match="quarantine: 2 workers died"):
            hanging.result(SOON)
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        until(lambda: row_of(client, "fault")["crashes"] == 2)
        assert row_of(client, "fault")["state"] == "AVAILABLE"
    assert "worker.hung" in pool.log()
    assert "a batch of fault:1 has run for" in pool.log()


def test_a_worker_that_is_stopped_is_replaced_and_its_model_not_blamed(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})], hang_s=0.5)
    with pool.client(timeout=SOON) as client:
        (worker,) = row_of(client, "double")["workers"]  # type: ignore[misc]
        pid = pid_of(client, worker)
        os.kill(pid, signal.SIGSTOP)
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        until(lambda: not os.path.exists(f"/proc/{pid}"), what="the stopped one is gone")
        until(lambda: client.stats()["shm"]["quarantined"] == 0)
        assert deaths(client) == 1
        assert row_of(client, "double")["crashes"] == 0
    assert "; its process is in state T" in pool.log()


@pytest.mark.slow
def test_a_worker_that_was_stopped_for_a_moment_serves_on(make_pool: MakePool) -> None:
    """It is given nothing while it is silent; the other one answers."""
    pool = make_pool([("double", {**REPLICATED})], hang_s=60.0, server={"log_level": "info"})
    with pool.client(timeout=SOON) as client:
        pids = [pid_of(client, worker) for worker in ("cpu0", "cpu1")]
        for turn, pid in enumerate(pids, 1):
            os.kill(pid, signal.SIGSTOP)
            try:
                until(lambda turn=turn: pool.log().count("worker.quiet") == turn)
                for _ in range(20):
                    assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
            finally:
                os.kill(pid, signal.SIGCONT)
            until(lambda turn=turn: pool.log().count("worker.speaks") == turn)
        assert [pid_of(client, worker) for worker in ("cpu0", "cpu1")] == pids
        assert deaths(client) == 0


def test_a_load_that_hangs_is_given_up(make_pool: MakePool) -> None:
    pool = make_pool([("double", {}), ("echo", {"preload": "lazy", "hold": ""})], load_timeout_s=1.0, load_retries=0)
    with pool.client(timeout=SOON) as client:
        with pytest.raises(FailedPrecondition, match="killed 2 workers, the last by hanging"):
            client.predict("echo", FINE, signature="float32")
        assert row_of(client, "echo")["state"] == "FAILED"
        until(lambda: row_of(client, "double")["state"] == "AVAILABLE")
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


# -- models that crash ---------------------------------------------------------------------------------------------


def test_one_request_that_crashes_is_put_in_quarantine_and_its_model_serves_on(make_pool: MakePool) -> None:
    pool = make_pool([("fault", {**REPLICATED, "max_batch_size": 8})])
    with pool.client(timeout=SOON) as client:
        busy = [client.submit("fault", FINE) for _ in range(20)]
        killer = client.submit("fault", np.float32([FAULT_VALUE + signal.SIGSEGV]))
        busy += [client.submit("fault", FINE) for _ in range(20)]
        with pytest.raises(FailedPrecondition, match="quarantine"):
            killer.result(SOON)
        assert [reply.result(SOON)["y"].tolist() for reply in busy] == [[1.0]] * 40
        row = until(lambda: row_of(client, "fault")["crashes"] and row_of(client, "fault"))
        assert row["state"] == "AVAILABLE"
        assert not row["isolated"]
        assert row["crashes"] == deaths(client)


def test_a_model_that_crashes_is_isolated_then_stopped_and_comes_back_when_told(make_pool: MakePool) -> None:
    pool = make_pool([("fault", REPLICATED), ("double", REPLICATED), ("echo", {})])
    faulty = Path(pool.base("fault")) / "1" / "faulty"
    with pool.client(timeout=SOON) as client:
        faulty.touch()
        rows: list[dict[str, object]] = []
        while not rows or rows[-1]["state"] != "FAILED":
            assert isinstance(crash(client, 1.0), FailedPrecondition)
            assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
            until(lambda: all(worker["state"] == "READY" for worker in client.workers()))
            rows.append(row_of(client, "fault"))
        assert any(row["isolated"] for row in rows)
        assert not rows[-1]["isolated"]
        assert "stopped: it crashed " in str(rows[-1]["error"])
        assert "the last by signal 11" in str(rows[-1]["error"])
        seen = deaths(client)
        assert "`tfpool load fault:1` loads it again" in crash(client, 1.0).message
        until(lambda: row_of(client, "fault")["workers"] == [])
        until(lambda: len(row_of(client, "double")["workers"]) == 2)  # type: ignore[arg-type]
        assert deaths(client) == seen, "it is not asked any more"
        pool.kill_broker('"fault", 1')
        with pytest.raises(NotFound, match="`tfpool load fault:1` loads it"):
            client.predict("fault", FINE)
        faulty.unlink()
        client.load("fault", 1, timeout=SOON)
        assert client.predict("fault", FINE)["y"].tolist() == [1.0]
    for event in ("model.crashed", "model.isolated", "model.stopped"):
        assert event in pool.log()


@pytest.mark.parametrize("value", [EXIT_VALUE + 3, FAULT_VALUE + signal.SIGABRT, FAULT_VALUE + signal.SIGFPE])
def test_whatever_a_worker_dies_of_is_told(make_pool: MakePool, value: float) -> None:
    pool = make_pool([("fault", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        assert "quarantine" in crash(client, value).message
        until(lambda: row_of(client, "fault")["crashes"] == 2)
    how = f"exit status {value - EXIT_VALUE:.0f}" if value > EXIT_VALUE else f"signal {value - FAULT_VALUE:.0f}"
    assert how in pool.log()


def test_workers_that_are_killed_are_nobodys_fault(make_pool: MakePool) -> None:
    with make_pool([("fault", REPLICATED)]).client(timeout=SOON) as client:
        for turn in range(8):
            os.kill(pid_of(client, f"cpu{turn % 2}"), signal.SIGKILL)
            until(lambda turn=turn: deaths(client) > turn)
            until(lambda: all(worker["state"] == "READY" for worker in client.workers()))
            assert client.predict("fault", FINE)["y"].tolist() == [1.0]
        assert row_of(client, "fault")["crashes"] == 0


# -- memory --------------------------------------------------------------------------------------------------------


def test_a_run_that_finds_no_room_fails_alone(make_pool: MakePool) -> None:
    with make_pool([("fault", {})], workers=1).client(timeout=SOON) as client:
        pid = pid_of(client, "cpu0")
        replies = [client.submit("fault", FINE) for _ in range(5)]
        hungry = client.submit("fault", np.float32([FULL_VALUE]))
        with pytest.raises(ResourceExhausted, match=r"no room for the outputs: .*No space left"):
            hungry.result(SOON)
        assert [reply.result(SOON)["y"].tolist() for reply in replies] == [[1.0]] * 5
        assert pid_of(client, "cpu0") == pid


def test_outputs_that_the_broker_cannot_take_fail_alone(make_pool: MakePool) -> None:
    """Memory of its own takes a descriptor, and the broker has no more."""
    pool = make_pool([("spill", {}), ("double", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        broker = pool.broker_pid()
        limits = resource.prlimit(broker, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{broker}/fd"))
        resource.prlimit(broker, resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        try:
            with pytest.raises(ResourceExhausted, match="the outputs cannot be mapped"):
                client.predict("spill", FINE)
            assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        finally:
            resource.prlimit(broker, resource.RLIMIT_NOFILE, limits)
        assert client.predict("spill", FINE)["y"].shape == (1, 50_000)
        assert pool.broker_pid() == broker
