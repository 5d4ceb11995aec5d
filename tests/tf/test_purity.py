"""Batch purity: ten models asked for everything at once, and every answer is TensorFlow's own, row for row.

Each row has a number of its own in it, so that a mix-up shows. Hundreds of requests from several threads and both
clients share batches, some larger than a batch; some are cancelled, late, or wrong, and these fail alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.errors import Cancelled, DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, TfpoolError
from tfpool.testing import models as makers
from tfpool.testing.reference import Reference
from tfpool.types import DType, numpy_dtype

pytestmark = [pytest.mark.process, pytest.mark.tf]
SOON = 60.0
THREADS, REQUESTS, IN_FLIGHT = 3, 400, 64
MOST_ROWS = 40
DOUBTFUL = 4096.0
Inputs = dict[str, Any]

BATCHING = {
    "half_plus_two": "replicas = 2\nbatching = { allowed_batch_sizes = [4, 8, 16] }",
    "mlp": "replicas = 2\nbatching = { max_batch_size = 96 }",
    "bits": "batching = { allowed_batch_sizes = [1, 8, 32], pad = false }",
    "two_signatures": "batching = { max_wait_ms = 2 }",
    "string_length": "replicas = 2\nbatching = { allowed_batch_sizes = [2, 16] }",
    "ragged": "replicas = 2\nbatching = { allowed_batch_sizes = [3, 12] }",
    "lookup": "replicas = 2\npriority = 1",
    "mixes_rows": "replicas = 2",
    "no_batch": "priority = -1",
    "counter": "",
}
"""The ten models, with what their configuration says beside the name and the path."""


# -- what is asked -------------------------------------------------------------------------------------------------


def numbers(at: int, rows: int) -> Any:
    """The numbers of these rows; no other request has them."""
    return np.arange(at, at + rows)


def floats(at: int, rows: int, *shape: int) -> Any:
    """Rows of random floats, which are never alike."""
    return np.random.default_rng(at).standard_normal((rows, *shape), np.float32)


def words(at: int, rows: int) -> Any:
    return np.array([b"%d " % n + "ü".encode() * (n % 7) for n in numbers(at, rows)], object)


def bits(dtype: str) -> Callable[[Random, int, int], Inputs]:
    """The numbers of the rows in binary."""
    kind = next(d for d in DType if d.label == dtype)

    def make(dice: Random, at: int, rows: int) -> Inputs:
        digits = numbers(at, rows)[:, None] >> np.arange(16) & 1
        if kind is DType.STRING:
            return {"x": np.where(digits == 1, b"one of %d" % at, b"").astype(object)}
        return {"x": digits.astype(numpy_dtype(kind))}

    return make


def ragged(dice: Random, at: int, rows: int) -> Inputs:
    width = dice.choice([1, 2, 3, 8])
    tokens = numbers(at, rows)[:, None] * 1000 + np.arange(width)
    return {"tokens": tokens, "weights": floats(at, rows, width).astype(np.float64)}


def lookup(dice: Random, at: int, rows: int) -> Inputs:
    number = numbers(at, rows)
    return {"id": (number % makers.LOOKUP_ROWS).astype(np.int32), "tag": number[:, None] / 8}


@dataclass(frozen=True, slots=True)
class Kind:
    """A signature, how to make inputs for it, and how far floats may be from TensorFlow's (0: not at all)."""

    model: str
    signature: str
    make: Callable[[Random, int, int], Inputs]
    tolerance: float = 0.0
    shares: bool = True
    fixed_rows: int = 0
    most_rows: int = MOST_ROWS


KINDS = (
    Kind("half_plus_two", "serving_default", lambda _, at, n: {"x": numbers(at, n).astype(np.float32)}),
    Kind("mlp", "serving_default", lambda _, at, n: {"x": floats(at, n, 256)}, tolerance=1e-4, most_rows=160),
    *(Kind("bits", dtype, bits(dtype)) for dtype in makers.BIT_DTYPES),
    Kind("two_signatures", "double", lambda _, at, n: {"x": floats(at, n, 4)}),
    Kind("two_signatures", "add", lambda _, at, n: {"a": floats(at, n, 3), "b": numbers(at, n)[:, None].astype("f4")}),
    Kind("string_length", "serving_default", lambda _, at, n: {"text": words(at, n)}),
    Kind("ragged", "serving_default", ragged, tolerance=1e-12),
    Kind("lookup", "serving_default", lookup),
    Kind("mixes_rows", "serving_default", lambda _, at, n: {"x": floats(at, n, 4)}, tolerance=1e-6, shares=False),
    Kind("no_batch", "serving_default", lambda _, at, n: {"x": floats(at, n, 3)}, 1e-6, shares=False, fixed_rows=3),
)


@dataclass(slots=True)
class Ask:
    """One request, and its outcome: outputs or an exception; ``shared`` are the rows in its batch, if that is known."""

    kind: Kind
    inputs: Inputs
    rows: int
    options: dict[str, Any]
    cancel: bool = False
    wrong: type[Exception] | None = None
    outcome: Any = None
    shared: int = 0

    @property
    def call(self) -> dict[str, Any]:
        target = {"model": self.kind.model, "signature": self.kind.signature}
        return {**target, "inputs": self.inputs, **self.options}


def spoil(ask: Ask, dice: Random) -> None:
    """Make something wrong about a request that fails it, wherever it is found out."""
    first = min(ask.inputs)
    array = ask.inputs[first]
    how = dice.choice(["rank", "dtype", "name", "extra", "model", "version", "signature", "poison", "poison"])
    ask.wrong = NotFound if how in ("model", "version") else InvalidArgument
    if how == "rank":
        ask.inputs[first] = array[..., np.newaxis]
    elif how == "dtype":
        ask.inputs[first] = np.zeros(array.shape, np.uint16)
    elif how == "name":
        ask.inputs["nobody"] = ask.inputs.pop(first)
    elif how == "extra":
        ask.inputs["nobody"] = array
    elif how == "model":
        ask.options["model"] = "nobody"
    elif how == "version":
        ask.options["version"] = 9
    elif how == "signature":
        ask.options["signature"] = "nobody"
    elif dice.random() < 0.8:  # what only TensorFlow finds out, while others share the batch
        ask.kind = next(kind for kind in KINDS if kind.model == "lookup")
        id = np.arange(ask.rows, dtype=np.int32)
        id[-1] = makers.LOOKUP_ROWS
        ask.inputs = {"id": id, "tag": np.zeros((ask.rows, 1))}
    else:
        ask.kind = next(kind for kind in KINDS if kind.model == "ragged")
        ask.inputs = {"tokens": np.ones((ask.rows, 4), np.int64), "weights": np.ones((ask.rows, 3))}


class Planner:
    """Requests by the dice, their rows numbered on."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)
        self._next = 1

    def ask(self) -> Ask:
        dice = self._dice
        kind = KINDS[dice.randrange(len(KINDS))]
        rows = kind.fixed_rows or dice.choice([1, 1, 1, 2, 3, dice.randint(4, 12), dice.randint(12, kind.most_rows)])
        inputs = kind.make(dice, self._next, rows)
        self._next += rows
        found = Ask(kind, inputs, rows, {"priority": dice.choice([0, 0, 0, 1, -1]), "timeout": SOON})
        fate = dice.random()
        if fate < 0.1:
            spoil(found, dice)
        elif fate < 0.2:
            found.cancel = True
        elif fate < 0.3:
            found.options["timeout"] = dice.choice([0.0005, 0.002, 0.01, 0.03])
        return found


# -- how it is asked -----------------------------------------------------------------------------------------------


def in_blocks(asks: Sequence[Ask]) -> Iterator[Sequence[Ask]]:
    for at in range(0, len(asks), IN_FLIGHT):
        yield asks[at : at + IN_FLIGHT]


def by_futures(client: tfpool.Client, asks: Sequence[Ask]) -> None:
    for block in in_blocks(asks):
        replies = [client.submit(**ask.call) for ask in block]
        for ask, reply in zip(block, replies, strict=True):
            if ask.cancel:
                reply.cancel()
        for ask, reply in zip(block, replies, strict=True):
            try:
                ask.outcome = reply.result(SOON)
                ask.shared = reply.timing[2] if reply.timing else 0
            except (TfpoolError, CancelledError) as error:
                ask.outcome = error


def by_coroutines(endpoint: str, asks: Sequence[Ask]) -> None:
    async def story() -> None:
        async with tfpool.AsyncClient(endpoint) as client:
            for block in in_blocks(asks):
                tasks = [asyncio.create_task(client.predict(**ask.call)) for ask in block]
                await asyncio.sleep(0)  # they are sent
                for ask, task in zip(block, tasks, strict=True):
                    if ask.cancel:
                        task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                for ask, outcome in zip(block, outcomes, strict=True):
                    ask.outcome = outcome

    asyncio.run(story())


@dataclass(slots=True)
class Together:
    """Functions that run at the same time; what one raises is raised at the end."""

    failures: list[BaseException] = field(default_factory=list)

    def run(self, *functions: Callable[[], None]) -> None:
        threads = [threading.Thread(target=self._guarded, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self.failures.append(error)


# -- the pool, and TensorFlow's own answers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = str(tmp_path_factory.mktemp("pure"))
    return {name: makers.MAKERS[name](directory) for name in BATCHING}


@pytest.fixture(scope="module")
def pool(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tfpool.Pool]:
    config: Path = tmp_path_factory.mktemp("config") / "pool.toml"
    tables = [f'[[model]]\nname = "{name}"\nbase_path = "{paths[name]}"\n{more}' for name, more in BATCHING.items()]
    config.write_text("\n".join(tables))
    with tfpool.Pool(config=config, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def references(paths: dict[str, str]) -> Iterator[dict[str, Reference]]:
    found = {name: Reference(path) for name, path in paths.items()}
    yield found
    for one in found.values():
        one.close()


def check(ask: Ask, reference: Reference) -> str:
    """Whether the outcome is right; what it is. Raises AssertionError."""
    what = f"{ask.call['model']} {ask.kind.signature}, {ask.rows} rows, {ask.options}"
    if ask.wrong is not None:
        assert type(ask.outcome) is ask.wrong, f"{what}: {ask.outcome!r}"
        return "wrong"
    if isinstance(ask.outcome, (CancelledError, asyncio.CancelledError, Cancelled)):
        assert ask.cancel, what
        return "cancelled"
    if isinstance(ask.outcome, (DeadlineExceeded, ResourceExhausted)):  # too late, or would be
        assert ask.options["timeout"] < SOON, what
        return "late"
    assert isinstance(ask.outcome, dict), f"{what}: {ask.outcome!r}"
    expected = reference.predict(ask.inputs, ask.kind.signature)
    assert set(ask.outcome) == set(expected), what
    for name, value in expected.items():
        got = ask.outcome[name]
        assert (got.dtype, got.shape) == (value.dtype, value.shape), f"{what}: {name}"
        if ask.kind.tolerance:
            np.testing.assert_allclose(got, value, ask.kind.tolerance, ask.kind.tolerance, err_msg=f"{what}: {name}")
        else:
            assert got.tolist() == value.tolist(), f"{what}: {name}"
    return "right"


# -- tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_every_answer_is_tensorflows_own(pool: tfpool.Pool, references: dict[str, Reference], seed: int) -> None:
    planner = Planner(seed)
    shares = [[planner.ask() for _ in range(REQUESTS)] for _ in range(THREADS + 1)]
    with tfpool.Client(pool.endpoint) as shared_client, tfpool.Client(pool.endpoint) as own:
        clients = [shared_client, shared_client, own]
        drives = [partial(by_futures, client, asks) for client, asks in zip(clients, shares, strict=False)]
        Together().run(*drives, partial(by_coroutines, pool.endpoint, shares[-1]))
    asks = [ask for share in shares for ask in share]
    outcomes = Counter(check(ask, references[ask.kind.model]) for ask in asks)
    right = [ask for ask in asks if isinstance(ask.outcome, dict)]
    assert outcomes["right"] > 0.6 * len(asks), outcomes
    assert all(outcomes[kind] >= 5 for kind in ("wrong", "cancelled", "late")), outcomes
    assert {(ask.kind.model, ask.kind.signature) for ask in right} == {(kind.model, kind.signature) for kind in KINDS}
    shared = {ask.kind.model for ask in right if ask.shared > ask.rows}
    assert shared == {kind.model for kind in KINDS if kind.shares}, "rows of several requests have been in one batch"


def test_what_changes_state_runs_at_most_once(pool: tfpool.Pool) -> None:
    """Requests that are certain add less than DOUBTFUL in all; one that is cancelled or late adds that, or nothing."""
    dice = Random(3)
    certain = [dice.randint(1, MOST_ROWS) for _ in range(60)]
    with tfpool.Client(pool.endpoint) as client:
        before = client.predict("counter", np.zeros(1, np.float32))["total"][0]
        doubtful, replies = [], []
        for rows in certain:
            timeout = dice.choice([SOON, 0.001, 0.005])
            doubtful.append(client.submit("counter", np.float32([DOUBTFUL]), timeout=timeout))
            replies.append(client.submit("counter", np.ones(rows, np.float32)))
            if timeout == SOON and dice.random() < 0.5:
                doubtful[-1].cancel()
        totals = [reply.result(SOON)["total"] - before for reply in replies]
        kept = [reply for reply in doubtful if not reply.cancelled()]
        answered = [reply.result()["total"][0] - before for reply in kept if reply.exception(SOON) is None]
        after = client.predict("counter", np.zeros(1, np.float32))["total"][0] - before
    assert all((total == total[0]).all() for total in totals)
    steps = sorted((total[0] % DOUBTFUL, rows) for total, rows in zip(totals, certain, strict=True))
    assert np.diff([0, *(total for total, _ in steps)]).tolist() == [rows for _, rows in steps]
    assert after % DOUBTFUL == sum(certain)
    assert len(set(answered)) == len(answered) <= after // DOUBTFUL <= len(doubtful)
    assert 0 < len(answered) < len(doubtful)
