"""Random games of the real scheduler. One that fails prints its seed, and the few moves of it that are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.testing import simulator
from tfpool.testing.game import Act, Violation, moves
from tfpool.testing.simulator import Simulation, shrunk

BLOCKS, SEEDS, CALM_SEEDS = 8, 25, 15


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_games(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        simulator.play(seed)


@pytest.mark.parametrize("block", range(2))
def test_calm_games_answer_all_that_is_not_late_or_too_much(block: int) -> None:
    for seed in range(block * CALM_SEEDS, (block + 1) * CALM_SEEDS):
        outcomes = simulator.play(seed, calm=True)
        assert set(outcomes) <= {"answer", "DeadlineExceeded", "ResourceExhausted"}


def test_the_games_are_played_for_real() -> None:
    """Every kind of move, event and outcome occurs, or the rules are not being tested."""
    outcomes: Counter[str] = Counter()
    told: Counter[str] = Counter()
    acts: set[Act] = set()
    for seed in range(1000, 1040):
        game = Simulation(seed)
        outcomes.update(game.play())
        told.update(game.told)
        acts.update(move.act for move in moves(seed))
    assert acts == set(Act)
    assert set(told) == {kind.__name__ for kind in ev.Event.__args__}
    expected = ["answer", "DeadlineExceeded", "ResourceExhausted", "Cancelled", "InvalidArgument", "FailedPrecondition"]
    assert set(outcomes) == {*expected, "NotFound", "Unavailable"}
    assert outcomes["answer"] > 1000


def test_a_seed_is_one_game() -> None:
    first, second = Simulation(42), Simulation(42)
    assert first.play() == second.play()
    assert [r.outcome for r in first.requests.values()] == [r.outcome for r in second.requests.values()]


def test_a_move_that_is_left_out_changes_no_other() -> None:
    everything = [move for move in moves(42, calm=True) if move.act is Act.SUBMIT]
    whole, part = Simulation(42, True, everything), Simulation(42, True, everything[::2])
    whole.play()
    part.play()

    def asked(game: Simulation) -> Counter[tuple[Any, ...]]:
        return Counter((r.client, r.spec.id, r.rows, r.priority, r.deadline) for r in game.requests.values())

    assert asked(part) < asked(whole)


# -- shrinking -----------------------------------------------------------------------------------------------------


def test_a_game_that_fails_is_shrunk_and_can_be_played_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Scheduler, "_cancel", lambda self, event, now, actions: None)
    seed = next(seed for seed in range(100) if simulator.main(["--first", str(seed), "--seeds", "1"]))
    said = capsys.readouterr()
    assert f"seed {seed}: request" in said.err
    assert "was cancelled and waits on" in said.err
    count, again = said.err.splitlines()[-1].split(" moves do it: ")
    few, _, many = count.partition(" of ")
    assert 5 * int(few) < int(many)
    assert simulator.main(again.split()) == 1
    assert "was cancelled and waits on" in capsys.readouterr().err
    monkeypatch.undo()
    assert simulator.main(again.split()) == 0


def test_what_the_scheduler_raises_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler, event: ev.Completed, now: float, actions: Sequence[ev.Action]) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Scheduler, "_completed", broken)
    with pytest.raises(Violation, match=r"KeyError\('a bug'\)\n1 of \d+ moves do it: --first 3 --seeds 1 --only \d+"):
        simulator.play(3)


@given(st.sets(st.integers(0, 40), min_size=1, max_size=5), st.integers(41, 60))
def test_shrinking_keeps_exactly_what_is_needed(needed: set[int], size: int) -> None:
    assert shrunk(range(size), lambda some: needed <= set(some), games=10_000) == sorted(needed)


def test_shrinking_gives_up_in_time() -> None:
    played = []

    def fails(some: Sequence[int]) -> bool:
        played.append(some)
        return {7, 77} <= set(some)

    assert {7, 77} < set(shrunk(range(100), fails, games=5))
    assert len(played) == 5


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator.main(["--seeds", "3", "--first", "7", "--calm"]) == 0
    assert capsys.readouterr().out.startswith("3 seeds in ")
    for usage in (["--seeds"], ["--sides", "3"], ["--only", "x"]):
        assert simulator.main(usage) == 2
