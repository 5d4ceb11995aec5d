"""The planner on pools of all kinds, step by step: what no step may do, and that it comes to an end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpool.placement.board import cost
from tfpool.placement.planner import after, plan, plan_all
from tfpool.placement.snapshot import (
    REFORMS,
    Demand,
    Hold,
    Inlined,
    Kind,
    Replica,
    Rules,
    ServableView,
    Snapshot,
    Step,
    WorkerView,
)

MB = 1 << 20
FREE = Rules(hysteresis=0.0, moves_per_minute=1 << 30, bytes_per_minute=1 << 62)
SEEDS = st.integers(0, 10_000)
BETWEEN = 300.0  # a time at which everything is not packed anew, for that takes long


def pool(seed: int, *, steady: bool = True, calm: bool = False, now: float = BETWEEN) -> Snapshot:
    """Some models on some workers. ``steady``: both averages of demand are the same; ``calm``: there are no crashes, no
    pins, nothing in motion, and nothing over budget."""
    dice = random.Random(seed)
    names = [f"w{number}" for number in range(dice.randint(1, 5))]
    count = dice.randint(1, 25)
    sizes = [dice.randint(1, 200) * MB for _ in range(count)]
    budget = dice.choice([None, int(max(max(sizes), sum(sizes) / len(names) * dice.uniform(0.5, 2.0)))])
    held = dict.fromkeys(names, 0)
    models = []
    for number, size in enumerate(sizes):
        work = dice.expovariate(3.0) if dice.random() < 0.8 else 0.0
        slow = work if steady else dice.expovariate(3.0)
        seconds = dice.uniform(0.001, 0.02)
        on: dict[str, Replica] = {}
        least = dice.choice([0, 1, 1, 2])
        most = max(least, dice.choice([1, 2, 5]), 1)
        for name in dice.sample(names, min(len(names), dice.choice([0, 1, 1, 1, min(2, most)]))):
            if budget is None or held[name] + size <= budget:
                hold = dice.choice(list(Hold)) if not calm and dice.random() < 0.1 else Hold.SERVES
                on[name] = Replica(hold, now - dice.choice([1.0, 1e3, 1e3]))
                held[name] += size
        models.append(
            ServableView(
                number + 1,
                f"m{number}",
                size,
                size if calm else int(size * dice.uniform(1.0, 1.3)),
                dice.uniform(0.05, 3.0),
                Demand(work / seconds, work / seconds),
                Demand(slow / seconds, slow / seconds),
                {name: seconds * dice.choice([1.0, 1.0, 3.0]) for name in names if dice.random() < 0.5},
                (least, most),
                tuple(dice.sample(names, 1)) if not calm and dice.random() < 0.1 else (),
                on,
                dice.random() < 0.5,
                calm or dice.random() < 0.95,
                int(not calm and dice.random() < 0.05),
                0.0 if work or slow else dice.choice([0.0, 1000.0]),
            )
        )
    workers = tuple(
        WorkerView(
            name,
            room=budget if dice.random() < 0.9 else None,
            held=held[name],
            open=calm or dice.random() < 0.9,
            threads=dice.choice([1, 2]),
        )
        for name in names
    )
    return Snapshot(now, workers, tuple(models))


def with_forms(snapshot: Snapshot, seed: int) -> Snapshot:
    """Most models have an inlined form, and many replicas have it, where there is memory for it."""
    dice = random.Random(seed)
    free = {worker.name: worker.free for worker in snapshot.workers}
    models = []
    for model in snapshot.servables:
        nbytes = dice.randint(1, 100) * MB
        form = Inlined(nbytes, int(nbytes * dice.uniform(1.0, 1.5)), dice.uniform(0.05, 3.0), dice.uniform(0.95, 1.4))
        on = {}
        for worker, replica in model.on.items():
            inlined = dice.random() < 0.4 and form.nbytes <= free[worker]
            on[worker] = replica._replace(inlined=inlined)
            free[worker] -= form.nbytes * inlined
        models.append(replace(model, on=on, inlined=form) if dice.random() < 0.8 else model)
    held = {worker.name: sum(m.kept(worker.name) for m in models if worker.name in m.on) for worker in snapshot.workers}
    workers = tuple(replace(worker, held=held[worker.name]) for worker in snapshot.workers)
    return replace(snapshot, workers=workers, servables=tuple(models))


def check(before: Snapshot, step: Step, rules: Rules) -> None:
    """Memory, pins, doors, bounds of replicas, budgets."""
    model = next(model for model in before.servables if model.handle == step.handle)
    workers = {worker.name: worker for worker in before.workers}
    assert model.movable
    assert all(replica.hold is Hold.SERVES for replica in model.on.values()), "it is on its way already"
    if step.kind in REFORMS:
        return check_form(before, step, rules)
    if step.target:
        target = workers[step.target]
        assert target.free >= model.peak
        assert target.open
        assert target.kept_for in (0, model.handle)
        assert not model.pins or step.target in model.pins
        assert step.target not in model.on
    if step.source:
        stay = 5 * rules.hysteresis * model.load_seconds
        assert before.now - model.on[step.source].since >= stay
    count = len(model.on) + bool(step.target) - bool(step.source)
    assert {
        Kind.LOAD: not model.on and not step.source,
        Kind.REPLICATE: model.on and not step.source and count <= model.replicas[1],
        Kind.MIGRATE: bool(step.source and step.target),
        Kind.DROP: not step.target and count >= max(1, model.replicas[0]),
        Kind.EVICT: not step.target and count == 0,
    }[step.kind]
    assert step.reason
    assert step.nbytes == (model.nbytes if step.target else model.kept(step.source))


def check_form(before: Snapshot, step: Step, rules: Rules) -> None:
    """Who changes its form serves where it is, has the other one, and there is memory for it."""
    model = next(model for model in before.servables if model.handle == step.handle)
    name = step.target if step.kind is Kind.INLINE else step.source
    (worker,) = (worker for worker in before.workers if worker.name == name)
    form, replica = model.inlined, model.on[name]
    assert form is not None
    assert step.nbytes == form.nbytes
    assert step.reason
    assert {step.source, step.target} == {name, ""}
    assert replica.inlined is (step.kind is Kind.MAP)
    lately = [(before.now - past.when, past) for past in before.past if past.handle == step.handle]
    if step.kind is Kind.INLINE:
        assert not any(past.kind is Kind.MAP and ago < 180.0 for ago, past in lately)
        assert worker.open
        assert worker.free >= form.peak
        assert form.gain > 1
        assert step.gain > rules.hysteresis * step.cost
    else:
        came = [ago for ago, past in lately if past.kind is Kind.INLINE and past.target == name]
        assert all(ago >= form.load_seconds + 5.0 for ago in came)


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_step_does_what_it_may_not(seed: int, steady: bool, forms: bool) -> None:
    snapshot, rules = pool(seed, steady=steady), Rules(moves_per_minute=12, bytes_per_minute=600 * MB)
    snapshot = with_forms(snapshot, seed) if forms else snapshot
    loaded = steps = 0
    while (step := plan(snapshot, rules)) is not None:
        assert plan(snapshot, rules) == step, "the same snapshot gives the same step"
        check(snapshot, step, rules)
        loaded += step.nbytes if step.target else 0
        steps += 1
        snapshot = after(snapshot, step)
    assert steps <= 12
    assert loaded <= 600 * MB


@given(SEEDS, st.booleans())
@settings(max_examples=15, deadline=None)
def test_no_step_does_what_it_may_not_where_all_is_packed_anew(seed: int, forms: bool) -> None:
    snapshot, rules = pool(seed, now=0.0), Rules(hysteresis=0.1)
    snapshot = with_forms(snapshot, seed) if forms else snapshot
    for _ in range(20):
        step = plan(snapshot, rules)
        if step is None:
            break
        check(snapshot, step, rules)
        snapshot = after(snapshot, step)
        snapshot = replace(snapshot, now=snapshot.now + 3.0)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_plans_end_and_do_not_raise_the_cost(seed: int) -> None:
    snapshot = pool(seed, calm=True)
    before = cost(snapshot, "fast")
    for _ in range(400):
        step = plan(snapshot, FREE)
        if step is None:
            break
        done = after(snapshot, step)
        snapshot = replace(done, now=done.now + 10.0, past=done.past[-20:])
    else:
        pytest.fail("it does not end")
    assert cost(snapshot, "fast") <= before + 1e-6


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_a_single_move_saves_what_was_said_or_more(seed: int) -> None:
    snapshot, rules = pool(seed, calm=True), Rules()
    step = plan(snapshot, rules)
    if step is None or step.kind not in (Kind.LOAD, Kind.REPLICATE) or "to make room" in step.reason:
        return
    done = after(snapshot, step)
    saved = (cost(snapshot, "fast") - cost(done, "fast")) * rules.horizon
    assert saved >= step.gain * (1 - 1e-3) - 10.0


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_what_is_undone_while_demand_is_constant_gains_far_more(seed: int) -> None:
    snapshot, rules = pool(seed, calm=True), Rules()
    left: set[tuple[int, str]] = set()
    for _ in range(60):
        step = plan(snapshot, rules)
        if step is None:
            break
        if step.kind is Kind.MIGRATE:
            assert (step.handle, step.target) not in left or step.gain > 8 * step.cost, f"back: {step}"
        if step.source:
            left.add((step.handle, step.source))
        snapshot = after(snapshot, step)
        snapshot = replace(snapshot, now=snapshot.now + 5.0)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_averages_that_disagree_move_nothing(seed: int) -> None:
    """One has a worker busy and the other idle, the other the other way round."""
    dice = random.Random(seed)
    big, small = dice.uniform(0.37, 0.43), dice.uniform(0.0, 0.02)

    def model(handle: int, worker: str, fast: float, slow: float) -> ServableView:
        asked, steady = Demand(fast * 100, fast * 100), Demand(slow * 100, slow * 100)
        on = {worker: Replica(Hold.SERVES, -1e6)}
        pins = ("b",) if worker == "b" else ()
        return ServableView(handle, f"m{handle}", MB, MB, 1.0, asked, steady, {worker: 0.01}, pins=pins, on=on)

    models = [model(n, "a", big, small) for n in (1, 2)] + [model(n, "b", small, big) for n in (3, 4)]
    snapshot = Snapshot(0.0, (WorkerView("a"), WorkerView("b")), tuple(models))
    assert plan(snapshot, Rules()) is None
    both = replace(snapshot, servables=tuple(replace(m, slow=m.fast) for m in models))
    assert plan(both, Rules()) is not None


@given(SEEDS, st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_no_form_changes_to_and_fro(seed: int, hysteresis: float) -> None:
    snapshot, rules = with_forms(pool(seed), seed), Rules(hysteresis=hysteresis)
    steps = plan_all(snapshot, rules, most=200)
    assert len(steps) < 200, "it ends"
    held = {worker.name: worker.held for worker in snapshot.workers}
    for step in steps:
        check(snapshot, step, rules)
        snapshot = after(snapshot, step)
        for worker in snapshot.workers:
            there = [model for model in snapshot.servables if worker.name in model.on]
            assert worker.held == sum(model.kept(worker.name) for model in there)
            assert worker.free >= 0 or worker.held <= held[worker.name]


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_forms_come_to_rest_while_demand_is_constant(seed: int) -> None:
    """In ten minutes; what is mapped for want of memory may be inlined again once others have left."""
    snapshot, changes = with_forms(pool(seed, calm=True), seed), Counter[tuple[int, str]]()
    for _ in range(60):
        step = plan(snapshot, Rules())
        if step is not None:
            snapshot = after(snapshot, step)
            if step.kind in REFORMS:
                changes[step.handle, step.source or step.target] += 1
        snapshot = replace(snapshot, now=snapshot.now + 10.0)
    assert max(changes.values(), default=0) <= 3


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_plan_all_is_plan_again_and_again(seed: int) -> None:
    snapshot, rules = pool(seed), Rules()
    steps = plan_all(snapshot, rules, most=5)
    assert len(steps) <= 5
    for step in steps:
        assert plan(snapshot, rules) == step
        snapshot = after(snapshot, step)
    if len(steps) < 5:
        assert plan(snapshot, rules) is None
