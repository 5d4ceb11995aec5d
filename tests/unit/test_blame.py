"""Models that crash workers: who is blamed, isolated, stopped, and who is not."""

from __future__ import annotations

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.blame import (
    CRASHES_TO_ISOLATE,
    CRASHES_TO_STOP,
    ISOLATED_SECONDS,
    MAX_LOAD_DEATHS,
    MAX_LOAD_FAULTS,
    WINDOW_SECONDS,
    counted,
    fault,
    recent,
)
from tfpool.broker.fleet import WorkerState
from tfpool.broker.registry import Crash, Stopped, Version
from tfpool.broker.watchdog import Stuck
from tfpool.errors import FailedPrecondition, NotFound
from tfpool.repository.states import State
from tfpool.settings import BatchingSettings
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest

SEGV, KILL = -signal.SIGSEGV, -signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "oom", "how"),
    [
        (-signal.SIGSEGV, False, "signal 11"),
        (-signal.SIGABRT, False, "signal 6"),
        (-signal.SIGBUS, True, "signal 7"),
        (-signal.SIGILL, False, "signal 4"),
        (-signal.SIGFPE, False, "signal 8"),
        (1, False, "exit status 1"),
        (-signal.SIGKILL, True, "lack of memory"),
        (-signal.SIGKILL, False, None),
        (-signal.SIGTERM, True, None),
        (0, False, None),
        (0, True, None),
    ],
)
def test_what_is_a_fault(status: int, oom: bool, how: str | None) -> None:
    assert fault(status, oom) == how


def test_one_request_that_kills_counts_once() -> None:
    """Alone, then again, then in ever smaller batches: one worker at each depth."""
    assert counted(Crash(0.0, depth) for depth in range(12)) == 1


def test_a_model_that_always_crashes_counts_all_but_one_a_depth() -> None:
    assert counted([Crash(0, 0), Crash(0, 1), *[Crash(0, 2)] * 2, *[Crash(0, 3)] * 4]) == 1 + 0 + 1 + 3
    assert counted([Crash(0, 0)] * 5) == 5
    assert counted([Crash(0, 0), Crash(0, 1)] * 3) == 3


@given(st.lists(st.integers(0, 5), max_size=40))
def test_every_further_crash_counts_for_one_at_most(depths: list[int]) -> None:
    crashes = [Crash(0.0, depth) for depth in depths]
    counts = [counted(crashes[:n]) for n in range(len(crashes) + 1)]
    assert all(abs(after - before) <= 5 for before, after in itertools.pairwise(counts))
    assert counts[-1] >= depths.count(0)
    assert counts[-1] <= len(crashes)


def test_crashes_fade() -> None:
    crashes = [Crash(when, 0) for when in (0.0, 30.0, 60.0)]
    assert recent(crashes, WINDOW_SECONDS) == tuple(crashes[1:])


# -- in a broker ---------------------------------------------------------------------------------------------------


def crash(world: World, name: str = "m", status: int = SEGV, after: float = 1.0) -> str:
    """A worker dies while it runs a new request for a model; the worker."""
    world.request(name)
    world.turn()
    worker = next(w for w in world.bells if world.runs(w))
    world.now += after
    world.lose(worker, status)
    world.settle()
    check_rest(world)
    return worker


def version_of(world: World, name: str = "m") -> Version:
    return world.model(name).versions[1]


def test_a_model_that_crashes_is_isolated_and_then_stopped() -> None:
    world = ready(model("m"), model("n"), model("o"))
    version = version_of(world)
    for _ in range(CRASHES_TO_ISOLATE - 1):
        crash(world)
    assert not version.isolated
    worker = crash(world)
    assert version.isolated == worker
    assert version.serving() == [worker]
    for name in "no":
        (elsewhere,) = version_of(world, name).serving()
        assert elsewhere != worker
    for _ in range(CRASHES_TO_STOP - CRASHES_TO_ISOLATE - 1):
        assert crash(world) == worker
    assert version.state is State.AVAILABLE
    crash(world)
    assert version.state is State.FAILED
    assert not version.isolated
    assert version.error is not None
    assert version.error.message == "stopped: it crashed 6 workers within 5 s, the last by signal 11"
    refused = world.refused(world.request("m"))
    assert isinstance(refused, FailedPrecondition)
    assert "m:1 was stopped: it crashed 6 workers" in refused.message
    assert "`tfpool load m:1` loads it again" in refused.message
    assert [world.answered(settled(world, world.request(name))) for name in "no"] == [1, 1]


def test_what_was_stopped_stays_so_until_somebody_loads_it() -> None:
    world = ready(model("m"), model("n"))
    version = version_of(world)
    for _ in range(CRASHES_TO_STOP):
        crash(world)
    assert world.notebook.was_unloaded(version), "another broker shall not load it either"
    world.now += 10 * WINDOW_SECONDS
    put(world, 1)
    world.settle()
    world.lose("w0")
    world.lose("w1")
    world.settle()
    assert version.state is State.FAILED
    world.lifecycle.load(world.model(), 1)
    world.settle()
    assert version.serving()
    assert not world.notebook.was_unloaded(version)
    crash(world)
    assert version.state is State.AVAILABLE, "what was before is forgotten"


def test_a_load_by_hand_forgets_what_was() -> None:
    world = ready(model("m"), model("n"))
    for _ in range(CRASHES_TO_STOP):
        crash(world, after=0.1)
    world.lifecycle.load(world.model(), 1)
    world.settle()
    crash(world, after=0.1)
    assert version_of(world).state is State.AVAILABLE
    assert len(version_of(world).crashes) == 1


def test_while_its_last_batches_run_a_stopped_version_takes_no_more() -> None:
    world = ready(model(replicas=(2, 2), version_policy="latest:2"), on_disk=(1, 2))
    version = world.model().versions[2]
    world.request("m", 2)
    world.turn()
    (busy,) = (worker for worker in world.bells if world.runs(worker))
    world.residence.stop(version, Stopped("stopped: so that this can be seen"))
    assert version.on[busy] is State.DRAINING
    assert "stopped: so that" in world.refused(world.request("m", 2)).message
    assert world.answered(settled(world, world.request("m"))) == 1
    assert version.state is State.FAILED
    check_rest(world)


def test_what_was_stopped_is_tried_again_when_its_files_change() -> None:
    world = ready(model("m"), model("n"))
    for _ in range(CRASHES_TO_STOP):
        crash(world)
    world.disk.sizes["/m/1"] = 2 * MIB
    put(world, 1)
    world.settle()
    assert world.answered(settled(world, world.request("m"))) == 1
    assert not world.notebook.was_unloaded(version_of(world))


def test_what_waits_for_a_model_that_is_stopped_is_refused() -> None:
    world = ready(model(batching=BatchingSettings(max_batch_size=1)), workers=1)
    asked = [world.request("m") for _ in range(40)]
    world.turn()
    for _ in range(2 * CRASHES_TO_STOP):
        if version_of(world).on:
            world.lose("w0", SEGV)
            world.join("w0")
            while version_of(world).on and not world.runs("w0"):
                world.work("w0")
                world.turn()
    assert version_of(world).stopped
    world.settle()
    assert {type(world.refused(number)) for number in asked} == {FailedPrecondition}
    check_rest(world)


@pytest.mark.parametrize("workers", [2, 3])
def test_replicas_elsewhere_leave_and_come_back_when_it_has_been_quiet(workers: int) -> None:
    world = ready(model("m", replicas=(2, 2)), model("n", replicas=(2, 2)), workers=workers)
    version = version_of(world)
    assert len(version.serving()) == 2
    for _ in range(CRASHES_TO_ISOLATE - 1):
        crash(world)
    loads = world.residence.loads
    worker = crash(world)
    assert version.serving() == [worker]
    assert len(version_of(world, "n").serving()) == workers - 1
    assert world.residence.loads == loads + workers - 1, "neither is loaded where it does not stay"
    world.now += ISOLATED_SECONDS - 1
    world.settle()
    assert version.isolated
    assert not version.crashes
    crash(world)
    world.now += ISOLATED_SECONDS - 1
    world.settle()
    assert version.isolated, "one crash more, and it begins anew"
    world.now += 2
    world.settle()
    assert not version.isolated
    assert len(version.serving()) == len(version_of(world, "n").serving()) == 2
    check_rest(world)


def test_it_serves_on_while_it_moves() -> None:
    """What other workers have of it goes only when its own serves."""
    world = ready(model("m", replicas=(2, 2)), model("n"), model("o"))
    version = version_of(world)
    for _ in range(CRASHES_TO_ISOLATE - 1):
        crash(world)
    world.request("m")
    world.turn()
    (worker,) = (w for w in world.bells if world.runs(w))
    (other,) = set(world.bells) - {worker}
    world.lose(worker, SEGV)
    assert version.isolated == worker
    assert not [v.key for v in world.registry.versions() if worker in v.on and v is not version], "they need not wait"
    for _ in range(5):
        world.turn()
        assert version.serving() == [other]
    world.settle()
    assert version.serving() == [worker]
    assert version_of(world, "n").serving() == version_of(world, "o").serving() == [other]
    check_rest(world)


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ([model("m"), model("n")], 1),
        ([model("m", pin=("w0",)), model("n", pin=("w0",))], 2),
    ],
)
def test_where_there_is_no_room_of_its_own_it_stays_where_it_is(settings: list[object], workers: int) -> None:
    world = ready(*settings, workers=workers)  # type: ignore[arg-type]
    for _ in range(CRASHES_TO_STOP - 1):
        crash(world)
    assert not version_of(world).isolated
    assert version_of(world).state is State.AVAILABLE
    crash(world)
    assert version_of(world).state is State.FAILED
    assert version_of(world, "n").state is State.AVAILABLE


def test_another_worker_becomes_its_own_where_the_first_cannot_be_emptied() -> None:
    """Memory there is for neither without the other leaving."""
    world = ready(model("m"), model("n", pin=("w0",)), model("o"), memory=(BASE + 4 * MIB) * 10 // 9)
    world.disk.sizes.update({"/m/1": 2 * MIB, "/n/1": MIB, "/o/1": 3 * MIB})
    for name in ("w0", "w1"):
        world.lose(name)
    world.settle()
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
    version = version_of(world)
    assert version.isolated == "w1"
    assert version.serving() == ["w1"]
    assert [world.answered(settled(world, world.request(name))) for name in "nom"] == [1, 1, 1]
    check_rest(world)


def test_the_only_worker_is_nobodys_own() -> None:
    world = ready(model("m"), workers=1)
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
    assert not version_of(world).isolated


def test_one_worker_is_left_for_everybody_else() -> None:
    world = ready(model("m"), model("n"), model("o"))
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
        crash(world, "n")
    isolated = {name: version_of(world, name).isolated for name in "mno"}
    assert sum(map(bool, isolated.values())) == 1
    assert not isolated["o"]
    check_rest(world)


def test_crashes_far_apart_are_forgiven() -> None:
    world = ready(model("m"), model("n"))
    for _ in range(3 * CRASHES_TO_STOP):
        crash(world, after=WINDOW_SECONDS / 2)
    assert version_of(world).state is State.AVAILABLE
    assert not version_of(world).isolated


def test_one_request_among_many_kills_and_its_model_is_not_to_blame() -> None:
    world = ready(model("m", batching=BatchingSettings(max_batch_size=16)), model("n"))
    asked = [world.request("m") for _ in range(16)]
    killer = asked[5]
    while killer not in world.answers:
        world.turn()
        for worker, bell in world.bells.items():
            batch = world.scheduler.running(worker)
            if batch is not None and any(p.first <= killer < p.first + p.count for p in batch.pieces):
                world.lose(worker, SEGV)
            elif batch is not None:
                world.run(worker)
            elif bell is None:
                world.join(worker)
            elif bell.slow:
                world.work(worker)
    world.settle()
    assert "quarantine" in world.refused(killer).message
    assert [world.answered(number) for number in asked if number != killer] == [1] * 15
    crashes = version_of(world).crashes
    assert len(crashes) >= 2 + 4, "alone it is found by halves"
    assert counted(crashes) == 1
    assert not version_of(world).isolated


@pytest.mark.parametrize("status", [KILL, -signal.SIGTERM, 0])
def test_workers_that_are_killed_from_outside_are_nobodys_fault(status: int) -> None:
    world = ready(model("m"), model("n"))
    for _ in range(3 * CRASHES_TO_STOP):
        crash(world, status=status)
    assert version_of(world).state is State.AVAILABLE
    assert not version_of(world).crashes
    assert not version_of(world).isolated


def test_only_what_runs_is_suspected() -> None:
    """A batch that is staged behind it, of another model, has done nothing."""
    world = ready(model("m"), model("n"), workers=1)
    for _ in range(CRASHES_TO_STOP):
        world.request("m")
        world.turn()
        world.request("n")
        world.turn()
        world.lose("w0", SEGV)
        world.settle()
    assert len(version_of(world).crashes) == CRASHES_TO_STOP
    assert not version_of(world, "n").crashes


def test_an_idle_worker_that_crashes_blames_nobody() -> None:
    world = ready(model("m"), workers=1)
    for _ in range(CRASHES_TO_STOP):
        world.lose("w0", SEGV)
        world.settle()
    assert not version_of(world).crashes
    check_rest(world)


def test_the_ward_is_halted() -> None:
    world = ready(model("m"), model("n"), workers=3)
    worker = [crash(world) for _ in range(CRASHES_TO_ISOLATE)][-1]
    assert version_of(world).isolated == worker
    link = world.fleet.links[worker]
    world.bells[worker] = None
    world.blame.died(link)
    world.fleet.detach(link)
    world.residence.lost(link)
    world.turnover.halted(link)
    while any(bell is not None and bell.slow for bell in world.bells.values()):
        for other, bell in world.bells.items():
            if bell is not None and bell.slow:
                world.work(other)
        world.turn()
    assert not version_of(world).isolated
    assert link.state is WorkerState.HALTED
    assert version_of(world).serving()
    assert worker not in version_of(world).on


def test_who_is_isolated_can_still_be_unloaded() -> None:
    world = ready(model("m"), model("n"))
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
    world.lifecycle.unload(world.model("m"), version_of(world))
    world.settle()
    assert not version_of(world).isolated
    assert not any(link.kept_for for link in world.fleet.links.values())
    assert isinstance(world.refused(world.request("m")), NotFound)
    world.lifecycle.load(world.model("m"), 1)
    world.settle()
    assert version_of(world).serving()


def test_a_newer_version_replaces_the_isolated_one() -> None:
    world = ready(model("m"), model("n"))
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
    put(world, 2)
    world.settle()
    assert world.serving("m") == [2]
    assert not any(link.kept_for for link in world.fleet.links.values())
    check_rest(world)


def test_the_end_of_an_earlier_life_says_nothing() -> None:
    world = ready(model(), workers=1)
    world.request("m")
    world.turn()
    link = world.fleet.links["w0"]
    world.blame.died(link)
    world.blame.reaped("w0", link.generation - 1, SEGV, False, world.now)
    assert not version_of(world).crashes
    world.blame.reaped("w0", link.generation, SEGV, False, world.now)
    assert len(version_of(world).crashes) == 1


# -- loads ---------------------------------------------------------------------------------------------------------


def loading(**options: object) -> World:
    """A worker that loads m."""
    world = World(model("m", **options), workers=1)
    put(world, 1)
    world.join("w0")
    world.settle_but_loads()
    return world


def die_loading(world: World, times: int, status: int) -> None:
    for _ in range(times):
        assert version_of(world).on["w0"] is State.LOADING
        world.lose("w0", status)
        check(world)
        world.join("w0")


def test_a_load_that_crashes_is_not_tried_for_ever() -> None:
    world = loading()
    die_loading(world, MAX_LOAD_FAULTS, SEGV)
    assert version_of(world).state is State.FAILED
    refused = world.refused(world.request("m"))
    assert "loading /m/1 killed 2 workers, the last by signal 11" in refused.message


def test_a_load_whose_worker_is_killed_is_tried_more_often_but_not_for_ever() -> None:
    world = loading()
    die_loading(world, MAX_LOAD_DEATHS - 1, KILL)
    assert version_of(world).on["w0"] is State.LOADING
    die_loading(world, 1, KILL)
    assert version_of(world).state is State.FAILED


def test_a_load_that_succeeds_is_forgiven() -> None:
    world = loading()
    for _ in range(3 * MAX_LOAD_DEATHS):
        die_loading(world, 1, SEGV)
        world.work("w0")
        assert version_of(world).state is State.AVAILABLE
        world.residence.evict(world.fleet.links["w0"], version_of(world))
        world.work("w0")
        world.lifecycle.load(world.model(), 1)
    world.settle()
    check_rest(world)


def test_a_load_beside_a_run_may_be_innocent() -> None:
    world = ready(model("m"), model("n"), workers=1)
    put(world, 2, name="n")
    link = world.fleet.links["w0"]
    for _ in range(MAX_LOAD_FAULTS):
        while not any(v.handle in link.loading for v in world.model("n").versions.values() if v.key.version == 2):
            assert world.step_once()
            world.turn()
        world.request("m")
        world.turn()
        assert world.runs("w0")
        world.lose("w0", SEGV)
    world.settle()
    assert world.serving("n") == [2]
    check_rest(world)


# -- workers that were stuck ---------------------------------------------------------------------------------------


def give_up(world: World, **verdict: object) -> None:
    """The watchdog gives w0 up."""
    link = world.fleet.links["w0"]
    world.blame.died(link, Stuck(link, "stuck", **verdict))  # type: ignore[arg-type]
    world.lose("w0", KILL)


def test_a_run_that_hangs_counts_as_a_crash() -> None:
    world = ready(model("m"), workers=1)
    for _ in range(CRASHES_TO_STOP):
        world.request("m")
        world.turn()
        give_up(world, own_fault=True, run=True)
        world.settle()
    assert version_of(world).stopped
    assert version_of(world).error is not None
    assert "the last by hanging" in version_of(world).error.message  # type: ignore[union-attr]


def test_who_was_stopped_by_somebody_else_is_not_blamed() -> None:
    world = ready(model("m"), workers=1)
    for _ in range(CRASHES_TO_STOP):
        world.request("m")
        world.turn()
        give_up(world, own_fault=False)
        world.settle()
    assert not version_of(world).crashes


def test_a_load_beside_a_run_that_hangs_is_innocent() -> None:
    world = ready(model("m"), workers=1)
    put(world, 2)
    world.settle_but_loads()
    world.request("m")
    world.turn()
    version = world.model().versions[2]
    assert version.on["w0"] is State.LOADING
    give_up(world, own_fault=True, run=True)
    assert (version.deaths, len(version_of(world).crashes)) == (0, 1)


def test_a_load_that_hangs_counts_against_that_version_alone() -> None:
    world = World(model("m"), model("n"), workers=1, load_concurrency=2)
    for name in "mn":
        put(world, 1, name=name)
    world.join("w0")
    world.settle_but_loads()
    for _ in range(MAX_LOAD_FAULTS):
        give_up(world, own_fault=True, load=version_of(world).handle)
        world.join("w0")
    assert version_of(world).state is State.FAILED
    assert "killed 2 workers, the last by hanging" in world.refused(world.request("m")).message
    world.settle()
    assert world.serving("n") == [1]


def test_memory_of_a_ward_is_counted_like_any_other() -> None:
    """The others must fit on what is left; here they do not, so that some wait until they are asked for."""
    sizes = {f"/{name}/1": 3 * MIB for name in "mno"}
    world = ready(*(model(name) for name in "mno"), memory=(BASE + 8 * MIB) * 10 // 9)
    world.disk.sizes.update(sizes)
    for _ in range(CRASHES_TO_ISOLATE):
        crash(world)
    assert version_of(world).isolated
    for name in "nonomno":
        assert world.answered(settled(world, world.request(name))) == 1
    check_rest(world)
