from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.placement.eviction import Gdsf

MB = 1 << 20


def held(**models: tuple[int, float]) -> Gdsf:
    gdsf = Gdsf()
    for name, (nbytes, cost) in models.items():
        gdsf.admit(name, nbytes, cost)
    return gdsf


def test_what_is_rarely_used_large_or_quickly_loaded_leaves_first() -> None:
    assert held(a=(MB, 1.0), b=(2 * MB, 1.0)).victims(1, "ab") == ["b"]
    assert held(a=(MB, 2.0), b=(MB, 1.0)).victims(1, "ab") == ["b"]
    used = held(a=(MB, 1.0), b=(MB, 1.0), c=(MB, 1.0))
    used.hit("a", 5)
    used.hit("c")
    assert used.victims(3 * MB, "abc") == ["b", "c", "a"]


def test_what_is_held_longest_leaves_first_among_equals() -> None:
    gdsf = held(a=(MB, 1.0), b=(MB, 1.0), c=(MB, 1.0))
    assert gdsf.victims(2 * MB, {"c", "b", "a"}) == ["a", "b"]


def test_as_many_as_are_needed() -> None:
    gdsf = held(a=(3 * MB, 1.0), b=(2 * MB, 1.0), c=(MB, 1.0))
    assert gdsf.victims(0, "abc") == []
    assert gdsf.victims(3 * MB, "abc") == ["a"]
    assert gdsf.victims(3 * MB + 1, "abc") == ["a", "b"]
    assert gdsf.victims(6 * MB, "abc") == ["a", "b", "c"]
    assert gdsf.victims(6 * MB + 1, "abc") == [], "nobody leaves in vain"
    assert gdsf.victims(4 * MB, "bc") == []
    assert gdsf.victims(MB, ["unknown", "c"]) == ["c"]


def test_a_small_one_is_spared_when_a_large_one_suffices() -> None:
    gdsf = held(small=(MB, 0.001), large=(100 * MB, 50.0))
    assert gdsf.victims(MB, ["small", "large"]) == ["small"]
    assert gdsf.victims(50 * MB, ["small", "large"]) == ["large"]


def test_age_beats_old_fame() -> None:
    """A model that had ten hits, long ago, outlives as many newcomers."""
    gdsf = held(old=(1, 1.0))
    gdsf.hit("old", 10)
    for newcomer in range(20):
        gdsf.admit(newcomer, 1, 1.0)
        leaves = gdsf.victims(1, ["old", newcomer])
        if leaves == ["old"]:
            break
        gdsf.evicted(newcomer)
    assert newcomer == 10


def test_the_clock_never_falls() -> None:
    gdsf = held(dear=(1, 10.0), cheap=(1, 1.0))
    gdsf.evicted("dear")
    assert gdsf.clock == pytest.approx(10.0)
    gdsf.evicted("cheap")
    assert gdsf.clock == pytest.approx(10.0)
    with pytest.raises(KeyError):
        gdsf.evicted("cheap")


def test_an_evicted_model_comes_back_with_its_frequency_a_forgotten_one_does_not() -> None:
    gdsf = held(ghost=(MB, 1.0), gone=(MB, 1.0))
    for name in ("ghost", "gone"):
        gdsf.hit(name, 3)
    gdsf.evicted("ghost")
    gdsf.forget("gone")
    gdsf.forget("never there")
    for name in ("ghost", "gone"):
        gdsf.admit(name, MB, 1.0)
    assert gdsf.victims(MB, ["ghost", "gone"]) == ["gone"]


def test_measured_anew_it_keeps_its_frequency() -> None:
    gdsf = held(a=(MB, 1.0), b=(MB, 1.0))
    gdsf.hit("a")
    gdsf.admit("a", 2 * MB, 1.0)
    gdsf.hit("b")
    assert gdsf.victims(1, "ab") == ["a"]
    assert gdsf.victims(3 * MB, "ab") == ["a", "b"]


def test_frequencies_fade() -> None:
    gdsf = held(then=(MB, 1.0), now=(MB, 1.0))
    gdsf.hit("then", 100_000)
    for _ in range(1000):
        gdsf.hit("now")
    assert gdsf.victims(1, ["then", "now"]) == ["then"]


def test_ghosts_fade_away() -> None:
    gdsf = held(here=(MB, 1.0))
    for number in range(1000):
        gdsf.admit(number, MB, 1.0)
        gdsf.evicted(number)
    gdsf.hit("here", 100)
    assert not gdsf._ghosts


def test_a_hit_on_what_is_not_held_does_nothing() -> None:
    gdsf = Gdsf()
    gdsf.hit("unknown", 1000)
    assert gdsf.victims(1, ["unknown"]) == []


def test_nothing_is_free_and_nothing_has_no_size() -> None:
    gdsf = held(a=(0, 0.0), b=(MB, 0.0))
    assert gdsf.victims(1, "ab") == ["b"]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 9), st.integers(0, 99)), max_size=8), st.integers(0, 400))
def test_victims_suffice_and_none_is_too_many(models: list[tuple[int, float, int]], needed: int) -> None:
    gdsf = Gdsf()
    for key, (nbytes, cost, hits) in enumerate(models):
        gdsf.admit(key, nbytes, cost)
        gdsf.hit(key, hits)
    sizes = [nbytes for nbytes, _, _ in models]
    chosen = [key for key in gdsf.victims(needed, range(len(models))) if isinstance(key, int)]
    assert len(set(chosen)) == len(chosen)
    if sum(sizes) < needed:
        assert chosen == []
        return
    assert sum(sizes[key] for key in chosen) >= needed
    for fewer in combinations(chosen, max(0, len(chosen) - 1)):
        assert not chosen or sum(sizes[key] for key in fewer) < needed
