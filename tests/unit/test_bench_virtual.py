"""The pool in virtual time that the bench judges schedulers in."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from bench import team
from bench.arrivals import BURST, BURST_SHARE, bursts, poisson
from bench.crowd import Crowd, placed, zipf_shares
from bench.errors import ChildFailed
from bench.games import AIMD, DEADLINES, MODELS, OURS, PATTERNS, WORKERS, Arrivals, Game, best, capacity, judge
from bench.rules import Aimd, Fixed, grid
from bench.scenarios.goodput import ratios
from bench.team import Team
from bench.virtual import NEVER, Model, Ours, Outcome, Request, Rule, play

SLOW = Model.of("slow", 0, fixed=1.0, row=0.1)
QUICK = Model.of("quick", 1, fixed=0.01, row=0.01)


def requests(*moments: float, model: int = 0, within: float = 10.0) -> list[Request]:
    return [Request(model, moment, moment + within) for moment in moments]


def outcome(rule: Rule, asked: list[Request], models: tuple[Model, ...] = (SLOW, QUICK)) -> Outcome:
    return play(rule, models, asked, seed=1)


# -- arrivals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", [poisson, bursts])
def test_requests_come_as_often_as_asked_and_in_order(arrivals: Arrivals) -> None:
    counts = []
    for seed in range(20):
        moments = arrivals(200.0, 100.0, np.random.default_rng(seed))
        assert (np.diff(moments) >= 0).all()
        assert 0 <= moments[0] <= moments[-1] <= 100.0
        counts.append(len(moments))
    assert np.mean(counts) == pytest.approx(20_000, rel=0.07)


def test_bursts_are_bursts() -> None:
    """In a tenth of the time requests come ten times as often as in the rest of it: about half of them."""
    counts = np.histogram(bursts(200.0, 500.0, np.random.default_rng(3)), bins=50_000, range=(0, 500))[0]
    even = np.histogram(poisson(200.0, 500.0, np.random.default_rng(3)), bins=50_000, range=(0, 500))[0]
    quiet = 200.0 / (1 + (BURST - 1) * BURST_SHARE)
    busy = counts > 5.5 * quiet / 100
    assert busy.mean() == pytest.approx(BURST_SHARE, rel=0.25)
    assert counts[busy].sum() / counts.sum() == pytest.approx(0.526, rel=0.2)
    assert counts.var() > 4 * even.var()


# -- the play ------------------------------------------------------------------------------------------------------


def one_by_one(workers: int = 1) -> Fixed:
    return Fixed(1, [0.0, 0.0], workers)


def test_answers_count_if_they_are_there_by_the_deadline() -> None:
    found = outcome(one_by_one(), requests(0.0, 0.0, 0.0, within=2.5))
    assert found == Outcome(offered=3, on_time=2, late=1, begun_late=0, runs=3)
    assert found.share == pytest.approx(2 / 3)


def test_runs_that_begin_past_a_deadline_are_counted() -> None:
    assert outcome(one_by_one(), requests(0.0, 0.0, 0.0, within=1.5)).begun_late == 1


def test_workers_work_side_by_side() -> None:
    assert outcome(one_by_one(2), requests(0.0, 0.0, within=1.3)).on_time == 2


# -- fixed rules ---------------------------------------------------------------------------------------------------


def test_a_batch_leaves_when_it_is_full_or_its_first_request_has_waited() -> None:
    rule = Fixed(3, [0.5, 0.5], 1)
    for number, request in enumerate(requests(0.0, 0.1)):
        rule.arrived(number, request)
    assert list(rule.starts(0.1)) == []
    assert rule.wakeup() == 0.5
    (run,) = rule.starts(0.5)
    assert list(run.requests) == [0, 1]
    assert rule.wakeup() == NEVER, "no worker is idle"
    rule = Fixed(2, [0.5, 0.5], 1)
    for number, request in enumerate(requests(0.0, 0.0, 0.0)):
        rule.arrived(number, request)
    assert [list(run.requests) for run in rule.starts(0.0)] == [[0, 1]]


def test_queues_take_turns() -> None:
    rule = Fixed(1, [0.0, 0.0], 1)
    for number, model in enumerate([0, 0, 0, 1]):
        rule.arrived(number, requests(0.0, model=model)[0])
    order = []
    for _ in range(4):
        (run,) = rule.starts(0.0)
        order.append(run.model)
        rule.ended(run, 1.0, 0.0)
    assert order == [0, 1, 0, 0]


def test_a_bounded_queue_drops_what_finds_it_full() -> None:
    found = outcome(Fixed(1, [0.0, 0.0], 1, room=2), requests(*[0.0] * 9))
    assert (found.on_time, found.late) == (2, 0)


def test_the_size_that_is_felt_for_grows_and_shrinks() -> None:
    """A batch of 10 takes 2 s: with an objective of 2 s, larger ones are cut back."""
    rule = Aimd([2.0, 2.0], 1)
    sizes = []

    class Watched:
        arrived, wakeup = rule.arrived, rule.wakeup
        ended = staticmethod(rule.ended)

        def starts(self, now: float) -> list[object]:
            runs = list(rule.starts(now))
            sizes.extend(len(run.requests) for run in runs)
            return runs

    outcome(Watched(), requests(*[0.0] * 300, within=100.0))  # type: ignore[arg-type]
    assert sizes[:5] == [1, 2, 3, 4, 5]
    assert 10 <= max(sizes) <= 12
    assert all(8 <= size <= 12 for size in sizes[12:-1])


def test_the_grid_has_every_size_timeout_and_room() -> None:
    rules = grid([SLOW, QUICK], 1, (4, 8), (0.0, 1.0))
    assert len(rules) == 1 + 2 * 2 * 3
    lone = requests(0.0, within=1.5)
    assert outcome(rules["4 rows, 0 x l(1)"](), lone).on_time == 1
    assert outcome(rules["4 rows, 1 x l(1)"](), lone).on_time == 0, "it has waited for company"


# -- the real scheduler --------------------------------------------------------------------------------------------


def ours(workers: int = 1) -> Ours:
    return Ours((SLOW, QUICK), workers)


def test_the_scheduler_answers_everything_when_there_is_time() -> None:
    found = outcome(ours(), requests(*np.linspace(0, 1, 40), within=60.0))
    assert (found.on_time, found.late) == (40, 0)
    assert found.runs < 10, "it batches"


def test_the_scheduler_begins_nothing_too_late() -> None:
    asked = sorted(requests(*np.linspace(0, 30, 400), within=2.0), key=lambda request: request.arrived)
    found = outcome(ours(), asked)
    assert found.begun_late == 0
    assert 0 < found.on_time < 400


# -- games ---------------------------------------------------------------------------------------------------------


def test_a_game_is_the_same_for_every_rule() -> None:
    for pattern in PATTERNS:
        game = Game(pattern, "mixed", 2.0, 5)
        models = game.models()
        asked = game.requests(models, 1.0)
        assert asked == game.requests(game.models(), 1.0)
        assert [r.arrived for r in asked] == sorted(r.arrived for r in asked)
        assert asked != Game(pattern, "mixed", 2.0, 6).requests(models, 1.0)
        times = {round((r.deadline - r.arrived) / models[r.model].seconds(1), 6) for r in asked}
        assert times == set(DEADLINES["mixed"])
        assert len({model.spec.id for model in models}) == MODELS


def test_load_one_is_what_the_workers_can_do_one_by_one() -> None:
    game = Game("poisson", "10x", 20.0, 1)
    models = game.models()
    asked = game.requests(models, 1.0)
    assert len(asked) == pytest.approx(capacity(models) * 20.0, rel=0.1)
    work = sum(models[request.model].seconds(1) for request in asked)
    assert work / 20.0 == pytest.approx(WORKERS, rel=0.15)


def test_every_rule_plays_and_the_best_is_of_the_grid() -> None:
    game = Game("poisson", "10x", 0.5, 1)
    models = game.models()
    rules = game.rules(models, quick=True)
    found = {name: play(make(), models, game.requests(models, 0.3), 1).share for name, make in rules.items()}
    assert all(0.5 < share <= 1 for share in found.values()), found
    assert best({**found, OURS: 7.0, AIMD: 8.0}) not in (OURS, AIMD)


def test_ours_is_put_beside_every_other_rule() -> None:
    shares = [{OURS: 50.0, "a": 100.0, "b": 0.0}, {OURS: 90.0, "a": 45.0, "b": 30.0}]
    assert list(ratios((1, 2), shares)) == [(0.5, "load 1, a"), (2.0, "load 2, a"), (3.0, "load 2, b")]


# -- the crowd -----------------------------------------------------------------------------------------------------


def test_models_have_workers_in_proportion_to_their_share() -> None:
    shares = zipf_shares(1000)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10.0)
    workers = [f"w{number}" for number in range(100)]
    found = placed(shares, workers)
    assert all(len(set(names)) == len(names) >= 1 for names in found)
    assert len(found[0]) == round(100 * shares[0])
    loads = dict.fromkeys(workers, 0.0)
    for share, names in zip(shares, found, strict=True):
        for name in names:
            loads[name] += share / len(names)
    assert max(loads.values()) < 1.5 / 100


def test_a_crowd_keeps_its_requests_under_way() -> None:
    crowd = Crowd(20, 50, seed=1)
    cost = crowd.run(0.02)
    assert cost.decisions > 0
    assert cost.requests >= cost.decisions * 0.9
    assert cost.events >= cost.decisions
    assert cost.seconds >= 0.02
    assert 0 < cost.p50_us <= cost.p99_us <= cost.max_us
    flying = sum(batch.requests for name in crowd._names for batch in crowd._batches[name])
    assert flying + crowd.scheduler.waiting_rows() == 30


# -- who plays -----------------------------------------------------------------------------------------------------


class Player:
    """In the place of a child: squares what it is told, and fails at 7."""

    all: ClassVar[list[Player]] = []

    def __init__(self, function: object) -> None:
        self.told: list[int] = []
        self.closed = False
        self.all.append(self)

    def tell(self, value: int) -> None:
        self.told.append(value)

    def hear(self, timeout: float) -> int:
        if self.told[-1] == 7:
            raise ChildFailed("it is 7")
        return self.told[-1] ** 2

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def players(monkeypatch: pytest.MonkeyPatch) -> list[Player]:
    monkeypatch.setattr(Player, "all", [])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 4})
    monkeypatch.setattr(team, "Child", Player)
    return Player.all


@pytest.mark.parametrize("orders", [[], [2], [3, 1, 2], [5, 4, 3, 2, 1]])
def test_a_team_shares_the_orders_and_answers_in_their_order(players: list[Player], orders: list[int]) -> None:
    with Team(judge) as crew:
        assert list(crew.answers(orders, 1.0)) == [order**2 for order in orders]
    assert sorted(order for player in players for order in player.told) == sorted(orders)
    assert [len(player.told) for player in players] == [len(orders[first::3]) for first in range(3)]
    assert [player.closed for player in players] == [True] * 3


def test_a_team_ends_with_one_of_its_children(players: list[Player]) -> None:
    with pytest.raises(ChildFailed, match="it is 7"), Team(judge) as crew:
        list(crew.answers([1, 7, 2], 1.0))
    assert [player.closed for player in players] == [True] * 3
