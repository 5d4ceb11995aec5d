"""Changes of form: who may change, what memory is kept for it, and what is left when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfpool.broker.budget import MARGIN_BYTES
from tfpool.broker.fleet import Link
from tfpool.broker.registry import Version
from tfpool.errors import FailedPrecondition, ResourceExhausted, TfpoolError, Unavailable
from tfpool.repository.states import State
from tfpool.settings import Form
from tfpool.testing.world import World, model, ready
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check, check_rest

SIZE = 8 * MIB
MAPPED, INLINED = SIZE // 4, SIZE // 4 + SIZE


def stored(*, memory: int | None = None, workers: int = 2, **options: Any) -> tuple[World, Version, Link]:
    """A world with a version of 8 MiB that serves PLAIN, is in the store, and where it serves."""
    world = World(model(**options), workers=workers, memory=memory, store=True)
    world.disk.found["/m"] = {1: "/m/1"}
    world.disk.sizes["/m/1"] = SIZE
    world.settle()
    version = world.model().versions[1]
    world.compile(version)
    return world, version, world.fleet.links[version.serving()[0]]


def filled(nbytes: int) -> int:
    return (BASE + nbytes) * 10 // 9


def test_a_replica_changes_and_is_counted_as_what_it_is() -> None:
    world, version, link = stored()
    reform = world.reforms.begin(version, link, Form.MAPPED, "walk")
    assert link.reserved == {version.handle: MAPPED + MARGIN_BYTES + SIZE}
    assert link.forms == {version.handle: Form.PLAIN}
    number = world.request("m")
    world.turn()
    world.run(link.name)
    assert world.answered(number) == 1, "it serves meanwhile"
    world.settle()
    assert (reform.over, reform.error) == (True, None)
    assert link.forms == {version.handle: Form.MAPPED}
    assert link.resident == {version.handle: MAPPED}
    assert world.budget.pages.share(link.name) == SIZE
    assert (version.memory_bytes, version.load_seconds) == (MAPPED, 0.1)
    assert world.residence.loads == 1
    check_rest(world)


def test_what_is_inlined_is_not_what_a_load_takes() -> None:
    world, version, link = stored()
    for form in (Form.MAPPED, Form.INLINED):
        world.reforms.begin(version, link, form, "walk")
        world.settle()
    assert link.resident == {version.handle: INLINED}
    assert world.budget.pages.share(link.name) == 0
    assert version.memory_bytes == MAPPED
    expected = world.budget.expected(version)
    assert expected is not None
    assert (expected.nbytes, expected.shared) == (MAPPED, SIZE)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda world, version, link: world.compile(version, "never"), "has no form"),
        (lambda world, version, link: setattr(version, "stored", None), "has no form"),
        (lambda world, version, link: setattr(version, "unfit", "it kills"), "has no form"),
        (lambda world, version, link: world.residence.evict(link, version), "does not serve"),
        (lambda world, version, link: world.recycle(link), "does not serve"),
        (lambda world, version, link: world.reforms.begin(version, link, Form.INLINED, "walk"), "already"),
        (lambda world, version, link: link.forms.update({version.handle: Form.MAPPED}), "already"),
    ],
)
def test_what_cannot_change_says_why(spoil: Callable[[World, Version, Link], object], says: str) -> None:
    world, version, link = stored()
    spoil(world, version, link)
    active, reserved = list(world.reforms.active), dict(link.reserved)
    with pytest.raises(FailedPrecondition, match=says):
        world.reforms.begin(version, link, Form.MAPPED, "walk")
    assert world.reforms.active == active
    assert link.reserved == reserved


def test_the_inlined_form_needs_room_beside_what_is_there() -> None:
    world, version, link = stored(memory=filled(SIZE + INLINED))
    with pytest.raises(ResourceExhausted, match=r"of which 1\.0 MiB are missing"):
        world.reforms.begin(version, link, Form.INLINED, "walk")
    assert not link.reserved
    world.reforms.begin(version, link, Form.MAPPED, "walk")
    world.settle()
    check_rest(world)


@pytest.mark.parametrize("how", ["fails", "dies", "leaves", "is evicted"])
def test_what_does_not_come_about_leaves_nothing(how: str) -> None:
    world, version, link = stored()
    ended: list[TfpoolError | None] = []
    reform = world.reforms.begin(version, link, Form.MAPPED, "walk", done=lambda error, _: ended.append(error))
    if how == "fails":
        world.disk.store.clear()
        world.work(link.name)
    elif how == "dies":
        world.lose(link.name)
    elif how == "leaves":
        world.lifecycle.unload(world.model(), version)
    else:
        world.residence.evict(link, version)
    world.turn()
    check(world)
    world.settle()
    assert reform.over
    assert len(ended) == 1
    expected = {"fails": FailedPrecondition, "dies": Unavailable}.get(how)
    assert expected is None or isinstance(ended[0], expected), ended
    assert not link.reserved
    assert not link.reforming
    assert version.stored is None if how == "fails" else version.stored is not None
    check_rest(world)


def test_a_load_after_an_eviction_keeps_its_own_reservation() -> None:
    """The change that is over has none left to take with it."""
    world, version, link = stored(workers=1, memory=filled(3 * SIZE))
    world.reforms.begin(version, link, Form.MAPPED, "walk")
    world.residence.evict(link, version)
    number = world.request("m")
    for _ in range(10):
        world.turn()
        check(world)
        bell = world.bells[link.name]
        assert bell is not None
        if bell.slow:
            world.work(link.name)
    world.settle()
    assert world.answered(number) == 1
    assert link.forms == {version.handle: Form.MAPPED}
    check_rest(world)


def test_one_that_comes_after_its_broker_died() -> None:
    """The next broker has not asked for it, and learns of it all the same."""
    old, version, link = stored(workers=1)
    old.reforms.begin(version, link, Form.MAPPED, "walk")
    bell = old.bells[link.name]
    assert bell is not None
    new = World(model(), workers=1, store=True)
    new.disk.found, new.disk.sizes, new.disk.store = old.disk.found, old.disk.sizes, old.disk.store
    new.join("w0", bell)
    new.settle()
    successor = new.model().versions[1]
    assert new.fleet.links["w0"].forms == {successor.handle: Form.MAPPED}
    assert new.budget.pages.share("w0") == SIZE
    assert successor.stored is not None
    assert new.residence.loads == 0
    check_rest(new)


def test_idle_models_stay_while_a_change_is_counted_twice() -> None:
    """A gauge may tell of the new form before its reservation is over."""
    world, version, link = stored(workers=1, memory=filled(SIZE + INLINED + 2 * MIB))
    world.reforms.begin(version, link, Form.INLINED, "walk")
    link.unique += INLINED
    world.residence.gauged(link)
    assert version.on == {link.name: State.AVAILABLE}
    assert world.residence.evictions == 0


def test_what_leaves_takes_its_pages_along() -> None:
    """As many go as are needed, though their own bytes are few."""
    models = [model(f"m{i}") for i in range(6)]
    world = ready(*models, workers=1, memory=filled(6 * MIB + 6 * MIB + 8 * MIB), store=True)
    for name in (f"m{i}" for i in range(6)):
        (version,) = world.model(name).versions.values()
        world.compile(version)
        world.reforms.begin(version, world.fleet.links["w0"], Form.MAPPED, "walk")
        world.settle()
    link = world.fleet.links["w0"]
    assert world.budget.pages.share("w0") == 6 * MIB
    world.residence.evict(link, next(iter(world.model("m0").versions.values())))
    assert world.budget.leaving(link) == MIB + MIB // 4
