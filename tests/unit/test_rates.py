"""Averages of what is asked, over a short and a long time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.placement.rates import FAST_SECONDS, SLOW_SECONDS, Average, Rates


@given(st.floats(0.01, 1e6), st.lists(st.floats(0.01, 5.0), min_size=1, max_size=20))
def test_a_steady_rate_is_known_from_the_first_moment(rate: float, times: list[float]) -> None:
    average = Average(FAST_SECONDS)
    for seconds in times:
        average.add(rate, seconds)
        assert average.rate == pytest.approx(rate)


def test_the_fast_one_follows_sooner() -> None:
    rates = Rates(0, 0, 0.0)
    for second in range(1, 61):
        rates.look(100 * second, 400 * second, float(second))
    assert rates.fast.asks == pytest.approx(100)
    assert rates.slow.rows == pytest.approx(400)
    for second in range(61, 63):
        rates.look(6000, 24000, float(second))
    assert rates.fast.asks == pytest.approx(100 * 2.718281828 ** (-2 / FAST_SECONDS), rel=1e-3)
    assert rates.slow.asks == pytest.approx(100 * 2.718281828 ** (-2 / SLOW_SECONDS), rel=1e-3)
    assert rates.asked_at == 60.0


def test_what_is_no_longer_asked_for_is_forgotten() -> None:
    rates = Rates(0, 0, 0.0)
    rates.look(1000, 1000, 1.0)
    assert not rates.quiet
    for second in range(2, 300):
        rates.look(1000, 1000, float(second))
    assert rates.quiet
    assert rates.fast == rates.slow == (0.0, 0.0)


def test_a_second_look_at_the_same_moment_changes_nothing() -> None:
    rates = Rates(0, 0, 0.0)
    rates.look(10, 10, 1.0)
    rates.look(20, 20, 1.0)
    assert rates.fast.asks == pytest.approx(10)
    rates.look(20, 20, 2.0)
    assert rates.fast.asks == pytest.approx(10)
