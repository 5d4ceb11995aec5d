"""Workers that leave on purpose, and what becomes of their models."""

from __future__ import annotations

import pytest

from tfpool.broker.fleet import Link, WorkerState
from tfpool.errors import NotFound, Unavailable
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State
from tfpool.settings import Loading
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check_rest


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
        world.recycle(link)
        world.settle()
    assert world.answered(settled(world, world.request("m"))) == 1


def test_a_worker_is_not_drained_of_what_nobody_else_can_take() -> None:
    world = ready(model(pin=("w0",)))
    link = world.fleet.links["w0"]
    with pytest.raises(Unavailable, match="no worker can take m:1"):
        world.turnover.vacate(link)
    assert link.state is WorkerState.READY
    assert link in world.fleet.candidates()
    assert world.answered(settled(world, world.request("m"))) == 1


def test_what_leaves_a_drained_worker_pushes_idle_models_out_elsewhere() -> None:
    world = ready(model("m"), model("n"), memory=(BASE + 4 * MIB) * 10 // 9)
    for name in "mn":
        world.disk.sizes[f"/{name}/1"] = 3 * MIB
    world.lose("w0")
    world.lose("w1")
    world.settle()
    (worker,) = world.model("m").versions[1].serving()
    (other,) = world.model("n").versions[1].serving()
    assert worker != other
    drained(world, worker)
    assert world.model("m").versions[1].serving() == [other]
    assert not world.model("n").versions[1].serving()


def drained(world: World, name: str) -> Link:
    """A worker that others have left."""
    link = world.fleet.links[name]
    world.turnover.vacate(link)
    world.settle()
    assert world.turnover.step(link)
    world.settle()
    return link


def test_a_drained_worker_stays_so_when_it_dies() -> None:
    world = ready(model("m"), model("n"), residue_limit=MIB)
    link = drained(world, "w0")
    world.lose("w0")
    assert link not in world.fleet.candidates()
    world.settle()
    assert link.state is WorkerState.DRAINING
    put(world, 2, name="m")
    put(world, 2, name="n")
    world.settle()
    assert world.model("m").versions[2].serving() == world.model("n").versions[2].serving() == ["w1"]
    world.recycle(link)
    world.settle()
    assert link.state is WorkerState.READY
    assert link in world.fleet.candidates()


def test_what_a_worker_loads_while_it_is_drained_leaves_too() -> None:
    """It dies before others have taken all: what it would load again is not loaded there."""
    world = ready(model("m"), model("n"))
    link = world.fleet.links["w0"]
    world.turnover.vacate(link)
    world.lose("w0")
    world.settle()
    assert link.state is WorkerState.DRAINING
    assert not any("w0" in v.on for v in world.registry.versions())
    assert [world.answered(settled(world, world.request(name))) for name in "mn"] == [1, 1]


def test_a_drained_worker_is_not_replaced_for_what_models_left_behind() -> None:
    world = ready(model(), workers=2, residue_limit=MIB)
    (name,) = world.model().versions[1].serving()
    link = drained(world, name)
    link.unique = BASE + 8 * MIB
    world.residence.unloaded(link, 999)
    assert world.budget.residue(link) > MIB
    assert not link.leaving
    world.recycle(link)
    world.settle()
    link.unique = BASE + 8 * MIB
    world.residence.unloaded(link, 999)
    assert link.residue > MIB, "which the planner is told"


def test_a_worker_that_dies_in_a_swap_leaves_its_requests_another_try() -> None:
    """Nobody holds the old version any more, though the model is there: that is no NotFound."""
    world = ready(model(), workers=1)
    running = world.request("m")
    world.turn()
    put(world, 2)
    while not world.model().versions.get(2) or not world.model().versions[2].serving():
        bell = world.bells["w0"]
        assert bell is not None
        if bell.slow:
            world.work("w0")
        else:
            assert world.disk.looks or world.disk.jobs
            world.step_once()
        world.turn()
    assert world.runs("w0")
    world.lose("w0")
    world.settle()
    refused = world.refused(running)
    assert isinstance(refused, Unavailable)
    assert "worker w0 died while m:1 was being replaced" in refused.message
    assert world.answered(settled(world, world.request("m"))) == 2
    check_rest(world)


def test_what_is_unloaded_by_hand_is_not_found_even_if_its_worker_dies() -> None:
    world = ready(model(), workers=1)
    running = world.request("m")
    world.turn()
    world.lifecycle.unload(world.model(), world.model().versions[1])
    world.lose("w0")
    world.settle()
    assert isinstance(world.refused(running), NotFound)


def test_a_drained_workers_replicas_go_where_there_are_workers_left() -> None:
    world = ready(model(replicas=(2, 2)), workers=3)
    version = world.model().versions[1]
    link = world.fleet.links[version.serving()[0]]
    world.turnover.vacate(link)
    world.turnover.step(link)  # as the verb asks at once
    world.settle()
    check_rest(world)
    assert set(version.serving()) == world.fleet.links.keys() - {link.name}


def test_a_worker_is_drained_while_the_other_is_replaced() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (here,) = version.serving()
    link, other = world.fleet.links[here], "w1" if here == "w0" else "w0"
    world.recycle(world.fleet.links[other])
    world.turnover.vacate(link)
    while not world.turnover.step(link):
        world.turn()
        assert world.step_once()
    assert version.serving() == [other]
    world.settle()
    check_rest(world)


def test_the_target_of_a_move_is_drained_while_the_source_still_answers() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    world.migrations.begin(version, Kind.MIGRATE, source, target, "hand")
    number = world.request("m")
    world.turn()
    world.work(target)
    world.migrations.step()
    assert version.on[source] is State.DRAINING
    link = world.fleet.links[target]
    world.turnover.vacate(link)
    assert version.serving() == [target]
    assert not version.cold, "it serves"
    world.run(source)
    world.lifecycle.step(world.now)
    world.work(source)
    while not world.turnover.step(link):
        world.turn()
        assert world.step_once()
    assert version.serving() == [source]
    assert world.answered(number) == 1
    world.settle()
    check_rest(world)


def test_nothing_is_kept_for_a_worker_that_does_not_come_back() -> None:
    world = ready(model(replicas=(2, 2)), memory=(BASE + 20 * MIB) * 10 // 9)
    world.lose("w0")
    world.request("m")
    world.lifecycle.add(model("n", replicas=(2, 2)))
    put(world, 1, name="n")
    world.settle_but_loads()
    link = world.fleet.links["w0"]
    assert link.loads, "it was still expected"
    world.turnover.halted(link)
    assert not link.loads
    assert not link.reserved


def test_a_worker_that_is_leaving_is_not_ready_because_it_could_not_be_drained() -> None:
    world = ready(model(pin=("w0",)))
    link = world.fleet.links["w0"]
    world.recycle(link)
    with pytest.raises(Unavailable):
        world.turnover.vacate(link)
    assert link.state is WorkerState.DRAINING
    world.settle()
    assert link.state is WorkerState.READY
    assert not link.drained
