from __future__ import annotations

from dataclasses import replace

import pytest

from tfpool.placement.board import cost
from tfpool.placement.planner import after, plan, plan_all
from tfpool.placement.snapshot import Demand, Hold, Kind, Past, Replica, Rules, ServableView, Snapshot, Step, WorkerView

MB = 1 << 20
RULES = Rules()


def model(
    handle: int,
    work: float,
    *workers: str,
    mb: int = 10,
    slow: float | None = None,
    since: float = -1e6,
    **more: object,
) -> ServableView:
    """A model that is ``work`` of a worker (a row takes 10 ms), and serves on these workers."""
    asked, steady = (Demand(share * 100, share * 100) for share in (work, work if slow is None else slow))
    fields: dict[str, object] = {"row_seconds": {"a": 0.01}, "replicas": (1, 1), "load_seconds": 1.0, **more}
    on = {worker: Replica(Hold.SERVES, since) for worker in workers}
    fields = {"nbytes": mb * MB, "peak": mb * MB, "fast": asked, "slow": steady, "on": on, **fields}
    return ServableView(handle=handle, name=f"m{handle}", **fields)  # type: ignore[arg-type]


def pool(*models: ServableView, workers: str = "ab", room: int | None = None, past: tuple[Past, ...] = ()) -> Snapshot:
    held = {name: sum(m.nbytes for m in models if name in m.on) for name in workers}
    views = tuple(WorkerView(name, room=None if room is None else room * MB, held=held[name]) for name in workers)
    return Snapshot(0.0, views, models, past)


def planned(snapshot: Snapshot, rules: Rules = RULES) -> Step:
    step = plan(snapshot, rules)
    assert step is not None
    return step


def test_a_quiet_pool_is_left_alone() -> None:
    assert plan(pool(model(1, 0.2, "a"), model(2, 0.2, "b")), RULES) is None
    assert plan(pool(), RULES) is None
    assert plan(Snapshot(0.0, (), ()), RULES) is None
    assert plan(Snapshot(0.0, (), (model(1, 0.2),)), RULES) is None


def test_work_moves_from_a_busy_worker_to_a_quiet_one() -> None:
    step = planned(pool(model(1, 0.65, "a"), model(2, 0.31, "a"), model(3, 0.11, "b")))
    assert (step.kind, step.name, step.source, step.target) == (Kind.MIGRATE, "m2", "a", "b")
    assert step.reason == "a is 96 % busy, b 11 %; moving it (31 % of a worker) leaves 65 % and 42 %"
    assert step.gain > RULES.hysteresis * step.cost > 0
    assert step.nbytes == 10 * MB


def test_workers_that_would_only_change_roles_are_left_alone() -> None:
    """44 % and 21 % are no better than 23 % and 42 %, and two that are alike need not change places."""
    cheap = {"load_seconds": 0.01}
    models = (model(1, 0.23, "a", **cheap), model(2, 0.21, "a", **cheap), model(3, 0.21, "b", **cheap))
    assert plan(pool(*models), RULES) is None
    assert plan(pool(model(1, 0.82, "a", **cheap), model(2, 0.83, "b", **cheap)), RULES) is None


def test_many_small_models_are_spread_one_by_one() -> None:
    steps = plan_all(pool(*(model(n, 0.03, "a", load_seconds=0.01) for n in range(30))), RULES, 60)
    assert 10 <= len(steps) <= 16
    assert {(step.kind, step.source, step.target) for step in steps} == {(Kind.MIGRATE, "a", "b")}


def test_a_hot_model_gets_replicas_up_to_what_it_may_have() -> None:
    hot = pool(model(1, 0.9, "a", replicas=(1, 2)), workers="abc")
    step = planned(hot)
    assert (step.kind, step.source, step.target) == (Kind.REPLICATE, "", "b")
    assert step.reason == "a is 90 % busy, b 0 %; one more replica of it (90 % of a worker) leaves 45 % and 45 %"
    assert plan(after(hot, step), RULES) is None
    assert plan(pool(model(1, 0.9, "a", replicas=(1, 1))), RULES) is None


def test_replicas_of_a_model_that_is_little_asked_for_make_its_batches_small() -> None:
    assert plan(pool(model(1, 0.15, "a", replicas=(1, 2))), RULES) is None
    assert planned(pool(model(1, 0.6, "a", replicas=(1, 2)))).kind is Kind.REPLICATE
    step = planned(pool(model(1, 0.15, "a", "b", replicas=(1, 2))))
    assert (step.kind, step.target) == (Kind.DROP, "")
    assert step.reason == (
        "it is 15 % of a worker, the others that serve it are 8 % busy at most, and its batches get larger without a"
    )


def test_an_idle_replica_stays_until_memory_is_short() -> None:
    idle = model(1, 0.0, "a", "b", replicas=(1, 2))
    assert plan(pool(idle, room=1000), RULES) is None
    assert planned(pool(idle, room=11)).kind is Kind.DROP


def test_replicas_beyond_the_most_leave() -> None:
    step = planned(pool(model(1, 0.9, "a", "b", replicas=(1, 1)), workers="abc"))
    assert (step.kind, step.reason) == (Kind.DROP, "it has 2 replicas and shall have 1 at most")


def test_what_is_asked_for_is_loaded_where_least_waits() -> None:
    step = planned(pool(model(1, 0.6, "a"), model(2, 0.2, wanted=False)))
    assert (step.kind, step.name, step.source, step.target) == (Kind.LOAD, "m2", "", "b")
    assert step.reason == "20 to 20 requests/s come for it, it serves nowhere, and b (0 % busy) has room for it"


def test_what_shall_be_in_memory_is_loaded_when_there_is_room() -> None:
    wanted = model(2, 0.0, mb=50, load_seconds=30.0)
    step = planned(pool(model(1, 0.1, "a", mb=60), wanted, room=100))
    assert (step.kind, step.target, step.reason) == (Kind.LOAD, "b", "it shall be in memory, and b has room for it")
    assert plan(pool(model(1, 0.1, "a", mb=60), wanted, room=40), RULES) is None
    assert plan(pool(replace(wanted, wanted=False)), RULES) is None


def test_the_least_replicas_are_brought_in_unasked() -> None:
    step = planned(pool(model(1, 0.0, "a", replicas=(2, 2))))
    assert (step.kind, step.target, step.reason) == (Kind.REPLICATE, "b", "it shall have 2 replicas and has 1")


def test_a_cold_model_gives_way_to_one_that_is_asked_for_far_more() -> None:
    full = pool(model(1, 0.001, "a", mb=80), model(2, 0.3, mb=60, wanted=False), workers="a", room=100)
    step = planned(full)
    assert (step.kind, step.name, step.source) == (Kind.EVICT, "m1", "a")
    assert step.reason == "to make room for m2 on a, which needs 60 MiB there; 30 requests/s against 0.1"
    follows = planned(after(full, step))
    assert (follows.kind, follows.name, follows.target) == (Kind.LOAD, "m2", "a")
    assert plan(after(after(full, step), follows), RULES) is None
    even = pool(model(1, 0.3, "a", mb=80), model(2, 0.3, mb=60), workers="a", room=100)
    assert plan(even, RULES) is None


def test_a_replica_gives_way_where_its_memory_is_needed() -> None:
    twice = model(1, 0.4, "a", "b", mb=80, replicas=(1, 2))
    step = planned(pool(twice, model(2, 0.3, mb=60), room=100))
    assert (step.kind, step.name) == (Kind.DROP, "m1")
    assert step.reason.endswith("which needs 60 MiB there; others go on serving it")


def test_a_cold_model_that_need_not_stay_leaves() -> None:
    cold = model(1, 0.0, "a", replicas=(0, 1), idle=400.0)
    step = planned(pool(cold))
    assert step.kind is Kind.EVICT
    assert step.reason == "nobody has asked for it for 400 s, and it need not stay in memory"
    assert plan(after(pool(cold), step), RULES) is None, "it is not brought back"
    assert plan(pool(replace(cold, idle=200.0)), RULES) is None
    assert plan(pool(replace(cold, replicas=(1, 1))), RULES) is None


def test_a_worker_that_keeps_too_much_is_recycled_once() -> None:
    worker = WorkerView("a", room=1000 * MB, held=400 * MB, residue=300 * MB)
    snapshot = Snapshot(0.0, (worker,), (model(1, 0.1, "a"),))
    step = planned(snapshot)
    assert (step.kind, step.source, step.handle, step.nbytes) == (Kind.RECYCLE, "a", 0, 300 * MB)
    assert step.reason == "models that have left it still fill 300 MiB, more than 256 MiB"
    done = after(snapshot, step)
    assert (done.workers[0].held, done.workers[0].residue) == (100 * MB, 0)
    again = replace(snapshot, past=done.past)
    assert plan(again, RULES) is None, "if that did not help, nothing is won by doing it again"


def test_two_models_change_places_where_one_move_would_not_help() -> None:
    lumpy = pool(model(1, 0.55, "a"), model(2, 0.35, "a"), model(3, 0.25, "b"), model(4, 0.25, "b"))
    steps = plan_all(lumpy, replace(RULES, hysteresis=0.1))
    assert [step.kind for step in steps] == [Kind.MIGRATE, Kind.MIGRATE]
    assert {(step.source, step.target) for step in steps} == {("a", "b"), ("b", "a")}
    assert "goes first, then" in steps[0].reason
    for step in steps:
        lumpy = after(lumpy, step)
    assert cost(lumpy, "fast") < 5.0


def test_co_tenants_move_to_make_room() -> None:
    tenants = model(1, 0.05, "a", mb=40), model(2, 0.05, "a", mb=60), model(3, 0.05, "b", mb=50)
    snapshot = pool(*tenants, model(4, 0.2, mb=75, wanted=False), room=120)
    steps = plan_all(snapshot, RULES)
    assert [step.kind for step in steps] == [Kind.MIGRATE, Kind.LOAD]
    assert steps[0].reason.startswith("to make room for m4 on ")
    assert steps[1].name == "m4"


def test_a_pool_that_is_short_of_memory_is_packed_anew() -> None:
    """All that is asked for fits to the byte, if all but two models go elsewhere; no exchange of a few makes room."""
    places = {"a": (50, 40), "b": (60, 31), "c": (70, 20)}
    sizes = [(mb, name) for name, held in places.items() for mb in held]
    tenants = [model(n, 0.05, name, mb=mb, load_seconds=0.1) for n, (mb, name) in enumerate(sizes, 1)]
    full = pool(*tenants, model(9, 0.1, mb=29, load_seconds=0.1, wanted=False), workers="abc", room=101)
    rules = replace(RULES, hysteresis=0.5)
    assert len(plan_all(replace(full, now=300.0), rules)) == 2, "one gives way to another, between the searches"
    for step in plan_all(full, rules):
        full = after(full, step)
    assert all(view.on for view in full.servables)
    assert all(worker.free >= 0 for worker in full.workers)
    assert plan(full, rules) is None


def test_what_shall_be_in_memory_is_made_room_for_too() -> None:
    tenants = model(1, 0.0, "a", mb=40), model(2, 0.0, "a", mb=60), model(3, 0.0, "b", mb=50)
    snapshot = pool(*tenants, model(4, 0.0, mb=75), room=120)
    steps = plan_all(snapshot, RULES)
    assert [step.kind for step in steps] == [Kind.MIGRATE, Kind.LOAD]
    assert steps[0].name == "m2"


def test_a_crasher_is_kept_from_others() -> None:
    crasher = model(1, 0.05, "a", crashes=2)
    step = planned(pool(crasher, model(2, 0.5, "a"), model(3, 0.0, "b")))
    assert (step.kind, step.name, step.target) == (Kind.MIGRATE, "m1", "b")


def test_a_gpu_takes_what_it_is_much_faster_for() -> None:
    gpu = WorkerView("g", "gpu:0")
    busy = model(1, 0.45, "a", row_seconds={"a": 0.01, "g": 0.001})
    other = model(2, 0.45, "a", row_seconds={"a": 0.01, "g": 0.01})
    step = planned(Snapshot(0.0, (WorkerView("a"), gpu), (busy, other)))
    assert (step.kind, step.name, step.target) == (Kind.MIGRATE, "m1", "g")


@pytest.mark.parametrize(
    "change",
    [
        {"movable": False},
        {"pins": ("a",)},
        {"on": {"a": Replica(Hold.SERVES, -3.0)}},
        {"on": {"a": Replica(Hold.SERVES, -1e6), "b": Replica(Hold.GOES, -1.0)}},
        {"slow": Demand(1.0, 1.0)},
        {"nbytes": 500 * MB, "peak": 500 * MB},
    ],
)
def test_what_may_not_move_stays(change: dict[str, object]) -> None:
    steady = model(1, 0.5, "a", pins=("a",))
    free = model(2, 0.4, "a")
    assert plan(pool(steady, free, room=300), RULES) is not None
    assert plan(pool(steady, replace(free, **change), room=300), RULES) is None  # type: ignore[arg-type]


def test_workers_that_are_closed_or_kept_are_given_nothing() -> None:
    crowded = pool(model(1, 0.5, "a"), model(2, 0.4, "a"))
    for closed in (WorkerView("b", open=False), WorkerView("b", kept_for=9)):
        assert plan(replace(crowded, workers=(crowded.workers[0], closed)), RULES) is None


def test_a_flash_crowd_is_believed_before_the_slow_average_has_seen_it() -> None:
    step = planned(pool(model(1, 1.2, "a", slow=0.02, replicas=(1, 2))))
    assert step.kind is Kind.REPLICATE


def test_a_minute_has_no_more_steps_and_bytes_than_it_may() -> None:
    crowded = pool(model(1, 0.5, "a"), model(2, 0.4, "a"))
    past = tuple(Past(-when, Kind.LOAD, 90, "", "b", 4 * MB) for when in (50.0, 20.0, 10.0))
    busy = replace(crowded, past=past)
    assert plan(busy, replace(RULES, moves_per_minute=4)) is not None
    assert plan(busy, replace(RULES, moves_per_minute=3)) is None
    assert plan(busy, replace(RULES, bytes_per_minute=22 * MB)) is not None
    assert plan(busy, replace(RULES, bytes_per_minute=21 * MB)) is None
    long_ago = replace(busy, past=tuple(step._replace(when=-70.0) for step in past))
    assert plan(long_ago, replace(RULES, moves_per_minute=1)) is not None


def test_a_move_back_must_gain_a_lot_more() -> None:
    lopsided = pool(model(1, 0.30, "a"), model(2, 0.44, "a"), model(3, 0.05, "b"))
    step = planned(lopsided)
    assert step.target == "b"
    strict = replace(RULES, hysteresis=step.gain / step.cost / 2)
    assert plan(lopsided, strict) is not None
    moved = tuple(Past(-60.0, Kind.MIGRATE, m.handle, "b", "a", m.nbytes) for m in lopsided.servables)
    assert plan(replace(lopsided, past=moved), strict) is None
    assert plan(replace(lopsided, past=tuple(p._replace(when=-500.0) for p in moved)), strict) is not None


def test_after_a_step_the_snapshot_says_so() -> None:
    before = pool(model(1, 0.5, "a"), room=100)
    moved = after(before, Step(Kind.MIGRATE, 1, "m1", "a", "b", 10 * MB, 1.0, 1.0, ""))
    assert moved.servables[0].on == {"b": Replica(Hold.SERVES, 0.0)}
    assert [worker.held for worker in moved.workers] == [0, 10 * MB]
    assert moved.past == (Past(0.0, Kind.MIGRATE, 1, "a", "b", 10 * MB),)
    assert before.servables[0].on.keys() == {"a"}
