from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.telemetry.histogram import BOUNDS, Histogram

MICROSECONDS = st.floats(1, 1e9, allow_nan=False)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_an_empty_histogram_is_all_zeros() -> None:
    numbers = ["count", "total", "mean", "p50", "p90", "p99", "p999", "max"]
    assert Histogram().snapshot() == {**dict.fromkeys(numbers, 0), "buckets": []}


@given(st.lists(MICROSECONDS, min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_within_5_percent(values: list[float], q: float) -> None:
    exact = sorted(values)[max(1, ceil(q * len(values))) - 1]
    assert filled(values).quantile(q) == pytest.approx(exact, rel=0.05)


@given(st.lists(MICROSECONDS, min_size=1, max_size=50))
def test_count_mean_and_max_are_exact(values: list[float]) -> None:
    snapshot = filled(values).snapshot()
    assert snapshot["count"] == len(values)
    assert snapshot["total"] == pytest.approx(sum(values))
    assert snapshot["mean"] == pytest.approx(sum(values) / len(values))
    assert snapshot["max"] == max(values)


def test_a_count_is_that_many_values() -> None:
    histogram = Histogram()
    histogram.add(100, 3)
    histogram.add(1000)
    assert histogram.count == 4
    assert histogram.quantile(0.75) == pytest.approx(100, rel=0.05)
    assert histogram.quantile(0.76) == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("value", [0, 0.5, 1e9, 1e12])
def test_values_out_of_range_are_counted(value: float) -> None:
    histogram = filled([value])
    assert histogram.count == 1
    assert histogram.max == value
    assert histogram.quantile(1) <= max(value, 1.05)


@given(st.lists(MICROSECONDS, max_size=50))
def test_buckets_count_what_lies_up_to_each_bound(values: list[float]) -> None:
    buckets = filled(values).snapshot()["buckets"]
    near = 1e-9  # a value on a bound may fall on either side of it
    for index, bound in enumerate(BOUNDS):
        least, most = (sum(value <= bound * factor for value in values) for factor in (1 - near, 1 + near))
        assert least <= (buckets[index] if index < len(buckets) else len(values)) <= most


def test_buckets_end_where_all_is_counted() -> None:
    assert filled([1.0, 1.0, 3.0]).snapshot()["buckets"] == [2, 2, 3]
    assert len(filled([1e12]).snapshot()["buckets"]) == len(BOUNDS)
