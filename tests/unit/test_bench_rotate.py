from __future__ import annotations

import numpy as np
import pytest

from bench.scenarios.rotate import Move, Ranks, most_gain, near, rotating, undone

TURN = 20.0


def move(model: str, source: str, target: str, begin: float, seconds: float = 1.0) -> Move:
    return Move(model, source, target, begin, begin + seconds)


def test_ranks_move_on_and_shares_add_up() -> None:
    shares = rotating(40, 3, 1)
    assert shares.sum(1) == pytest.approx([1.0] * 3)
    assert [sorted(row) for row in shares.tolist()] == [sorted(shares[0].tolist())] * 3
    assert len({int(row.argmax()) for row in shares}) == 3, "another model is the most popular in each turn"
    assert not np.array_equal(shares, rotating(40, 3, 2))
    assert np.array_equal(shares, rotating(40, 3, 1))


def test_arrivals_follow_the_shares_of_their_turn() -> None:
    ranks = Ranks(np.array([[1.0, 0.0], [0.0, 1.0]]), TURN)
    moments, picks = ranks.arrivals(50.0, 1)
    assert moments.max() < ranks.seconds == 40.0
    assert picks.tolist() == (moments >= TURN).astype(int).tolist()
    assert set(picks) == {0, 1}
    assert [set(row) for row in ranks.drawn(1)] == [{0}, {1}]


@pytest.mark.parametrize(
    ("moves", "count"),
    [
        ([], 0),
        ([move("a", "cpu0", "cpu1", 1.0), move("a", "cpu1", "cpu0", 5.0)], 1),
        ([move("a", "cpu0", "cpu1", 1.0), move("b", "cpu1", "cpu0", 5.0)], 0),
        ([move("a", "cpu0", "cpu1", 1.0), move("a", "cpu1", "cpu0", 21.0)], 0),
        ([move("a", "-", "cpu1", 1.0), move("a", "cpu1", "-", 5.0)], 1),
        ([move("a", "-", "cpu1", 1.0), move("a", "cpu0", "-", 5.0)], 0),
        ([move("a", "cpu0", "-", 1.0), move("a", "-", "cpu0", 5.0), move("a", "cpu0", "-", 9.0)], 2),
    ],
)
def test_what_is_taken_back_within_a_turn_counts(moves: list[Move], count: int) -> None:
    assert undone(moves, TURN) == count


def test_what_lies_near_a_move() -> None:
    due = np.array([0.0, 1.0, 2.9, 3.1, 9.0])
    assert near(due, [move("a", "cpu0", "cpu1", 1.0)]).tolist() == [False, True, True, False, False]
    assert not near(due, []).any()


def test_what_there_is_to_gain() -> None:
    assert most_gain(np.array([[0.5, 0.5]]), [[0], [1]]) == pytest.approx(1.0)
    assert most_gain(np.array([[0.75, 0.25]]), [[0], [1]]) == pytest.approx(1.5)
    assert most_gain(np.array([[0.75, 0.25], [0.5, 0.5]]), [[0], [1]]) == pytest.approx(1.2)
    assert most_gain(np.array([[0.75, 0.25]]), [[0, 1], []]) == pytest.approx(2.0)
