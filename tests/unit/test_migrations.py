"""Models on their way from worker to worker, and what becomes of them when somebody dies."""

from __future__ import annotations

from random import Random

import pytest

from tfpool.broker.migrations import Migration
from tfpool.errors import FailedPrecondition, ResourceExhausted
from tfpool.placement.migration import OVER, TABLE, Phase, Sign, mermaid
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest


class Move:
    """A world with one model, which is on its way from one worker to the other."""

    def __init__(self, **options: object) -> None:
        self.world = ready(model(**options))  # type: ignore[arg-type]
        self.version = self.world.model().versions[1]
        (self.source,) = self.version.serving()
        self.target = "w1" if self.source == "w0" else "w0"
        self.migration = self.world.migrations.begin(self.version, Kind.MIGRATE, self.source, self.target, "hand")
        check(self.world)

    def until(self, phase: Phase) -> Move:
        """Go on until the migration has come to a phase; in ROUTED and beyond the source is at a run."""
        if phase in (Phase.DRAINING, Phase.UNLOADING):
            self.world.request("m")
            self.world.turn()
            assert self.world.runs(self.source)
        if phase is not Phase.PLANNED:
            self.world.turn()
        if phase is Phase.WARMING:
            self.world.residence.warming(self.world.fleet.links[self.target], self.version.handle)
            self.world.turn()
        if phase in (Phase.DRAINING, Phase.UNLOADING):
            self.world.work(self.target)
            self.world.turn()
        if phase is Phase.UNLOADING:
            self.world.run(self.source)
            self.world.turn()
            self.world.turn()
        assert self.migration.phase is (Phase.LOADING if phase is Phase.PLANNED else phase)
        return self

    def rest(self) -> World:
        self.world.settle()
        check_rest(self.world)
        assert self.migration.over
        assert not self.world.migrations.active
        return self.world

    def on(self) -> list[str]:
        return self.version.held_by()


PHASES = [Phase.LOADING, Phase.WARMING, Phase.DRAINING, Phase.UNLOADING]


def test_the_table_leads_to_an_end_from_everywhere() -> None:
    for phase in Phase:
        seen, front = {phase}, [phase]
        while front:
            here = front.pop()
            after = {to for (before, _), to in TABLE.items() if before is here} - seen
            seen |= after
            front += after
        assert seen & OVER
    assert not [before for before, _ in TABLE if before in OVER]
    for phase in set(Phase) - OVER:
        assert TABLE[phase, Sign.WITHDRAWN] is TABLE[phase, Sign.TARGET_LOST] is Phase.ABORTED
    assert "PLANNED --> LOADING: target loads" in mermaid()


def test_a_model_moves_and_nothing_is_lost() -> None:
    move = Move()
    asked = [move.world.request("m") for _ in range(3)]
    world = move.rest()
    assert move.migration.phase is Phase.DONE
    assert move.on() == [move.target]
    assert [world.answered(number) for number in asked] == [1, 1, 1]
    assert world.answered(settled(world, world.request("m"))) == 1
    assert [past.kind for past in world.migrations.past()] == [Kind.MIGRATE]


def test_routes_change_at_once_and_the_source_ends_what_it_has() -> None:
    move = Move().until(Phase.DRAINING)
    world = move.world
    assert list(world.scheduler.staff._routes[move.version.key].workers) == [move.target]
    late = world.request("m")
    world.turn()
    assert world.runs(move.target) == 1
    assert world.runs(move.source) == 1, "it still is at its run"
    assert move.version.handle not in world.fleet.links[move.source].unloading
    world.run(move.target)
    assert world.answered(late) == 1
    move.rest()


def test_what_waits_for_its_turn_to_load_has_its_memory_already() -> None:
    world = ready(model("m"), model("n"), model("o"), memory=(BASE + 40 * MIB) * 10 // 9, load_concurrency=1)
    versions = [world.model(name).versions[1] for name in "mno"]
    here = [v for v in versions if v.serving() == ["w0"]]
    if len(here) < 2:
        here = [v for v in versions if v.serving() == ["w1"]]
    (source,) = here[0].serving()
    target = world.fleet.links["w1" if source == "w0" else "w0"]
    first, second = (world.migrations.begin(v, Kind.MIGRATE, source, target.name, "hand") for v in here[:2])
    assert here[1].on[target.name] is State.NEW
    assert target.reserved[here[1].handle] == world.budget.need(target, here[1])
    assert world.budget.missing(target, here[1]) <= 0, "its own reservation is not in its way"
    world.lifecycle.unload(world.model(here[1].key.name), here[1])
    assert here[1].handle not in target.reserved
    world.settle()
    check_rest(world)
    assert (first.phase, second.phase) == (Phase.DONE, Phase.ABORTED)


@pytest.mark.parametrize("phase", PHASES)
def test_the_target_dies(phase: Phase) -> None:
    move = Move().until(phase)
    world = move.world
    waiting = world.request("m")
    world.lose(move.target)
    world.turn()
    assert move.migration.phase is Phase.ABORTED
    check(world)
    move.rest()
    assert world.answered(waiting) == 1
    assert len(move.on()) == 1
    assert world.answered(settled(world, world.request("m"))) == 1
    if phase is not Phase.UNLOADING:
        assert move.on() == [move.source], "which had it still"


@pytest.mark.parametrize("phase", PHASES)
def test_the_source_dies(phase: Phase) -> None:
    move = Move().until(phase)
    world = move.world
    waiting = world.request("m")
    world.lose(move.source)
    world.turn()
    check(world)
    move.rest()
    assert move.migration.phase is Phase.DONE
    assert move.on() == [move.target]
    assert world.answered(waiting) == 1


@pytest.mark.parametrize("phase", PHASES)
def test_both_die(phase: Phase) -> None:
    move = Move().until(phase)
    world = move.world
    waiting = world.request("m")
    world.lose(move.source)
    world.lose(move.target)
    move.rest()
    assert len(move.on()) == 1
    assert world.answered(waiting) == 1


@pytest.mark.parametrize("phase", PHASES)
def test_it_is_unloaded_by_hand_meanwhile(phase: Phase) -> None:
    move = Move().until(phase)
    world = move.world
    world.lifecycle.unload(world.model(), move.version)
    move.rest()
    assert not move.on()
    assert move.migration.phase is Phase.ABORTED


@pytest.mark.parametrize("phase", PHASES)
def test_a_new_version_takes_its_place_meanwhile(phase: Phase) -> None:
    move = Move().until(phase)
    world = move.world
    put(world, 1, 2)
    move.rest()
    assert world.serving() == [2]
    assert not move.on()


def test_a_load_that_fails_leaves_the_source_as_it_was() -> None:
    world = ready(model())
    world.broken.add("/m/1")
    version = world.model().versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    migration = world.migrations.begin(version, Kind.MIGRATE, source, target, "hand")
    world.settle()
    assert migration.phase is Phase.ABORTED
    assert migration.error is not None
    assert "broken" in migration.error.message
    assert version.serving() == [source]
    assert world.answered(settled(world, world.request("m"))) == 1


def test_a_replica_comes_and_goes() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (first,) = version.serving()
    second = "w1" if first == "w0" else "w0"
    world.migrations.begin(version, Kind.REPLICATE, "", second, "planner")
    world.settle()
    assert sorted(version.serving()) == ["w0", "w1"]
    gone = world.migrations.begin(version, Kind.DROP, first, "", "planner")
    world.settle()
    check_rest(world)
    assert version.serving() == [second]
    assert gone.phase is Phase.DONE


def test_a_replica_comes_back_with_its_worker() -> None:
    world = ready(model())
    version = world.model().versions[1]
    world.migrations.begin(version, Kind.REPLICATE, "", "w1" if version.serving() == ["w0"] else "w0", "planner")
    world.settle()
    world.lose("w0")
    world.settle()
    assert sorted(version.serving()) == ["w0", "w1"]


def test_where_a_version_may_not_go() -> None:
    world = ready(model(pin=("w0",)), model("n"), memory=(BASE + 5 * MIB // 2) * 10 // 9)
    pinned, other = world.model("m").versions[1], world.model("n").versions[1]
    w0, w1 = world.fleet.links["w0"], world.fleet.links["w1"]
    with pytest.raises(FailedPrecondition, match="m:1 is pinned to w0; w1 may not hold it"):
        world.room.check(pinned, w1)
    with pytest.raises(FailedPrecondition, match=r"m:1 is on w0 already \(AVAILABLE\)"):
        world.room.check(pinned, w0)
    with pytest.raises(ResourceExhausted, match="worker w0 has no room for n:1"):
        world.room.check(other, w0)
    w0.closed = True
    with pytest.raises(FailedPrecondition, match="worker w0 is being replaced, expected READY"):
        world.room.check(other, w0)


def test_what_was_is_forgotten_after_a_while() -> None:
    move = Move()
    world = move.rest()
    assert len(world.migrations.past()) == 1
    world.now += 601
    assert not world.migrations.past()
    assert [one.number for one in world.migrations.all()] == [1]


def test_a_drained_worker_is_left_by_migrations() -> None:
    world = ready(model("m"), model("n"))
    link = world.fleet.links["w0"]
    world.turnover.vacate(link)
    (move,) = world.migrations.active
    assert isinstance(move, Migration)
    assert (move.source, move.target, move.by) == ("w0", "w1", "drain")
    world.settle()
    assert move.phase is Phase.DONE
    assert world.turnover.step(link)


def test_a_migration_ends_when_its_source_is_needed_after_all() -> None:
    """The target's replica is pushed out while the source still answers; the next request keeps the source."""
    move = Move().until(Phase.DRAINING)
    world, version = move.world, move.version
    world.residence.evict(world.fleet.links[move.target], version)
    number = world.request("m")
    assert version.on[move.source] is State.AVAILABLE
    move.rest()
    assert move.migration.phase is Phase.ABORTED
    assert move.on() == [move.source]
    assert world.answered(number) == 1


def test_a_replica_that_should_go_stays_when_the_others_die() -> None:
    world = ready(model(replicas=(2, 2)))
    version = world.model().versions[1]
    first, second = version.serving()
    for _ in range(9):
        world.request("m")
        world.turn()
    assert world.runs(first)
    drop = world.migrations.begin(version, Kind.DROP, first, "", "planner")
    world.turn()
    assert version.on[first] is State.DRAINING
    world.lose(second)
    assert version.serving() == [first]
    world.settle()
    check_rest(world)
    assert drop.over
    assert len(version.serving()) == 2


def test_an_eviction_ends_although_the_model_comes_straight_back() -> None:
    world = ready(model(), workers=1)
    version = world.model().versions[1]
    world.residence.evict(world.fleet.links["w0"], version)
    gone = world.migrations.begin(version, Kind.EVICT, "w0", "", "planner")
    number = world.request("m")
    world.work("w0")
    assert version.on["w0"] is not State.DRAINING, "it loads again before anybody has seen it gone"
    world.settle()
    check_rest(world)
    assert gone.phase is Phase.DONE
    assert world.answered(number) == 1


def test_an_isolated_version_moves_no_further() -> None:
    """Its target serves already when it crashes the source's worker, which it is then given to itself."""
    world = ready(model("m"), model("n"), workers=3)
    version = world.model("m").versions[1]
    (source,) = version.serving()
    target = sorted({"w0", "w1", "w2"} - {source})[0]
    migration = world.migrations.begin(version, Kind.MIGRATE, source, target, "hand")
    world.work(target)
    world.lose(source)
    assert world.turnover.isolate(version, source)
    world.settle()
    check_rest(world)
    assert migration.phase is Phase.ABORTED
    assert version.held_by() == [source]


def test_nothing_moves_to_a_worker_that_is_about_to_be_replaced() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (source,) = version.serving()
    target = world.fleet.links["w1" if source == "w0" else "w0"]
    world.recycle(target)
    with pytest.raises(FailedPrecondition, match=f"worker {target.name} is being replaced, expected READY"):
        world.room.check(version, target)
    assert world.room.spare(version) is None
    world.settle()
    assert world.room.spare(version) == target.name


def test_a_load_that_waits_for_the_next_process_is_not_lost_with_this_one() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    world.recycle(world.fleet.links[target])
    move = world.migrations.begin(version, Kind.MIGRATE, source, target, "drain")
    world.settle()
    check_rest(world)
    assert move.phase is Phase.DONE
    assert version.serving() == [target]


def test_one_that_is_over_at_once_is_told_once() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (source,) = version.serving()
    nowhere = "w1" if source == "w0" else "w0"
    world.migrations.begin(version, Kind.DROP, nowhere, "", "hand")
    world.turn()
    world.turn()
    assert [one.phase for one in world.migrations.all()] == [Phase.DONE]
    assert version.serving() == [source]


@pytest.mark.parametrize("seed", range(6))
def test_memory_is_kept_for_no_load_that_does_not_come(seed: int) -> None:
    """Migrations are begun, called off and cut short at random; nothing stays reserved."""
    random = Random(seed)
    names = "mnop"
    world = ready(*(model(name) for name in names), workers=3, memory=(BASE + 40 * MIB) * 10 // 9, load_concurrency=2)
    for _ in range(60):
        version = world.model(random.choice(names)).versions[1]
        target = world.fleet.links[random.choice(["w0", "w1", "w2"])]
        if (
            version.serving()
            and not world.migrations.of(version)
            and target.name not in version.held_by()
            and target.up
        ):
            source = random.choice(["", *version.serving()])
            world.migrations.begin(version, Kind.MIGRATE if source else Kind.REPLICATE, source, target.name, "hand")
        act = random.random()
        if act < 0.1 and world.bells[target.name] is not None:
            world.lose(target.name)
        elif act < 0.2:
            world.lifecycle.unload(world.model(version.key.name), version)
        elif act < 0.4:
            world.lifecycle.load(world.model(version.key.name), 1)
        world.step_once()
        world.turn()
        check(world)
    world.settle()
    check_rest(world)
    for link in world.fleet.links.values():
        assert not link.reserved
        assert link.resident.keys() == {v.handle for v in world.registry.versions() if link.name in v.serving()}
