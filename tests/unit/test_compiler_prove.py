"""When outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.compiler.prove import TOLERANCES, compare

FLOAT = TOLERANCES["float32"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.floats(0, 0.9), st.booleans())
def test_within_the_tolerance_of_the_scale(values: list[float], part: float, up: bool) -> None:
    expected = np.array(values, np.float64)
    scale = float(np.abs(expected).max())
    moved = expected + (part if up else -part) * FLOAT * scale
    assert compare(expected, moved, FLOAT)[1] == ""
    if scale > 1e-3:
        moved[0] = expected[0] + 1.1 * FLOAT * scale
        difference, why = compare(expected, moved, FLOAT)
        assert difference == pytest.approx(1.1 * FLOAT, rel=1e-6)
        assert "expected 1e-04" in why


@pytest.mark.parametrize(
    ("expected", "got", "why"),
    [
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, np.nan]), np.float32([1, 0]), "infinite"),
        (np.float32([1, 0]), np.float32([1, np.inf]), "infinite"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "infinite"),
        (np.float32([np.nan]), np.float32([np.nan]), ""),
        (np.float32([]), np.float32([]), ""),
        (np.float32([0, 0]), np.float32([0, 1e-30]), "differs"),
        (np.float32([1]), np.float32([[1]]), "got float32 (1, 1), expected float32 (1,)"),
        (np.float32([1]), np.float64([1]), "got float64"),
        (np.complex64([1 + 1j]), np.complex64([1 + 1.1j]), "differs"),
    ],
)
def test_numbers_that_are_none(expected: Any, got: Any, why: str) -> None:
    found = compare(expected, got, FLOAT)[1]
    assert why in found
    assert bool(why) == bool(found)


def test_what_has_no_tolerance_is_the_same_or_not() -> None:
    assert compare(np.array([b"a", b"b"], object), np.array([b"a", b"b"], object), 0.0)[1] == ""
    assert "exactly" in compare(np.array([b"a"], object), np.array([b"b"], object), 0.0)[1]
    assert "exactly" in compare(np.int64([1, 2]), np.int64([1, 3]), 0.0)[1]
