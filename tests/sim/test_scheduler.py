"""Random games of the real scheduler. A seed that fails is printed; ``simulator --first SEED --seeds 1`` plays it."""

from __future__ import annotations

import pytest

from tfpool.testing import simulator
from tfpool.testing.simulator import Simulation

BLOCKS, SEEDS = 8, 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_games(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        simulator.play(seed)


@pytest.mark.parametrize("block", range(2))
def test_calm_games_answer_all_that_is_not_late_or_too_much(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        outcomes = simulator.play(seed, calm=True)
        assert set(outcomes) <= {"answer", "DeadlineExceeded", "ResourceExhausted"}


def test_the_games_are_played_for_real() -> None:
    """Every kind of outcome occurs, or the rules are not being tested."""
    total: dict[str, int] = {}
    for seed in range(1000, 1025):
        for outcome, count in simulator.play(seed).items():
            total[outcome] = total.get(outcome, 0) + count
    assert set(total) >= {"answer", "DeadlineExceeded", "ResourceExhausted", "Cancelled", "InvalidArgument"}
    assert total["answer"] > 1000


def test_a_seed_is_one_game() -> None:
    first, second = Simulation(42), Simulation(42)
    assert first.play() == second.play()
    assert [r.outcome for r in first.requests.values()] == [r.outcome for r in second.requests.values()]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seeds", "3", "--first", "7"]) == 0
    assert capsys.readouterr().out.startswith("3 seeds in ")
    assert simulator.main(["--seeds"]) == 2
    assert simulator.main(["--sides", "3"]) == 2
