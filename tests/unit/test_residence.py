"""Which worker has what, and who is told when nobody can: the broker's residence with fakes around it."""

from __future__ import annotations

import pytest

from tfpool.broker.fleet import WorkerState
from tfpool.broker.registry import Version
from tfpool.broker.reload import Reload
from tfpool.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tfpool.placement.snapshot import Kind
from tfpool.repository.memo import Footprint
from tfpool.repository.states import State
from tfpool.settings import BatchingSettings, Loading, ModelSettings, Transition
from tfpool.testing.world import World, X, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB, Bellows
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


class Fat(Bellows):
    """A worker whose memory is taken by something else."""

    @property
    def unique(self) -> int:
        return BASE + 19 * MIB + sum(self.held.values())


def moved(world: World, name: str = "m") -> tuple[Version, str, str]:
    """A version that serves on its target, while its source has been told to unload it: version, source, target."""
    version = world.model(name).versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    world.migrations.begin(version, Kind.MIGRATE, source, target, "hand")
    while version.handle not in world.fleet.links[source].unloading:
        world.turn()
        if version.on[target] is not State.AVAILABLE:
            world.work(target)
    return version, source, target


def test_a_replica_that_did_not_load_is_no_reason_to_refuse_what_can_be_loaded() -> None:
    world = ready(model(), memory=(BASE + 20 * MIB) * 10 // 9)
    version = world.model().versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    world.broken.add("/m/1")
    world.migrations.begin(version, Kind.REPLICATE, "", target, "planner")
    world.settle()
    assert version.error is not None
    world.broken.clear()
    world.lose(source)
    world.join(source, Fat(source))
    assert not version.held_by(), "it is left for later: there is no room, and nobody asks for it"
    world.turn()
    assert world.answered(settled(world, world.request("m"))) == 1


@pytest.mark.parametrize("late", [False, True])
def test_what_nobody_holds_any_more_is_woken_by_a_request(late: bool) -> None:
    """The target dies and finds no room again while the source is at its unload, after which nobody holds it."""
    world = ready(model(), memory=(BASE + 20 * MIB) * 10 // 9)
    version, source, target = moved(world)
    world.lose(target)
    world.join(target, Fat(target))
    assert version.on == {source: State.DRAINING}
    early = [] if late else [world.request("m")]
    world.work(source)
    world.settle()
    number = world.request("m")
    world.settle()
    check_rest(world)
    assert [world.answered(one) for one in [*early, number]] == [1] * (2 - late)


def test_a_retry_may_end_that_of_another() -> None:
    """Two old versions are to be tried again, the first has nowhere to go, and then nobody would miss either."""
    world = ready(model(pin=("w0",), version_policy="all"), on_disk=())
    world.broken.add("/m/1")
    put(world, 1)
    while not (world.model().versions and world.model().versions[1].failures):
        world.turn()
        assert world.step_once()
    world.fleet.links["w0"].drained = True
    put(world, 1, 2)
    world.settle_but_loads()
    assert all(version.failures for version in world.model().versions.values())
    assert not world.model().versions[2].on
    put(world, 3)
    world.settle_but_loads()
    assert set(world.model().versions) == {1, 2, 3}, "the old ones stay for now"
    world.now += 1.5
    world.turn()
    assert set(world.model().versions) == {3}
    world.fleet.links["w0"].drained = False
    world.settle()
    check_rest(world)
    assert world.serving() == [3]


def test_a_new_process_has_not_failed_to_load_anything() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (here,) = version.serving()
    other = "w1" if here == "w0" else "w0"
    world.broken.add("/m/1")
    world.migrations.begin(version, Kind.REPLICATE, "", other, "planner")
    world.settle()
    assert version.on[other] is State.FAILED
    world.lose(other)
    world.settle()
    assert version.on == {here: State.AVAILABLE}


def test_a_reload_that_asks_for_more_replicas_has_them_loaded() -> None:
    world = ready(model())
    wanted = {"m": model(replicas=(2, 2))}
    world.lifecycle.reload = Reload(world.lifecycle, world.registry, wanted, (), False, lambda: None)
    world.settle()
    check_rest(world)
    assert len(world.model().versions[1].serving()) == 2


def test_a_model_is_removed_while_it_moves() -> None:
    world = ready(model("m"), model("n"))
    version, _, _ = moved(world)
    waiting = world.request("m")
    world.lifecycle.remove(world.model("m"))
    world.settle()
    check_rest(world)
    assert not version.on
    assert version.handle not in world.registry.by_handle
    assert waiting in world.answers
    assert not any(link.reserved or version.handle in link.resident for link in world.fleet.links.values())


def test_a_reload_of_other_files_takes_the_place_of_what_moves() -> None:
    world = ready(model())
    version, _, _ = moved(world)
    world.disk.found["/elsewhere"] = {1: "/elsewhere/1"}
    wanted = {"m": ModelSettings("m", "/elsewhere")}
    world.lifecycle.reload = Reload(world.lifecycle, world.registry, wanted, (), False, lambda: None)
    world.settle()
    check_rest(world)
    assert world.model().versions[1].path == "/elsewhere/1"
    assert not version.on
    assert world.answered(settled(world, world.request("m"))) == 1
