"""Replicas on their way out: what they were given is answered, and until they have been told they may stay."""

from __future__ import annotations

import pytest

from tfpool.broker.registry import Version
from tfpool.repository.states import State
from tfpool.testing.world import World, model, put, ready
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest


def shared(**options: object) -> tuple[World, Version]:
    """A world with two workers that serve the same version."""
    world = ready(model(replicas=(2, 2)), **options)  # type: ignore[arg-type]
    return world, world.model().versions[1]


def busy(world: World, worker: str) -> list[int]:
    """Ask until a worker has something to do."""
    asked = []
    while not world.runs(worker):
        asked.append(world.request("m"))
        world.turn()
    return asked


def test_one_that_has_nothing_to_do_is_unloaded_at_once() -> None:
    world, version = shared()
    world.residence.leaving.drain_from(version, "w0")
    assert version.on["w0"] is State.DRAINING
    world.residence.leaving.step()
    assert version.handle in world.fleet.links["w0"].unloading
    assert not world.residence.leaving.waiting
    world.settle()
    assert version.serving() == ["w1"]
    check_rest(world)


def test_one_ends_its_run_first_and_gets_no_other() -> None:
    world, version = shared()
    asked = busy(world, "w0")
    world.residence.leaving.drain_from(version, "w0")
    asked += [world.request("m") for _ in range(100)]
    world.turn()
    assert world.runs("w0") == 1
    assert (version.handle, "w0") in world.residence.leaving.waiting
    world.run("w0")
    world.turn()
    assert version.handle in world.fleet.links["w0"].unloading
    world.settle()
    assert [world.answered(number) for number in asked] == [1] * len(asked)
    check_rest(world)


def test_one_that_only_waits_to_be_loaded_is_called_off() -> None:
    world = ready(model("m"), model("n"), workers=2, memory=(BASE + 40 * MIB) * 10 // 9, load_concurrency=1)
    m, n = world.model("m").versions[1], world.model("n").versions[1]
    (here,) = m.serving()
    world.settle()
    target = world.fleet.links["w1" if here == "w0" else "w0"]
    if n.serving() == [target.name]:
        world.residence.evict(target, n)
        world.settle()
    target.loading.add(-1)  # somebody else has the only place
    world.residence.bring(m, target.name)
    assert m.on[target.name] is State.NEW
    assert m.handle in target.reserved
    world.residence.leaving.begin(m, target.name)
    assert target.name not in m.on
    assert m.handle not in target.loads
    assert m.handle not in target.reserved
    target.loading.clear()
    world.settle()
    check_rest(world)


def test_one_that_failed_to_load_is_simply_gone() -> None:
    world, version = shared()
    version.on["w1"] = State.FAILED
    world.residence.leaving.begin(version, "w1")
    assert version.on == {"w0": State.AVAILABLE}


def test_who_leaves_twice_leaves_once() -> None:
    world, version = shared()
    busy(world, "w0")
    for _ in range(3):
        world.residence.leaving.drain_from(version, "w0")
    assert list(world.residence.leaving.waiting) == [(version.handle, "w0")]
    world.run("w0")
    for _ in range(3):
        world.residence.leaving.step()
        world.residence.leaving.drain_from(version, "w0")
    world.settle()  # the worker would say if it had been told twice
    check_rest(world)


def test_both_may_leave_and_neither_is_told_while_something_waits() -> None:
    world, version = shared()
    asked = [world.request("m") for _ in range(600)]  # more than both may have at once
    world.turn()
    world.lifecycle.unload(world.model(), version)
    assert world.scheduler.waiting(version.key)
    world.turn()
    assert set(world.residence.leaving.waiting) == {(version.handle, "w0"), (version.handle, "w1")}
    world.settle()
    assert [world.answered(number) for number in asked] == [1] * len(asked)
    assert not version.on
    check_rest(world)


@pytest.mark.parametrize("told", [False, True])
def test_until_it_is_told_one_may_stay(told: bool) -> None:
    world, version = shared()
    busy(world, "w0")
    world.residence.leaving.drain_from(version, "w0")
    if told:
        world.run("w0")
        world.residence.leaving.step()
    world.residence.evict(world.fleet.links["w1"], version)
    assert version.cold
    kept = world.residence.leaving.keep(version)
    assert kept is not told
    assert version.cold is told
    assert version.serving() == ([] if told else ["w0"])
    check(world)
    number = world.request("m")
    world.settle()
    assert world.answered(number) == 1
    check_rest(world)


def test_a_worker_that_dies_has_nothing_left_to_answer() -> None:
    world, version = shared()
    asked = busy(world, "w0")
    world.residence.leaving.drain_from(version, "w0")
    world.lose("w0")
    world.turn()
    assert not world.residence.leaving.waiting
    assert "w0" not in version.on
    world.settle()
    assert [world.answered(number) for number in asked] == [1] * len(asked), "the other one answers"
    check_rest(world)


@pytest.mark.parametrize("retired", [True, False])
def test_what_goes_for_good_answers_through_one_that_was_leaving(retired: bool) -> None:
    """A replica leaves, then the whole version does, then the worker dies that would have answered what waits."""
    world, version = shared()
    asked = busy(world, "w0")
    world.residence.leaving.drain_from(version, "w0")
    asked += [world.request("m") for _ in range(50)]
    if retired:
        put(world, 2)
        world.settle_but_loads()
        world.lifecycle.retire(world.model(), version)
    else:
        world.lifecycle.unload(world.model(), version)
    assert set(world.residence.leaving.waiting) == {(version.handle, "w0"), (version.handle, "w1")}
    world.lose("w1")
    world.turn()
    check(world)
    world.settle()
    check_rest(world)
    assert [world.answered(number) for number in asked] == [1] * len(asked)
    assert not version.on
