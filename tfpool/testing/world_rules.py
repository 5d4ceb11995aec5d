"""What holds of a :class:`~tfpool.testing.world.World`, whatever has happened to it."""

from __future__ import annotations

from collections import Counter

from tfpool.broker.aspiring import wanted_of
from tfpool.broker.fleet import Link
from tfpool.broker.registry import Goal
from tfpool.repository.states import State
from tfpool.settings import Form
from tfpool.testing.world import World


def check(world: World) -> None:
    """What holds at every moment. Raises AssertionError."""
    _check_pages(world)
    known: Counter[int] = Counter()
    staged = set() if world.lifecycle.reload is None else {v.handle for v in world.lifecycle.reload._staged}
    for model in world.registry.models.values():
        for number, version in model.versions.items():
            assert not version.retired, f"{version.key} is retired and routed"
            assert not version.staged
            assert version.key.version == number
            known[version.handle] += 1
        for version in model.leaving:
            assert version.retired
            known[version.handle] += 1
    assert not [handle for handle, times in known.items() if times > 1], "known twice"
    for handle, version in world.registry.by_handle.items():
        assert handle in known or handle in staged or version.retired, f"{version.key} is lost"
        assert version.on or not version.retired, f"{version.key} is retired, nowhere, and not forgotten"
        assert version.error or version.state is not State.FAILED, f"{version.key} has failed, and nobody knows why"
    assert known.keys() <= world.registry.by_handle.keys()
    for link in world.fleet.links.values():
        _check_link(world, link)


def _check_pages(world: World) -> None:
    """Each worker has its part of the files that it maps, as far as the broker has heard of them."""
    by: Counter[str] = Counter()
    maps = {}
    for link in world.fleet.links.values():
        bell = world.bells[link.name]
        known = {handle for handle, form in link.forms.items() if form is Form.MAPPED}
        maps[link.name] = {bell.maps[handle] for handle in known} if bell is not None else set()
        by.update(maps[link.name])
    for worker, keys in maps.items():
        share = sum(int(key.split()[0]) // by[key] for key in keys)
        assert world.budget.pages.share(worker) == share, f"the pages that {worker} maps are not what we think"


def _check_link(world: World, link: Link) -> None:
    bell = world.bells[link.name]
    states = {v.handle: v.on[link.name] for v in world.registry.versions() if link.name in v.on}
    loading = {handle for handle in link.loading if handle in states}
    for handle, state in states.items():
        key = world.registry.by_handle[handle].key
        if state in (State.LOADING, State.WARMING):
            assert handle in link.loading, f"{key} loads, and nobody loads it"
        elif state is State.NEW:
            assert handle in link.loads or not link.up, f"{key} waits to be loaded, and nobody knows"
        elif state is State.DRAINING:
            known = handle in link.unloading or (handle, link.name) in world.residence.leaving.waiting
            assert known, f"{key} drains, and nobody unloads it"
        elif state is State.AVAILABLE:
            assert handle in link.resident
            assert bell is not None
            assert handle in bell.held
            assert handle not in bell.told_off, f"{key} is available, and on its way out"
    for handle in loading:
        assert states[handle] in (State.LOADING, State.WARMING, State.DRAINING)
    wanted = link.loading | set(link.loads) | link.reforming
    assert link.reserved.keys() <= wanted, "memory is reserved for what is not to be loaded"
    changing = {one.version.handle for one in world.reforms.active if one.life == link.holder and link.bell}
    assert link.reforming == changing, "what is changing its form is not what we think"
    assert link.reforming <= link.resident.keys()
    for servable, route in world.scheduler.staff._routes.items():
        if link.name in route.workers:
            assert states.get(servable.life) in (State.AVAILABLE, State.DRAINING), f"{servable} is routed"
    if bell is not None:
        secret = {handle for handle in bell.held if handle < 0}
        assert link.resident.keys() | secret == bell.held.keys(), "what it holds is not what we think"
        assert link.forms.keys() <= link.resident.keys()
        for handle, form in link.forms.items():
            assert bell.forms[handle] is form, f"{handle} is {bell.forms[handle]}, and not {form}"
            assert bell.held[handle] == link.resident[handle]


def check_rest(world: World) -> None:
    """What holds when everything has ended. Raises AssertionError."""
    check(world)
    lost = [number for number in range(1, world.asked + 1) if number not in world.answers]
    assert not lost, f"requests {lost} are never answered"
    assert not world.residence.leaving.waiting
    assert not world.migrations.active
    assert not world.reforms.active
    assert not world.rolling.busy
    assert not [link.name for link in world.fleet.links.values() if link.closed]
    for link in world.fleet.links.values():
        assert not [*link.loads, *link.loading, *link.unloading, *link.reserved]
        if link.kept_for:
            alone = world.registry.by_handle[link.kept_for]
            shared = [v.key for v in world.registry.versions() if v is not alone and link.name in v.held_by()]
            assert alone.isolated == link.name
            assert not shared, f"{shared} share the worker of {alone.key}, which is isolated"
            assert set(alone.held_by()) <= {link.name}, f"{alone.key} is isolated, and elsewhere too"
    for model in world.registry.models.values():
        assert not model.leaving
        for number in wanted_of(model) if model.found else ():
            version = model.versions[number]
            if version.goal is Goal.SERVE and version.failures == 0:
                assert version.state is State.AVAILABLE, f"{version.key} is {version.state}"
        for version in model.versions.values():
            known = version.described and version.goal is not Goal.OFF and version.error is None
            assert version.on or version.cold or not known, f"{version.key} is nowhere, and nobody would wake it"
            assert version.settled, f"{version.key} is {version.state}"
