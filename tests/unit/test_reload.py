"""A new set of models, taken as a whole or not at all."""

from __future__ import annotations

from tfpool.broker.reload import Reload
from tfpool.settings import ModelSettings
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_rules import check_rest


def reload(world: World, *models: ModelSettings, keep: bool = False) -> tuple[Reload, list[str]]:
    done: list[str] = []
    wanted = {settings.name: settings for settings in models}
    world.lifecycle.reload = Reload(world.lifecycle, world.registry, wanted, (), keep, lambda: done.append("done"))
    return world.lifecycle.reload, done


def test_a_reload_takes_everything_or_nothing() -> None:
    world = ready(model(), model("n"), on_disk=(1, 2))
    put(world, 1, name="o")
    world.broken.add("/o/1")
    wanted = [model(version_policy="all", labels=(("stable", ((1, 1),)),)), model("o")]
    transaction, done = reload(world, *wanted)
    world.settle()
    assert transaction.error is not None
    assert "nothing was changed: o:1: /o/1: broken" in transaction.error.message
    assert (set(world.registry.models), world.serving(), done) == ({"m", "n"}, [2], [])
    assert len(world.registry.versions()) == 2, "what was loaded for it has left again"
    check_rest(world)
    world.broken.clear()
    transaction, done = reload(world, *wanted)
    kept = world.model().versions[2]
    world.settle()
    assert transaction.error is None
    assert (set(world.registry.models), world.serving(), done) == ({"m", "o"}, [1, 2], ["done"])
    assert world.model().versions[2] is kept
    assert world.answered(settled(world, world.request("m", label="stable"))) == 1
    check_rest(world)


def test_a_version_that_appears_during_a_reload_is_not_lost() -> None:
    """It is seen, and told, while the reload still goes by what it saw before."""
    world = ready(model())
    put(world, 1, name="o")
    transaction, _ = reload(world, model(replicas=(1, 2)), model("o"))
    while world.disk.jobs:
        world.disk.end_job()
    world.turn()
    put(world, 1, 2)
    world.disk.end_look()
    world.disk.end_look()
    world.settle()
    assert transaction.over
    assert world.serving() == [2]
    check_rest(world)


def test_what_a_reload_needs_goes_meanwhile() -> None:
    world = ready(model())
    put(world, 1, name="o")
    transaction, _ = reload(world, model(replicas=(1, 2)), model("o"))
    while world.disk.jobs:
        world.disk.end_job()
    world.turn()
    world.lifecycle.remove(world.model())
    world.settle()
    assert transaction.error is not None
    assert "m:1 has gone meanwhile" in transaction.error.message
    assert not world.registry.models
    check_rest(world)
