from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.repository.labels import Sampler, Spreader
from tfpool.settings import Split

WEIGHTS = st.integers(0, 30) | st.sampled_from([1, 99, 1000, 10**9 - 1])
SPLITS = (
    st.lists(WEIGHTS, min_size=1, max_size=9)
    .filter(any)
    .map(lambda weights: tuple((7 + place, weight) for place, weight in enumerate(weights)))
)
COUNTS = st.lists(st.integers(0, 40) | st.sampled_from([1, 64, 1000]), max_size=60)


@pytest.mark.parametrize(
    ("split", "turns"),
    [
        (((3, 1),), [3, 3, 3]),
        (((3, 1), (4, 1)), [3, 4, 3, 4]),
        (((3, 2), (4, 4)), [4, 3, 4, 4, 3, 4]),
        (((3, 0), (4, 5), (5, 0)), [4, 4]),
        (((1, 1), (2, 1), (3, 1)), [1, 2, 3, 1, 2, 3]),
    ],
)
def test_one_by_one(split: Split, turns: list[int]) -> None:
    spreader = Spreader(split)
    assert [spreader.apportion(1) for _ in turns] == [[(version, 1)] for version in turns]


def test_many_at_once() -> None:
    spreader = Spreader(((3, 90), (4, 10)))
    assert spreader.apportion(0) == []
    assert spreader.apportion(1_000_000_000) == [(3, 900_000_000), (4, 100_000_000)]
    totals = {3: 0, 4: 0}
    for _ in range(10):
        for version, share in spreader.apportion(1):
            totals[version] += share
    assert totals == {3: 9, 4: 1}


@given(SPLITS, COUNTS)
def test_every_version_is_always_within_one_of_its_share(split: Split, counts: list[int]) -> None:
    spreader = Spreader(split)
    weights = dict(split)
    total, given_out = 0, dict.fromkeys(weights, 0)
    for count in counts:
        shares = spreader.apportion(count)
        assert sum(share for _, share in shares) == count
        assert all(share > 0 for _, share in shares)
        for version, share in shares:
            given_out[version] += share
        total += count
        for version, weight in weights.items():
            assert abs(given_out[version] - Fraction(weight * total, sum(weights.values()))) < 1


@given(SPLITS, COUNTS)
def test_how_requests_come_together_changes_nothing(split: Split, counts: list[int]) -> None:
    grouped, lone = Spreader(split), Spreader(split)
    for count in counts:
        shares = dict.fromkeys((version for version, _ in split), 0)
        for _ in range(count):
            for version, share in lone.apportion(1):
                shares[version] += share
        assert grouped.apportion(count) == [(version, share) for version, share in shares.items() if share]


@given(st.integers(0, 10**8), COUNTS)
def test_a_sample_is_always_within_one_of_its_share(share: int, counts: list[int]) -> None:
    sampler = Sampler(share / 10**8)
    total = taken = 0
    for count in counts:
        sample = sampler.take(count)
        assert 0 <= sample <= count
        total, taken = total + count, taken + sample
        assert abs(taken - Fraction(share * total, 10**8)) < 1


def test_all_and_nothing() -> None:
    assert Sampler(1.0).take(17) == 17
    assert Sampler(0.0).take(10**9) == 0
    assert [Sampler(0.1).take(n) for n in (9, 10, 25)] == [0, 1, 2]
