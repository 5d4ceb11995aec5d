"""Values as JSON says them, numbers as people read them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tfpool.cli import output


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.array([0.1, np.nan], np.float32), [0.1, "NaN"]),
        (np.array([[np.inf]], np.float64), [["Infinity"]]),
        (np.array([-math.inf], np.float16), ["-Infinity"]),
        (np.array([1 + 2j], np.complex64), [[1.0, 2.0]]),
        (np.array([1 << 63], np.uint64), [1 << 63]),
        (np.array([b"ok", b"\xff"], object), ["ok", {"b64": "/w=="}]),
        (np.float32(0.1), 0.1),
        (np.array(True), True),
        ({"a": (1, None)}, {"a": [1, None]}),
    ],
)
def test_plain_values(value: Any, wanted: Any) -> None:
    assert json.loads(json.dumps(output.plain(value), allow_nan=False)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (output.size(31_200_000), "31.2 MB"),
        (output.size(999), "999 B"),
        (output.size(999_600), "1.0 MB"),
        (output.size(None), None),
        (output.duration(0.00018), "180 us"),
        (output.duration(0.0042), "4.2 ms"),
        (output.duration(0.0996), "0.10 s"),
        (output.duration(12.44), "12.4 s"),
        (output.duration(59.99), "1m 00s"),
        (output.duration(7500), "2h 05m"),
        (output.duration(100 * 3600), "4d 04h"),
        (output.rate(12340.4), "12,340"),
        (output.rate(3.21), "3.2"),
        (output.ranges([0, 1, 2, 5, 7, 8]), "0-2,5,7-8"),
        (output.ranges([]), ""),
    ],
)
def test_numbers_as_people_read_them(text: str | None, wanted: str | None) -> None:
    assert text == wanted
