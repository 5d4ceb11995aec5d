"""Caches in virtual time, what requests wait for loads, and the budgets that the bench gives."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.caches import Played, Stock, least_seconds, play, waits
from bench.scenario import Form, Models, Settings
from bench.scenarios import coldstart, evictions
from bench.scenarios.coldstart import Asked, Sizes, budget, ideal
from bench.scenarios.zipf import Residency, fullest, lru
from bench.variants import Variant
from tfpool.placement.eviction import Gdsf
from tfpool.placement.whatif import Cache
from tfpool.testing.placement_policies import LruCache

THREE = Stock([4, 3, 2], [1.0, 0.5, 0.25])


class Quiet:
    def say(self, text: str) -> None:
        pass

    def step(self) -> None:
        pass


# -- caches --------------------------------------------------------------------------------------------------------


def test_what_left_is_loaded_again() -> None:
    played = play(LruCache(), THREE, [0, 1, 0, 2, 1, 0], room=7)
    assert played.cold == [True, True, False, True, True, True]
    assert (played.loads, played.evictions) == (5, 3)
    assert played.seconds(THREE, [0, 1, 0, 2, 1, 0]) == 1.0 + 0.5 + 0.25 + 0.5 + 1.0


@pytest.mark.parametrize("cache", [LruCache(), Gdsf()])
def test_all_fit_or_one_never_does(cache: Cache) -> None:
    assert play(cache, THREE, [0, 1, 2] * 3, room=9).cold == [True] * 3 + [False] * 6
    with pytest.raises(ValueError, match="got a model of 4 bytes, expected none larger than the room of 3"):
        play(LruCache(), THREE, [1, 0], room=3)


def test_the_least_recently_used_of_equals() -> None:
    assert lru([0, 1, 2, 0, 1, 2], 2) == (6, 4)
    assert lru([0, 0, 1, 1, 0], 1) == (3, 2)
    assert lru([5, 3, 5], 9) == (2, 0)


def test_models_are_of_many_sizes_and_load_accordingly() -> None:
    stock, again = Stock.of(200, 1), Stock.of(200, 1)
    assert stock == again != Stock.of(200, 2)
    assert 5 << 20 <= min(stock.nbytes) < 10 << 20 < 200 << 20 < max(stock.nbytes) <= 320 << 20
    assert stock.total == sum(stock.nbytes)
    assert np.corrcoef(stock.nbytes, stock.seconds)[0, 1] > 0.9


def best(stock: Stock, picks: list[int], room: int) -> float:
    """The least seconds of loads: everything that may leave at every load is tried."""
    states: dict[frozenset[int], float] = {frozenset(): 0.0}
    for pick in picks:
        after: dict[frozenset[int], float] = {}
        for held, spent in states.items():
            now = spent + (0.0 if pick in held else stock.seconds[pick])
            for kept in subsets(held - {pick}):
                state = kept | {pick}
                if sum(stock.nbytes[model] for model in state) <= room:
                    after[state] = min(now, after.get(state, inf))
        states = after
    return min(states.values())


def subsets(models: frozenset[int]) -> Iterable[frozenset[int]]:
    return (frozenset(some) for count in range(len(models) + 1) for some in combinations(models, count))


stocks = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=5)


@given(stocks, st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(9, 30))
def test_no_cache_beats_the_bound(models: list[tuple[int, int]], drawn: list[int], room: int) -> None:
    stock = Stock([nbytes for nbytes, _ in models], [float(seconds) for _, seconds in models])
    picks = [pick % len(models) for pick in drawn]
    bound, optimum = least_seconds(stock, picks, room), best(stock, picks, room)
    assert sum(stock.seconds[pick] for pick in set(picks)) - 1e-9 <= bound <= optimum + 1e-9
    for cache in (LruCache(), Gdsf()):
        assert play(cache, stock, picks, room).seconds(stock, picks) >= optimum


def test_the_bound_is_reached_where_it_can_be() -> None:
    equal = Stock([1, 1, 1], [1.0, 1.0, 1.0])
    assert least_seconds(equal, [0, 1, 2] * 2, room=3) == 3.0
    assert least_seconds(equal, [0, 1, 2] * 2, room=1) == 6.0
    assert least_seconds(equal, [0, 0, 1, 1], room=1) == 2.0


def test_who_comes_while_it_loads_waits_for_the_rest() -> None:
    played = Played([True, False, True, False, True], 2)
    assert waits(played, THREE, [0.0, 0.25, 0.5, 2.0, 3.0], [0, 0, 1, 0, 0]) == [1.0, 0.75, 0.5, 0.0, 1.0]


def test_ours_is_judged_on_models_that_do_not_all_fit() -> None:
    settings = Settings(Models({}, {}), "/nowhere", Quiet(), form=Form.QUICK)
    outcome = evictions.measure(settings)
    figures = {figure.name: figure for figure in outcome.figures}
    for share in evictions.SHARES:
        ours = figures[evictions._named(1000, share, "seconds of loads, beside LRU")]
        bound = figures[evictions._named(1000, share, "seconds of loads, beside the least of any")]
        assert bound.reference is not None
        assert ours.reference is not None
        assert bound.reference.median <= min(ours.ours.median, ours.reference.median)
        cold = figures[evictions._named(1000, share, "cold requests, beside LRU")]
        assert cold.detail[0]["evictions"] > 0


# -- the live pools ------------------------------------------------------------------------------------------------


def test_a_request_waits_until_its_model_is_there() -> None:
    residency = Residency([(1.0, "a", True), (3.0, "a", False), (4.5, "a", True), (2.0, "b", True), (3.0, "b", False)])
    assert [residency.wait("a", moment) for moment in (0.25, 1.0, 2.9, 3.0, 5.0)] == [0.75, 0.0, 0.0, 1.5, 0.0]
    assert residency.wait("b", 3.5) == residency.wait("c", 0.0) == inf


def test_the_fullest_has_the_most_of_what_it_may_have() -> None:
    assert fullest([(5.0, 10.0), (3.0, 4.0), (7.0, 20.0)]) == (3.0, 4.0)


MODELS = [Variant(kind, number, f"/models/{kind}/{number}") for number in range(3) for kind in ("big", "small")]
SIZES = Sizes(90, 10, {"big": 100, "small": 20}, {"big": 2.0, "small": 0.5})


def test_a_budget_has_room_for_a_share_of_the_models_and_for_loads() -> None:
    assert SIZES.stock(MODELS) == Stock([100, 20] * 3, [2.0, 0.5] * 3)
    assert SIZES.room(MODELS, 0.5) == 180
    assert SIZES.room(MODELS, 0.01) == 4 * 10
    assert budget(90, 180) == 300


def test_what_is_told_of_a_kind_is_the_median_of_those_that_were_loaded() -> None:
    rows = [{"name": model.name, "bytes": 10 * index} for index, model in enumerate(MODELS[:5])]  # the first has none
    assert coldstart._by_kind(MODELS, rows, "bytes") == {"big": 30.0, "small": 20.0}
    assert coldstart._by_kind(MODELS, rows[:2], "bytes") == {"small": 10.0}


def test_an_ideal_cache_gets_the_same_requests() -> None:
    asked = Asked(np.array([0.0, 0.5, 1.0, 5.0]), [0, 0, 1, 0])
    found = ideal(asked, SIZES.stock(MODELS), 100)
    assert found.played.loads == 3
    assert found.waited == [2.0, 1.5, 0.5, 2.0]


@pytest.mark.parametrize("form", Form)
def test_what_is_judged_is_measured_in_every_form(form: Form) -> None:
    shares = coldstart.SHARES[form]
    assert all(coldstart._named(share, "failed") in coldstart.TARGETS for share in shares)
    assert set(shares) <= set(coldstart.SHARES[Form.FULL])
