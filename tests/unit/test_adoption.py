"""A broker after another: what workers still hold is claimed, or thrown away once nobody can want it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.inventory import Inventory, Item, hopeless, order
from tfpool.broker.lifecycle import SETTLING_SECONDS
from tfpool.broker.registry import Registry
from tfpool.errors import NotFound
from tfpool.repository.describe import Description
from tfpool.repository.states import State
from tfpool.settings import BatchingSettings, Loading, ModelSettings, Transition
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest


def successor(old: World, *models: ModelSettings, late: tuple[str, ...] = (), **options: Any) -> World:
    """A world whose broker has taken the place of one that died; workers that are ``late`` have not come yet."""
    new = World(*models, workers=len(old.bells), **options)
    new.disk.found, new.disk.sizes = old.disk.found, old.disk.sizes
    for name, bell in old.bells.items():
        if name not in late and bell is not None:
            new.join(name, bell)
    return new


def come(world: World, old: World, name: str) -> None:
    """A late worker comes."""
    bell = old.bells[name]
    assert bell is not None
    world.join(name, bell)


def adopted(world: World) -> bool:
    """Whether nothing at all has been loaded by this broker."""
    return world.residence.loads == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_workers_hold_is_served_without_a_load(replicas: int) -> None:
    models = [model(name, replicas=(replicas, 2)) for name in "abc"]
    old = ready(*models)
    where = {name: old.model(name).versions[1].serving() for name in "abc"}
    new = successor(old, *models)
    new.settle()
    assert adopted(new)
    assert {name: new.model(name).versions[1].serving() for name in "abc"} == where
    assert new.answered(settled(new, new.request("a"))) == 1
    for name, link in new.fleet.links.items():
        before = old.fleet.links[name]
        assert sum(link.resident.values()) == sum(before.resident.values())
        assert (link.base, link.unique, link.reserved) == (before.base, before.unique, {})
    check_rest(new)


def test_a_load_that_is_under_way_goes_on() -> None:
    old = World(model(), workers=1, memory=BASE + 64 * MIB)
    put(old, 1)
    old.join("w0")
    old.settle_but_loads()
    new = successor(old, model(), memory=BASE + 64 * MIB)
    new.settle_but_loads()
    version, link = new.model().versions[1], new.fleet.links["w0"]
    assert version.state is State.LOADING
    assert link.reserved == {version.handle: new.budget.need(link, version)}
    check(new)
    new.settle()
    assert adopted(new)
    assert new.serving() == [1]
    check_rest(new)


def test_a_load_that_fails_meanwhile_is_one_that_failed() -> None:
    old = World(model(), workers=1)
    put(old, 1)
    old.join("w0")
    old.settle_but_loads()
    new = successor(old, model(), load_retries=0)
    new.broken.add("/m/1")
    new.settle()
    assert new.model().versions[1].state is State.FAILED
    assert not new.fleet.links["w0"].inventory
    check_rest(new)


@pytest.mark.parametrize("changed", ["files", "options", "path"])
def test_other_files_or_other_options_are_another_model(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ready(model(), workers=1)
    new = successor(old, model(stateful=("x",) if changed == "options" else ()))
    if changed == "files":
        monkeypatch.setattr(new.disk, "describe", lambda path: Description((), {}, {}, "other", 1))
    if changed == "path":
        new.disk.found = {"/m": {1: "/m/01"}}
    new.settle()
    assert new.residence.loads == 1
    assert new.serving() == [1]
    assert len(new.fleet.links["w0"].resident) == 1, "the old one has left"
    check_rest(new)


def test_other_batching_is_no_other_model() -> None:
    old = ready(model(), workers=1)
    new = successor(old, model(batching=BatchingSettings(max_batch_size=3, allowed_batch_sizes=(1, 3))))
    new.settle()
    assert adopted(new)
    assert new.serving() == [1]


def test_a_worker_that_holds_a_version_is_preferred_to_an_emptier_one() -> None:
    models = [model(name) for name in "abcd"]
    old = ready(*models)
    old.lose("w1")  # and its replacement is empty
    old.bells["w1"] = None
    new = successor(old, *models)
    new.join("w1")
    new.settle()
    held = [name for name in "abcd" if new.model(name).versions[1].serving() == ["w0"]]
    assert len(held) == 2
    assert new.residence.loads == 2
    check_rest(new)


def test_a_slow_disk_throws_nothing_away() -> None:
    models = [model("a"), model("b")]
    old = ready(*models, workers=1)
    new = successor(old, *models)
    slow = [look for look in new.disk.looks if look[0] == "b"]
    new.disk.looks.remove(slow[0])
    new.settle()
    new.now += 10 * SETTLING_SECONDS
    new.settle()
    assert [item.name for item in new.fleet.links["w0"].inventory] == ["b:1"]
    check(new)
    new.disk.looks.extend(slow)
    new.settle()
    assert adopted(new)
    assert new.serving("b") == [1]
    check_rest(new)


def test_a_disk_that_cannot_be_read_throws_nothing_away() -> None:
    old = ready(model(), workers=1)
    found = old.disk.found
    new = successor(old, model())
    new.disk.found = {}
    new.settle()
    assert new.fleet.links["w0"].inventory
    assert isinstance(new.refused(new.request("m")), NotFound)
    new.disk.found = found
    new.disk.looks.append(("m", 0))
    new.settle()
    assert adopted(new)
    assert new.serving() == [1]


def test_what_is_gone_from_the_configuration_or_the_disk_is_unloaded() -> None:
    old = ready(model("a"), model("b"), on_disk=(1, 2), workers=1)
    new = successor(old, model("b"))
    put(new, 1, name="b")
    new.settle()
    assert new.serving("b") == [1]
    link = new.fleet.links["w0"]
    assert link.resident.keys() == {new.model("b").versions[1].handle}
    assert not link.inventory
    assert new.residence.adoption.pending is False
    check_rest(new)


def test_a_worker_that_comes_late_is_asked_too() -> None:
    models = [model(name) for name in "abcd"]
    old = ready(*models, workers=1)
    new = successor(old, *models, late=("w0",))
    new.settle_but_loads()
    assert adopted(new)
    come(new, old, "w0")
    new.settle()
    assert adopted(new)
    assert [new.serving(name) for name in "abcd"] == [[1]] * 4
    check_rest(new)


def test_what_another_worker_has_loaded_meanwhile_leaves_the_late_one() -> None:
    old = ready(model())
    (holder,) = old.model().versions[1].serving()
    other = "w1" if holder == "w0" else "w0"
    new = successor(old, model(pin=(other,)), late=(holder,))
    new.settle_but_loads()
    new.work(other)
    new.turn()
    assert new.serving() == [1]
    come(new, old, holder)
    new.settle()
    assert new.model().versions[1].serving() == [other]
    assert not new.fleet.links[holder].resident
    check_rest(new)


def test_what_was_loaded_on_demand_or_by_hand_stays() -> None:
    models = [
        model("lazy", preload=Loading.LAZY),
        model("hand", preload=Loading.EXPLICIT),
        model("never", preload=Loading.LAZY),
    ]
    old = ready(*models, workers=1)
    old.request("lazy")
    old.lifecycle.load(old.model("hand"), None)
    old.settle()
    for late in ((), ("w0",)):
        new = successor(old, *models, late=late)
        if late:
            new.settle_but_loads()
            come(new, old, "w0")
        new.settle()
        assert adopted(new)
        assert [new.serving(settings.name) for settings in models] == [[1], [1], []]
        check_rest(new)
        old = new


@pytest.mark.parametrize("transition", list(Transition))
def test_an_old_version_serves_until_the_new_one_does(transition: Transition) -> None:
    """The new one came while there was no broker, or was on its way when that died."""
    old = ready(model(transition=transition), workers=1)
    new = successor(old, model(transition=transition))
    put(new, 1, 2)
    new.disk.looks.popleft()  # the look before there was a version 2
    asked = new.request("m")
    new.settle_but_loads()
    if transition is Transition.AVAILABILITY:
        new.work("w0")  # it says that it has version 1
        new.turn()
        new.run("w0")
        assert new.answered(asked) == 1
        assert new.serving() == [1]
    new.settle()
    assert new.serving() == [2]
    assert new.residence.loads == 1
    assert new.answered(settled(new, new.request("m"))) == 2
    check_rest(new)


def test_a_load_waits_for_room_that_unclaimed_models_take() -> None:
    """It is not put off until somebody asks, as it would be if the room were taken for good."""
    size = 8 * MIB
    old = ready(model("a"), workers=1, memory=BASE + 2 * size)
    new = successor(old, model("b"), memory=BASE + 2 * size)
    for world in (old, new):
        world.disk.sizes.update({"/a/1": size, "/b/1": size})
    bell = new.bells["w0"]
    assert bell is not None
    bell.held = dict.fromkeys(bell.held, 2 * size)
    link = new.fleet.links["w0"]
    link.unique, link.resident = bell.unique, dict(bell.held)
    put(new, 1, name="b")
    new.settle()
    assert new.serving("b") == [1]
    assert new.model("b").versions[1].proven
    check_rest(new)


def test_a_request_outweighs_what_nobody_can_claim_for_now() -> None:
    """The disk of one model hangs; another one is asked for, and there is no room for both."""
    size = 16 * MIB
    memory = BASE + size + 4 * MIB
    old = ready(model("a"), workers=1, memory=memory)
    models = [model("a"), model("b", preload=Loading.LAZY)]
    new = successor(old, *models, memory=memory)
    bell, link = new.bells["w0"], new.fleet.links["w0"]
    assert bell is not None
    bell.held = dict.fromkeys(bell.held, size)
    link.unique, link.resident = bell.unique, dict(bell.held)
    new.disk.looks.clear()
    new.disk.sizes["/b/1"] = size
    put(new, 1, name="b")
    asked = new.request("b")
    new.settle_but_loads()
    new.turn()
    assert asked not in new.answers
    assert link.inventory, "it may still be claimed"
    new.now += SETTLING_SECONDS
    new.settle()
    assert new.answered(asked) == 1
    assert not link.inventory
    check(new)


def test_an_inventory_may_hold_the_same_thing_twice() -> None:
    version = Registry().make_version(ModelSettings("m", "/m"), 1, "/m/1")
    items = [Item(-1, *order(version), 5), Item(-2, *order(version), 7), Item(-3, "n:1", "/n/1", {}, None)]
    inventory = Inventory(items)
    assert sorted(inventory) == sorted(items)
    for _ in range(2):
        found = inventory.find(version)
        assert found in items
        inventory.remove(found)
    assert inventory.find(version) is None
    assert list(inventory) == items[2:]
    inventory.remove(items[2])
    assert not inventory
    assert hopeless(items[2], None)


@given(st.data())
def test_brokers_die_at_any_moment(data: st.DataObject) -> None:
    """Models, two of them replicated, one on demand; whatever is under way when a broker dies, the next one comes to
    rest, and loads nothing that was held where it is wanted."""
    memory = data.draw(st.sampled_from([None, BASE + 40 * MIB]))
    models = [
        model(name, replicas=(1 + (name in "ab"), 2), batching=BatchingSettings(max_batch_size=2)) for name in "abcd"
    ]
    models.append(model("e", preload=Loading.LAZY))
    world = World(*models, memory=memory)
    for settings in models:
        put(world, 1, name=settings.name)
    for _ in range(data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 25))):
            what = data.draw(st.sampled_from(["step", "step", "step", "ask", "lose", "version"]))
            if what == "ask":
                world.request(data.draw(st.sampled_from("abcde")))
            elif what == "lose":
                alive = [name for name, bell in world.bells.items() if bell]
                if alive:
                    world.lose(data.draw(st.sampled_from(alive)))
            elif what == "version":
                name = data.draw(st.sampled_from("abcde"))
                put(world, *data.draw(st.sampled_from([(1,), (1, 2), (2,)])), name=name)
            else:
                world.step_once()
            world.turn()
            check(world)
        late = tuple(name for name in world.bells if data.draw(st.booleans()))
        old, world = world, successor(world, *models, late=late, memory=memory)
        check(world)
        for name in late:
            for _ in range(data.draw(st.integers(0, 8))):
                world.disk.looks and world.step_once()
                world.turn()
                check(world)
            if old.bells[name] is not None:
                come(world, old, name)
                check(world)
    world.settle()
    check_rest(world)
    assert not world.residence.adoption.pending
