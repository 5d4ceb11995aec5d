"""What tests share that move models about: requests that go on meanwhile, and who holds what."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, TfpoolError, Unavailable
from tfpool.testing.fake_worker import BASE_BYTES, FakePool, aside, until
from tfpool.wire.tensors import Array

LANES = 64
SOON = 30.0
OVER = ("DONE", "ABORTED")
GATES = {"LOADING": "hold", "WARMING": "warming", "DRAINING": "busy", "UNLOADING": "linger"}
_SHAPES = ((1, 3), (3, 3), (40, 3), (2, 20_000))
_QUICK_SECONDS = 0.002
_STEADY_SECONDS = 0.02

Draw = Callable[[np.random.Generator], Array]


def mixed(dice: np.random.Generator) -> Array:
    """Rows of a size that differs, small ones and large ones."""
    return dice.random(_SHAPES[int(dice.integers(len(_SHAPES)))], np.float32)


def quick(dice: np.random.Generator) -> Array:
    """A row for the slow model, for which it is not slow."""
    return dice.random(1, np.float32) * np.float32(_QUICK_SECONDS)


def steady(_: np.random.Generator) -> Array:
    """A row for the slow model of which a worker can do fifty a second."""
    return np.array([_STEADY_SECONDS], np.float32)


class Crowd:
    """So many requests to a model under way, as long as the block lasts; every answer is compared.

    The model gives ``factor`` times what is drawn. Leaving the block waits for every outcome. Raises AssertionError
    for a request that failed, got a wrong answer, or has several outcomes or none.
    """

    def __init__(
        self, client: Client, model: str = "double", factor: int = 2, draw: Draw = mixed, lanes: int = LANES
    ) -> None:
        self._client = client
        self._model = model
        self._factor = factor
        self._draw = draw
        self._dice = np.random.default_rng(7)
        self._lock = threading.Lock()
        self._running = True
        self._sent = 0
        self._outcomes: Counter[int] = Counter()
        self._bad: list[object] = []
        for _ in range(lanes):
            self._send()

    def served(self, count: int = LANES) -> None:
        """Return when so many more answers are there."""
        enough = len(self._outcomes) + count
        until(lambda: len(self._outcomes) >= enough or self._bad, SOON, f"{count} more answers of {self._model}")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        if error is None:
            until(lambda: len(self._outcomes) == self._sent, SOON, "every request has an outcome")
            assert not self._bad, self._bad[0]
            assert set(self._outcomes.values()) == {1}

    def _send(self) -> None:
        with self._lock:
            rows = self._draw(self._dice)
            number, self._sent = self._sent, self._sent + 1
        self._client.submit(self._model, rows, timeout=SOON).add_done_callback(partial(self._done, number, rows))

    def _done(self, number: int, rows: Array, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._bad.append(error)
        elif not np.array_equal(future.result()["y"], self._factor * rows):
            self._bad.append(f"request {number} has a wrong answer")
        if self._running and not self._bad:
            self._send()  # before this one counts: what has been sent has no outcome only while it is under way
        self._outcomes[number] += 1


def patiently(ask: Callable[[], Any]) -> Any:
    """The answer, once there is a broker that gives one."""

    def answer() -> list[Any]:
        with suppress(Unavailable, DeadlineExceeded):
            return [ask()]
        return []

    return until(answer, SOON)[0]


def homes(client: Client, model: str, version: int = 1) -> list[str]:
    """The workers that hold a version, or are to."""
    return [row["name"] for row in client.workers() if f"{model}:{version}" in row["models"]]


def pids(client: Client) -> dict[str, int]:
    """Of the workers that are ready."""
    return {row["name"]: row["pid"] for row in client.workers() if row["state"] == "READY"}


def held(client: Client) -> dict[str, int]:
    """Bytes that each worker has beyond those of an empty one, as it told last."""
    return {row["name"]: row["memory"]["unique"] - BASE_BYTES for row in client.workers()}


def migrate(client: Client, model: str, to: str, **more: Any) -> dict[str, Any]:
    """Move a model; its row, when it serves there and has left where it was."""
    found: dict[str, Any] = client.admin("migrate", model=model, to=to, timeout=SOON, **more)
    return found


def migrations(client: Client, model: str = "") -> list[dict[str, Any]]:
    """Those of a model, or of all, the oldest first."""
    found: list[dict[str, Any]] = client.call("plan")["migrations"]
    return sorted((row for row in found if model in ("", row["model"])), key=lambda row: int(row["id"]))


def phase(client: Client, model: str) -> str:
    """How far the last migration of a model is; empty where there is none."""
    found = migrations(client, model)
    return str(found[-1]["phase"]) if found else ""


def settled(client: Client, model: str, workers: int = 2) -> list[str]:
    """Where a model is, once every worker is ready, nothing moves, and it serves wherever it is."""

    def ask() -> list[str]:
        (row,) = (row for row in client.status(model) if row["version"] == max(_versions(client, model)))
        still = all(found["phase"] in OVER for found in migrations(client))
        ready = len(pids(client)) == workers and row["state"] == "AVAILABLE" and still
        serving = sorted(row["workers"])
        return serving if ready and serving == sorted(homes(client, model, row["version"])) else []

    found: list[str] = until(lambda: patiently(ask), SOON, f"{model} has settled")
    return found


def _versions(client: Client, model: str) -> list[int]:
    return [int(row["version"]) for row in client.status(model)]


# -- moves that are held up ----------------------------------------------------------------------------------------


@contextmanager
def under_way(pool: FakePool, client: Client, model: str, to: str, at: str) -> Iterator[list[TfpoolError]]:
    """A move by hand of a model's version 1, which stays in a phase of :data:`GATES` until :func:`let_go`, or the end
    of the block; what was raised instead.

    Where it is to stay at DRAINING, the model must be a slow one: the source has a request of it that lasts as long.
    """
    _gate(pool, model, at).touch()
    long = _occupy(pool, client, model) if at == "DRAINING" else None
    with aside(lambda: migrate(client, model, to)) as failures:
        try:
            until(lambda: phase(client, model) == at or failures, SOON, f"the move of {model} is {at}")
            assert failures == []
            yield failures
        finally:
            let_go(pool, model)
    if long is not None:
        assert long.result(SOON)["y"].tolist() == [-1.0]


def let_go(pool: FakePool, model: str) -> None:
    """Let a move go on."""
    for at in GATES:
        _gate(pool, model, at).unlink(missing_ok=True)


def _occupy(pool: FakePool, client: Client, model: str) -> Future[Any]:
    long = client.submit(model, np.array([-1.0], np.float32), timeout=SOON)
    until((pool.base(model) / "1" / "begun").exists, SOON, f"{model} runs")
    return long


def _gate(pool: FakePool, model: str, at: str) -> Path:
    return pool.base(model) / "1" / GATES[at]
