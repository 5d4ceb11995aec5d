"""The planner at work: what it is shown, when it is asked, and what is done of it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tfpool.broker.logbook import Logbook
from tfpool.broker.registry import Version
from tfpool.placement.journal import Reader
from tfpool.placement.snapshot import Hold, Kind, Rules, Snapshot, Step
from tfpool.repository.memo import Footprint
from tfpool.scheduler import events as ev
from tfpool.scheduler.curves import Point
from tfpool.settings import Form, Loading, PlacementPolicy
from tfpool.testing.world import World, model, put, ready
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_plans import planner
from tfpool.testing.world_rules import check_rest


class Planned:
    """A world with a planner, and demand as a test says."""

    def __init__(self, world: World, journal: Logbook | None = None, **settings: Any) -> None:
        self.world = world
        self.planning = planner(world, journal, **settings)

    def version(self, name: str = "m") -> Version:
        return self.world.model(name).versions[1]

    def measured(self, name: str, seconds: float = 0.01) -> None:
        """One row takes so long, wherever the model is."""
        for worker in self.world.fleet.links:
            self.world.decide(ev.Measured(self.version(name).key, worker, [[Point(1, seconds), Point(2, 2 * seconds)]]))

    def go(self, seconds: int, **asks: float) -> None:
        """Time goes by, in which models are asked so many times a second for one row."""
        for _ in range(seconds):
            self.world.now += 1.0
            for name, rate in asks.items():
                self.version(name).asks += int(rate)
                self.version(name).rows += int(rate)
            self.world.turn()
            self.planning.step(self.world.now)
            for _ in range(20):
                self.world.turn()
                if not self.world.step_once():
                    break

    def snapshot(self) -> Snapshot:
        return self.planning.survey.snapshot(self.world.now)


def test_what_the_planner_is_shown() -> None:
    world = ready(model("m"), model("n", replicas=(0, 1), pin=("w0",)), memory=(BASE + 20 * MIB) * 10 // 9)
    planned = Planned(world, policy=PlacementPolicy.STATIC)
    planned.measured("m")
    planned.go(3, m=30)
    seen = planned.snapshot()
    m, n = seen.servables
    assert (m.name, m.nbytes, m.load_seconds) == ("m:1", MIB, 0.5)
    assert m.fast.asks == pytest.approx(30)
    assert m.slow.rows == pytest.approx(30)
    assert m.row_seconds == {w: pytest.approx(0.01, rel=0.02) for w in ("w0", "w1")}
    assert m.replicas == (1, 2)
    assert [replica.hold for replica in m.on.values()] == [Hold.SERVES]
    assert (n.replicas, n.pins, n.wanted, n.movable) == ((0, 1), ("w0",), True, True)
    assert n.idle == pytest.approx(3, abs=1.1)
    assert [worker.room for worker in seen.workers] == [20 * MIB, 20 * MIB]
    assert sum(worker.held for worker in seen.workers) == 2 * MIB
    assert all(worker.open for worker in seen.workers)


def test_planning_begins_when_all_is_loaded_or_after_a_while() -> None:
    world = World(model("m"), model("n"))
    planned = Planned(world)
    planned.planning.step(world.now)
    assert not planned.planning.survey.snapshot(world.now).servables, "nothing is known yet"
    world.now += 59
    planned.planning.step(world.now)
    assert not planned.planning._started
    world.now += 2
    planned.planning.step(world.now)
    assert planned.planning._started


def test_who_may_not_be_given_models() -> None:
    world = ready(model(), workers=3)
    world.fleet.links["w0"].drained = True
    world.fleet.links["w1"].closed = True
    planned = Planned(world)
    assert [worker.open for worker in planned.snapshot().workers] == [False, False, True]


def test_what_fails_or_was_sent_away_is_nothing_to_the_planner() -> None:
    world = ready(model("a"), model("b"), model("c", preload=Loading.LAZY), load_retries=0)
    world.lifecycle.unload(world.model("a"), world.model("a").versions[1])
    world.broken.add("/b/1")
    world.lose("w0")
    world.lose("w1")
    world.settle()
    seen = Planned(world).snapshot().servables
    assert [(s.name, s.wanted) for s in seen] == [("c:1", False)]


def test_a_worker_that_could_not_load_a_model_is_not_asked_again() -> None:
    world = ready(model(), workers=3)
    planned = Planned(world)
    (here,) = planned.version().serving()
    bad, good = sorted(world.fleet.links.keys() - {here})
    world.broken.add("/m/1")
    world.migrations.begin(planned.version(), Kind.REPLICATE, "", bad, "hand")
    world.settle()
    (seen,) = planned.snapshot().servables
    assert set(seen.pins) == {here, good}


def test_a_model_that_keeps_a_state_is_left_alone() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (signature,) = version.signatures
    version.signatures = (replace(signature, mutates=True),)
    (seen,) = Planned(world).snapshot().servables
    assert not seen.movable


def test_a_hot_model_gets_another_replica() -> None:
    planned = Planned(ready(model("m"), model("n")))
    planned.measured("m")
    planned.go(6, m=90)
    assert sorted(planned.version().serving()) == ["w0", "w1"]
    (move,) = planned.world.migrations.all()
    assert (move.kind, move.by, move.error) == (Kind.REPLICATE, "planner", None)
    assert "busy" in move.reason
    check_rest(planned.world)


@pytest.mark.parametrize("policy", [PlacementPolicy.STATIC, PlacementPolicy.ADVISE])
def test_nothing_moves_by_itself_where_that_is_not_wanted(policy: PlacementPolicy) -> None:
    planned = Planned(ready(model("m"), model("n")), policy=policy)
    planned.measured("m")
    planned.go(6, m=90)
    assert len(planned.version().serving()) == 1
    _, steps, complete = planned.planning.proposal(planned.world.now)
    assert [step.kind for step in steps] == [Kind.REPLICATE]
    assert complete
    applying = planned.planning.apply()
    planned.go(3, m=90)
    assert applying.over
    assert [outcome.work.phase.value for outcome in applying.outcomes if outcome.work] == ["DONE"]
    assert len(planned.version().serving()) == 2
    planned.go(3, m=90)
    assert planned.planning.applying is applying, "once is enough"


def test_a_busy_workers_models_are_spread() -> None:
    world = ready(model("a", replicas=(1, 1)), model("b", replicas=(1, 1)))
    planned = Planned(world)
    for name in "ab":
        planned.measured(name)
    (here,) = planned.version("a").serving()
    (there,) = planned.version("b").serving()
    world.migrations.begin(planned.version("b"), Kind.MIGRATE, there, here, "hand")
    world.settle()
    world.now += 60
    planned.go(12, a=40, b=40)
    assert planned.version("a").serving() != planned.version("b").serving()


def test_a_worker_that_keeps_too_much_is_replaced_whatever_the_policy() -> None:
    planned = Planned(ready(model()), policy=PlacementPolicy.STATIC)
    link = planned.world.fleet.links["w0"]
    generation, link.residue = link.generation, 65 * MIB
    planned.go(2)
    assert planned.world.fleet.links["w0"].generation == generation + 1
    check_rest(planned.world)


def test_a_load_that_finds_no_room_is_shown_as_absent_and_room_is_made() -> None:
    """Two models in use fill half of each worker; a third fits nowhere until one of them moves."""
    world = ready(model("a"), model("b"), model("c", preload=Loading.EXPLICIT), memory=(BASE + 10 * MIB) * 10 // 9)
    planned = Planned(world)
    for name, size in (("a", 4 * MIB), ("b", 4 * MIB), ("c", 7 * MIB)):
        world.disk.sizes[f"/{name}/1"] = size
        world.budget._remember(f"/{name}/1", Footprint(size, size, 0.5))
    for name in ("w0", "w1"):
        world.lose(name)
    world.settle()
    assert planned.version("a").serving() != planned.version("b").serving()
    planned.planning.step(world.now)
    for name in "ab":
        world.request(name)
    world.turn()
    world.lifecycle.load(world.model("c"), 1)
    world.turn()
    c = planned.version("c")
    assert world.residence.without_room(c) == list(c.on)
    (seen,) = (one for one in planned.snapshot().servables if one.name == "c:1")
    assert not seen.on
    assert seen.wanted
    planned.world.now += 60
    planned.planning.step(world.now)
    (move,) = world.migrations.active
    assert move.kind is Kind.MIGRATE
    assert "to make room for c:1" in move.reason
    planned.go(3)
    check_rest(world)
    assert all(planned.version(name).serving() for name in "abc"), "nobody was evicted"
    assert len(c.on) == 1
    assert world.residence.evictions == 0


def test_steps_that_the_pool_cannot_take_any_more_are_refused() -> None:
    world = ready(model(replicas=(2, 2)), model("n"))
    planned = Planned(world)
    version = planned.version()

    def taken(kind: Kind, source: str, target: str) -> str | None:
        step = Step(kind, version.handle, "m:1", source, target, 1, 1.0, 0.0, "because")
        outcome = planned.planning.take(step, planned.snapshot(), "planner")
        return outcome.error.message if outcome.error else None

    assert taken(Kind.MIGRATE, "w0", "w1") == "m:1 is on w1 already (AVAILABLE)"
    assert taken(Kind.DROP, "w0", "") == "m:1 must stay on w0: it has 1 other replicas", "it must have two"
    assert not planned.snapshot().servables[0].movable, "it is left alone for a while"
    planned.world.now += 11
    assert planned.snapshot().servables[0].movable
    assert not world.migrations.active


def test_models_nobody_asks_for_leave_where_they_may() -> None:
    planned = Planned(ready(model(replicas=(0, 1)), model("n")), interval_s=1.0)
    version = planned.version()
    planned.go(1)
    planned.world.now += 4000
    planned.go(3)
    assert not version.on
    number = planned.world.request("m")
    planned.world.settle()
    assert planned.world.answered(number) == 1


def test_a_planner_that_fails_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("it cannot be")

    planned = Planned(ready(model("m"), model("n")))
    monkeypatch.setattr("tfpool.broker.planning.plan", fail)
    planned.go(3, m=90)
    proposal = planned.planning.proposal(planned.world.now)
    assert proposal is not None
    assert not proposal.steps
    applying = planned.planning.apply()
    planned.go(2, m=90)
    assert applying.over
    monkeypatch.undo()
    planned.measured("m")
    planned.go(6, m=90)
    assert len(planned.version().serving()) == 2, "and goes on when it can"


def test_decisions_are_kept_with_what_they_were_made_from(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    logbook = Logbook(str(path))
    planned = Planned(ready(model("m"), model("n")), logbook)
    planned.measured("m")
    planned.go(25, m=90)
    logbook.close()
    reader = Reader()
    entries = [reader.read(line) for line in path.read_text().splitlines()]
    steps = [entry.step for entry in entries if entry.step is not None]
    assert [step.kind for step in steps] == [Kind.REPLICATE]
    assert 3 <= len(entries) <= 5, "one every ten seconds, and each that has a step"
    assert entries[0].snapshot.servables[0].name == "m:1"
    assert json.loads(path.read_text().splitlines()[0])["v"] == 1


def test_a_journal_that_has_grown_too_large_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    logbook = Logbook(str(path), max_bytes=1000)
    for second in range(0, 400, 10):
        logbook.write(Snapshot(float(second), (), ()), Rules(), None, 0.001, "")
        while not logbook._entries.empty():
            pass
    logbook.close()
    reader = Reader()
    assert reader.read(path.read_text().splitlines()[0]).rules == Rules(), "the first line says all"
    assert Path(f"{path}.1").stat().st_size > 1000


def test_a_line_that_was_not_finished_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"v": 1, "when"')
    logbook = Logbook(str(path))
    logbook.write(Snapshot(1.0, (), ()), Rules(), None, 0.001, "")
    logbook.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"v": 1, "when"'
    assert Reader().read(whole).snapshot.now == 1.0


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path) -> None:
    logbook = Logbook(str(tmp_path / "nowhere" / "journal.jsonl"))
    for second in range(0, 2000, 10):
        logbook.write(Snapshot(float(second), (), ()), Rules(), None, 0.001, "")
    logbook.close()
    assert not (tmp_path / "nowhere").exists()


def test_a_refused_step_leaves_a_load_that_waits_for_room_where_it_was() -> None:
    world = ready(model("a"), model("b"), model("c", preload=Loading.EXPLICIT), memory=(BASE + 10 * MIB) * 10 // 9)
    planned = Planned(world, policy=PlacementPolicy.STATIC)
    for name, size in (("a", 4 * MIB), ("b", 4 * MIB), ("c", 7 * MIB)):
        world.disk.sizes[f"/{name}/1"] = size
        world.budget._remember(f"/{name}/1", Footprint(size, size, 0.5))
    for name in ("w0", "w1"):
        world.lose(name)
    world.settle()
    for name in "ab":
        world.request(name)
    world.turn()
    world.lifecycle.load(world.model("c"), 1)
    world.turn()
    c = planned.version("c")
    (waits,) = world.residence.without_room(c)
    planned.planning.survey.look(world.now)
    for target in ("w0", "w1"):
        step = Step(Kind.LOAD, c.handle, "c:1", "", target, 1, 1.0, 0.0, "because")
        outcome = planned.planning.take(step, planned.snapshot(), "planner")
        assert outcome.error is not None
        assert "has no room for c:1" in outcome.error.message
        assert c.held_by() or c.cold, "it waits, or a request would wake it"
    assert waits in world.fleet.links
    world.settle()
    check_rest(world)
    assert c.serving(), "somebody had asked for it"


def test_the_planner_goes_on_when_a_model_that_left_comes_straight_back() -> None:
    world = ready(model(replicas=(0, 1)), workers=1)
    planned = Planned(world, interval_s=1.0)
    version = planned.version()
    planned.planning.step(world.now)
    world.now += 4000
    planned.planning.step(world.now)
    (gone,) = world.migrations.active
    assert gone.kind is Kind.EVICT
    number = world.request("m")
    world.settle()
    check_rest(world)
    assert world.answered(number) == 1
    assert not planned.planning._occupied()
    planned.planning.survey.look(world.now)
    assert planned.snapshot().servables[0].movable
    assert version.serving() == ["w0"]


def test_a_request_and_the_planner_want_the_same_at_once() -> None:
    """One load, wherever the planner wanted it."""
    world = ready(model(preload=Loading.LAZY), workers=2)
    planned = Planned(world)
    version = planned.version()
    planned.planning.survey.look(world.now)
    seen = planned.snapshot()
    number = world.request("m")
    for target in ("w0", "w1"):
        step = Step(Kind.LOAD, version.handle, "m:1", "", target, 1, 1.0, 0.0, "because")
        planned.planning.take(step, seen, "planner")
    again = world.request("m")
    world.settle()
    check_rest(world)
    assert [world.answered(one) for one in (number, again)] == [1, 1]
    assert world.residence.loads == len(version.serving())


def test_a_plan_that_is_carried_out_outlasts_the_replacing_of_a_worker() -> None:
    planned = Planned(ready(model("m"), model("n")), policy=PlacementPolicy.STATIC)
    world = planned.world
    planned.measured("m")
    planned.go(6, m=90)
    (replacing,) = world.rolling.begin([world.fleet.links["w0"]], "restart")
    applying = planned.planning.apply()
    planned.planning.step(world.now)
    assert not applying.over
    assert not applying.outcomes
    planned.go(6, m=90)
    assert replacing.over
    assert applying.over
    assert [outcome.step.kind for outcome in applying.outcomes] == [Kind.REPLICATE]
    check_rest(world)


def test_what_cannot_be_a_journal_stops_nothing(tmp_path: Path) -> None:
    """A directory in its place; then two brokers in turn on one file."""
    logbook = Logbook(str(tmp_path))
    for second in range(0, 100, 10):
        logbook.write(Snapshot(float(second), (), ()), Rules(), None, 0.001, "")
    logbook.close()
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "journal.jsonl"
    for broker in range(2):
        logbook = Logbook(str(path))
        for second in (0, 10, 20):
            logbook.write(Snapshot(broker * 1000.0 + second, (), ()), Rules(), None, 0.001, "")
        logbook.close()
    reader = Reader()
    entries = [reader.read(line) for line in path.read_text().splitlines()]
    assert [entry.snapshot.now for entry in entries] == [0, 10, 20, 1000, 1010, 1020]
    last = Reader().read(path.read_text().splitlines()[3])
    assert last.rules == Rules(), "the second broker's first line says all"


def test_a_journal_that_nobody_reads_holds_up_neither_decisions_nor_the_end(tmp_path: Path) -> None:
    """A pipe: its opening waits for a reader."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    logbook = Logbook(str(path))
    for second in range(0, 2000, 10):
        logbook.write(Snapshot(float(second), (), ()), Rules(), None, 0.001, "")
    assert logbook._entries.qsize() >= logbook._entries.maxsize - 1
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while not logbook._entries.empty():
            with suppress(BlockingIOError):
                os.read(reader, 1 << 16)
        logbook.close()
    finally:
        os.close(reader)
    assert logbook._writer is not None
    assert not logbook._writer.is_alive()


# -- forms ---------------------------------------------------------------------------------------------------------


def compiled(memory: int | None = None, **settings: Any) -> Planned:
    """A pool whose only model is mapped, and would run twice as fast inlined."""
    world = World(model(), workers=1, memory=memory, store=True)
    world.disk.sizes["/m/1"] = 8 * MIB
    put(world, 1)
    world.settle()
    planned = Planned(world, **settings)
    world.compile(planned.version(), gain=2.0)
    world.reforms.begin(planned.version(), world.fleet.links["w0"], Form.MAPPED, "store")
    world.settle()
    return planned


def step_of(planned: Planned, kind: Kind) -> Step:
    return Step(kind, planned.version().handle, "m:1", "", "w0", 8 * MIB, 1.0, 0.1, "because")


def form(planned: Planned) -> Form:
    return planned.world.fleet.links["w0"].forms[planned.version().handle]


def test_what_is_hot_is_inlined_and_what_has_cooled_down_gives_way() -> None:
    planned = compiled(memory=(BASE + 40 * MIB) * 10 // 9, policy=PlacementPolicy.AUTO)
    planned.measured("m")
    planned.go(60, m=80)
    assert form(planned) is Form.INLINED
    (change,) = [one for one in planned.world.reforms.recent if one.by == "planner"]
    assert change.error is None
    assert change.reason
    check_rest(planned.world)


def test_a_step_changes_a_form_and_back() -> None:
    planned = compiled()
    for kind, wanted in ((Kind.INLINE, Form.INLINED), (Kind.MAP, Form.MAPPED)):
        outcome = planned.planning.take(step_of(planned, kind), planned.snapshot(), "plan")
        assert outcome.error is None
        assert not outcome.over
        planned.world.settle()
        assert outcome.over
        assert form(planned) is wanted
    assert [past.when for past in planned.world.migrations.past()] == [planned.world.now] * 2
    check_rest(planned.world)


@pytest.mark.parametrize("why", ["no room", "gone from the store", "gone from the worker"])
def test_a_form_that_cannot_be_is_not_asked_for_again_at_once(why: str) -> None:
    planned = compiled(memory=(BASE + (11 if why == "no room" else 40) * MIB) * 10 // 9)
    world = planned.world
    if why == "gone from the store":
        world.disk.store.clear()
    elif why == "gone from the worker":
        world.residence.evict(world.fleet.links["w0"], planned.version())
    planned.planning.survey.look(world.now)
    outcome = planned.planning.take(step_of(planned, Kind.INLINE), planned.snapshot(), "planner")
    world.settle()
    assert outcome.over
    view = planned.snapshot().servables[0]
    assert not view.movable
    assert (outcome.error is None) == (why == "gone from the store")
    assert (planned.version().stored is None) == (why == "gone from the store")
    assert not world.fleet.links["w0"].reserved
    world.now += 20.0
    assert planned.snapshot().servables[0].movable


def test_a_worker_that_dies_meanwhile_ends_the_step() -> None:
    planned = compiled()
    outcome = planned.planning.take(step_of(planned, Kind.INLINE), planned.snapshot(), "plan")
    planned.world.lose("w0")
    planned.world.turn()
    assert outcome.over
    planned.world.settle()
    assert form(planned) is Form.MAPPED
    check_rest(planned.world)


@pytest.mark.parametrize("kind", [Kind.INLINE, Kind.MIGRATE, Kind.EVICT])
def test_a_step_of_a_version_that_is_gone(kind: Kind) -> None:
    """It may be removed while the planner thinks."""
    planned = compiled()
    seen, step = planned.snapshot(), step_of(planned, kind)
    planned.world.lifecycle.remove(planned.world.model())
    planned.world.settle()
    outcome = planned.planning.take(step, seen, "planner")
    assert outcome.over
    assert outcome.error is not None
