"""JSON of TensorFlow Serving's REST <-> arrays: what goes in comes out again, and no junk gets through."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tfpool.errors import InvalidArgument, TfpoolError, Unimplemented
from tfpool.gateway.tfs import decode, encode
from tfpool.gateway.tfs.elements import string, tensor
from tfpool.types import DType, TensorSpec, numpy_dtype

SAYABLE = [
    *(DType.FLOAT, DType.DOUBLE, DType.BOOL, DType.INT8, DType.INT16, DType.INT32, DType.INT64),
    *(DType.UINT8, DType.UINT32, DType.UINT64),
]
SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just({"b64": "AA=="}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "b64", "y"]), inner, max_size=2),
    max_leaves=12,
)


def spec(dtype: DType) -> TensorSpec:
    return TensorSpec("x", dtype, None)


@given(st.sampled_from(SAYABLE).flatmap(lambda d: npst.arrays(numpy_dtype(d), SHAPES).map(lambda a: (d, a))))
def test_numbers_survive(case: tuple[DType, Any]) -> None:
    dtype, array = case
    for text, key in ((encode.columns({"y": array}), "outputs"), (encode.rows({"y": array}), "predictions")):
        back = tensor(decode.parse(text)[key], spec(dtype))
        shape = array.shape[: array.shape.index(0) + 1] if 0 in array.shape else array.shape  # [] ends a list
        assert (back.dtype, back.shape) == (array.dtype, shape)
        if array.size:
            np.testing.assert_array_equal(back, array)


@given(npst.arrays(np.float32, 5), npst.arrays(object, 5, elements=st.binary(max_size=5)))
def test_rows_of_several_outputs_survive(numbers: Any, texts: Any) -> None:
    found = decode.parse(encode.rows({"null": numbers, "text": texts, "raw_bytes": texts}))["predictions"]
    np.testing.assert_array_equal(np.float32([row["null"] for row in found]), numbers)
    assert [string(row["text"]) for row in found] == texts.tolist()
    assert all(string(row["raw_bytes"]) == text for row, text in zip(found, texts, strict=True))
    assert all(row["raw_bytes"].keys() == {"b64"} for row in found)


@given(st.floats(width=32))
def test_a_float_is_its_shortest_text(number: float) -> None:
    text = encode.columns({"y": np.float32([number])})[len('{"outputs":[') : -len("]}")].decode()
    assert np.float32(text) == np.float32(number) or math.isnan(number)
    if math.isfinite(number):
        json.loads(text)
        assert "." in text or "e" in text
        digits = text.lstrip("-").split("e")[0].replace(".", "").strip("0")
        shortest = np.format_float_scientific(np.float32(number), unique=True).lstrip("-").split("e")[0]
        assert len(digits) <= len(shortest.replace(".", "").strip("0"))


def test_what_is_not_finite_stands_beside_text_that_reads_null() -> None:
    outputs = {"a": np.float32([[np.nan, 1], [2, 3]]), "null": np.array([b"null", b"l"], object)}
    assert encode.rows(outputs) == b'{"predictions":[{"a":[NaN,1.0],"null":"null"},{"a":[2.0,3.0],"null":"l"}]}'
    assert encode.columns(outputs) == b'{"outputs":{"a":[[NaN,1.0],[2.0,3.0]],"null":["null","l"]}}'


def test_arrays_that_lie_otherwise_in_memory() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert encode.columns({"y": array}) == b'{"outputs":[[0,3],[1,4],[2,5]]}'
    assert encode.rows({"y": array, "z": array[:, 0]})[:32] == b'{"predictions":[{"y":[0,3],"z":0'


@given(VALUES, st.sampled_from(list(DType)))
def test_no_value_gets_through_that_is_not_of_the_dtype(value: Any, dtype: DType) -> None:
    try:
        array = tensor(value, spec(dtype))
    except (InvalidArgument, Unimplemented):
        return
    assert array.dtype == numpy_dtype(dtype)
    leaves = [value]
    for size in array.shape:
        assert {len(one) for one in leaves} <= {size}
        leaves = [item for one in leaves for item in one]
    for got, leaf in zip(array.reshape(-1).tolist(), leaves, strict=True):
        if dtype is DType.STRING:
            assert got == string(leaf)
        elif dtype is DType.FLOAT:
            assert type(leaf) in (int, float)
            assert got == np.float32(leaf) or math.isnan(leaf)
        else:
            assert got == leaf or math.isnan(leaf)
            assert (type(leaf) is bool) == (dtype is DType.BOOL)


@given(
    st.binary(max_size=40) | st.text(alphabet='[]{}",:0123456789.eE-+NaInfinityutrls\\ ', max_size=40).map(str.encode)
)
def test_a_body_is_an_object_or_an_error(body: bytes) -> None:
    try:
        assert type(decode.parse(body)) is dict
    except InvalidArgument as error:
        orjson.dumps(error.message)


@given(st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name", "input"]), VALUES, max_size=3))
def test_inputs_or_an_error(body: dict[str, Any]) -> None:
    specs = {"x": spec(DType.FLOAT), "y": spec(DType.STRING)}
    try:
        found, rows = decode.arrays(body, specs)
    except TfpoolError:
        return
    assert found.keys() == specs.keys()
    assert rows == ("instances" in body)


@given(st.fixed_dictionaries({"examples": st.lists(VALUES, max_size=3)}, optional={"context": VALUES}))
@settings(max_examples=50)
def test_examples_or_an_error(body: dict[str, Any]) -> None:
    try:
        found = decode.examples(body)
    except InvalidArgument:
        return
    assert len(found) == len(body["examples"])
    assert all(type(item) is bytes for item in found.tolist())


@pytest.mark.parametrize("text", ["aGk=", "aGk", "aG k=", "a\nGk=\n"])
def test_base64(text: str) -> None:
    assert string({"b64": text}) == b"hi"
