"""tf.Examples as the client encodes them, and what classify and regress make of a signature and its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfpool.client.examples import CLASSIFY, REGRESS, Method, Target, encode
from tfpool.errors import InvalidArgument
from tfpool.protos import example_pb2


def decoded(example: Any, context: Any = None) -> dict[str, tuple[str | None, list[Any]]]:
    (data,) = encode([example], context).tolist()
    features = example_pb2.Example.FromString(data).features.feature
    found = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value) if kind else [])
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ü", ("bytes_list", ["ü".encode()])),
        ([b"\xff", "a"], ("bytes_list", [b"\xff", b"a"])),
        (0.5, ("float_list", [0.5])),
        ([1, 0.5], ("float_list", [1.0, 0.5])),
        ((3, -(1 << 63)), ("int64_list", [3, -(1 << 63)])),
        (True, ("int64_list", [1])),
        ([], (None, [])),
        (np.float32([[1, 2], [3, 4]]), ("float_list", [1.0, 2.0, 3.0, 4.0])),
        (np.array([b"a"], object), ("bytes_list", [b"a"])),
        (np.array(["a"]), ("bytes_list", [b"a"])),
        (np.uint8(200), ("int64_list", [200])),
        ([np.int64(3), 4], ("int64_list", [3, 4])),
        (np.bool_(True), ("int64_list", [1])),
    ],
)
def test_the_kind_of_a_feature(value: Any, expected: tuple[str | None, list[Any]]) -> None:
    assert decoded({"f": value}) == {"f": expected}


def test_the_example_wins_over_the_context() -> None:
    got = decoded({"a": 1}, {"a": 2, "b": 3})
    assert got == {"a": ("int64_list", [1]), "b": ("int64_list", [3])}
    serialized = encode([{"a": 1}])[0]
    assert decoded(serialized, {"b": 3}) == got


@pytest.mark.parametrize(
    ("examples", "match"),
    [
        ({"x": 1}, "examples: got dict, expected a list"),
        ("x", "examples: got str, expected a list"),
        (b"x", "examples: got bytes, expected a list"),
        (3, "examples: got int, expected a list"),
        ([], "got none, expected one or more"),
        ([{"x": 1}, 7], "example 1: got int, expected features by name"),
        ([{3: 1}], "example 0: got int as the name"),
        ([{"x": None}], "example 0, feature 'x': got values of NoneType"),
        ([{"x": ["a", 1]}], "example 0, feature 'x': got values of int, str"),
        ([{"x": 1 << 63}], "example 0, feature 'x'"),
        ([{"x": 1j}], "example 0, feature 'x': got values of complex"),
    ],
)
def test_what_is_no_example(examples: Any, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        encode(examples)


def test_a_context_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match="context: got list"):
        encode([{"x": 1}], [])  # type: ignore[arg-type]


TARGET = Target("m", 0, "", "")


def signature(inputs: dict[str, str], outputs: dict[str, str], name: str = "serving_default") -> dict[str, Any]:
    sides = {
        side: [{"name": tensor, "dtype": dtype, "shape": None} for tensor, dtype in tensors.items()]
        for side, tensors in (("inputs", inputs), ("outputs", outputs))
    }
    return {"name": name, **sides}


@pytest.mark.parametrize(
    ("method", "outputs"),
    [
        (CLASSIFY, {"classes": "string"}),
        (CLASSIFY, {"scores": "float32"}),
        (CLASSIFY, {"classes": "string", "scores": "float32"}),
        (REGRESS, {"outputs": "float32"}),
    ],
)
def test_signatures_of_the_kind(method: Method, outputs: dict[str, str]) -> None:
    method.check({"signatures": [signature({"inputs": "string"}, outputs)]}, TARGET)


@pytest.mark.parametrize(
    ("method", "inputs", "outputs"),
    [
        (CLASSIFY, {"inputs": "string"}, {}),
        (CLASSIFY, {"inputs": "float32"}, {"scores": "float32"}),
        (CLASSIFY, {"examples": "string"}, {"scores": "float32"}),
        (CLASSIFY, {"inputs": "string", "more": "string"}, {"scores": "float32"}),
        (CLASSIFY, {"inputs": "string"}, {"scores": "float64"}),
        (CLASSIFY, {"inputs": "string"}, {"scores": "float32", "logits": "float32"}),
        (CLASSIFY, {"inputs": "string"}, {"outputs": "float32"}),
        (REGRESS, {"inputs": "string"}, {"outputs": "int64"}),
        (REGRESS, {"inputs": "string"}, {"scores": "float32"}),
    ],
)
def test_signatures_of_another_kind(method: Method, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=f"does not {method.name}: got inputs .*; expected input inputs: string"):
        method.check({"signatures": [signature(inputs, outputs)]}, TARGET)


def test_no_such_signature() -> None:
    with pytest.raises(InvalidArgument, match="no signature 'serving_default'; it has a, b"):
        CLASSIFY.check({"signatures": [signature({}, {}, "a"), signature({}, {}, "b")]}, TARGET)


def words(*rows: list[bytes]) -> Any:
    return np.array(rows, object)


def test_classes_and_scores() -> None:
    outputs = {"classes": words([b"a", b"\xff"]), "scores": np.float32([[0.5, 0.25]])}
    assert CLASSIFY.read(outputs, 1) == [[("a", 0.5), ("�", 0.25)]]
    assert CLASSIFY.read({"classes": outputs["classes"]}, 1) == [[("a", 0.0), ("�", 0.0)]]
    assert CLASSIFY.read({"scores": outputs["scores"]}, 1) == [[("", 0.5), ("", 0.25)]]


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({"scores": np.zeros(2, np.float32)}, r"scores: got shape \[2\], expected \[2, classes\]"),
        ({"scores": np.zeros((3, 1), np.float32)}, r"scores: got shape \[3, 1\], expected \[2, classes\]"),
        ({"classes": words([b"a"])}, r"classes: got shape \[1, 1\], expected \[2, classes\]"),
        (
            {"classes": words([b"a"], [b"b"]), "scores": np.zeros((2, 2), np.float32)},
            "got 1 classes and 2 scores",
        ),
    ],
)
def test_classes_of_the_wrong_shape(outputs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        CLASSIFY.read(outputs, 2)


def test_values() -> None:
    for shape in ((2,), (2, 1)):
        assert REGRESS.read({"outputs": np.float32([1, 2]).reshape(shape)}, 2).tolist() == [1.0, 2.0]
    for shape in ((2, 2), (3,), (2, 1, 1), ()):
        with pytest.raises(InvalidArgument, match=r"outputs: got shape .*, expected \[2\] or \[2, 1\]"):
            REGRESS.read({"outputs": np.zeros(shape, np.float32)}, 2)
