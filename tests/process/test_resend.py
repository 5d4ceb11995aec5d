"""A broker that is killed: what was in flight is asked for again, and its callers never know."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, TfpoolError, Unavailable
from tfpool.testing.fake_worker import FakePool, until

pytestmark = pytest.mark.process
SOON = 20.0
MakePool = Callable[..., FakePool]
REPLICATED = {"replicas": (2, 2), "max_batch_size": 16}


class Wire:
    """A tcp endpoint that leads to a pool. ``cut`` has what is connected hear nothing any more, not even an end."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._cut = threading.Event()
        self._ends: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()
        self._cut = threading.Event()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._pool.endpoint.removeprefix("ipc://"))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(*ends, self._cut), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if cut.is_set():
                    return
                sink.sendall(data)

    def close(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def floats(*shape: int) -> Any:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def kill(pool: FakePool) -> None:
    os.kill(pool.broker_pid(), signal.SIGKILL)


@pytest.mark.parametrize("width", [3, 20_000], ids=["frames", "references"])
def test_a_broker_killed_under_load_costs_no_request(make_pool: MakePool, width: int) -> None:
    pool = make_pool([("double", REPLICATED)])
    with pool.client(timeout=SOON) as client:
        slots, failures, answered = threading.Semaphore(64), [], [0]

        def check(reply: Any, x: Any) -> None:
            error = reply.exception()
            if error is not None:
                failures.append(error)
            elif reply.result()["y"].tolist() != (2 * x).tolist():
                failures.append("a wrong answer")
            answered[0] += 1
            slots.release()

        asked = 0
        for _ in range(3):
            target = answered[0] + 200
            while answered[0] < target:
                assert slots.acquire(timeout=SOON)
                x = floats(1 + asked % 3, width) + asked
                client.submit("double", x).add_done_callback(lambda reply, x=x: check(reply, x))
                asked += 1
            kill(pool)
        until(lambda: answered[0] == asked, SOON)
        assert failures == []
        assert client.predict("double", floats(2, width))["y"].tolist() == (2 * floats(2, width)).tolist()


def test_callers_that_wait_never_know(make_pool: MakePool) -> None:
    """Threads that wait for their own requests, and calls of the control plane, among them."""
    pool = make_pool([("slow", {"replicas": (2, 2), "max_batch_size": 1})])
    with pool.client(timeout=SOON) as client:
        outcomes: list[Any] = []

        def ask(call: Callable[[], Any]) -> None:
            try:
                outcomes.append(call())
            except TfpoolError as error:
                outcomes.append(error)

        calls: list[Callable[[], Any]] = [lambda: client.predict("slow", np.float32([0.3]))["y"].tolist()] * 6
        threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: sum(row["rows"] for row in client.queues()) >= 2)
        kill(pool)
        assert client.wait_ready(SOON)["failed"] == []
        for thread in threads:
            thread.join()
        assert outcomes == [[np.float32(0.3)]] * 6


def test_asyncio(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1}), ("double", {})])

    async def story() -> None:
        async with tfpool.AsyncClient(pool.endpoint, admin=pool.admin, timeout=SOON) as client:
            slow = asyncio.create_task(client.predict("slow", np.float32([0.2])))
            others = [asyncio.create_task(client.predict("slow", np.float32([0.0]))) for _ in range(20)]
            while not await client.queues():
                pass
            kill(pool)
            assert (await client.predict("double", floats(1, 2)))["y"].tolist() == [[0.0, 2.0]]
            assert (await slow)["y"].tolist() == [np.float32(0.2)]
            for other in others:
                assert (await other)["y"].tolist() == [0.0]

    asyncio.run(asyncio.wait_for(story(), 2 * SOON))


def test_what_changes_state_is_not_run_again(make_pool: MakePool) -> None:
    """It had been sent to a broker that died, and may have run; what is new to the next broker runs."""
    pool = make_pool([("counter", {}), ("slow", {"max_batch_size": 1})], workers=1)
    with pool.client(timeout=SOON) as client:
        slow = client.submit("slow", np.float32([1.0]))
        until(client.queues)
        sent = [client.submit("counter", np.float32([0.0])) for _ in range(5)]
        until(lambda: any(row["model"] == "counter" for row in client.queues()))
        kill(pool)
        for reply in sent:
            with pytest.raises(Unavailable, match="changes state"):
                reply.result(SOON)
        assert slow.result(SOON)["y"].tolist() == [np.float32(1.0)]
        assert client.predict("counter", np.float32([0.0]))["total"].shape == (1,)


def test_a_cancelled_request_is_not_asked_for_again(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1})], workers=1)
    with pool.client(timeout=SOON) as client:
        replies = [client.submit("slow", np.float32([0.2])) for _ in range(4)]
        until(client.queues)
        pid = pool.broker_pid()
        os.kill(pid, signal.SIGSTOP)  # it can take no notice of a cancellation any more
        assert replies[2].cancel()
        os.kill(pid, signal.SIGKILL)
        for reply in (replies[0], replies[1], replies[3]):
            assert reply.result(SOON)["y"].tolist() == [np.float32(0.2)]
        assert replies[2].cancelled()
        assert client.stats()["models"]["slow"]["requests"] == 3


def test_a_host_that_vanishes_is_noticed(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet comes any more, not even one that ends the connection."""
    monkeypatch.setattr("tfpool.client.link.HEARTBEAT_MS", 100)
    monkeypatch.setattr("tfpool.client.link.SILENCE_MS", 300)
    pool = make_pool([("slow", {"max_batch_size": 1}), ("double", {})])
    wire = Wire(pool)
    try:
        with Client(wire.endpoint, timeout=SOON) as client:
            reply = client.submit("slow", np.float32([0.5]))
            until(client.queues)
            wire.cut()
            assert client.predict("double", floats(1, 2))["y"].tolist() == [[0.0, 2.0]]
            assert reply.result(SOON)["y"].tolist() == [np.float32(0.5)]
    finally:
        wire.close()


def test_nobody_comes_back(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfpool.client.session.PATIENCE_SECONDS", 0.3)
    pool = make_pool([("slow", {"max_batch_size": 1})], workers=1)
    with pool.client(timeout=SOON) as client:
        lost = client.submit("slow", np.float32([SOON]))
        until(client.queues)
        pool.process.kill()
        pool.process.wait()
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"was lost 0\.3 s ago, and nobody answers at ipc://"):
            lost.result(SOON)
        assert time.monotonic() - began < SOON / 2
        with pytest.raises(DeadlineExceeded, match="no answer before the deadline: nobody answers at ipc://"):
            client.predict("slow", np.float32([0.0]), timeout=0.2)
        pool.start()
        assert client.predict("slow", np.float32([0.0]))["y"].tolist() == [0.0]


def test_admin_verbs_are_not_sent_again(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})], workers=1)
    hold = pool.base("double") / "1" / "hold"
    with pool.client(timeout=SOON) as client:
        client.unload("double")
        hold.touch()
        outcome: list[Any] = []

        def load() -> None:
            try:
                outcome.append(client.load("double", timeout=SOON))
            except TfpoolError as error:
                outcome.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        until(lambda: client.status("double")[0]["state"] == "LOADING")
        kill(pool)
        thread.join(SOON)
        hold.unlink()
        assert isinstance(outcome[0], Unavailable)
        assert "was lost" in str(outcome[0])


def test_an_idle_client_finds_the_next_broker_without_losing_its_request(make_pool: MakePool) -> None:
    """It notices before it sends: what changes state is not refused as if it had been sent before."""
    pool = make_pool([("counter", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        assert client.predict("counter", np.float32([0.0]))["total"].tolist() == [1.0]
        pool.kill_broker()
        assert client.predict("counter", np.float32([0.0]))["total"].shape == (1,)


def test_large_results_outlive_the_broker(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})])
    x = floats(2, 50_000)
    with pool.client(timeout=SOON) as client:
        kept = [client.predict("double", x)["y"] for _ in range(2)]
        kill(pool)
        kept += [client.predict("double", x)["y"] for _ in range(2)]
    for y in kept:
        assert y.tolist() == (2 * x).tolist()
