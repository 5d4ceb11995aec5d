"""What is compiled, when, and what follows: a compiler that says what it is told to, in a world without processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tfpool.broker.compiling import BUSY_SECONDS, MOST_TRIES, RETRY_SECONDS, Compiling, state_of
from tfpool.broker.registry import Version
from tfpool.broker.stored import Stored
from tfpool.settings import (
    Form,
    Loading,
    ModelSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WorkerSettings,
)
from tfpool.shm.doorbell import Doorbell
from tfpool.testing.world import World, model, put
from tfpool.testing.world_fakes import MIB
from tfpool.testing.world_rules import check_rest
from tfpool.wire.messages import Control, pack

LAZY = {"preload": Loading.LAZY}


SHOPS: list[Shop] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No doorbell of a compilation is left open."""
    yield
    for shop in SHOPS:
        if shop.line is not None:
            shop.line.close()
        if shop.compiling.job is not None:
            shop.compiling.job.bell.close()
    SHOPS.clear()


class Shop:
    """A world, and a compiler that is told what to say. ``orders`` are the paths that it was told to compile."""

    def __init__(self, *models: ModelSettings, device: str = "cpu", enabled: bool = True, **options: Any) -> None:
        self.world = World(*models, store=True, **{"workers": 1, **options})
        for one in models:
            put(self.world, 1, name=one.name)
        SHOPS.append(self)
        self.watched: set[int] = set()
        self.orders: list[str] = []
        self.line: Doorbell | None = None
        settings = Settings(
            ServerSettings(("ipc:///x",), "ipc:///y"),
            PoolSettings(),
            (WorkerSettings("w0", device),),
            store=StoreSettings("/store", enabled=enabled, budget=100 * MIB),
        )
        world = self.world
        self.compiling = Compiling(
            settings,
            world.registry,
            world.fleet,
            world.reforms,
            world.lifecycle.settled,
            world.lifecycle.ask,
            self._watch,
            self._tell,
            world.now,
        )

    def _watch(self, fd: int, watched: bool) -> None:
        assert (fd in self.watched) is not watched
        (self.watched.add if watched else self.watched.remove)(fd)

    def _tell(self, verb: Control, order: dict[str, Any], fds: tuple[int, ...]) -> None:
        assert verb == Control.ORDER
        assert self.line is None, "one at a time"
        self.orders.append(order["path"].split("/")[1])
        self.line = Doorbell(socket.socket(fileno=os.dup(fds[0])), blocking=False)

    def step(self, seconds: float = 1.0) -> None:
        """Time goes by, and all that is under way comes to an end but for the compilation."""
        self.world.now += seconds
        self.world.settle()
        self.compiling.step(self.world.now)
        self.world.settle()

    def ends(self, outcome: str, reason: str = "") -> None:
        """The compiler ends: without a word if the ``outcome`` is empty."""
        assert self.line is not None
        (fd,) = self.watched
        if outcome:
            self.line.ring(pack(["stage", "prove"]))
            assert self.compiling.hears(fd)
            self.line.ring(pack(["result", outcome, "key", reason, 1.0]))
        self.line.close()
        self.line = None
        assert self.compiling.hears(fd)
        assert not self.compiling.hears(fd), "it is gone"
        assert not self.watched
        self.world.settle()

    def compiles(self, refusal: str = "") -> Stored:
        """The compiler ends well, or refuses."""
        assert self.compiling.job is not None
        version = self.compiling.job.version
        made = self.world.compile(version, refusal)
        version.stored = None  # it has to be looked up
        self.ends("refused" if refusal else "compiled", refusal)
        return made

    def version(self, name: str = "m") -> Version:
        (found,) = self.world.model(name).versions.values()
        return found

    def state(self, name: str = "m") -> tuple[str, str]:
        told = state_of(self.version(name), self.compiling)
        return told["state"], told["reason"]

    def forms(self, name: str = "m") -> list[Form]:
        handle = self.version(name).handle
        return [link.forms[handle] for link in self.world.fleet.links.values() if handle in link.forms]


def test_one_that_serves_goes_first_and_changes_its_form() -> None:
    shop = Shop(model("a", **LAZY), model("m"), model("z", **LAZY))
    shop.step()
    assert shop.orders == ["m"]
    assert shop.state() == ("compiling", "start")
    assert shop.state("a") == ("waiting", "")
    for _ in range(3):
        shop.step()
    assert shop.orders == ["m"]
    shop.compiles()
    assert shop.state() == ("compiled", "")
    assert shop.forms() == [Form.PLAIN]
    shop.step()
    assert shop.forms() == [Form.MAPPED]
    assert shop.orders == ["m", "a"]
    shop.compiles()
    shop.step()
    shop.compiles()
    for _ in range(3):
        shop.step()
    assert shop.orders == ["m", "a", "z"]
    check_rest(shop.world)


def test_nothing_is_compiled_until_all_serve() -> None:
    shop = Shop(model("a"), model("m"))
    world = shop.world
    for _ in range(2):
        shop.compiling.step(world.now)
        world.turn()
    assert shop.orders == []
    world.now += 100.0
    world.settle_but_loads()
    shop.compiling.step(world.now)
    assert shop.orders != [], "but not for ever: one may take its time"


def test_a_refusal_is_for_good() -> None:
    shop = Shop(model())
    shop.step()
    shop.compiles("it is stateful")
    for _ in range(9):
        shop.step(1000.0)
    assert shop.orders == ["m"]
    assert shop.state() == ("refused", "it is stateful")
    assert shop.forms() == [Form.PLAIN]


@pytest.mark.parametrize("outcome", ["failed", ""])
def test_a_failure_is_tried_again_later_and_not_for_ever(outcome: str) -> None:
    shop = Shop(model("m"), model("n", **LAZY))
    shop.step()
    shop.ends(outcome, "no memory")
    why = "no memory" if outcome else "the compiler died at stage 'start'"
    assert shop.state() == ("waiting", why)
    shop.step()
    assert shop.orders == ["m", "n"], "the others need not wait for it"
    shop.compiles()
    begun = shop.world.now
    for tries in range(1, MOST_TRIES):
        while len(shop.orders) < 2 + tries:
            shop.step()
        assert shop.world.now - begun >= RETRY_SECONDS
        begun = shop.world.now
        shop.ends(outcome, "no memory")
    for _ in range(9):
        shop.step(1000.0)
    assert shop.orders == ["m", "n", "m", "m"]
    assert shop.state() == ("failed", why)


def test_another_that_is_at_it_is_waited_for() -> None:
    shop = Shop(model())
    for tries in range(1, 20):
        while len(shop.orders) < tries:
            shop.step()
        shop.ends("busy", "another process compiles it")
    assert shop.state() == ("waiting", "another process compiles it")
    shop.step(BUSY_SECONDS)
    shop.world.compile(shop.version())
    shop.version().stored = None
    shop.ends("known")
    shop.step()
    assert shop.forms() == [Form.MAPPED]


def test_what_the_store_lost_meanwhile_is_tried_again() -> None:
    shop = Shop(model())
    shop.step()
    shop.ends("compiled")
    state, why = shop.state()
    assert state == "waiting"
    assert "changed while it was compiled" in why
    shop.step(RETRY_SECONDS * 2)
    assert shop.orders == ["m", "m"]


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({"form": Form.PLAIN}, ("off", "its form is set to plain")),
        ({"stateful": ("train",)}, ("off", "it is declared stateful")),
    ],
)
def test_what_settings_rule_out_is_not_compiled(settings: dict[str, Any], state: tuple[str, str]) -> None:
    shop = Shop(model(**settings))
    shop.step()
    assert shop.orders == []
    assert shop.state() == state


@pytest.mark.parametrize("options", [{"enabled": False}, {"device": "gpu:0"}])
def test_without_a_store_or_a_worker_that_could_use_it_nothing_is_done(options: dict[str, Any]) -> None:
    shop = Shop(model(), **options)
    shop.step()
    assert shop.orders == []
    assert shop.state() == ("off", "there is no store")


def test_those_that_do_not_serve_are_compiled_while_there_is_room() -> None:
    """Those that serve are, whatever there is: they are used now."""
    shop = Shop(*(model(f"m{i}", **LAZY) for i in range(6)))
    shop.world.settle()
    for i in range(6):
        shop.version(f"m{i}").disk_bytes = 30 * MIB
    for _ in range(6):
        shop.step()
        if shop.line is not None:
            shop.compiles()
    assert shop.orders == ["m0", "m1"], "four fifths of 100 MiB have no room for a third"
    shop.world.request("m5")
    shop.step()
    shop.step()
    assert shop.orders == ["m0", "m1", "m5"]


def test_a_model_that_goes_while_it_is_compiled_holds_nobody_up() -> None:
    shop = Shop(model("m"), model("n", **LAZY))
    shop.step()
    gone = shop.version()
    shop.world.lifecycle.remove(shop.world.model())
    shop.world.settle()
    shop.world.compile(gone)
    shop.ends("compiled")
    shop.step()
    assert shop.orders == ["m", "n"]
    shop.ends("failed", "no")
    assert gone.handle not in shop.compiling._tries
    check_rest(shop.world)


def test_one_replica_after_the_other_changes_on_a_worker() -> None:
    names = [f"m{i}" for i in range(5)]
    shop = Shop(*map(model, names))
    world = shop.world
    world.settle()
    for name in names:
        world.compile(shop.version(name))
    shop.compiling.step(world.now)
    assert len(world.reforms.active) == 1
    shop.compiling.step(world.now)
    assert len(world.reforms.active) == 1
    for _ in names:
        shop.step()
    assert [shop.forms(name) for name in names] == [[Form.MAPPED]] * 5
    assert shop.orders == []


def test_a_change_that_fails_has_it_made_again() -> None:
    shop = Shop(model())
    shop.step()
    shop.compiles()
    shop.world.disk.store.clear()
    shop.step()
    assert shop.forms() == [Form.PLAIN]
    assert shop.state() == ("waiting", "the store does not have it")
    shop.step(RETRY_SECONDS * 2)
    assert shop.orders == ["m", "m"]
    shop.compiles()
    shop.step(RETRY_SECONDS * 2)
    assert shop.forms() == [Form.MAPPED]
    assert shop.version().handle not in shop.compiling._tries, "what went well is forgotten"


def test_deaths_and_evictions_meanwhile_are_no_failures() -> None:
    shop = Shop(model())
    world = shop.world
    shop.step()
    shop.compiles()
    stored = shop.version().stored
    for turn in range(2 * MOST_TRIES):
        link = world.fleet.links["w0"]
        world.disk.store, kept = {}, world.disk.store
        shop.world.settle()
        if shop.forms() != [Form.PLAIN]:
            world.residence.evict(link, shop.version())
            world.request("m")
            world.settle()
        assert shop.forms() == [Form.PLAIN], turn
        world.disk.store, shop.version().stored = kept, stored
        world.now += 1.0
        shop.compiling.step(world.now)
        assert world.reforms.active
        world.lose("w0")
        world.settle()
    assert shop.orders == ["m"]
    assert shop.version().stored is not None
    check_rest(world)


@pytest.mark.parametrize("form", [Form.INLINED, Form.MAPPED])
def test_a_form_that_is_set_later(form: Form) -> None:
    """By a reload, say, which leaves what serves alone."""
    other = Form.MAPPED if form is Form.INLINED else Form.INLINED
    shop = Shop(model(form=other))
    shop.step()
    shop.compiles()
    shop.step()
    assert shop.forms() == [other]
    shop.version().settings = replace(shop.version().settings, form=form)
    shop.step()
    assert shop.forms() == [form]


def test_what_a_worker_did_not_find_is_compiled_again() -> None:
    shop = Shop(model())
    world = shop.world
    shop.step()
    shop.compiles()
    world.disk.store = {}
    world.residence.evict(world.fleet.links["w0"], shop.version())
    world.request("m")
    world.settle()
    assert shop.forms() == [Form.PLAIN]
    assert shop.version().stored is None, "it has gone"
    world.now += 1.0
    shop.compiling.step(world.now)
    assert shop.orders == ["m", "m"]
