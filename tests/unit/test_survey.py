"""What the planner is shown, and that nothing of it outlives what it was about."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tfpool.broker.registry import Version
from tfpool.broker.survey import GUESSED_LOAD_SECONDS, Survey
from tfpool.placement.snapshot import Hold, Inlined, Kind, ServableView
from tfpool.scheduler import events as ev
from tfpool.scheduler.curves import Point
from tfpool.settings import Form, Loading
from tfpool.testing.world import World, model, put, ready
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_plans import planner


class Seen:
    """A world, and what is seen of it."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.survey: Survey = planner(world, **settings).survey
        self.survey.look(world.now)

    def version(self, name: str = "m") -> Version:
        return self.world.model(name).versions[1]

    def asked(self, name: str, asks: int, rows: int, seconds: float = 1.0) -> None:
        version = self.version(name)
        version.asks, version.rows = version.asks + asks, version.rows + rows
        self.world.now += seconds
        self.survey.look(self.world.now)

    def view(self, name: str = "m:1") -> ServableView:
        (found,) = (s for s in self.survey.snapshot(self.world.now).servables if s.name == name)
        return found


def test_demand_is_asks_and_rows_a_second() -> None:
    seen = Seen(ready(model()))
    for _ in range(60):
        seen.asked("m", 10, 40)
    assert (seen.view().fast.asks, seen.view().fast.rows) == (pytest.approx(10), pytest.approx(40))
    assert seen.view().slow.asks == pytest.approx(10, rel=0.01)
    assert seen.view().idle == 0.0
    seen.asked("m", 0, 0, 4.0)
    assert seen.view().idle == 4.0
    assert seen.view().fast.asks < seen.view().slow.asks < 10


def test_two_looks_at_one_moment_are_one() -> None:
    seen = Seen(ready(model()))
    seen.asked("m", 10, 10)
    before = seen.view()
    seen.asked("m", 1000, 1000, 0.0)
    assert seen.view() == before
    seen.asked("m", 0, 0, -5.0)
    seen.world.now += 5.0
    assert seen.view() == before, "a clock that goes back changes nothing"
    seen.asked("m", 0, 0, 1.0)
    assert seen.view().fast.asks > before.fast.asks, "what came meanwhile counts at the next look"


def test_huge_numbers_stay_numbers() -> None:
    seen = Seen(ready(model()))
    seen.asked("m", 1 << 70, 1 << 75, 1e-6)
    seen.asked("m", 1 << 70, 1 << 75, 1e9)
    assert math.isfinite(seen.view().fast.rows)
    assert math.isfinite(seen.view().slow.rows)


def test_nothing_is_kept_of_versions_that_are_gone() -> None:
    seen = Seen(ready(model()))
    world, survey = seen.world, seen.survey
    for number in range(2, 30):
        version = next(iter(world.model().versions.values()))
        survey.shun(version, world.now + 10)
        put(world, number)
        world.settle()
        world.now += 1.0
        survey.look(world.now)
        survey.snapshot(world.now)
    assert len(survey._rates) == 1
    assert len(survey._replicas) == 1
    assert len(survey._shunned) <= 10, "those of the last seconds"
    world.now += 11
    survey.snapshot(world.now)
    assert not survey._shunned
    assert not world.migrations.active


def test_a_shunned_version_does_not_move_for_a_while() -> None:
    seen = Seen(ready(model("m"), model("n")))
    seen.survey.shun(seen.version("m"), seen.world.now + 10)
    assert not seen.view("m:1").movable
    assert seen.view("n:1").movable
    seen.world.now += 10
    assert seen.view("m:1").movable


def test_a_version_on_its_way_is_not_moved_again() -> None:
    seen = Seen(ready(model()))
    (here,) = seen.version().serving()
    there = "w1" if here == "w0" else "w0"
    seen.world.migrations.begin(seen.version(), Kind.MIGRATE, here, there, "hand")
    seen.survey.look(seen.world.now)
    assert not seen.view().movable
    assert {worker: replica.hold for worker, replica in seen.view().on.items()} == {
        here: Hold.SERVES,
        there: Hold.COMES,
    }
    seen.world.settle()
    seen.survey.look(seen.world.now)
    assert seen.view().movable
    assert {worker: replica.hold for worker, replica in seen.view().on.items()} == {there: Hold.SERVES}


def test_since_when_a_replica_has_been_what_it_is() -> None:
    seen = Seen(ready(model()))
    (here,) = seen.version().serving()
    first = seen.view().on[here].since
    seen.asked("m", 1, 1, 30.0)
    assert seen.view().on[here].since == first
    seen.world.lose(here)
    seen.world.settle()
    seen.asked("m", 1, 1, 1.0)
    assert seen.view().on[here].since in (first, seen.world.now)
    seen.world.residence.evict(seen.world.fleet.links[here], seen.version())
    seen.world.now += 1.0
    assert not seen.world.migrations.active
    seen.survey.look(seen.world.now)
    replica = seen.view().on[here]
    assert (replica.hold, replica.since) == (Hold.GOES, seen.world.now)


def test_what_is_not_measured_is_guessed() -> None:
    seen = Seen(ready(model("m", preload=Loading.LAZY)))
    view = seen.view()
    assert (view.nbytes, view.load_seconds, view.wanted, view.on) == (1, GUESSED_LOAD_SECONDS, False, {})
    assert view.peak > view.nbytes
    assert view.row_seconds == {}


def test_a_row_costs_what_it_took_of_late() -> None:
    seen = Seen(ready(model()))
    version = seen.version()
    seen.world.decide(ev.Measured(version.key, "w0", [[Point(1, 0.01), Point(2, 0.02)]]))
    assert seen.view().row_seconds == {}, "nobody asks: nobody needs to know"
    seen.asked("m", 1, 1)
    assert seen.view().row_seconds["w0"] == pytest.approx(0.01, rel=0.02)
    assert "w1" not in seen.view().row_seconds


@pytest.mark.parametrize(
    ("replicas", "most", "expected"),
    [
        ((1, None), 0, (1, 3)),
        ((1, None), 2, (1, 2)),
        ((3, None), 2, (3, 3)),
        ((0, None), 0, (0, 3)),
        ((0, 1), 9, (0, 1)),
    ],
)
def test_how_many_replicas_there_may_be(replicas: tuple[int, int | None], most: int, expected: tuple[int, int]) -> None:
    seen = Seen(ready(model(replicas=replicas), workers=3), max_replicas=most)
    assert seen.view().replicas == expected


def test_a_worker_without_a_process_is_not_open() -> None:
    seen = Seen(ready(model("m"), model("n"), workers=4, memory=(BASE + 20 * MIB) * 10 // 9))
    world = seen.world
    world.lose("w0")
    world.recycle(world.fleet.links["w1"])
    world.fleet.links["w2"].closed = True
    views = seen.survey.snapshot(world.now).workers
    assert [view.open for view in views] == [False, False, False, True]
    assert all(view.held >= 0 for view in views)
    world.turnover.halted(world.fleet.links["w0"])
    assert not seen.survey.snapshot(world.now).workers[0].open


def test_a_worker_that_is_kept_for_one_version_says_so() -> None:
    seen = Seen(ready(model("m"), model("n"), workers=3))
    (here,) = seen.version().serving()
    assert seen.world.turnover.isolate(seen.version(), here)
    seen.world.settle()
    views = {view.name: view.kept_for for view in seen.survey.snapshot(seen.world.now).workers}
    assert views.pop(here) == seen.version().handle
    assert set(views.values()) == {0}
    assert not seen.view("m:1").movable


# -- forms ---------------------------------------------------------------------------------------------------------

SIZE = 8 * MIB
PRIVATE = SIZE // 4


def stored(workers: int = 1, refusal: str = "", **options: Any) -> Seen:
    """A world with a model of 8 MiB in the store, which every worker serves mapped."""
    world = World(model(replicas=(workers, workers), **options), workers=workers, store=True)
    world.disk.sizes["/m/1"] = SIZE
    put(world, 1)
    world.settle()
    seen = Seen(world)
    world.compile(seen.version(), refusal, gain=1.5)
    if not refusal:
        for link in world.fleet.links.values():
            world.reforms.begin(seen.version(), link, Form.MAPPED, "test")
        world.settle()
    seen.survey.look(world.now)
    return seen


def change(seen: Seen, form: Form, worker: str = "w0") -> None:
    seen.world.reforms.begin(seen.version(), seen.world.fleet.links[worker], form, "test")
    seen.world.settle()
    seen.survey.look(seen.world.now)


def test_pages_that_several_map_are_shared_out() -> None:
    assert stored(1).view().nbytes == PRIVATE + SIZE
    assert stored(2).view().nbytes == PRIVATE + SIZE // 2
    seen = stored(4)
    assert seen.view().nbytes == PRIVATE + SIZE // 4
    assert [view.held for view in seen.survey.snapshot(seen.world.now).workers] == [PRIVATE + SIZE // 4] * 4


def test_what_the_inlined_form_takes_beside_the_mapped_one() -> None:
    seen = stored()
    assert seen.view().inlined == Inlined(SIZE, SIZE + PRIVATE, 0.1, 1.5)
    assert not seen.view().on["w0"].inlined
    change(seen, Form.INLINED)
    assert seen.view().on["w0"].inlined
    assert seen.view().inlined == Inlined(SIZE, SIZE + PRIVATE, 0.1, 1.5)
    assert seen.view().nbytes == PRIVATE + SIZE, "of one that is mapped"


@pytest.mark.parametrize("form", [Form.PLAIN, Form.MAPPED, Form.INLINED])
def test_a_form_that_settings_name_is_not_the_planners_to_change(form: Form) -> None:
    seen = stored()
    version = seen.version()
    version.settings = replace(version.settings, form=form)
    assert seen.view().inlined is None


def test_what_is_not_compiled_has_no_other_form() -> None:
    assert stored(refusal="it counts").view().inlined is None
    seen = stored()
    seen.version().unfit = "it kills"
    assert seen.view().inlined is None
    seen.version().unfit, seen.version().stored = "", None
    assert seen.view().inlined is None


def test_the_gain_is_what_runs_have_shown() -> None:
    """As soon as enough have run in both forms; what was measured before they did counts no more."""
    seen = stored()
    link, handle = seen.world.fleet.links["w0"], seen.version().handle

    def runs(count: int, seconds: float) -> None:
        for _ in range(count):
            link.ran(handle, 1, seconds)
        seen.survey.look(seen.world.now)

    def gain() -> float:
        found = seen.view().inlined
        assert found is not None
        return found.gain

    runs(2000, 0.010)
    change(seen, Form.INLINED)
    runs(500, 0.008)
    assert gain() == 1.5
    runs(1500, 0.008)
    assert gain() == pytest.approx(1.25)
    change(seen, Form.MAPPED)
    runs(6000, 0.008)
    assert gain() < 1.1


def test_a_version_that_changes_its_form_is_left_alone() -> None:
    seen = stored()
    seen.world.reforms.begin(seen.version(), seen.world.fleet.links["w0"], Form.INLINED, "test")
    assert not seen.view().movable
    seen.world.settle()
    assert seen.view().movable
