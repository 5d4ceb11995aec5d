"""Worker time in proportion to weights, higher levels first: through the scheduler's door, on one worker in virtual
time, and in a worker's turns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.fairness import Turns
from tfpool.scheduler.work import Batch, BatchPolicy, Input, QueueSpec, Segment
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey


@dataclass
class Load:
    """A client that keeps ``depth`` requests of one model in flight from ``begin`` to ``end``."""

    name: str
    cost: float
    depth: int
    weight: float = 1.0
    max_rows: int = 4
    begin: float = 0.0
    end: float = float("inf")


class Lane:
    """One worker that runs one batch after another, and the clients that keep it busy."""

    def __init__(self, loads: list[Load]) -> None:
        self.loads = {load.name: load for load in loads}
        self.scheduler = Scheduler(Layout(1 << 22))
        self.specs = {}
        for i, load in enumerate(loads):
            policy = BatchPolicy(max_rows=load.max_rows, weight=load.weight)
            key = ModelKey(load.name, 1)
            self.specs[load.name] = QueueSpec(i, key, 0, (Input((1,), 4, False),), True, True, True, policy)
        self.now = 0.0
        self.runs: list[tuple[str, float, float]] = []
        self._fifo: list[Batch] = []
        self._next = 0
        self._tell(ev.WorkerJoined("w", "w"))
        for spec in self.specs.values():
            self._tell(ev.Routed(spec.servable, "w"))

    def _tell(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, ev.Dispatch):
                self._fifo.append(action.batch)

    def _submit(self, name: str, count: int) -> None:
        for _ in range(count):
            self._next += 1
            segment = Segment(b"c", self._next, 1, 1, float("inf"), self.now, [b"0000"])
            self._tell(ev.Submit(self.specs[name], segment))

    def run(self, until: float) -> dict[str, float]:
        """Worker seconds of each model up to ``until``."""
        waiting = sorted(self.loads.values(), key=lambda load: load.begin)
        while self.now < until:
            while waiting and waiting[0].begin <= self.now:
                self._submit(waiting[0].name, waiting.pop(0).depth)
            self._tell(ev.Turn())
            if not self._fifo:
                if not waiting:
                    break
                self.now = waiting[0].begin
                continue
            batch = self._fifo.pop(0)
            name = batch.spec.servable.name
            begin, self.now = self.now, self.now + self.loads[name].cost
            self.runs.append((name, begin, self.now))
            self._tell(ev.Completed("w", batch.id, self.loads[name].cost, 64))
            if self.now < self.loads[name].end:
                self._submit(name, batch.rows)
        return self.share(0.0, until)

    def share(self, begin: float, end: float) -> dict[str, float]:
        total = dict.fromkeys(self.loads, 0.0)
        for name, start, stop in self.runs:
            total[name] += max(0.0, min(stop, end) - max(start, begin))
        return total


@pytest.mark.parametrize("costs", [(1.0, 1.0), (1.0, 10.0), (0.5, 7.0)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (5.0, 1.0)])
@pytest.mark.parametrize("depth", [64, 8, 4, 2])
def test_worker_time_follows_the_weights(costs: tuple[float, float], weights: tuple[float, float], depth: int) -> None:
    """Deep queues, and queues that are empty whenever a batch has left (depths up to the batch size)."""
    lane = Lane([Load("a", costs[0], depth, weights[0]), Load("b", costs[1], depth, weights[1])])
    share = lane.run(until=800.0)
    busy = sum(share.values())
    assert busy > 790.0
    if depth > 4:
        assert share["a"] / busy == pytest.approx(weights[0] / sum(weights), abs=0.03)
    else:  # a model that has nothing waiting cannot be given more than every other turn
        fair = weights[0] / sum(weights)
        alternating = costs[0] / sum(costs)
        low, high = min(fair, alternating), max(fair, alternating)
        assert low - 0.03 <= share["a"] / busy <= high + 0.03


@pytest.mark.parametrize("ratio", [1.0, 4.0, 20.0])
def test_a_cheap_model_is_not_starved_by_a_dear_one_with_empty_queues(ratio: float) -> None:
    """Two batches of each in flight: whoever has just run waits again before the other has ended."""
    lane = Lane([Load("cheap", 1.0, 8), Load("dear", ratio, 8)])
    share = lane.run(until=1000.0)
    assert share["cheap"] == pytest.approx(500.0, rel=0.08)


def test_three_models_share_by_weight() -> None:
    lane = Lane([Load("a", 1.0, 32, 1.0), Load("b", 2.0, 32, 2.0), Load("c", 5.0, 32, 4.0)])
    share = lane.run(until=3500.0)
    assert share["a"] == pytest.approx(500.0, rel=0.05)
    assert share["b"] == pytest.approx(1000.0, rel=0.05)
    assert share["c"] == pytest.approx(2000.0, rel=0.05)


def test_a_newcomer_neither_starves_nor_is_starved() -> None:
    lane = Lane([Load("old", 1.0, 32), Load("new", 1.0, 32, begin=1000.0)])
    lane.run(until=1200.0)
    assert lane.share(0.0, 1000.0)["old"] == pytest.approx(1000.0)
    later = lane.share(1000.0, 1200.0)
    assert later["new"] == pytest.approx(100.0, rel=0.1), "it gets its half, and no credit for the time before"
    first_window = lane.share(1000.0, 1010.0)
    assert first_window["new"] >= 3.0
    assert first_window["old"] >= 3.0


def test_one_that_comes_back_has_no_credit_for_its_absence() -> None:
    lane = Lane([Load("a", 1.0, 16), Load("b", 1.0, 16, end=100.0), Load("c", 1.0, 16, begin=900.0)])
    lane.run(until=1000.0)
    assert lane.share(900.0, 1000.0)["a"] == pytest.approx(50.0, rel=0.15)


def test_what_a_batch_really_took_is_charged() -> None:
    turns = Turns()
    turns.join("a")
    turns.join("b")
    first = turns.pick(lambda _: True)
    assert first == "a"
    turns.start("a", 0.0, 0)  # thought to be free
    turns.settle("a", 10.0)
    order = []
    for _ in range(10):
        model = turns.pick(lambda _: True)
        assert model is not None
        order.append(model)
        turns.start(model, 1.0, 0)
    assert order == ["b"] * 10


def test_only_the_ready_are_picked_and_the_others_keep_their_turn() -> None:
    turns = Turns()
    for model in "abc":
        turns.join(model)
    assert turns.pick(lambda m: m == "c") == "c"
    assert turns.first() == "a"
    turns.leave("a")
    assert "a" not in turns
    assert turns.pick(lambda _: True) == "b"
    turns.leave("b")
    turns.leave("c")
    assert not turns
    assert turns.pick(lambda _: True) is None


# -- levels --------------------------------------------------------------------------------------------------------


def test_a_higher_level_goes_first_whatever_it_has_had() -> None:
    turns = Turns()
    turns.join("low")
    turns.join("high", 1)
    turns.settle("high", 100.0)
    order = []
    for _ in range(3):
        model = turns.first()
        assert model is not None
        order.append(model)
        turns.start(model, 5.0, 1 if model == "high" else 0)
    assert order == ["high"] * 3
    turns.leave("high")
    assert turns.first() == "low"


def test_a_lower_level_goes_when_no_higher_one_can() -> None:
    turns = Turns()
    for model, level in (("low", -1), ("middle", 0), ("high", 2)):
        turns.join(model, level)
    tried: list[str] = []

    def ready(model: str) -> bool:
        tried.append(model)
        return model == "low"

    assert turns.pick(ready) == "low"
    assert tried == ["high", "middle", "low"]
    assert turns.first() == "high"


def test_a_model_rises_with_the_best_that_it_has_waiting_and_falls_when_that_has_left() -> None:
    turns = Turns()
    turns.join("a")
    turns.join("b")
    turns.join("b", 1)
    turns.join("b", 0)
    assert turns.first() == "b", "what else comes does not lower it"
    turns.start("b", 1.0, 0)
    assert turns.first() == "a"


def test_a_model_falls_to_what_it_has_waiting_still() -> None:
    turns = Turns()
    turns.join("a", 3)
    turns.join("b", 1)
    assert not turns.lower("a", 3)
    assert turns.lower("a", 2)
    assert turns.first() == "a"
    assert turns.lower("a", 0)
    assert turns.first() == "b"
    assert not turns.lower("b", 2), "it does not rise by that"


def test_models_of_a_level_share_by_what_they_had() -> None:
    turns = Turns()
    for name in "abc":
        turns.join(name, 3)
    order = []
    for _ in range(9):
        model = turns.first()
        assert model is not None
        order.append(model)
        turns.start(model, 2.0 if model == "c" else 1.0, 3)
    assert [order.count(name) for name in "abc"] == [4, 3, 2]


def test_what_has_nothing_waiting_any_more_has_no_turn() -> None:
    turns = Turns()
    turns.join("a", 1)
    turns.join("b")
    turns.start("a", 1.0)
    assert ("a" in turns, "b" in turns, turns.first()) == (False, True, "b")
    turns.settle("a", 50.0)
    turns.join("a")
    turns.start("b", 20.0, 0)
    assert turns.first() == "b", "it still owes what it had"


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "start", "leave", "settle"]),
        st.sampled_from("abcd"),
        st.integers(0, 2),
        st.integers(-3, 5),
    ),
    max_size=40,
)


def refused_in_turn(turns: Turns) -> list[str]:
    """The models, in the order in which they are asked when none is ready."""
    seen: list[str] = []

    def ready(model: str) -> bool:
        seen.append(model)
        return False

    assert turns.pick(ready) is None
    return seen


@given(MOVES)
def test_the_first_is_of_the_highest_level_that_waits(moves: list[tuple[str, str, int, int]]) -> None:
    turns = Turns()
    levels: dict[str, int] = {}
    for move, model, level, seconds in moves:
        if move == "join":
            turns.join(model, level)
            levels[model] = max(levels.get(model, level), level)
        elif move == "start":
            first = turns.first()
            if first is not None:
                del levels[first]
                turns.start(first, abs(seconds), level if seconds > 0 else None)
                if seconds > 0:
                    levels[first] = level
        elif move == "leave":
            turns.leave(model)
            levels.pop(model, None)
        else:
            turns.settle(model, seconds)
        first = turns.first()
        assert (first is None) == (not levels) == (not turns)
        assert all(name in turns for name in levels)
        if first is not None:
            assert levels[first] == max(levels.values())
            seen = refused_in_turn(turns)
            assert sorted(seen) == sorted(levels), "each once"
            assert [levels[name] for name in seen] == sorted((levels[name] for name in seen), reverse=True)
            assert turns.first() == first


def test_turns_that_others_take_leave_nothing_behind() -> None:
    """A model of a lower level that other workers serve, while this one is busy."""
    turns = Turns()
    turns.join("high", 1)
    for _ in range(1000):
        turns.join("low")
        assert turns.first() == "high"
        turns.start("high", 0.001, 1)
        turns.leave("low")
    assert len(turns._heap) < 100
