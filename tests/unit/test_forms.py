from __future__ import annotations

from dataclasses import replace

import pytest

from tfpool.placement.board import Board, Facts
from tfpool.placement.cost import loading, mapped_row_seconds, queue, row_seconds
from tfpool.placement.planner import after, plan, plan_all
from tfpool.placement.snapshot import (
    Demand,
    Hold,
    Inlined,
    Kind,
    Past,
    Replica,
    Rules,
    ServableView,
    Snapshot,
    Step,
    WorkerView,
)

MB = 1 << 20
RULES = Rules()
FORM = Inlined(20 * MB, 30 * MB, 1.0, 1.25)


def model(
    handle: int, work: float, *workers: str, inlined: str = "", form: Inlined | None = FORM, **more: object
) -> ServableView:
    """A model that is ``work`` of a worker where it is mapped (a row takes 10 ms), and keeps 10 MiB there."""
    demand = Demand(work * 100, work * 100)
    on = {worker: Replica(Hold.SERVES, -1e6, worker in inlined) for worker in workers}
    gain = 1.0 if form is None else form.gain
    seconds = {worker: 0.01 / (gain if worker in inlined else 1.0) for worker in "ab"}
    fields: dict[str, object] = {"fast": demand, "slow": demand, "on": on, "row_seconds": seconds, "inlined": form}
    fields = {"nbytes": 10 * MB, "peak": 10 * MB, "load_seconds": 0.1, **fields, **more}
    return ServableView(handle=handle, name=f"m{handle}", **fields)  # type: ignore[arg-type]


def pool(*models: ServableView, room: int | None = None, workers: str = "ab", past: tuple[Past, ...] = ()) -> Snapshot:
    views = [
        WorkerView(
            name, room=None if room is None else room * MB, held=sum(m.kept(name) for m in models if name in m.on)
        )
        for name in workers
    ]
    return Snapshot(0.0, tuple(views), models, past)


def planned(snapshot: Snapshot, rules: Rules = RULES) -> Step:
    step = plan(snapshot, rules)
    assert step is not None
    return step


# -- inlining ------------------------------------------------------------------------------------------------------


def test_a_busy_replica_is_inlined_where_it_is() -> None:
    step = planned(pool(model(1, 0.6, "a"), model(2, 0.1, "b")))
    assert (step.kind, step.name, step.source, step.target, step.nbytes) == (Kind.INLINE, "m1", "", "a", 20 * MB)
    assert step.gain == pytest.approx(60.0 * (0.6 + queue(0.6) - 0.48 - queue(0.48)))
    assert step.cost == pytest.approx(1.0 * loading(0.6))
    assert step.reason == "a is 60 % busy; inlined it (60 % of a worker) runs 1.25 times as fast, which leaves 48 %"


def test_the_one_that_saves_most_comes_first() -> None:
    steps = plan_all(pool(model(1, 0.5, "a"), model(2, 0.6, "b"), model(3, 0.0, "b")), RULES)
    assert [(step.kind, step.name) for step in steps] == [(Kind.INLINE, "m2"), (Kind.INLINE, "m1")]


def test_each_replica_has_its_form() -> None:
    twice = model(1, 1.2, "a", "b", replicas=(1, 2))
    steps = plan_all(pool(twice), RULES)
    assert {(step.kind, step.target) for step in steps} == {(Kind.INLINE, "a"), (Kind.INLINE, "b")}
    assert len(steps) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"inlined": None},
        {"inlined": FORM._replace(gain=1.02)},
        {"inlined": FORM._replace(load_seconds=100.0)},
        {"movable": False},
        {"idle": 301.0},
        {"fast": Demand(1.0, 1.0)},
        {"slow": Demand(1.0, 1.0)},
        {"on": {"a": Replica(Hold.GOES, -1e6)}},
        {"on": {"a": Replica(Hold.SERVES, -1e6), "b": Replica(Hold.COMES, -1.0)}},
        {"on": {"a": Replica(Hold.SERVES, -4.0)}},
    ],
)
def test_what_stays_mapped(change: dict[str, object]) -> None:
    hot = model(1, 0.6, "a", replicas=(1, 2), pins=("a",))
    assert planned(pool(hot)).kind is Kind.INLINE
    assert plan(pool(replace(hot, **change)), RULES) is None  # type: ignore[arg-type]


def test_there_must_be_memory_for_the_load_and_some_left_beside_the_form() -> None:
    hot = model(1, 0.6, "a")
    assert planned(pool(hot, room=40)).kind is Kind.INLINE
    assert plan(pool(hot, room=39), RULES) is None, "loading takes 30 MiB"
    small = replace(hot, inlined=FORM._replace(peak=20 * MB))
    assert planned(pool(small, room=34)).kind is Kind.INLINE
    assert plan(pool(small, room=33), RULES) is None, "a tenth of the room would not be left"


def test_a_worker_that_is_closed_changes_no_form() -> None:
    snapshot = pool(model(1, 0.6, "a"), workers="a")
    assert planned(snapshot).kind is Kind.INLINE
    assert plan(replace(snapshot, workers=(replace(snapshot.workers[0], open=False),)), RULES) is None


def test_a_minute_has_no_more_steps_and_bytes_than_it_may() -> None:
    hot = pool(model(1, 0.6, "a"), past=(Past(-10.0, Kind.INLINE, 9, "", "b", 10 * MB),))
    assert plan(hot, replace(RULES, moves_per_minute=3, bytes_per_minute=30 * MB)) is not None
    assert plan(hot, replace(RULES, moves_per_minute=2)) is None, "half of them are for moves"
    assert plan(hot, replace(RULES, bytes_per_minute=29 * MB)) is None


def test_moves_come_before_forms() -> None:
    steps = plan_all(pool(model(1, 0.5, "a"), model(2, 0.4, "a")), RULES)
    assert [(step.kind, step.name) for step in steps] == [(Kind.MIGRATE, "m1"), (Kind.INLINE, "m2")], "m1 has just come"


# -- mapping -------------------------------------------------------------------------------------------------------


def test_what_is_inlined_in_vain_is_mapped() -> None:
    step = planned(pool(model(1, 0.6, "a", inlined="a", form=FORM._replace(gain=1.01))))
    assert (step.kind, step.source, step.target, step.nbytes) == (Kind.MAP, "a", "", 20 * MB)
    assert step.reason == "inlined it runs 1.01 times as fast, which is not worth its memory"
    assert step.gain == 0.0 < step.cost
    slower = planned(pool(model(1, 0.6, "a", inlined="a", form=FORM._replace(gain=0.9)), workers="a"))
    assert slower.kind is Kind.MAP
    assert slower.cost == 0.0 < slower.gain
    assert plan(pool(model(1, 0.6, "a", inlined="a", form=FORM._replace(gain=1.025))), RULES) is None


def test_what_nobody_asks_for_is_mapped() -> None:
    step = planned(pool(model(1, 0.0, "a", inlined="a", idle=400.0)))
    assert (step.kind, step.reason) == (Kind.MAP, "nobody has asked for it for 400 s, and mapped it keeps less")
    assert plan(pool(model(1, 0.0, "a", inlined="a", idle=200.0)), RULES) is None


def test_where_memory_is_short_the_one_that_loses_least_is_mapped() -> None:
    """All on one worker: 90 of 94 MiB are held."""
    tenants = [model(n, work, "a", inlined="a") for n, work in ((1, 0.2), (2, 0.1), (3, 0.3))]
    step = planned(pool(*tenants, room=94, workers="a"))
    assert (step.kind, step.name) == (Kind.MAP, "m2")
    assert step.reason == "a has 4 MiB left, and mapped it keeps less"
    assert plan(after(pool(*tenants, room=94, workers="a"), step), RULES) is None, "there is enough left"
    assert plan(pool(*tenants, room=96, workers="a"), RULES) is None


def test_what_is_inlined_gives_way_to_what_is_asked_for() -> None:
    tenants = model(1, 0.3, "a", inlined="a"), model(2, 0.1, "a", inlined="a")
    full = pool(*tenants, model(3, 0.2, peak=25 * MB, wanted=False), room=65, workers="a")
    step = planned(full)
    assert (step.kind, step.name, step.source, step.nbytes) == (Kind.MAP, "m2", "a", 20 * MB)
    assert step.reason == "to make room for m3 on a, which needs 25 MiB there; mapped it keeps less, and serves on"
    assert step.gain > step.cost
    follows = planned(after(full, step))
    assert (follows.kind, follows.name, follows.target) == (Kind.LOAD, "m3", "a")


def test_several_give_way_where_one_is_not_enough() -> None:
    tenants = model(1, 0.3, "a", inlined="a"), model(2, 0.1, "a", inlined="a")
    full = pool(*tenants, model(3, 0.2, peak=40 * MB, wanted=False), room=66, workers="a")
    steps = plan_all(full, RULES)
    assert [step.kind for step in steps[:3]] == [Kind.MAP, Kind.MAP, Kind.LOAD]
    assert plan(pool(*tenants, model(3, 0.2, peak=67 * MB, wanted=False), room=66, workers="a"), RULES) is None


def test_nobody_gives_way_where_there_is_room_elsewhere() -> None:
    full, guest = model(1, 0.1, "a", inlined="a", pins=("a",)), model(3, 0.1, peak=25 * MB, wanted=False)
    assert planned(pool(full, guest, room=50)).kind is Kind.LOAD
    pinned = replace(guest, pins=("a",))
    assert planned(pool(full, pinned, room=50)).kind is Kind.MAP


def test_a_little_less_work_elsewhere_is_not_worth_a_form() -> None:
    here, there = model(1, 0.5, "a", inlined="a", pins=("a",)), model(2, 0.41, "b", form=None, pins=("b",))
    step = planned(pool(here, there, model(3, 0.1, peak=25 * MB, wanted=False), room=50))
    assert (step.kind, step.target) == (Kind.LOAD, "b")


def test_a_form_that_is_worth_more_than_what_would_come_stays() -> None:
    """Without it, the worker would have far too much to do."""
    busy = model(1, 1.18, "a", inlined="a")
    guest = model(2, 0.0001, peak=25 * MB, wanted=False)
    assert plan(pool(busy, guest, room=50, workers="a"), RULES) is None
    assert planned(pool(replace(busy, fast=guest.fast, slow=guest.slow), guest, room=50, workers="a")).kind is Kind.MAP


# -- to and fro ----------------------------------------------------------------------------------------------------


def test_what_was_mapped_is_not_inlined_again_at_once() -> None:
    gone = Past(-100.0, Kind.MAP, 1, "b", "", 20 * MB)
    hot = pool(model(1, 0.6, "a"), past=(gone,))
    assert plan(hot, RULES) is None
    assert planned(replace(hot, now=100.0)).kind is Kind.INLINE
    assert planned(replace(hot, past=(gone._replace(handle=2),))).kind is Kind.INLINE


def test_a_form_that_did_not_come_is_not_asked_for_again_at_once() -> None:
    told = Past(-100.0, Kind.INLINE, 1, "", "a", 20 * MB)
    hot = pool(model(1, 0.6, "a"), past=(told,))
    assert plan(hot, RULES) is None
    assert planned(replace(hot, now=100.0)).kind is Kind.INLINE
    assert planned(replace(hot, past=(told._replace(target="b"),))).kind is Kind.INLINE


def test_what_was_inlined_is_not_mapped_again_at_once() -> None:
    """A load of a second, and five more. It does not leave either."""
    came = Past(-5.5, Kind.INLINE, 1, "", "a", 20 * MB)
    full = pool(model(1, 0.1, "a", inlined="a"), model(2, 0.2, peak=25 * MB), room=50, workers="a", past=(came,))
    assert plan(full, RULES) is None
    assert planned(replace(full, now=1.0)).kind is Kind.MAP


def test_a_form_that_was_given_up_does_not_keep_the_servable_where_it_is() -> None:
    """As what has left a worker of late would be: it may not leave for the sake of another one."""
    gone = Past(-10.0, Kind.MAP, 1, "a", "", 20 * MB)
    tenants = model(1, 0.05, "a", form=None, nbytes=60 * MB, peak=60 * MB), model(2, 0.0, "b", form=None)
    wanted = model(3, 0.2, form=None, peak=70 * MB, pins=("a",))
    steps = plan_all(pool(*tenants, wanted, room=100, past=(gone,)), RULES)
    assert [(step.kind, step.name) for step in steps] == [(Kind.MIGRATE, "m1"), (Kind.LOAD, "m3")]


# -- what becomes of it --------------------------------------------------------------------------------------------


def test_after_a_change_of_form_and_back() -> None:
    before = pool(model(1, 0.6, "a"), model(2, 0.1, "b"), room=100)
    step = planned(before)
    then = after(before, step)
    view = then.servables[0]
    assert view.on == {"a": Replica(Hold.SERVES, -1e6, True)}
    assert view.row_seconds == pytest.approx({"a": 0.008, "b": 0.01})
    assert [worker.held for worker in then.workers] == [30 * MB, 10 * MB]
    assert then.past == (Past(0.0, Kind.INLINE, 1, "", "a", 20 * MB),)
    assert Board(Facts(then)).load[0] == pytest.approx([0.48, 0.1])
    back = after(then, replace(step, kind=Kind.MAP, source="a", target=""))
    assert back.servables[0].on == before.servables[0].on
    assert back.servables[0].row_seconds == pytest.approx(before.servables[0].row_seconds)
    assert back.workers == before.workers


@pytest.mark.parametrize(
    ("kind", "source", "target", "held"),
    [
        (Kind.MIGRATE, "a", "b", [0, 10]),
        (Kind.EVICT, "a", "", [0, 0]),
        (Kind.REPLICATE, "", "b", [30, 10]),
    ],
)
def test_what_comes_to_a_worker_is_mapped(kind: Kind, source: str, target: str, held: list[int]) -> None:
    before = pool(model(1, 0.6, "a", inlined="a"), room=100)
    then = after(before, Step(kind, 1, "m1", source, target, 10 * MB, 1.0, 0.1, "told"))
    view = then.servables[0]
    assert [worker.held for worker in then.workers] == [mb * MB for mb in held]
    assert row_seconds(view, then.workers) == pytest.approx([0.01 if source else 0.008, 0.01])
    assert {name: replica.inlined for name, replica in view.on.items()} == {
        name: name == "a" for name in "ab" if name == target or (name == "a" and not source)
    }


def test_what_leaves_gives_back_all_that_it_keeps() -> None:
    twice = model(1, 0.05, "a", "b", inlined="a", replicas=(1, 2))
    step = planned(pool(twice))
    assert (step.kind, step.nbytes) == (Kind.DROP, (30 if step.source == "a" else 10) * MB)
    cold = model(1, 0.0, "a", inlined="a", replicas=(0, 1), idle=400.0)
    step = planned(pool(cold))
    assert (step.kind, step.nbytes) == (Kind.EVICT, 30 * MB)


def test_a_row_takes_less_only_where_it_is_inlined() -> None:
    view = replace(model(1, 0.6, "a", inlined="a"), row_seconds={"a": 0.008})
    workers = (WorkerView("a"), WorkerView("b"), WorkerView("c", threads=2))
    assert row_seconds(view, workers) == pytest.approx([0.008, 0.01, 0.005])
    assert mapped_row_seconds(view, workers) == pytest.approx([0.01, 0.01, 0.005])
    elsewhere = replace(view, row_seconds={"b": 0.01})
    assert row_seconds(elsewhere, workers) == pytest.approx([0.008, 0.01, 0.005])
    assert row_seconds(replace(view, row_seconds={}), workers) == pytest.approx([0.8e-3, 1e-3, 1e-3])
