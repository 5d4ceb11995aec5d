"""Real models in a real pool; every answer is compared with TensorFlow's own, in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound
from tfpool.testing import models as makers
from tfpool.testing.reference import Reference
from tfpool.types import DType, numpy_dtype

pytestmark = [pytest.mark.process, pytest.mark.tf]
SOON = 30.0
GOOD = (
    *("half_plus_two", "mlp", "identity", "string_length", "two_signatures", "no_batch", "scalar", "counter"),
    *("mixes_rows", "dtypes", "crash"),
)
BROKEN = ("truncated", "missing_variables", "empty")
REAL_MODELS = Path(__file__).parents[3] / "shared" / "models"
_MAKE = "import sys\nfrom tfpool.testing import models\nfor name in sys.argv[2:]: models.MAKERS[name](sys.argv[1])"
References = Callable[[str], Reference]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Base paths by name."""
    directory = tmp_path_factory.mktemp("served")
    done = subprocess.run(
        [sys.executable, "-c", _MAKE, str(directory), *GOOD, *BROKEN], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: str(directory / name) for name in (*GOOD, *BROKEN)}


@pytest.fixture(scope="module")
def pool(made: dict[str, str]) -> Iterator[tfpool.Pool]:
    with tfpool.Pool(made, workers=2, strict=False) as running:
        yield running


@pytest.fixture
def client(pool: tfpool.Pool) -> Iterator[tfpool.Client]:
    with tfpool.Client(pool.endpoint, admin=pool.admin_endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def reference(made: dict[str, str]) -> Iterator[References]:
    """TensorFlow's own answers, by model; each is loaded once."""
    known: dict[str, Reference] = {}

    def of(name: str) -> Reference:
        if name not in known:
            known[name] = Reference(made.get(name, name))
        return known[name]

    yield of
    for one in known.values():
        one.close()


def same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """The same outputs by name, dtype and shape; floats to a tolerance, for batches sum in another order."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance)
        else:
            assert got[name].tolist() == value.tolist(), name


def some(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- models one by one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "signature", "inputs"),
    [
        ("half_plus_two", "", {"x": some(5)}),
        ("half_plus_two", "", {"x": some(1000)}),
        ("half_plus_two", "", {"x": some(0)}),
        ("mlp", "", {"x": some(1, 256)}),
        ("mlp", "", {"x": some(64, 256)}),
        ("mlp", "", {"x": some(200, 256)}),
        ("identity", "", {"x": some(3, 4)}),
        ("string_length", "", {"text": np.array([b"", b"a\0b", "größe".encode(), b"x" * 1000], object)}),
        ("two_signatures", "double", {"x": some(3, 4)}),
        ("two_signatures", "add", {"a": some(3, 3), "b": some(3, 1)}),
        ("no_batch", "", {"x": some(3, 3)}),
        ("scalar", "", {"x": np.float32(21.0)}),
        ("mixes_rows", "", {"x": some(7, 4)}),
        ("crash", "", {"x": some(4)}),
    ],
)
def test_answers_are_tensorflows(
    client: tfpool.Client, reference: References, model: str, signature: str, inputs: dict[str, Any]
) -> None:
    expected = reference(model).predict(inputs, signature or "serving_default")
    for _ in range(2):
        same(client.predict(model, inputs, signature=signature), expected)


@pytest.mark.parametrize("dtype", makers.DTYPES)
def test_every_dtype(client: tfpool.Client, reference: References, dtype: str) -> None:
    kind = next(d for d in DType if d.label == dtype)
    if kind == DType.STRING:
        x = np.array([[b"", b"\0"], [b"abc", b"\xff"]], object)
    else:
        x = np.array([[0, 1], [1, 0]]).astype(numpy_dtype(kind))
    got = client.predict("dtypes", {"x": x}, signature=dtype)["y"]
    assert got.dtype == numpy_dtype(kind)
    assert got.tolist() == x.tolist()
    expected = reference("dtypes").predict({"x": x}, dtype)["y"]
    assert got.tolist() == expected.tolist()


def test_bare_arrays_lists_and_single_examples(client: tfpool.Client) -> None:
    assert client.predict("half_plus_two", np.float32([2, 4]))["y"].tolist() == [3.0, 4.0]
    assert client.predict("half_plus_two", [2, 4])["y"].tolist() == [3.0, 4.0]
    assert client.predict("half_plus_two", 2.0, rows=False)["y"].tolist() == 3.0
    assert client.predict("string_length", ["ab", "c"])["length"].tolist() == [2, 1]
    assert client.predict("no_batch", np.eye(3, dtype=np.float32))["trace"].shape == ()


def test_requests_that_differ_share_batches_and_keep_their_rows(client: tfpool.Client, reference: References) -> None:
    inputs = [some(1 + i % 5, 256, seed=i) for i in range(150)]
    replies = [client.submit("mlp", x) for x in inputs]
    together = np.concatenate(inputs)
    expected = reference("mlp").predict({"x": together})["y"]
    at = 0
    for x, reply in zip(inputs, replies, strict=True):
        same(reply.result(SOON), {"y": expected[at : at + len(x)]}, 1e-4)
        at += len(x)
    assert max(reply.timing[2] for reply in replies) > 5, "some have shared a batch"


def test_strings_share_batches(client: tfpool.Client, reference: References) -> None:
    inputs = [np.array([bytes([65 + i % 26]) * (i % 7), b"x"], object) for i in range(80)]
    replies = [client.submit("string_length", x) for x in inputs]
    for x, reply in zip(inputs, replies, strict=True):
        same(reply.result(SOON), reference("string_length").predict({"text": x}))


def test_a_model_that_mixes_rows_is_run_request_by_request(client: tfpool.Client, reference: References) -> None:
    inputs = [some(1 + i % 4, 4, seed=i) for i in range(20)]
    replies = [client.submit("mixes_rows", x) for x in inputs]
    for x, reply in zip(inputs, replies, strict=True):
        same(reply.result(SOON), reference("mixes_rows").predict({"x": x}), 1e-6)
        assert reply.timing[2] == len(x)
    (signature,) = client.metadata("mixes_rows")["signatures"]
    assert not signature["batched"]
    assert signature["reason"]


def test_a_counter_counts_every_request_once(client: tfpool.Client) -> None:
    """It is neither batched nor retried nor run to warm up."""
    (signature,) = client.metadata("counter")["signatures"]
    assert (signature["stateful"], signature["batched"]) == (True, False)
    one = np.ones(1, np.float32)
    before = client.predict("counter", one)["total"][0]
    replies = [client.submit("counter", one) for _ in range(50)]
    assert [reply.result(SOON)["total"][0] for reply in replies] == [before + i for i in range(1, 51)]


def test_fixed_shapes_are_insisted_on(client: tfpool.Client) -> None:
    with pytest.raises(InvalidArgument, match=r"got 2 rows, expected exactly 3"):
        client.predict("no_batch", some(2, 3))
    with pytest.raises(InvalidArgument, match=r"got shape \[\?, 4\], expected \[3, 3\]"):
        client.predict("no_batch", some(3, 4))
    with pytest.raises(InvalidArgument, match=r"got shape \[\?\], expected \[\]"):
        client.predict("scalar", some(1))
    with pytest.raises(InvalidArgument, match="one must be named; it has add, double"):
        client.predict("two_signatures", some(1, 4))
    with pytest.raises(NotFound, match="no model 'nobody'"):
        client.predict("nobody", some(1))


@pytest.mark.parametrize("model", BROKEN)
def test_a_broken_model_says_why_and_the_others_serve(client: tfpool.Client, model: str) -> None:
    row = client.status(model)[0]
    assert row["state"] == "FAILED"
    assert model in row["error"]
    with pytest.raises((FailedPrecondition, NotFound)) as caught:
        client.predict(model, some(1))
    assert model in caught.value.message
    assert client.predict("half_plus_two", some(1))["y"].shape == (1,)


def test_large_tensors(client: tfpool.Client, reference: References) -> None:
    x = some(2000, 256)
    same(client.predict("mlp", x), reference("mlp").predict({"x": x}), 1e-4)
    many = some(10_000, 4)
    for y in [client.predict("identity", many)["y"] for _ in range(5)]:
        assert y.tolist() == many.tolist()


# -- a real model --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL_MODELS / "basic_pitch").is_dir(), reason=f"{REAL_MODELS}/basic_pitch is not there")
def test_basic_pitch_hears_a_440_hz_sine() -> None:
    path = str(REAL_MODELS / "basic_pitch")
    sine = np.sin(2 * np.pi * 440 * np.arange(43844) / 22050).astype(np.float32)[None, :, None]
    noise = np.random.default_rng(7).normal(0.0, 0.1, sine.shape).astype(np.float32)  # it hears roundings in silence
    with tfpool.Pool({"basic_pitch": path}, workers=1) as pool, Reference(path) as reference:
        replies = [pool.client().submit("basic_pitch", {"input_2": x}) for x in (sine, noise, sine)]
        answers = [reply.result(60) for reply in replies]
        assert set(answers[0]) == {"note", "onset", "contour"}
        assert int(answers[0]["note"][0].mean(axis=0).argmax()) == 48
        for x, answer in zip((sine, noise, sine), answers, strict=True):
            same(answer, reference.predict({"input_2": x}), 1e-3)


# -- deaths --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(made: dict[str, str]) -> Iterator[Callable[..., tfpool.Pool]]:
    """Pools of a test's own."""
    running: list[tfpool.Pool] = []

    def start(*names: str, **settings: Any) -> tfpool.Pool:
        running.append(tfpool.Pool({name: made[name] for name in names}, **settings))
        return running[-1]

    yield start
    for one in running:
        one.close()


def until(condition: Callable[[], Any], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_a_worker_killed_under_load_costs_no_request(own: Callable[..., tfpool.Pool], reference: References) -> None:
    with own("mlp", "half_plus_two", workers=2).client() as client:
        failures: list[Any] = []
        answered, stop = [0], threading.Event()
        expected = {n: reference("mlp").predict({"x": some(n, 256, seed=n)}) for n in (1, 3, 40)}

        def load(n: int) -> None:
            while not stop.is_set():
                try:
                    same(client.predict("mlp", {"x": some(n, 256, seed=n)}), expected[n], 1e-4)
                    answered[0] += 1
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=load, args=(n,)) for n in expected]
        for thread in threads:
            thread.start()
        for turn in range(2):
            seen = answered[0]
            until(lambda seen=seen: answered[0] > seen + 20)
            victim = next(w for w in client.workers() if "mlp:1" in w["models"])
            os.kill(victim["pid"], signal.SIGKILL)
            until(lambda turn=turn: sum(w["deaths"] for w in client.workers()) > turn)
            until(lambda: all(w["state"] == "READY" for w in client.workers()))
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert client.stats()["shm"]["quarantined"] == 0


def test_an_input_that_aborts_tensorflow_is_given_up_and_the_pool_recovers(client: tfpool.Client) -> None:
    with pytest.raises(FailedPrecondition, match="in quarantine: 2 workers died while running it"):
        client.predict("crash", np.float32([makers.CRASH_VALUE]), timeout=SOON)
    assert client.predict("crash", np.float32([1.0]), timeout=SOON)["y"].tolist() == [1.0]
    assert client.predict("half_plus_two", np.float32([2.0]), timeout=SOON)["y"].tolist() == [3.0]


def test_the_spawn_start_method(own: Callable[..., tfpool.Pool]) -> None:
    pool = own("half_plus_two", workers=1, start_method="spawn")
    assert pool.client().predict("half_plus_two", np.float32([2.0]))["y"].tolist() == [3.0]
    (worker,) = pool.client().workers()
    os.kill(worker["pid"], signal.SIGKILL)
    assert pool.client().predict("half_plus_two", np.float32([4.0]), timeout=SOON)["y"].tolist() == [4.0]


def test_nothing_outlives_a_supervisor_that_is_killed(
    own: Callable[..., tfpool.Pool], session_members: Callable[[int], list[int]]
) -> None:
    pool = own("half_plus_two", workers=2)
    assert len(session_members(pool.pid)) >= 5, "supervisor, broker, zygote and two workers"
    os.kill(pool.pid, signal.SIGKILL)
    until(lambda: not session_members(pool.pid))
