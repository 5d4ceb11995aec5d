"""Workers that leave on purpose, and what becomes of their models."""

from __future__ import annotations

import pytest

from tfpool.broker.fleet import WorkerState
from tfpool.errors import Unavailable
from tfpool.repository.states import State
from tfpool.settings import Loading
from tfpool.testing.world import model, ready, settled


def test_a_cold_model_waits_for_the_only_worker_to_be_replaced() -> None:
    world = ready(model(preload=Loading.LAZY), workers=1)
    world.recycle(world.fleet.links["w0"])
    cold = world.request("m")
    assert not world.answers
    world.settle()
    assert world.answered(cold) == 1
    assert world.residence.loads == 1, "nothing is given to one that is leaving"


def test_a_drained_worker_leaves_nothing_behind_but_what_it_could_not_load() -> None:
    world = ready(model(), model("n"), load_retries=0)
    world.broken.add("/n/1")
    world.lose("w0")
    world.lose("w1")
    world.settle()
    assert world.model("n").versions[1].state is State.FAILED
    for name in ("w0", "w1"):
        link = world.fleet.links[name]
        world.turnover.vacate(link)
        for _ in range(20):
            if world.turnover.step(link):
                break
            world.turn()
            world.step_once()
        assert world.turnover.step(link)
        assert name not in world.model().versions[1].on
        link.state = WorkerState.READY
    assert world.answered(settled(world, world.request("m"))) == 1


def test_a_worker_is_not_drained_of_what_nobody_else_can_take() -> None:
    world = ready(model(pin=("w0",)))
    link = world.fleet.links["w0"]
    with pytest.raises(Unavailable, match="no worker can take m:1"):
        world.turnover.vacate(link)
    assert link.state is WorkerState.READY
    assert world.answered(settled(world, world.request("m"))) == 1
