"""Requests through the real client, broker and workers; the models are numpy functions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tfpool
from tfpool.client.sync import Client
from tfpool.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from tfpool.testing.fake_worker import SPILL_FLOATS, FakePool, until
from tfpool.types import DType, numpy_dtype

pytestmark = pytest.mark.process
SOON = 15.0


def floats(*shape: int) -> Any:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


# -- kinds of inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (8, 4), (1, 0), (0, 3), (0, 0)])
def test_bare_arrays(client: Client, shape: tuple[int, ...]) -> None:
    out = client.predict("double", floats(*shape))["y"]
    assert out.dtype == np.float32
    assert out.tolist() == (2 * floats(*shape)).tolist()
    assert out.shape == shape


def test_lists_take_the_dtype_of_the_signature(client: Client) -> None:
    assert client.predict("double", [[1, 2], [3, 4.5]])["y"].tolist() == [[2.0, 4.0], [6.0, 9.0]]
    assert client.predict("double", {"x": [[1]]})["y"].dtype == np.float32


def test_several_inputs_and_outputs_with_strings(client: Client) -> None:
    inputs = {"b": floats(2, 1), "a": floats(2, 3), "s": np.array([b"xy", "öz"], object)}
    out = client.predict("add", inputs)
    assert set(out) == {"sum", "text"}
    assert out["sum"].tolist() == (inputs["a"] + inputs["b"]).tolist()
    assert out["text"].tolist() == [b"", "ö".encode()[:1] * 3]


def test_single_examples(client: Client) -> None:
    out = client.predict("double", floats(3), rows=False)["y"]
    assert out.tolist() == [0.0, 2.0, 4.0]
    text = client.predict("add", {"a": np.float32([2, 0, 0]), "b": np.float32([1]), "s": b"z"}, rows=False)
    assert text["text"] == b"zz"


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3)])
def test_every_dtype_and_shape_comes_back_as_it_was(client: Client, dtype: DType, shape: tuple[int, ...]) -> None:
    if dtype == DType.STRING:
        values = np.empty(shape, object)
        for i, index in enumerate(np.ndindex(shape)):
            values[index] = bytes(range(i)) + b"\0"
    else:
        values = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(numpy_dtype(dtype))
    got = client.predict("echo", values, signature=dtype.label)["y"]
    assert got.dtype == values.dtype
    assert got.shape == shape
    assert got.tolist() == values.tolist()


def test_bfloat16(client: Client) -> None:
    values = np.array([[1.5, -2.0], [np.inf, 0.0]], ml_dtypes.bfloat16)
    got = client.predict("echo", values, signature="bfloat16")["y"]
    assert got.dtype == ml_dtypes.bfloat16
    assert got.tobytes() == values.tobytes()


def test_whole_tensors(client: Client) -> None:
    out = client.predict("matrix", floats(3, 3))
    assert out["diagonal"].tolist() == [0.0, 4.0, 8.0]
    assert (out["trace"].shape, float(out["trace"])) == ((), 12.0)


@pytest.mark.parametrize("rows", [9, 16, 100, 1000])
def test_requests_larger_than_a_batch(client: Client, rows: int) -> None:
    x = floats(rows, 3)
    assert client.predict("double", x)["y"].tolist() == (2 * x).tolist()


def test_outputs_that_no_lease_had_room_for(client: Client) -> None:
    for _ in range(3):
        out = client.predict("spill", floats(3))["y"]
        assert out.shape == (3, SPILL_FLOATS)
        assert out[:, :: SPILL_FLOATS // 4].tolist() == [[i] * 4 for i in range(3)]


def test_results_are_the_callers_own(client: Client) -> None:
    x = floats(2, 2)
    first = client.predict("double", x)["y"]
    first += 100
    assert client.predict("double", x)["y"].tolist() == (2 * x).tolist()


# -- large tensors -------------------------------------------------------------------------------------------------


def test_large_tensors_by_reference(pool: FakePool) -> None:
    rng = np.random.default_rng(3)
    with pool.client() as other:
        with pool.client() as client:
            kept = []
            for i in range(20):
                x = rng.random((4, 50_000), np.float32)
                kept.append((x, client.predict("double", x)["y"]))
                if i == 5:
                    x = x.copy()
                    reply = client.submit("double", x)
                    x += 1  # the caller may change it at once
                    kept.append((x - 1, reply.result(SOON)["y"]))
            assert other.stats()["shm"]["client_arenas"] == 2
        for x, y in kept:
            assert np.allclose(y, 2 * x, atol=1e-6), "what the user keeps outlives the client"
        until(lambda: other.stats()["shm"]["client_arenas"] == 1, what="the broker forgets the arena")


def test_many_large_tensors_at_once(client: Client) -> None:
    inputs = [floats(2, 30_000) + i for i in range(64)]
    replies = [client.submit("double", x) for x in inputs]
    replies += [client.submit("double", {"x": x}) for x in inputs]
    for x, reply in zip(inputs * 2, replies, strict=True):
        assert reply.result(SOON)["y"].tolist() == (2 * x).tolist()


def test_large_strings_and_large_requests_of_many_rows(client: Client) -> None:
    text = np.array([[b"a" * 100_000, b"b"], [b"", b"c" * 300_000]], object)
    assert client.predict("text", text)["length"].tolist() == [[100_000, 1], [0, 300_000]]
    x = floats(300, 1000)
    assert client.predict("double", x)["y"].tolist() == (2 * x).tolist()


def test_a_request_larger_than_the_arena_is_refused(client: Client) -> None:
    text = np.array([[b"x" * (40 << 20)]], object)
    with pytest.raises(ResourceExhausted, match="bytes of shared memory"):
        client.predict("text", text)


# -- many at once --------------------------------------------------------------------------------------------------


def test_many_threads_share_a_client(client: Client) -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x = rng.random((int(rng.integers(1, 12)), 3), np.float32)
            answer = client.predict("double", x) if rng.random() < 0.5 else client.submit("double", x).result(SOON)
            assert answer["y"].tolist() == (2 * x).tolist()

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, seed) for seed in range(8)]:
            done.result(60)


def test_futures(client: Client) -> None:
    inputs = [floats(1 + i % 3, 2) + i for i in range(200)]
    replies = {client.submit("double", x): x for x in inputs}
    for reply in as_completed(replies, SOON):
        assert reply.result()["y"].tolist() == (2 * replies[reply]).tolist()
    assert not wait(replies, SOON).not_done
    assert all(reply.timing is not None for reply in replies)
    called = threading.Event()
    client.submit("double", inputs[0]).add_done_callback(lambda f: called.set())
    assert called.wait(SOON)


def test_callbacks_may_submit_but_not_wait(client: Client) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def follow(reply: Any) -> None:
        try:
            client.predict("double", floats(1, 1))
        except FailedPrecondition as error:
            seen.append(error)
        client.submit("double", reply.result()["y"]).add_done_callback(finish)

    def finish(reply: Any) -> None:
        seen.append(reply.result()["y"].tolist())
        done.set()

    client.submit("double", floats(1, 2)).add_done_callback(follow)
    assert done.wait(SOON)
    assert isinstance(seen[0], FailedPrecondition)
    assert seen[1] == [[0.0, 4.0]]


def test_asyncio(pool: FakePool) -> None:
    async def story() -> None:
        async with tfpool.AsyncClient(pool.endpoint, admin=pool.admin) as client:
            inputs = [floats(2, 2) + i for i in range(100)]
            answers = await asyncio.gather(*(client.predict("double", x) for x in inputs))
            assert [a["y"].tolist() for a in answers] == [(2 * x).tolist() for x in inputs]
            assert (await client.predict("double", [[1]]))["y"].tolist() == [[2.0]]
            with pytest.raises(NotFound):
                await client.predict("nobody", inputs[0])
            assert len(await client.call("workers")) == 2
            slow = asyncio.create_task(client.predict("slow", np.float32([0.3])))
            await asyncio.sleep(0)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            with pytest.raises(DeadlineExceeded):
                await client.predict("slow", np.float32([0.5]), timeout=0.1)
            assert (await client.predict("double", inputs[1]))["y"].shape == (2, 2)

    asyncio.run(asyncio.wait_for(story(), 30))


# -- deadlines and cancellation ------------------------------------------------------------------------------------


def test_a_slow_worker_does_not_outlast_the_deadline(client: Client) -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.predict("slow", np.float32([0.6]), timeout=0.15)
    assert time.monotonic() - begin < 0.5
    assert client.predict("double", floats(1, 1))["y"].shape == (1, 1)


def test_what_expires_in_the_queue_is_told_at_once(client: Client) -> None:
    busy = [client.submit("slow", np.float32([0.4])) for _ in range(4)]
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="waited"):
        client.predict("slow", np.float32([0.0]), timeout=0.1)
    assert time.monotonic() - begin < 0.3
    for reply in busy:
        reply.result(SOON)


def test_cancelled_requests_do_not_run(client: Client) -> None:
    busy = [client.submit("slow", np.float32([0.2])) for _ in range(4)]
    until(lambda: client.stats()["models"].get("slow"), what="it runs")
    before = client.stats()["models"]["slow"]["errors"].get("CANCELLED", 0)
    waiting = [client.submit("slow", np.float32([0.2])) for _ in range(10)]
    until(lambda: sum(q["rows"] for q in client.queues() if q["model"] == "slow") >= 10, what="they wait")
    assert all(reply.cancel() for reply in waiting)
    for reply in waiting:
        with pytest.raises(CancelledError):
            reply.result()
    until(lambda: client.stats()["models"]["slow"]["errors"].get("CANCELLED", 0) == before + 10)
    for reply in busy:
        assert reply.result(SOON)["y"].tolist() == [np.float32(0.2)]
        assert not reply.cancel()


def test_a_full_queue_refuses_at_once(client: Client) -> None:
    replies = [client.submit("batched_slow", np.float32([0.2]), timeout=5) for _ in range(40)]
    outcomes = [type(reply.exception(SOON)) for reply in replies]
    assert set(outcomes) == {type(None), ResourceExhausted}
    errors = [reply.exception() for reply in replies if reply.exception()]
    assert "max_queue_rows is 4" in str(errors[0])


def test_closing_cancels_what_is_in_flight(pool: FakePool) -> None:
    client = pool.client()
    replies = [client.submit("slow", np.float32([0.3])) for _ in range(3)]
    client.close()
    for reply in replies:
        with pytest.raises(Cancelled, match="closed"):
            reply.result(SOON)
    for call in (lambda: client.predict("double", floats(1, 1)), client.models, client.shutdown):
        with pytest.raises(FailedPrecondition, match="this client is closed"):
            call()
    client.close()


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "problem"),
    [
        ("nobody", floats(1, 1), {}, NotFound, "no model 'nobody'; there are add, "),
        ("double", floats(1, 1), {"version": 9}, NotFound, "'double' has no version 9; it has 1"),
        ("double", floats(1, 1), {"label": "x"}, NotFound, "no label 'x'"),
        ("double", floats(1, 1), {"signature": "x"}, InvalidArgument, "no signature 'x'; it has serving_default"),
        ("echo", floats(1, 1), {}, InvalidArgument, "so one must be named"),
        ("double", floats(1, 1).astype(np.float64), {}, InvalidArgument, "got float64, expected float32"),
        ("double", floats(1), {}, InvalidArgument, r"got shape \[\?\], expected \[\?, \?\]"),
        ("double", {"z": floats(1, 1)}, {}, InvalidArgument, "unknown z and missing x"),
        ("add", floats(1, 3), {}, InvalidArgument, "got one array without a name, expected inputs a, b, s"),
        ("matrix", floats(2, 3), {}, InvalidArgument, "got 2 rows, expected exactly 3"),
        ("broken", floats(1), {}, FailedPrecondition, "broken on purpose"),
        ("wrong", floats(2), {}, Internal, r"gave shape \(3,\) for a batch of 2 rows"),
        ("poison", np.float32([7]), {}, InvalidArgument, "a row of 7"),
    ],
)
def test_refusals_say_what_was_wrong(
    client: Client, model: str, inputs: Any, options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        client.predict(model, inputs, **options)


@pytest.mark.parametrize("timeout", [0, -1, "1", float("nan"), 1e9, float("inf")])
def test_timeouts_are_seconds(client: Client, timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected seconds"):
        client.predict("double", floats(1, 1), timeout=timeout)


def test_one_poisonous_request_does_not_fail_its_neighbours(client: Client) -> None:
    values = [7.0 if i in (3, 17) else float(i + 100) for i in range(40)]
    replies = [client.submit("poison", np.float32([value])) for value in values]
    for value, reply in zip(values, replies, strict=True):
        if value == 7.0:
            assert isinstance(reply.exception(SOON), InvalidArgument)
        else:
            assert reply.result(SOON)["y"].tolist() == [value]


def test_what_changes_state_runs_once_and_alone(client: Client) -> None:
    before = client.predict("counter", floats(1))["total"][0]
    replies = [client.submit("counter", floats(1 + i % 2)) for i in range(30)]
    totals = [reply.result(SOON)["total"].tolist() for reply in replies]
    assert [values[0] for values in totals] == [before + i for i in range(1, 31)]


# -- forks ---------------------------------------------------------------------------------------------------------


def test_after_a_fork_the_client_refuses_and_a_new_one_works(client: Client, pool: FakePool) -> None:
    client.predict("double", floats(1, 1))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = []
        try:
            for call in (lambda: client.predict("double", floats(1, 1)), client.models):
                try:
                    call()
                except FailedPrecondition as error:
                    words.append(error.message)
            client.close()
            with pool.client() as own:
                words.append(str(own.predict("double", floats(1, 2))["y"].tolist()))
        finally:
            os.write(writer, "|".join(words).encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read().split("|")
    os.waitpid(pid, 0)
    assert said == ["this client was made before a fork: make a new one in the child process"] * 2 + ["[[0.0, 2.0]]"]
    assert client.predict("double", floats(1, 1))["y"].shape == (1, 1)
