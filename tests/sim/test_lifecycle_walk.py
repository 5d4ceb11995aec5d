"""Random things happen to the broker's lifecycle; what must hold is checked after each."""

from __future__ import annotations

import signal
from collections.abc import Callable
from random import Random

import pytest

from tfpool.broker.registry import Model, Version
from tfpool.broker.reload import Reload
from tfpool.errors import TfpoolError
from tfpool.placement.snapshot import Kind
from tfpool.settings import Form, Loading, ModelSettings, Transition
from tfpool.testing.world import World, model, put
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_plans import planner
from tfpool.testing.world_rules import check, check_rest

KINDS = [
    {},
    {"version_policy": "latest:2"},
    {"version_policy": "all"},
    {"preload": Loading.LAZY},
    {"preload": Loading.LAZY, "version_policy": "latest:2"},
    {"transition": Transition.RESOURCE},
    {"replicas": (2, 2)},
    {"preload": Loading.EXPLICIT},
]


class Walk:
    """Random things happen to a world."""

    def __init__(self, seed: int, memory: int | None, store: bool = False) -> None:
        self.random = Random(seed)
        kinds = self.random.sample(KINDS, 3)
        models = [model(f"m{i}", **kind) for i, kind in enumerate(kinds)]
        self.names = [settings.name for settings in models]
        self.world = World(*models, memory=memory, residue_limit=64 * MIB, store=store)
        self.planning = planner(self.world)
        for name in self.names:
            put(self.world, 1, name=name)
            for number in range(1, 9):
                self.world.disk.sizes[f"/{name}/{number}"] = self.random.choice([MIB, 3 * MIB, 5 * MIB])
        self.acts: list[tuple[int, Callable[[], None]]] = [
            (12, self.progress),
            (4, self.request),
            (2, self.versions),
            (1, self.unload),
            (1, self.load),
            (1, self.label),
            (1, self.die),
            (1, self.crash),
            (1, self.breakage),
            (1, self.time),
            (1, self.restart),
            (2, self.move),
            (1, self.replace),
            (1, self.drop),
            (2, self.plan),
            (1, self.reload),
            (1, self.remove),
        ]
        if store:
            self.acts += [(4, self.compile), (3, self.change), (1, self.lose)]

    def go(self, steps: int) -> None:
        weights, acts = zip(*self.acts, strict=True)
        for _ in range(steps):
            act = self.random.choices(acts, weights)[0]
            act()
            self.world.turn()
            check(self.world)

    def progress(self) -> None:
        world = self.world
        choices: list[Callable[[], None]] = []
        if world.disk.looks:
            choices.append(world.disk.end_look)
        if world.disk.jobs:
            choices.append(world.disk.end_job)
        for name, bell in world.bells.items():
            if bell is None:
                choices.append(lambda name=name: world.join(name))  # type: ignore[misc]
            else:
                choices += [lambda name=name: world.run(name)] if bell.runs else []  # type: ignore[misc]
                choices += [lambda name=name: world.work(name)] if bell.slow else []  # type: ignore[misc]
                if bell.stopped and not bell.runs:
                    choices.append(lambda name=name: world.lose(name))  # type: ignore[misc]
        if choices:
            self.random.choice(choices)()

    def request(self) -> None:
        name = self.random.choice(self.names)
        version = self.random.choice([0, 0, 0, self.random.randint(1, 8)])
        label = self.random.choice(["", "prod"]) if not version else ""
        for _ in range(self.random.choice([1, 1, 8])):
            self.world.request(name, version, label)

    def versions(self) -> None:
        name = self.random.choice(self.names)
        put(self.world, *self.random.sample(range(1, 9), self.random.randint(0, 3)), name=name)

    def unload(self) -> None:
        found = self.pick()
        if found is not None:
            self.world.lifecycle.unload(*found)

    def load(self) -> None:
        name = self.random.choice(self.names)
        found = self.world.registry.models.get(name)
        if found is not None and found.sighted:
            try:
                self.world.lifecycle.load(found, self.random.choice([None, *range(1, 9)]))
            except TfpoolError:
                pass

    def label(self) -> None:
        found = self.world.registry.models.get(self.random.choice(self.names))
        if found is not None:
            numbers = self.random.sample(range(1, 9), 2)
            labels = self.random.choice(
                [(), (("prod", ((numbers[0], 1),)),), (("prod", tuple((n, 1) for n in numbers)),)]
            )
            fields = {name: getattr(found.settings, name) for name in found.settings.__dataclass_fields__}
            self.world.lifecycle.relabel(found, ModelSettings(**{**fields, "labels": labels}))

    def die(self) -> None:
        name = self.random.choice(list(self.world.bells))
        if self.world.bells[name] is not None:
            self.world.lose(name)

    def crash(self) -> None:
        """Workers die of what they run, one after the other."""
        for _ in range(self.random.choice([1, 3, 6])):
            busy = [name for name in self.world.bells if self.world.runs(name)]
            if busy:
                self.world.lose(self.random.choice(busy), -signal.SIGSEGV)
            for _ in range(6):
                self.progress()
            self.request()
            self.world.turn()
            check(self.world)

    def restart(self) -> None:
        link = self.world.fleet.links[self.random.choice(list(self.world.bells))]
        if link.up and not link.leaving:
            self.world.recycle(link)

    def move(self) -> None:
        """A version moves to another worker, or is brought there too."""
        found, target = self.pick(), self.random.choice(list(self.world.fleet.links))
        if found is None or self.world.migrations.of(found[1]) is not None or not found[1].serving():
            return
        try:
            self.world.room.check(found[1], self.world.fleet.links[target])
        except TfpoolError:
            return
        source = self.random.choice(["", *found[1].serving()])
        self.world.migrations.begin(found[1], Kind.MIGRATE if source else Kind.REPLICATE, source, target, "walk")

    def drop(self) -> None:
        """A replica too many leaves."""
        found = self.pick()
        if found is not None and len(found[1].serving()) > 1 and self.world.migrations.of(found[1]) is None:
            self.world.migrations.begin(found[1], Kind.DROP, self.random.choice(found[1].serving()), "", "walk")

    def plan(self) -> None:
        """The planner looks at what has been asked, and takes a step."""
        world = self.world
        for found in world.registry.models.values():
            for version in found.versions.values():
                asked = self.random.choice([0, 0, 1, 100])
                version.asks, version.rows = version.asks + asked, version.rows + asked
        world.now += self.random.choice([1.0, 10.0, 100.0])
        self.planning.step(world.now)

    def replace(self) -> None:
        link = self.world.fleet.links[self.random.choice(list(self.world.bells))]
        if link.up and not link.leaving and not self.world.rolling.busy:
            self.world.rolling.begin([link], "walk")

    def breakage(self) -> None:
        path = f"/{self.random.choice(self.names)}/{self.random.randint(1, 8)}"
        for trouble in (self.world.broken, self.world.disk.garbled):
            if self.random.random() < 0.5:
                trouble.symmetric_difference_update({path})
        self.world.disk.sizes[path] = self.random.choice([MIB, 3 * MIB, 5 * MIB, 6 * MIB + 1])
        self.world.disk.store.pop(path, None)
        self.world.disk.looks.append((path.split("/")[1], 0))

    def time(self) -> None:
        self.world.now += self.random.choice([0.1, 1.0, 5.0])

    def reload(self) -> None:
        if self.world.lifecycle.reload is not None:
            return
        names = self.random.sample(self.names, 2)
        wanted = {name: model(name, **self.random.choice(KINDS)) for name in names}
        self.world.lifecycle.reload = Reload(
            self.world.lifecycle, self.world.registry, wanted, (), self.random.random() < 0.7, lambda: None
        )

    def remove(self) -> None:
        name = self.random.choice(self.names)
        found = self.world.registry.models.get(name)
        if found is not None and self.random.random() < 0.3:
            self.world.lifecycle.remove(found)
        elif found is None:
            self.world.lifecycle.add(model(name, **self.random.choice(KINDS)))

    def compile(self) -> None:
        """The store has a version now, or knows that it cannot."""
        found = self.pick()
        if found is not None and found[1].described and found[1].stored is None:
            self.world.compile(found[1], self.random.choice(["", "", "", "never"]), self.random.choice([1.0, 9.0]))

    def change(self) -> None:
        """A replica is to change its form."""
        found, link = self.pick(), self.world.fleet.links[self.random.choice(list(self.world.bells))]
        if found is not None:
            try:
                self.world.reforms.begin(found[1], link, self.random.choice([Form.MAPPED, Form.INLINED]), "walk")
            except TfpoolError:
                pass

    def lose(self) -> None:
        """The store has a version no longer, and the broker does not know."""
        if self.world.disk.store:
            del self.world.disk.store[self.random.choice(sorted(self.world.disk.store))]

    def pick(self) -> tuple[Model, Version] | None:
        found = self.world.registry.models.get(self.random.choice(self.names))
        if found is None or not found.versions:
            return None
        return found, self.random.choice(list(found.versions.values()))

    def rest(self) -> None:
        """From now on everything succeeds."""
        self.world.broken.clear()
        self.world.disk.garbled.clear()
        for name in self.names:
            self.world.disk.looks.append((name, 0))
        self.world.settle()
        check_rest(self.world)


@pytest.mark.parametrize("seed", [*range(10), 213, 642, 761, 942, 1160, 1550, 1087, 1283, 1293, 7020])
@pytest.mark.parametrize("memory", [None, BASE + 8 * MIB])
def test_whatever_happens(seed: int, memory: int | None) -> None:
    walk = Walk(seed, memory)
    for _ in range(3):
        walk.go(200)
        walk.rest()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("memory", [None, BASE + 12 * MIB])
def test_whatever_happens_where_there_is_a_store(seed: int, memory: int | None) -> None:
    walk = Walk(seed, memory, store=True)
    for _ in range(3):
        walk.go(200)
        walk.rest()
