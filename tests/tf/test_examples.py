"""classify and regress through a pool, against TensorFlow's own run of the same tf.Examples."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.errors import InvalidArgument
from tfpool.testing.reference import Reference

pytestmark = [pytest.mark.process, pytest.mark.tf]
EXAMPLES = [
    {"x": [1.0, 2.0, 3.5], "word": "häuser", "n": 7},
    {"x": [-1, 0.5, 2]},
    {"x": np.array([0.25, 0.5, 0.125]), "word": [b"\xc3\xa9"], "n": True},
    {"x": np.float32([3, 2, 1]), "n": np.int64(-(1 << 40)), "word": []},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("examples")
    command = [sys.executable, "-m", "tfpool.testing.models", "examples", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return str(directory / "examples")


@pytest.fixture(scope="module")
def pool(path: str) -> Iterator[tfpool.Pool]:
    with tfpool.Pool({"examples": path}, workers=1) as running:
        yield running


@pytest.fixture
def client(pool: tfpool.Pool) -> Iterator[tfpool.Client]:
    with tfpool.Client(pool.endpoint, admin=pool.admin_endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def reference(path: str) -> Iterator[Reference]:
    with Reference(path) as found:
        yield found


def serialized(features: dict[str, Any]) -> bytes:
    """By TensorFlow's own tf.train.Example."""
    import tensorflow as tf

    made = {}
    for name, value in features.items():
        values = np.asarray(value).reshape(-1).tolist() if not isinstance(value, str | bytes) else [value]
        if all(isinstance(v, str | bytes) for v in values):
            values = [v.encode() if isinstance(v, str) else v for v in values]
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values)) if values else tf.train.Feature()
        elif all(isinstance(v, int) for v in values):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
        else:
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    data: bytes = tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()
    return data


def expected(reference: Reference, signature: str) -> dict[str, Any]:
    return reference.predict({"inputs": np.array([serialized(e) for e in EXAMPLES], object)}, signature)


def test_classify(client: tfpool.Client, reference: Reference) -> None:
    wanted = expected(reference, "serving_default")
    got = client.classify("examples", EXAMPLES)
    assert got == [
        [(label.decode(), score) for label, score in zip(*row, strict=True)]
        for row in zip(wanted["classes"].tolist(), wanted["scores"].tolist(), strict=True)
    ]
    assert got[0] == [("sum", 6.5), ("n", 7.0), ("häuser", 7.0)]
    assert got == client.classify("examples", [serialized(e) for e in EXAMPLES])


def test_scores_or_classes_alone(client: tfpool.Client, reference: Reference) -> None:
    scores = client.classify("examples", EXAMPLES, signature="scores")
    assert scores == [[("", s) for s in row] for row in expected(reference, "scores")["scores"].tolist()]
    classes = client.classify("examples", EXAMPLES[:1], signature="classes")
    assert classes == [[("sum", 0.0), ("n", 0.0), ("häuser", 0.0)]]


@pytest.mark.parametrize("signature", ["regress", "regress_flat"])
def test_regress(client: tfpool.Client, reference: Reference, signature: str) -> None:
    got = client.regress("examples", EXAMPLES, signature=signature)
    assert got.dtype == np.float32
    assert got.shape == (len(EXAMPLES),)
    assert got.tolist() == expected(reference, signature)["outputs"].reshape(-1).tolist()


def test_the_context_belongs_to_every_example(client: tfpool.Client) -> None:
    context = {"word": "shared", "n": 4}
    got = client.classify("examples", [{"x": [1.0, 1.0, 1.0]}, {"x": [0.0] * 3, "n": 5}], context=context)
    assert got == [[("sum", 3.0), ("n", 4.0), ("shared", 6.0)], [("sum", 0.0), ("n", 5.0), ("shared", 6.0)]]


def test_the_wrong_kind_of_signature(client: tfpool.Client) -> None:
    with pytest.raises(InvalidArgument, match=r"'predict' does not classify: got .* outputs y: float32; expected"):
        client.classify("examples", EXAMPLES, signature="predict")
    with pytest.raises(InvalidArgument, match=r"'serving_default' does not regress: .*expected .*outputs: float32"):
        client.regress("examples", EXAMPLES)
    with pytest.raises(InvalidArgument, match=r"no signature 'other'; it has .*regress"):
        client.regress("examples", EXAMPLES, signature="other")


def test_what_the_model_refuses(client: tfpool.Client) -> None:
    with pytest.raises(InvalidArgument, match="x"):
        client.classify("examples", [{"n": 1}])
    assert client.classify("examples", EXAMPLES[:1])[0][0] == ("sum", 6.5)


def test_async(pool: tfpool.Pool, reference: Reference) -> None:
    async def run() -> tuple[Any, Any, Any]:
        async with tfpool.AsyncClient(pool.endpoint, admin=pool.admin_endpoint) as client:
            classes = await client.classify("examples", EXAMPLES[:1])
            values = await asyncio.gather(
                *(client.regress("examples", EXAMPLES, signature="regress") for _ in range(16))
            )
            with pytest.raises(InvalidArgument, match="does not regress"):
                await client.regress("examples", EXAMPLES)
            return classes, values, await client.models()

    classes, values, models = asyncio.run(run())
    assert classes == [[("sum", 6.5), ("n", 7.0), ("häuser", 7.0)]]
    wanted = expected(reference, "regress")["outputs"].reshape(-1).tolist()
    assert [v.tolist() for v in values] == [wanted] * 16
    assert models[0]["name"] == "examples"
