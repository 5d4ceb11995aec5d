"""Versions come, are tried again, and go: the broker's lifecycle with fakes around it."""

from __future__ import annotations

import pytest

from tfpool.errors import DeadlineExceeded, FailedPrecondition, NotFound
from tfpool.repository.states import State
from tfpool.repository.watcher import Roster
from tfpool.settings import Loading
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import MIB
from tfpool.testing.world_rules import check_rest


def test_a_swap() -> None:
    world = ready(model())
    assert world.serving() == [1]
    put(world, 1, 2)
    waiting = world.request("m", 1)
    for _ in range(3):
        world.turn()
        world.step_once()
    world.settle()
    assert world.serving() == [2]
    assert (world.answered(waiting), world.answered(settled(world, world.request("m")))) == (1, 2)
    assert isinstance(world.refused(world.request("m", 1)), NotFound)
    check_rest(world)


def test_the_first_to_go_takes_others_with_it_and_each_goes_once() -> None:
    """One that is nowhere is gone at once, which brings the rest in line while the first loop still runs."""
    world = ready(model(preload=Loading.LAZY, version_policy="latest:2"), on_disk=(1, 2))
    world.request("m", 2)
    world.settle()
    put(world, 1, 2, 3, 4)
    world.request("m", 2)
    world.settle()
    world.request("m", 3)
    world.request("m", 4)
    world.settle()
    assert world.serving() == [3, 4]
    check_rest(world)


def test_who_waits_for_the_newest_gets_the_newest() -> None:
    """The version that they wait for is gone before it was ever loaded."""
    world = ready(model(preload=Loading.LAZY, labels=(("prod", ((1, 1),)),)))
    world.disk.garbled.add("/m/1")
    put(world, 1)
    put(world, 2)
    first = world.model().versions[1]
    first.described = False
    newest, by_number = world.request("m"), world.request("m", 1)
    assert not world.answers
    world.settle()
    assert world.answered(newest) == 2
    assert isinstance(world.refused(by_number), NotFound)
    check_rest(world)


def test_labels_of_models_that_have_not_been_looked_for() -> None:
    world = World(model(labels=(("stable", ((1, 1),)), ("gone", ((9, 1),)))))
    put(world, 1, 2)
    stable, gone, newest = (world.request("m", label=label) for label in ("stable", "gone", ""))
    assert not world.answers
    world.settle()
    assert (world.answered(stable), world.answered(newest)) == (1, 2)
    assert isinstance(world.refused(gone), FailedPrecondition)


def test_a_load_by_hand_reads_again_what_could_not_be_read() -> None:
    world = World(model(), load_retries=0)
    world.disk.garbled.add("/m/1")
    put(world, 1)
    world.settle()
    assert world.model().versions[1].state is State.FAILED
    world.disk.garbled.clear()
    world.lifecycle.load(world.model(), None)
    world.settle()
    assert world.serving() == [1]


@pytest.mark.parametrize("preload", [Loading.PRELOAD, Loading.LAZY])
def test_a_lazy_model_is_repaired(preload: Loading) -> None:
    world = World(model(preload=preload), load_retries=0)
    world.broken.add("/m/1")
    put(world, 1)
    world.settle()
    first = settled(world, world.request("m"))
    assert "broken" in world.refused(first).message
    world.broken.clear()
    world.disk.sizes["/m/1"] = 2 * MIB
    world.disk.looks.append(("m", 0))
    world.settle()
    assert world.answered(settled(world, world.request("m"))) == 1


def test_failed_loads_are_tried_again_ever_more_slowly() -> None:
    world = World(model(), load_retries=4)
    world.broken.add("/m/1")
    put(world, 1)
    tries: list[float] = []
    for _ in range(200):
        world.turn()
        before = world.residence.loads
        if not world.step_once():
            if world.lifecycle.next_retry() == float("inf"):
                break
            world.now = world.lifecycle.next_retry()
        if world.residence.loads > before:
            tries.append(world.now)
        world.turn()
    version = world.model().versions[1]
    assert version.failures == 5
    assert world.now - 100.0 == 1 + 2 + 4 + 8
    assert isinstance(world.refused(world.request("m")), FailedPrecondition)


def test_a_version_by_hand_goes_when_it_is_unloaded_and_one_of_the_policy_is_not_kept() -> None:
    world = ready(model(), on_disk=(1, 2))
    world.lifecycle.load(world.model(), 1)
    world.lifecycle.load(world.model(), 2)
    world.settle()
    assert world.serving() == [1, 2]
    world.lifecycle.unload(world.model(), world.model().versions[1])
    world.settle()
    assert list(world.model().versions) == [2]
    put(world, 2, 3)
    world.settle()
    assert world.serving() == [3]
    with pytest.raises(NotFound, match=r"/m has no version 9; it has 2, 3"):
        world.lifecycle.load(world.model(), 9)


def test_a_root_is_waited_for() -> None:
    world = World(server={"models_root": "/root"})
    for name in world.bells:
        world.join(name)
    world.turn()
    assert not world.lifecycle.settled()
    world.disk.news.append(Roster({"m": "/m", "bad:name": "/bad"}, None))
    world.turn()
    assert not world.lifecycle.settled()
    put(world, 1)
    world.settle()
    assert world.lifecycle.settled()
    assert list(world.registry.models) == ["m"]
    world.disk.news.append(Roster({}, NotFound("/root: cannot be read")))
    world.settle()
    assert list(world.registry.models) == ["m"], "what was there stays while nobody can look"
    world.disk.news.append(Roster({}, None))
    world.settle()
    assert not world.registry.models


def test_requests_whose_time_is_up_while_they_wait() -> None:
    world = ready(model(preload=Loading.LAZY))
    late, patient = world.request("m", seconds=2.0), world.request("m")
    world.now += 2.0
    world.turn()
    assert isinstance(world.refused(late), DeadlineExceeded)
    world.settle()
    assert world.answered(patient) == 1
