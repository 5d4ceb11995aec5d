from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tfpool.placement.choice import Candidate, place

MB = 1 << 20
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcdefgh"),
        st.integers(0, 900),
        st.integers(0, 9),
        st.none() | st.integers(0, 1000),
        st.integers(0, 3),
        st.floats(0.0, 1.0),
    ),
    max_size=8,
    unique_by=lambda c: c.name,
)
NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4)


def test_the_least_filled_comes_first() -> None:
    full, half, empty = Candidate("a", 900, 1, None), Candidate("b", 500, 1, None), Candidate("c", 0, 0, None)
    assert place([full, half, empty], [], 1, 10) == ["c"]
    assert place([full, half, empty], [], 2, 10) == ["c", "b"]


def test_among_equals_the_one_with_fewest_models_then_by_name() -> None:
    assert place([Candidate("a", 5, 3, None), Candidate("b", 5, 1, None)], [], 1, 1) == ["b"]
    assert place([Candidate("b", 5, 1, None), Candidate("a", 5, 1, None)], [], 1, 1) == ["a"]


def test_room_goes_before_emptiness() -> None:
    small, large = Candidate("small", 0, 0, 100 * MB), Candidate("large", 500 * MB, 3, 1000 * MB)
    assert place([small, large], [], 1, 200 * MB) == ["large"]
    assert place([small, large], [], 1, 50 * MB) == ["small"]
    assert place([small], [], 1, 200 * MB) == ["small"], "overfull is better than nowhere"


def test_who_holds_it_counts() -> None:
    candidates = [Candidate(name, 0, 0, None) for name in "abc"]
    assert place(candidates, ["a"], 1, 1) == []
    assert place(candidates, ["a"], 2, 1) == ["b"]
    assert place(candidates, ["gone"], 2, 1) == ["a"]
    assert place(candidates, ["a", "b", "c"], 2, 1) == []


def test_pins_are_the_only_workers() -> None:
    candidates = [Candidate(name, 0, 0, None) for name in "abc"]
    assert place(candidates, [], 3, 1, ["c", "b"]) == ["b", "c"]
    assert place(candidates, [], 1, 1, ["nobody"]) == []


@given(CANDIDATES, NAMES, st.integers(0, 9), st.none() | st.integers(0, 1000), NAMES)
def test_what_is_placed_is_allowed_and_wanted(
    candidates: list[Candidate], held: list[str], replicas: int, size: int | None, pins: list[str]
) -> None:
    chosen = place(candidates, held, replicas, size, pins)
    able = [c for c in candidates if c.name not in held and (not pins or c.name in pins)]
    assert len(set(chosen)) == len(chosen) == min(len(able), max(0, replicas - len(held)))
    assert set(chosen) <= {c.name for c in able}

    def overfull(c: Candidate) -> bool:
        return c.budget is not None and c.used + (size or 0) > c.budget

    passed_over = [c for c in able if c.name not in chosen]
    picked = [c for c in able if c.name in chosen]
    if any(overfull(c) for c in picked):
        assert all(overfull(c) for c in passed_over)
    for c in picked:
        assert all(
            (overfull(c), c.loads, round(c.busy, 1), c.used)
            <= (overfull(other), other.loads, round(other.busy, 1), other.used)
            for other in passed_over
        )
