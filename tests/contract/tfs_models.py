"""Numpy functions for the contract of TensorFlow Serving's REST, and a desk that serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.contract.serving_desk import Desk
from tfpool.errors import from_code
from tfpool.gateway.tfs.rest import Rest
from tfpool.protos import example_pb2
from tfpool.testing.fake_models import KINDS, signature
from tfpool.types import DType
from tfpool.worker.loader import Signature

FLOATS = (DType.FLOAT, (-1,))
STRINGS = (DType.STRING, (-1,))


def half(offset: float) -> list[Signature]:
    return [signature(lambda x: (x / np.float32(2) + np.float32(offset),), {"x": FLOATS}, {"y": FLOATS})]


def several() -> list[Signature]:
    """total = a + b, and first, a's first column; other signatures give outputs without as many rows, or just one."""

    def run(a: Any, b: Any) -> Sequence[Any]:
        return a[:, 0], a + b

    inputs = {"a": (DType.FLOAT, (-1, 2)), "b": (DType.FLOAT, (-1, 1))}
    outputs = {"first": FLOATS, "total": (DType.FLOAT, (-1, 2))}
    return [
        signature(run, inputs, outputs),
        signature(lambda a, b: (a[:1, 0], a), inputs, outputs, name="uneven"),
        signature(lambda a, b: (a[0, 0], a), inputs, outputs, name="scalar"),
        signature(lambda a: (a,), {"a": (DType.FLOAT, (-1, 2))}, {"a": (DType.FLOAT, (-1, 2))}, name="one"),
    ]


def texts() -> list[Signature]:
    def run(s: Any) -> Sequence[Any]:
        lengths = np.array([len(item) for item in s], np.int32)
        return lengths, s, np.array([item.upper() for item in s], object)

    outputs = {"length": (DType.INT32, (-1,)), "raw_bytes": STRINGS, "upper": STRINGS}
    return [
        signature(run, {"s": STRINGS}, outputs),
        signature(lambda s: (s,), {"s": STRINGS}, {"text": STRINGS}, name="text"),
        signature(lambda s: (s,), {"s": STRINGS}, {"text_bytes": STRINGS}, name="bytes"),
    ]


def features() -> list[Signature]:
    """What the features x (floats), n (ints) and w (bytes) of tf.Examples add up to."""

    def read(inputs: Any) -> list[tuple[float, int, bytes]]:
        found = []
        for data in inputs:
            feature = example_pb2.Example.FromString(data).features.feature
            floats, ints, words = feature["x"].float_list, feature["n"].int64_list, feature["w"].bytes_list
            found.append((sum(floats.value), sum(ints.value), b"".join(words.value)))
        return found

    def classes(inputs: Any) -> Sequence[Any]:
        found = read(inputs)
        labels = np.array([[b"x", b"n", word] for _, _, word in found], object)
        return labels, np.array([[x, n, len(word)] for x, n, word in found], np.float32)

    def value(inputs: Any) -> Sequence[Any]:
        return (np.array([[x + n] for x, n, _ in read(inputs)], np.float32),)

    table = (-1, -1)
    both = {"classes": (DType.STRING, table), "scores": (DType.FLOAT, table)}
    take: dict[str, Any] = {"inputs": STRINGS}
    return [
        signature(classes, take, both),
        signature(lambda inputs: classes(inputs)[1:], take, {"scores": both["scores"]}, name="scores"),
        signature(lambda inputs: classes(inputs)[:1], take, {"classes": both["classes"]}, name="labels"),
        signature(value, take, {"outputs": (DType.FLOAT, (-1, 1))}, name="regress"),
        signature(lambda inputs: (np.zeros((2, 2), np.float32),), take, {"outputs": (DType.FLOAT, None)}, name="odd"),
    ]


def fails() -> list[Signature]:
    def run(code: Any) -> Sequence[Any]:
        raise from_code(int(code[0]), "told so", 2.5 if code[0] == 8 else None)

    return [signature(run, {"code": (DType.INT32, (-1,))}, {"never": (DType.INT32, (-1,))})]


def gives(**arrays: Any) -> list[Signature]:
    """A signature a keyword: these outputs, whatever x is."""
    made = []
    for name, value in arrays.items():
        array = np.asarray(value)
        dtype = next(d for d in DType if d.label == array.dtype.name) if array.dtype != object else DType.STRING
        made.append(signature(lambda x, a=array: (a,), {"x": FLOATS}, {"y": (dtype, None)}, name=name))
    return made


MODELS = {
    "half": {1: half(2.0), 2: half(3.0)},
    "a/b: ü": {7: half(7.0)},
    "several": {1: several()},
    "texts": {1: texts()},
    "features": {3: features()},
    "fails": {1: fails()},
    "echo": {1: KINDS["echo"]("")},
    "matrix": {1: KINDS["matrix"]("")},
    "scalar": {1: [signature(lambda x: (x * 2,), {"x": (DType.FLOAT, ())}, {"y": (DType.FLOAT, ())})]},
    "gives": {
        1: gives(
            third=np.float32([1 / 3, 2 / 3]),
            tenths=np.float32([0.1, 0.2, 0.7]),
            whole=np.float32([0, -0.0, 1, 16777216, 1e16]),
            extremes=np.float32([3.4028235e38, -3.4028235e38, 1.1754944e-38, 1e-45]),
            doubles=np.float64([0.1, 1 / 3, 1e300, 5e-324]),
            nan=np.float32([np.nan, 1, np.inf, -np.inf]),
            nan64=np.float64([[np.nan, 0.1], [1, 2]]),
            int64=np.int64([-(1 << 63), (1 << 63) - 1]),
            uint64=np.uint64([0, (1 << 64) - 1]),
            uint16=np.uint16([0, 65535]),
            flags=np.array([True, False]),
            half=np.float16([0.5, np.inf]),
            complex=np.complex64([1j]),
            empty=np.zeros((0, 3), np.float32),
            hollow=np.zeros((2, 0), np.float32),
            words=np.array([b"null", b'\xc3\xa9 "\\\n', b"", b"\xff"], object),
            grid=np.array([[b"a", b"b"], [b"c", b"null"]], object),
        )
    },
}


LABELS = {"half": {"stable": 1, "new/est": 2}}


def make_desk() -> Desk:
    return Desk(MODELS, lambda gateway: Rest(gateway).routes(), LABELS)
