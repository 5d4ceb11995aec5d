from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.client.casting import all_arrays, cast
from tfpool.errors import InvalidArgument

METADATA = {
    "signatures": [
        {
            "name": "serving_default",
            "inputs": [
                {"name": name, "dtype": dtype} for name, dtype in (("x", "float32"), ("n", "uint8"), ("s", "string"))
            ],
        },
        *(
            {"name": dtype, "inputs": [{"name": "x", "dtype": dtype}]}
            for dtype in ("bfloat16", "bool", "int64", "uint8", "float16", "complex64", "string", "float64")
        ),
    ]
}


def never() -> dict[str, Any]:
    raise AssertionError("arrays know their dtypes")


def to(dtype: str, value: Any) -> Any:
    return cast(value, True, lambda: METADATA, dtype)[""]


def test_arrays_are_left_as_they_are() -> None:
    array = np.ones((2, 2), np.int8)
    assert cast(array, True, never, "") is array
    named = {"x": array, "y": np.float16(1)}
    assert cast(named, True, never, "") is named
    assert all_arrays(named)
    assert not all_arrays({"x": array, "y": 1})


def test_plain_values_take_the_dtypes_of_the_signature() -> None:
    array = np.ones(2, np.int8)
    made = cast({"x": [1, 2.5], "n": 7, "s": ["a"], "y": array}, True, lambda: METADATA, "")
    assert made["x"].dtype == np.float32
    assert made["x"].tolist() == [1.0, 2.5]
    assert (made["n"].dtype, made["n"].shape, made["n"].item()) == (np.uint8, (), 7)
    assert made["s"] == ["a"]
    assert made["y"] is array


@pytest.mark.parametrize(
    ("dtype", "value", "kind"),
    [
        ("bfloat16", [1.5], ml_dtypes.bfloat16),
        ("float16", [[1, 2]], np.float16),
        ("float64", 1, np.float64),
        ("bool", [True], np.bool_),
        ("int64", [[-1], [2]], np.int64),
        ("complex64", [1, 2j], np.complex64),
        ("complex64", [1.5], np.complex64),
    ],
)
def test_dtypes(dtype: str, value: Any, kind: Any) -> None:
    made = to(dtype, value)
    assert made.dtype == kind
    assert made.tolist() == np.asarray(value).tolist()


@pytest.mark.parametrize(
    ("dtype", "value", "problem"),
    [
        ("uint8", 256, "out of the range of uint8"),
        ("uint8", [-1], "out of the range of uint8"),
        ("int64", [1.5], "got values of float64, expected int64"),
        ("int64", 1.0, "got values of float64, expected int64"),
        ("int64", "7", "got values of <U1, expected int64"),
        ("float64", [None], "got values of object, expected float64"),
        ("float64", [[1], [2, 3]], "is not an array"),
        ("float64", [1j], "got values of complex128, expected float64"),
        ("bool", [0.5], "got values of float64, expected bool"),
        ("uint8", 1 << 64, "got values of object, expected uint8"),
    ],
)
def test_what_does_not_fit_is_refused(dtype: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        to(dtype, value)


@given(st.integers(-1000, 1000))
def test_whole_numbers_survive_or_are_refused(number: int) -> None:
    if 0 <= number <= 255:
        assert to("uint8", [number]).tolist() == [number]
    else:
        with pytest.raises(InvalidArgument, match="out of the range"):
            to("uint8", [number])


def test_unknown_names_and_signatures_are_left_to_the_broker() -> None:
    assert cast({"other": [1]}, True, lambda: METADATA, "")["other"] == [1]
    assert cast({"x": [1]}, True, lambda: METADATA, "no such")["x"] == [1]
    assert cast([1], True, lambda: METADATA, "")[""] == [1], "three inputs: which is meant?"


def test_the_only_signature_is_meant_whatever_its_name() -> None:
    metadata = {"signatures": [{"name": "odd", "inputs": [{"name": "q", "dtype": "int16"}]}]}
    assert cast(5, True, lambda: metadata, "")[""].dtype == np.int16


def test_names_are_text() -> None:
    with pytest.raises(InvalidArgument, match="expected a mapping of names to arrays"):
        cast({1: np.ones(1)}, True, never, "")
