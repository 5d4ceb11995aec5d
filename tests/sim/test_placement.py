"""Placement in virtual time: small games that are known by hand, what always holds, and policies on traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpool.placement.fluid import Crowd, divide, ration, serve
from tfpool.placement.guests import Tenant, World
from tfpool.placement.policies import Auto, Static
from tfpool.placement.snapshot import Hold, Inlined, Kind, Replica, Rules, ServableView, Snapshot, Step, WorkerView
from tfpool.placement.tally import Outcome
from tfpool.placement.whatif import Game
from tfpool.testing.placement_game import OURS, POLICIES, STATIC, play
from tfpool.testing.placement_policies import LruCache
from tfpool.testing.traces import TRACES, Trace, cloud, diurnal, flash, rotating

TICK = 0.25


class Told(Static):
    """Takes the steps that it was told, by the moment."""

    def __init__(self, steps: Mapping[float, Sequence[Step]]) -> None:
        super().__init__()
        self._steps = steps

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        return self._steps.get(snapshot.now, ())


def worker(name: str = "cpu0", room: int | None = None) -> WorkerView:
    return WorkerView(name, room=room)


def tenant(handle: int, *on: str, nbytes: int = 100, load: float = 0.5, seconds: float = 0.01) -> Tenant:
    there = {name: Replica(Hold.SERVES, 0.0) for name in on}
    view = ServableView(handle, f"m{handle}", nbytes, nbytes, load, replicas=(1, 2), on=there)
    return Tenant(view, 1.0, {"cpu0": seconds, "cpu1": seconds})


def inlinable(plain: Tenant, form: Inlined) -> Tenant:
    return replace(plain, view=replace(plain.view, inlined=form))


def world(workers: Sequence[WorkerView], *tenants: Tenant) -> World:
    return World(tuple(workers), tenants, TICK, interval=1.0, patience=10.0)


def move(kind: Kind, source: str, target: str, handle: int = 1) -> Step:
    return Step(kind, handle, f"m{handle}", source, target, 100, 1.0, 0.0, "told")


def run(game: Game, ticks: int, asked: Mapping[int, int] | None = None) -> Outcome:
    for _ in range(ticks):
        game.tick(asked or {})
    return game.outcome()


# -- how work divides ----------------------------------------------------------------------------------------------


def test_requests_go_to_where_the_least_waits() -> None:
    """The first is bound to a; the second takes what levels both, also where one worker is twice as fast."""
    bound = Crowd(30.0, {"a": 0.01})
    even = divide([bound, Crowd(50.0, {"a": 0.01, "b": 0.01})], {"a": 1.0, "b": 1.0})
    assert even == [{"a": 30.0}, pytest.approx({"a": 10.0, "b": 40.0})]
    fast = divide([bound, Crowd(90.0, {"a": 0.01, "b": 0.005})], {"a": 1.0, "b": 1.0})
    assert fast[1] == pytest.approx({"a": 10.0, "b": 80.0})
    little = divide([bound, Crowd(20.0, {"a": 0.01, "b": 0.01})], {"a": 1.0, "b": 1.0})
    assert little[1] == pytest.approx({"b": 20.0})


def test_who_asks_for_little_gets_it() -> None:
    assert ration({0: 0.1, 1: 3.0, 2: 0.6}, 1.5) == pytest.approx({0: 0.1, 1: 0.8, 2: 0.6})
    assert ration({0: 0.1, 1: 3.0}, 5.0) == {0: 0.1, 1: 3.0}


def test_a_worker_does_no_more_than_it_can() -> None:
    served, use = serve([Crowd(100.0, {"a": 0.02}), Crowd(10.0, {"a": 0.01})], {"a": 1.0})
    assert (use["a"].asked, use["a"].worked) == pytest.approx((2.1, 1.0))
    assert [part.count for part in served] == pytest.approx([45.0, 10.0])
    assert [part.crowded for part in served] == pytest.approx([45.0, 10.0])


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.dictionaries(st.sampled_from("abc"), st.floats(1e-6, 1), min_size=1))),
    st.fixed_dictionaries({name: st.floats(0.01, 1) for name in "abc"}),
)
def test_none_are_served_twice(found: list[tuple[float, dict[str, float]]], able: dict[str, float]) -> None:
    crowds = [Crowd(count, seconds) for count, seconds in found]
    for crowd, part in zip(crowds, divide(crowds, able), strict=True):
        assert sum(part.values()) == pytest.approx(crowd.count, rel=1e-6, abs=1e-6)
        assert all(count >= -1e-6 * crowd.count for count in part.values())
    served, use = serve(crowds, able)
    for crowd, part in zip(crowds, served, strict=True):
        assert -1e-6 <= part.count <= crowd.count
        assert part.crowded <= part.count
    for name, told in use.items():
        assert told.worked <= min(told.asked, able[name]) * (1 + 1e-6) + 1e-9


# -- known by hand -------------------------------------------------------------------------------------------------


def test_what_is_in_memory_is_served_at_once() -> None:
    """40 requests of 10 ms a second are 40 % of a worker."""
    found = run(Game(world([worker()], tenant(1, "cpu0")), Static()), 40, {1: 10})
    assert (found.asked, found.served, found.waiting, found.cold) == pytest.approx((400, 400, 0, 0))
    assert found.busy["cpu0"] == pytest.approx(0.4)
    assert found.mean_wait == pytest.approx(0.01 * 0.4 / 0.6)
    assert (found.loads, found.moves, found.crowded) == (0, 0, 0)


def test_a_worker_is_asked_for_too_much() -> None:
    """200 a second of 10 ms are twice what it can do; who has waited for 10 s is lost."""
    game = Game(world([worker()], tenant(1, "cpu0")), Static())
    early = run(game, 4, {1: 50})
    assert (early.served, early.waiting) == pytest.approx((100, 100))
    late = run(game, 396, {1: 50})
    assert late.served_share == pytest.approx(0.5, abs=0.01)
    assert late.lost + late.served + late.waiting == pytest.approx(late.asked)
    assert late.crowded == pytest.approx(late.asked - late.waiting)
    assert late.p99_wait == pytest.approx(10.0)


def test_one_worker_two_models_one_fits() -> None:
    """Each wants 100 of 150 bytes and 0.5 s to load: asked for in turns, each is always cold, and pushes the other
    out."""
    game = Game(world([worker(room=150)], tenant(1, "cpu0"), tenant(2)), Static())
    for turn in range(6):
        run(game, 1, {2 - turn % 2: 4})
        run(game, 7)
    found = game.outcome()
    assert (found.asked, found.served, found.cold) == pytest.approx((24, 24, 24))
    assert (found.loads, found.evictions) == (6, 6)
    assert found.cold_seconds == pytest.approx(24 * 0.5)
    assert found.busy["cpu0"] == pytest.approx((6 * 0.5 / 2 + 24 * 0.01) / 12)


def test_two_cold_ones_load_one_after_the_other() -> None:
    """The second waits for the first: 0.5 and 1 s, for two requests."""
    found = Game(world([worker()], tenant(1), tenant(2)), Static())
    run(found, 1, {1: 1, 2: 1})
    assert run(found, 8).cold_seconds == pytest.approx(1.5)


def test_a_migration_and_back_is_a_reversal() -> None:
    """It is there when it has been loaded, and is served all the time."""
    steps = {
        1.0: [move(Kind.MIGRATE, "cpu0", "cpu1")],
        2.0: [move(Kind.MIGRATE, "cpu0", "cpu1")],  # it has left already
        5.0: [move(Kind.MIGRATE, "cpu1", "cpu0")],
    }
    game = Game(world([worker(), worker("cpu1")], tenant(1, "cpu0")), Told(steps))
    early = run(game, 18, {1: 10})
    (view,) = game.snapshot().servables
    assert dict(view.on) == {"cpu1": Replica(Hold.SERVES, 1.5)}
    assert (early.moves, early.reversed, early.refused, early.moved_bytes) == (1, 0, 1, 100)
    late = run(game, 12, {1: 10})
    assert (late.moves, late.reversed, late.refused, late.moved_bytes) == (2, 1, 1, 200)
    assert (late.served, late.cold) == pytest.approx((300, 0))


def test_memory_is_reserved_from_the_beginning_of_a_step() -> None:
    """There is room for one more on cpu1: the second step is refused, though the first has not loaded yet."""
    steps = {1.0: [move(Kind.REPLICATE, "", "cpu1"), move(Kind.REPLICATE, "", "cpu1", 2)]}
    tenants = (tenant(1, "cpu0", load=5.0), tenant(2, "cpu0"))
    game = Game(world([worker(), worker("cpu1", room=150)], *tenants), Told(steps))
    found = run(game, 10)
    assert (found.moves, found.refused) == (1, 1)
    assert game.snapshot().workers[1].held == 100
    assert game.snapshot().servables[0].on["cpu1"].hold is Hold.COMES
    assert not game.snapshot().servables[0].movable


def test_a_form_changes_when_it_is_loaded_and_back_at_once() -> None:
    """40 % of a worker; twice as fast, 20 %. The old form serves meanwhile, and half the time goes into the load."""
    form = Inlined(50, 80, 2.0, 2.0)
    steps = {1.0: [move(Kind.INLINE, "", "cpu0")], 8.0: [move(Kind.MAP, "cpu0", "")]}
    game = Game(world([worker(room=200)], inlinable(tenant(1, "cpu0"), form)), Told(steps))
    run(game, 8, {1: 10})
    (view,), (where,) = game.snapshot().servables, game.snapshot().workers
    assert (view.on, view.movable, where.held) == ({"cpu0": Replica(Hold.SERVES, 0.0)}, False, 180)
    assert view.row_seconds == pytest.approx({"cpu0": 0.01})
    run(game, 8, {1: 10})
    (view,), (where,) = game.snapshot().servables, game.snapshot().workers
    assert (view.on, view.movable, where.held) == ({"cpu0": Replica(Hold.SERVES, 0.0, True)}, True, 150)
    assert view.row_seconds == pytest.approx({"cpu0": 0.005})
    found = run(game, 24, {1: 10})
    (view,), (where,) = game.snapshot().servables, game.snapshot().workers
    assert (view.on, where.held) == ({"cpu0": Replica(Hold.SERVES, 0.0)}, 100)
    assert (found.reforms, found.moves, found.refused, found.cold) == (2, 0, 0, 0)
    assert found.served == pytest.approx(400)
    assert found.busy["cpu0"] == pytest.approx((10 * 0.4 - 5 * 0.2 + 2 * 0.5) / 10, abs=0.011)


def test_a_form_that_cannot_change_is_refused() -> None:
    form = Inlined(50, 80, 5.0, 2.0)
    steps = {
        1.0: [move(Kind.INLINE, "", "cpu0", 2), move(Kind.INLINE, "", "cpu1"), move(Kind.MAP, "cpu0", "")],
        2.0: [move(Kind.INLINE, "", "cpu0"), move(Kind.INLINE, "", "cpu0"), move(Kind.INLINE, "", "cpu0", 3)],
    }
    tenants = tenant(1, "cpu0"), tenant(2, "cpu0"), tenant(3, "cpu0")
    first, second, third = inlinable(tenants[0], form), tenants[1], inlinable(tenants[2], form)
    game = Game(world([worker(room=400), worker("cpu1")], first, second, third), Told(steps))
    found = run(game, 12)
    assert (found.reforms, found.refused) == (1, 5)


def test_a_form_that_is_loaded_for_one_that_has_left() -> None:
    """It is pushed out meanwhile, comes back later, and is mapped."""
    form = Inlined(10, 20, 5.0, 2.0)
    game = Game(
        world([worker(room=150)], inlinable(tenant(1, "cpu0"), form), tenant(2)),
        Told({1.0: [move(Kind.INLINE, "", "cpu0")]}),
    )
    run(game, 8)
    run(game, 24, {2: 1})
    found = run(game, 24, {1: 1})
    assert game.snapshot().servables[0].on == {"cpu0": Replica(Hold.SERVES, 8.5)}
    assert (found.reforms, found.evictions, found.loads) == (1, 2, 2)
    assert game.snapshot().workers[0].held == 100


def test_what_is_inlined_at_the_beginning() -> None:
    first = tenant(1, "cpu0")
    there = replace(first.view, inlined=Inlined(50, 80, 2.0, 2.0), on={"cpu0": Replica(Hold.SERVES, 0.0, True)})
    for room, inlined, held in ((150, True, 150), (149, False, 100)):
        game = Game(world([worker(room=room)], replace(first, view=there)), Static())
        assert game.snapshot().servables[0].on["cpu0"].inlined is inlined
        assert game.snapshot().workers[0].held == held
        assert run(game, 40, {1: 10}).busy["cpu0"] == pytest.approx(0.2 if inlined else 0.4)


def test_the_planner_inlines_what_is_hot() -> None:
    asked, form = {1: 22}, Inlined(50, 80, 1.0, 1.3)
    plain = run(Game(world([worker()], tenant(1, "cpu0")), Auto(Rules())), 400, asked)
    faster = run(Game(world([worker()], inlinable(tenant(1, "cpu0"), form)), Auto(Rules())), 400, asked)
    assert (plain.reforms, faster.reforms) == (0, 1)
    assert faster.mean_wait < 0.5 * plain.mean_wait


def test_nobody_is_asked_while_enough_is_moving() -> None:
    """The first takes five seconds; what would come meanwhile does not."""
    steps = {1.0: [move(Kind.REPLICATE, "", "cpu1")], 3.0: [move(Kind.REPLICATE, "", "cpu1", 2)]}
    game = Game(world([worker(), worker("cpu1")], tenant(1, "cpu0", load=5.0), tenant(2, "cpu0")), Told(steps))
    found = run(game, 40)
    assert (found.moves, found.refused) == (1, 0)


def test_two_workers_share_a_hot_model() -> None:
    """150 a second of 10 ms: one worker cannot, two can, and the planner sees it."""
    asked, places = {1: 38}, [worker(), worker("cpu1")]
    alone = run(Game(world(places, tenant(1, "cpu0")), Static()), 400, asked)
    ours = run(Game(world(places, tenant(1, "cpu0")), Auto(Rules())), 400, asked)
    assert alone.busy == pytest.approx({"cpu0": 1.0, "cpu1": 0.0}, abs=0.02)
    assert ours.served_share > 0.99
    assert abs(ours.busy["cpu0"] - ours.busy["cpu1"]) < 0.1


def test_a_model_that_fits_nowhere_is_waited_for_in_vain() -> None:
    found = run(Game(world([worker(room=50)], tenant(1)), Static()), 80, {1: 1})
    assert (found.served, found.loads) == (0, 0)
    assert found.lost + found.waiting == pytest.approx(80)


def test_the_least_recently_used_leaves_first() -> None:
    cache = LruCache()
    for name in "abc":
        cache.admit(name, 10, 1.0)
    cache.hit("a")
    assert cache.victims(15, "abc") == ["b", "c"]
    assert cache.victims(15, "ac") == ["c", "a"]
    assert cache.victims(31, "abc") == []
    cache.evicted("b")
    assert cache.victims(5, "abc") == ["c"]


# -- what always holds ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([STATIC, "LRU", "greedy", OURS]))
def test_no_request_is_lost_from_sight_and_no_memory_is_overfull(data: st.DataObject, name: str) -> None:
    rooms = data.draw(st.lists(st.none() | st.integers(100, 400), min_size=1, max_size=2))
    workers = [worker(f"cpu{number}", room) for number, room in enumerate(rooms)]
    sizes = data.draw(st.lists(st.integers(10, 200), min_size=1, max_size=5))
    tenants = [tenant(number, nbytes=size, load=size / 100) for number, size in enumerate(sizes, 1)]
    game = Game(world(workers, *tenants), POLICIES[name](Trace("", world(workers), np.empty((0, 0), np.int64))))
    asked = st.dictionaries(st.integers(1, len(sizes)), st.integers(0, 40), max_size=3)
    for wanted in data.draw(st.lists(asked, max_size=60)):
        game.tick(wanted)
        found = game.outcome()
        assert found.served + found.lost + found.waiting == pytest.approx(found.asked, abs=1e-6)
        assert found.cold <= found.asked
        assert all(view.free >= 0 for view in game.snapshot().workers)
        assert all(0 <= share <= 1 + 1e-9 for share in found.busy.values())


# -- traces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TRACES.values(), ids=TRACES)
def test_a_trace_is_its_seed_s(make: Callable[[int], Trace]) -> None:
    first, again, other = make(1), make(1), make(2)
    assert first.world == again.world
    assert (first.counts == again.counts).all()
    assert first.counts.shape != other.counts.shape or (first.counts != other.counts).any()
    asked = sum(sum(tick.values()) for tick in first.ticks())
    assert asked == first.counts.sum()


@pytest.mark.parametrize(("make", "load"), [(rotating, 0.7), (diurnal, 0.6), (cloud, 0.5)])
def test_a_trace_has_its_load(make: Callable[[int], Trace], load: float) -> None:
    found = []
    for seed in range(3):
        trace = make(seed)
        costs = np.array([t.rows * t.seconds["cpu0"] for t in trace.world.tenants])
        found.append((trace.counts @ costs).sum() / trace.seconds / len(trace.world.workers))
    assert np.mean(found) == pytest.approx(load, rel=0.03)


def test_a_crowd_comes_for_one_model_for_a_minute() -> None:
    counts = flash(1).counts
    early, during, late = counts[:320], counts[320:560], counts[560:]
    more = during.mean(axis=0) / early.mean(axis=0)
    assert more.max() == pytest.approx(50, rel=0.2)
    assert np.median(more) == pytest.approx(1.0, abs=0.1)
    assert (late.mean(axis=0) / early.mean(axis=0)).max() < 2


def test_the_cloud_is_as_published() -> None:
    """Sixty times as fast: once an hour is once a minute, and once a minute is once a second."""
    trace = cloud(3)
    rates = trace.counts.sum(axis=0) / trace.seconds
    assert np.mean(rates <= 1 / 60 * 1.3) == pytest.approx(0.45, abs=0.08)
    assert np.mean(rates <= 1.0 * 1.3) == pytest.approx(0.81, abs=0.06)
    hot = np.sort(rates)[-round(0.186 * len(rates)) :]
    assert hot.sum() / rates.sum() > 0.98
    busy = trace.counts[:, rates > 0.2]
    variation = busy.std(axis=0) / busy.mean(axis=0)
    assert variation.min() < 1.5
    assert variation.max() > 3.0


def test_the_future_is_what_comes() -> None:
    trace = rotating(1)
    ahead = trace.future(20.0)
    counts = trace.counts[80:160]
    assert ahead[1].asks == pytest.approx(counts[:, 0].sum() / 20)
    assert ahead[1].rows == pytest.approx(ahead[1].asks * trace.world.tenants[0].rows)
    assert trace.future(trace.seconds) == {}


# -- policies ------------------------------------------------------------------------------------------------------


def test_all_policies_play_all_of_a_trace() -> None:
    trace = diurnal(1, seconds=30.0)
    found = {name: play(trace, make(trace)) for name, make in POLICIES.items()}
    assert {outcome.asked for outcome in found.values()} == {trace.counts.sum()}
    assert found[STATIC].moves == found["LRU"].moves == 0
    assert found["greedy"].moves > 0
    assert found["oracle"].moves > 0


def test_the_same_game_has_the_same_outcome() -> None:
    trace = flash(2, seconds=120.0)
    assert play(trace, Auto(Rules())) == play(trace, Auto(Rules()))


def test_ours_takes_a_flash_crowd_that_static_does_not() -> None:
    trace = flash(1)
    ours, static = play(trace, Auto(Rules())), play(trace, Static())
    print(f"served {ours.served_share:.3f} against {static.served_share:.3f}")
    assert ours.served_share > 0.99
    assert static.served_share < 0.95


def test_ours_is_calm_where_nothing_changes() -> None:
    """Forty models in steady demand, no one of them too much for a worker: a few moves at the beginning, if any."""
    trace = rotating(3, load=0.5, exponent=0.5, seconds=20.0)
    steady = Trace(trace.name, trace.world, np.tile(trace.counts, (6, 1)))
    found = play(steady, Auto(Rules()))
    assert found.moves <= 6
    assert found.reversed == 0
