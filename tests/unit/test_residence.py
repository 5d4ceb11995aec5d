"""Which worker has what, and who is told when nobody can: the broker's residence with fakes around it."""

from __future__ import annotations

import pytest

from tfpool.broker.fleet import WorkerState
from tfpool.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tfpool.repository.memo import Footprint
from tfpool.repository.states import State
from tfpool.settings import BatchingSettings, Loading, Transition
from tfpool.testing.world import World, X, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest
from tfpool.types import DType, SignatureSpec, TensorSpec


def test_a_cold_model_that_nobody_can_take_is_refused_at_once() -> None:
    """It has served before, so that requests for it wait in the scheduler rather than in the lobby."""
    world = ready(model(preload=Loading.LAZY), workers=1, load_retries=0)
    world.request("m")
    world.settle()
    link = world.fleet.links["w0"]
    world.residence.evict(link, world.model().versions[1])
    world.settle()
    link.state = WorkerState.HALTED
    refused = world.request("m")
    assert isinstance(world.refused(refused), Unavailable)
    check(world)


def test_a_failure_elsewhere_does_not_outlive_a_success() -> None:
    """It failed on one worker and serves on the other; when it leaves that, it can be loaded again."""
    world = ready(model(), on_disk=(), memory=BASE + 8 * MIB)
    world.broken.add("/m/1")
    put(world, 1)
    while world.model().versions.get(1) is None or not world.model().versions[1].failures:
        world.turn()
        assert world.step_once()
    world.broken.clear()
    version = world.model().versions[1]
    (failed_on,) = version.on
    world.fleet.links[failed_on].resident[999] = MIB  # so that the other is the emptier one
    world.settle()
    (serves_on,) = version.serving()
    del world.fleet.links[failed_on].resident[999]
    version.on["w0" if serves_on == "w1" else "w1"] = State.FAILED
    world.residence.evict(world.fleet.links[serves_on], version)
    world.settle()
    assert version.state is State.UNLOADED
    assert world.answered(settled(world, world.request("m"))) == 1


def test_what_drains_answers_even_when_it_is_replaced_meanwhile() -> None:
    world = ready(model(), workers=1)
    waiting = [world.request("m") for _ in range(500)]  # more than the worker may have at once
    world.turn()
    world.lifecycle.unload(world.model(), world.model().versions[1])
    put(world, 2)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    world.work("w0")
    world.turn()
    assert world.serving() == [2]
    assert len(world.answers) < 500
    world.settle()
    assert [world.answered(number) for number in waiting] == [1] * 500
    check_rest(world)


@pytest.mark.parametrize("busy", ["w0", "w1"])
def test_a_replica_stays_until_the_others_have_answered_too(busy: str) -> None:
    """One that dies while both drain leaves its requests to the other."""
    world = ready(model(replicas=(2, 2), batching=BatchingSettings(max_batch_size=1)))
    running = [world.request("m") for _ in range(4)]
    world.turn()
    put(world, 2)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    idle = "w1" if busy == "w0" else "w0"
    while world.runs(idle):
        world.run(idle)
    assert world.runs(busy)
    world.work(idle)
    world.work(busy)
    world.turn()
    assert world.serving() == [2]
    world.lose(busy)
    world.settle()
    assert [world.answered(number) for number in running] == [1] * 4
    check_rest(world)


def test_a_replica_that_is_still_loading_goes_at_once() -> None:
    """It is not kept for the sake of one that serves, nor mistaken for one."""
    world = World(model(replicas=(2, 2)))
    put(world, 1)
    for name in world.bells:
        world.join(name)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    world.work("w0")
    running = world.request("m")
    world.turn()
    version = world.model().versions[1]
    world.lifecycle.unload(world.model(), version)
    assert {name: bell.told_off for name, bell in world.bells.items() if bell} == {"w0": set(), "w1": {version.handle}}
    world.lifecycle.load(world.model(), 1)
    assert version.serving() == ["w0"]
    world.lifecycle.unload(world.model(), version)
    world.lose("w0")
    world.settle()
    assert isinstance(world.refused(running), NotFound)
    check_rest(world)


def test_who_asks_for_what_turns_out_too_large_is_told() -> None:
    """Whether before it was loaded, or while it leaves again."""
    world = ready(model(preload=Loading.LAZY), workers=1, memory=BASE + 8 * MIB)
    world.disk.sizes["/m/1"] = 9 * MIB
    first = world.request("m")
    world.turn()
    world.work("w0")
    world.turn()
    between = world.request("m")
    assert world.model().versions[1].state is State.DRAINING
    world.settle()
    for number in (first, between, world.request("m")):
        assert isinstance(world.refused(number), ResourceExhausted)
    check_rest(world)


def test_the_last_replica_can_still_be_pushed_out() -> None:
    world = ready(
        model(replicas=(2, 2)),
        model("n", preload=Loading.LAZY),
        model("o", preload=Loading.LAZY),
        memory=(BASE + 5 * MIB) * 10 // 9,
    )
    for name in "mno":
        world.disk.sizes[f"/{name}/1"] = 3 * MIB
    world.lose("w0")
    world.lose("w1")
    world.settle()
    asked = [settled(world, world.request(name)) for name in "nonomno"]
    assert [world.answered(number) for number in asked] == [1] * 7
    check_rest(world)


@pytest.mark.parametrize("preload", [Loading.PRELOAD, Loading.LAZY])
def test_what_cannot_fit_is_told_although_it_was_placed_before_anybody_had_measured(preload: Loading) -> None:
    world = World(model(preload=preload), memory=BASE + 8 * MIB)
    world.notebook.footprints["/m/1"] = Footprint(9 * MIB, 9 * MIB, 1.0)
    put(world, 1)
    world.disk.end_look()
    world.turn()
    early = world.request("m")
    world.disk.end_job()
    world.settle()
    assert isinstance(world.refused(early), ResourceExhausted)
    assert "9.0 MiB" in world.refused(early).message
    assert world.residence.loads == 0
    assert isinstance(world.refused(world.request("m")), ResourceExhausted)


def test_requests_for_signatures_that_are_no_more() -> None:
    world = ready(model(preload=Loading.LAZY), workers=1)
    world.request("m")
    world.settle()
    version = world.model().versions[1]
    world.residence.evict(world.fleet.links["w0"], version)
    world.settle()
    stale = world.request("m")
    other = SignatureSpec("serving_default", "predict", (TensorSpec("z", DType.INT32, (-1,)),), (X,), True)
    world.signatures = (other,)
    world.settle()
    assert "the signatures of m:1 are not what they were" in world.refused(stale).message
    assert isinstance(world.refused(world.request("m")), InvalidArgument)


def test_the_old_one_goes_first_where_memory_matters_more() -> None:
    world = ready(model(transition=Transition.RESOURCE))
    put(world, 1, 2)
    most = 0
    for _ in range(30):
        world.turn()
        world.step_once()
        most = max(most, sum(len(bell.held) for bell in world.bells.values() if bell))
    assert most == 1
    assert world.serving() == [2]
