"""Tensors of the Open Inference Protocol: every datatype there and back, raw and as JSON, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.gateway.oip.classes import top
from tfpool.gateway.oip.tensors import DATATYPES, Slot, datatype_of, from_list, raw, slot, take, to_json
from tfpool.types import DType, numpy_dtype

SHAPES = st.lists(st.integers(0, 3), max_size=4)


def random_array(datatype: str, shape: list[int], seed: int) -> Any:
    random = np.random.default_rng(seed)
    dtype, count = DATATYPES[datatype], int(np.prod(shape))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = [str(random.integers(0, 1 << 20)).encode() + b"\xc3\xa9" for _ in range(count)]
        return array.reshape(shape)
    kind = numpy_dtype(dtype)
    if datatype == "BOOL":
        return (random.random(shape) < 0.5).reshape(shape)
    data = np.frombuffer(random.bytes(count * kind.itemsize), kind).reshape(shape)
    finite = np.isfinite(data.astype(np.float64)) if kind.kind in "fV" else np.ones(shape, bool)
    return np.where(finite, data, np.zeros((), kind))


def same(got: Any, array: Any) -> bool:
    if got.dtype != array.dtype or got.shape != array.shape:
        return False
    return bool(got.tolist() == array.tolist() if array.dtype == object else got.tobytes() == array.tobytes())


@given(st.sampled_from(list(DATATYPES)), SHAPES, st.integers(0, 1 << 32), st.integers(0, 3))
def test_raw_there_and_back(datatype: str, shape: list[int], seed: int, at: int) -> None:
    array = random_array(datatype, shape, seed)
    data = b"".join((b"-" * at, raw(array), b"after"))
    assert same(take(data, at, len(data) - at - len(b"after"), slot("x", datatype, shape)), array)


@given(st.sampled_from(list(DATATYPES)), SHAPES, st.integers(0, 1 << 32))
def test_json_there_and_back(datatype: str, shape: list[int], seed: int) -> None:
    array = random_array(datatype, shape, seed)
    into = slot("x", datatype, shape)
    flat = json.loads(to_json(array, "x"))
    assert same(from_list(flat, into), array)
    nested = np.array([*flat, None], object)[:-1].reshape(shape).tolist()  # None: let numpy not guess at a dtype
    if shape:
        assert same(from_list(nested, into), array)


@pytest.mark.parametrize("dtype", [DType.COMPLEX64, DType.FLOAT8_E5M2])
def test_a_dtype_that_the_protocol_lacks(dtype: DType) -> None:
    with pytest.raises(Unimplemented, match=dtype.label):
        datatype_of(dtype)


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "message"),
    [
        (None, "FP32", [1], "an input's name: got None, expected text"),
        ("", "FP32", [1], "an input's name: got '', expected text"),
        ("x", "FLOAT", [1], "got datatype 'FLOAT', expected one of BOOL, UINT8"),
        ("x", ["FP32"], [1], "got datatype ['FP32'], expected one of"),
        ("x", "FP32", None, "got shape None, expected a list of whole numbers"),
        ("x", "FP32", "12", "got shape '12', expected a list of whole numbers"),
        ("x", "FP32", [1, -1], "got shape [1, -1], expected whole numbers from 0"),
        ("x", "FP32", [1.0], "got shape [1.0], expected whole numbers from 0"),
        ("x", "FP32", [True], "got shape [True], expected whole numbers from 0"),
        ("x", "FP32", [1] * 33, "got rank 33, expected at most 32"),
        ("x", "FP32", [1 << 62, 1 << 62], "expected at most 1099511627776 elements"),
        ("x", "FP32", [0, 1 << 62], "expected at most 1099511627776 elements"),
    ],
)
def test_no_such_input(name: Any, datatype: Any, shape: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        slot(name, datatype, shape)


def test_raw_bytes_that_are_too_few() -> None:
    with pytest.raises(InvalidArgument, match=re.escape("input 'x': got 7 bytes, expected 8 for float32 [2]")):
        take(b"1234567", 0, 7, slot("x", "FP32", [2]))


def test_true_is_one_whatever_its_bits() -> None:
    found = take(b"\x00\x01\x02\xff", 0, 4, slot("x", "BOOL", [4]))
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        ("0100", 1, "element 0 of BYTES is cut off"),
        ("03000000 6162", 1, "element 0 of BYTES is cut off"),
        ("01000000 61 ffffffff 62", 2, "element 1 of BYTES is cut off"),
        ("01000000 61", 2, "got 1 elements, expected 2 for shape [2]"),
        ("00000000 00000000", 1, "got 2 elements, expected 1 for shape [1]"),
        ("", 1, "got 0 elements, expected 1 for shape [1]"),
    ],
)
def test_broken_bytes(data: str, count: int, message: str) -> None:
    given = bytes.fromhex(data)
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        take(given, 0, len(given), slot("x", "BYTES", [count]))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [1], 5, "got data 5, expected a list"),
        ("FP32", [1], {"a": 1}, "got data {'a': 1}, expected a list"),
        ("FP32", [3], [1, 2], "got 2 elements, expected 3 for shape [3]"),
        ("FP32", [2, 2], [[1, 2], [3]], "the lists at depth 1 are not all of 2 elements"),
        ("FP32", [2, 2], [[1, 2]], "the lists at depth 0 are not all of 2 elements"),
        ("FP32", [2], [[1], [2]], "got lists among the data, expected numbers for FP32"),
        ("FP32", [1], ["1"], "got text among the data, expected numbers for FP32"),
        ("FP32", [1], [True], "got true or false among the data, expected numbers for FP32"),
        ("FP32", [1], [None], "got NoneType among the data, expected numbers for FP32"),
        ("FP64", [1], [10**400], "got a number too large for float64"),
        ("FP32", [2], [np.inf, 1e300], "got a number too large for float32"),
        ("FP16", [1], [70000.0], "got a number too large for float16"),
        ("INT32", [1], [1.5], "got fractions among the data, expected whole numbers for INT32"),
        ("INT8", [2], [5, 128], "128 is out of the range of int8"),
        ("UINT64", [1], [-1], "-1 is out of the range of uint64"),
        ("BOOL", [1], [2], "got another number, expected true, false, 0 or 1"),
        ("BYTES", [1], [1], "got numbers among the data, expected text for BYTES"),
    ],
)
def test_data_that_do_not_fit(datatype: str, shape: list[int], data: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        from_list(data, slot("x", datatype, shape))


def test_infinity_is_no_number_that_is_too_large() -> None:
    assert from_list([1.5, np.inf], slot("x", "FP32", [2])).tolist() == [1.5, np.inf]
    assert from_list([1e300], slot("x", "FP64", [1])).tolist() == [1e300]


def test_a_scalar() -> None:
    into = Slot("x", np.dtype(np.float32), (), 1, 4)
    assert slot("x", "FP32", []) == into
    assert from_list([2.5], into).shape == ()


def test_text_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match="output 'y' has bytes that are no UTF-8: ask for binary data"):
        to_json(np.array([b"\xff"], object), "y")


@given(st.sampled_from(["FP32", "INT16", "UINT8", "BF16", "BOOL"]), st.integers(0, 1 << 32), st.integers(1, 7))
def test_the_highest(datatype: str, seed: int, count: int) -> None:
    rows = random_array(datatype, [3, 5], seed)
    values = rows.astype(np.float64)
    for row, found in zip(values, top(rows, count, "y").tolist(), strict=True):
        order = sorted(range(5), key=lambda i: (-row[i], i))[:count]
        assert [int(one.split(b":")[1]) for one in found] == order
        assert [float(one.split(b":")[0]) for one in found] == pytest.approx(row[order], abs=1e-6)


def test_the_highest_of_a_single_row() -> None:
    assert top(np.float32([1, np.nan, 3, -np.inf]), 9, "y").tolist() == [
        *(b"3.000000:2", b"1.000000:0", b"nan:1", b"-inf:3")
    ]
    assert top(np.int64(7), 1, "y").tolist() == [b"7:0"]
    with pytest.raises(InvalidArgument, match="classification needs numbers"):
        top(np.array([b"a"], object), 1, "y")
