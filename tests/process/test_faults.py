"""Workers are killed and stopped, brokers are killed, at random moments under load: nobody who asks is told of it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.testing.fake_worker import FakePool, until

pytestmark = pytest.mark.process
LANES = 32
SOON = 30.0
SHAPES = ((1, 3), (3, 3), (40, 3), (2, 20_000))
MakePool = Callable[..., FakePool]


class Load:
    """So many requests under way at all times, of random rows and sizes; every answer is compared."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client = client
        self._dice = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.running = True
        self.sent = 0
        self.outcomes: Counter[int] = Counter()
        self.wrong: list[int] = []
        self.errors: list[BaseException] = []
        for _ in range(LANES):
            self._send()

    def _send(self) -> None:
        with self._lock:
            rows = self._dice.random(SHAPES[int(self._dice.integers(len(SHAPES)))], np.float32)
            number, self.sent = self.sent, self.sent + 1
        self._client.submit("double", rows).add_done_callback(partial(self._done, number, rows))

    def _done(self, number: int, rows: Any, future: Future[Any]) -> None:
        self.outcomes[number] += 1
        error = future.exception()
        if error is not None:
            self.errors.append(error)
        elif not np.array_equal(future.result()["y"], 2 * rows):
            self.wrong.append(number)
        if self.running:
            self._send()


def workers(client: Client) -> list[dict[str, Any]]:
    return [row for row in client.workers() if row["state"] == "READY"]


def kill(pool: FakePool, client: Client, dice: random.Random) -> None:
    """One worker dies; the next fault may come before it is replaced."""
    os.kill(dice.choice(until(lambda: workers(client), SOON))["pid"], signal.SIGKILL)


def stop(pool: FakePool, client: Client, dice: random.Random) -> None:
    """One worker stops where it is, and stays so until it is taken for hung."""
    pid = dice.choice(until(lambda: workers(client), SOON))["pid"]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: pid not in [row["pid"] for row in client.workers()], SOON, "the stopped worker is given up")


def kill_broker(pool: FakePool, client: Client, dice: random.Random) -> None:
    """The broker dies, perhaps while a worker is being replaced."""
    pool.kill_broker()


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_at_random_moments_cost_no_request(make_pool: MakePool, seed: int) -> None:
    dice = random.Random(seed)
    faults = [kill, kill, stop, kill_broker]
    dice.shuffle(faults)
    pool = make_pool([("double", {"replicas": (2, 2), "max_batch_size": 16})], hang_s=0.5)
    with pool.client(timeout=SOON) as client, pool.client(timeout=SOON) as watcher:
        load = Load(client, seed)
        for fault in faults:
            enough = len(load.outcomes) + dice.randint(1, 200)
            until(lambda enough=enough: len(load.outcomes) >= enough, SOON, "requests are answered")
            fault(pool, watcher, dice)
        until(lambda: len(workers(watcher)) == 2, SOON, "both workers are there again")
        load.running = False
        until(lambda: len(load.outcomes) == load.sent, SOON, "every request has an outcome")
        assert load.errors == []
        assert load.wrong == []
        assert set(load.outcomes.values()) == {1}
        assert watcher.stats()["shm"]["leased"] == 0
        until(lambda: watcher.stats()["shm"]["quarantined"] == 0, SOON)
