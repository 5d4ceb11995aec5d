"""Models and versions through whatever may happen to them: the broker's lifecycle with fakes around it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest

from tfpool.broker.budget import Budget
from tfpool.broker.clients import Clients
from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.intake import Intake
from tfpool.broker.lifecycle import Lifecycle
from tfpool.broker.lobby import Lobby, Request
from tfpool.broker.meters import Meters
from tfpool.broker.notebook import Notebook
from tfpool.broker.recorder import Recorder
from tfpool.broker.registry import Goal, Model, NotLoaded, Registry, Version
from tfpool.broker.reload import Reload
from tfpool.broker.residence import Residence
from tfpool.broker.resolve import Resolver
from tfpool.broker.room import Room
from tfpool.broker.shadow import Shadows
from tfpool.broker.taps import Taps
from tfpool.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TfpoolError,
    Unavailable,
)
from tfpool.repository.describe import Description
from tfpool.repository.memo import Footprint
from tfpool.repository.states import State
from tfpool.repository.watcher import Done, Roster, Sighting
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.settings import (
    BatchingSettings,
    Loading,
    ModelSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    Transition,
    WorkerSettings,
)
from tfpool.shm.layout import Layout
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Bell, Group, unpack

MIB = 1 << 20
BASE = 10 * MIB
X = TensorSpec("x", DType.FLOAT, (-1,))
SIGNATURES = (SignatureSpec("serving_default", "predict", (X,), (X,), True),)


class Disk:
    """A watcher whose looks and jobs end when the test says so. ``found`` has the versions of each base path."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, str]] = {}
        self.sizes: dict[str, int] = {}
        self.garbled: set[str] = set()
        self.paths: dict[str, str] = {}
        self.jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.looks: deque[tuple[str, int]] = deque()
        self.news: list[Sighting | Roster | Done] = []
        self._tickets = 0

    def watch(self, model: str, base_path: str) -> None:
        self.paths[model] = base_path
        self.looks.append((model, 0))

    def forget(self, model: str) -> None:
        del self.paths[model]
        self.news = [one for one in self.news if not isinstance(one, Sighting) or one.model != model]

    def look(self, model: str) -> int:
        self._tickets += 1
        self.looks.append((model, self._tickets))
        return self._tickets

    def ask(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((job, future))
        return future

    def seen(self) -> list[Sighting | Roster | Done]:
        news, self.news = self.news, []
        return news

    def end_look(self) -> None:
        model, ticket = self.looks.popleft()
        path = self.paths.get(model)
        if path is not None:
            found = dict(self.found.get(path, {}))
            error = None if found else NotFound(f"{path}: no such directory")
            marks = {number: f"{self.sizes.get(where)}" for number, where in found.items()}
            self.news.append(Sighting(model, path, found, marks, error, ticket))

    def end_job(self) -> None:
        job, future = self.jobs.popleft()
        try:
            future.set_result(job())
        except TfpoolError as error:
            future.set_exception(error)
        self.news.append(Done(future))

    def describe(self, directory: str) -> Description:
        if directory in self.garbled:
            raise FailedPrecondition(f"{directory}: damaged")
        return Description((), {}, {}, directory, 1)

    def scan(self, base_path: str) -> dict[int, str]:
        if not self.found.get(base_path):
            raise NotFound(f"{base_path}: no such directory")
        return dict(sorted(self.found[base_path].items()))


class Bellows:
    """The broker's end of a worker's doorbell; the worker is what the test makes of the messages."""

    _numbers = iter(range(1000, 1_000_000))

    def __init__(self, world: World, name: str) -> None:
        self.number = next(self._numbers)
        self.world, self.name = world, name
        self.slow: deque[tuple[Any, ...]] = deque()
        self.runs: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.told_off: set[int] = set()
        self.stopped = False

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        pass

    def ring(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        verb, *fields = unpack(data)
        if verb == Bell.RUN:
            batch, handle = fields[:2]
            assert handle in self.held, f"a run of {handle}, which {self.name} does not hold"
            assert handle not in self.told_off, f"a run of {handle}, which {self.name} has been told to unload"
            self.runs[batch] = handle
        elif verb == Bell.LOAD:
            assert fields[0] not in self.held or fields[0] in self.told_off, "loaded twice"
            self.slow.append(("load", fields[0], fields[2]))
        elif verb == Bell.UNLOAD:
            assert fields[0] not in self.runs.values(), "told to unload what it runs"
            assert fields[0] not in self.told_off, "told to unload twice"
            self.told_off.add(fields[0])
            self.slow.append(("unload", fields[0]))
        elif verb == Bell.STOP:
            self.stopped = True

    @property
    def unique(self) -> int:
        return BASE + sum(self.held.values())


class World:
    """All of the broker but its sockets. ``answers`` has what became of each request, by its number."""

    def __init__(
        self,
        *models: ModelSettings,
        workers: int = 2,
        memory: int | None = None,
        seed: int = 0,
        server: dict[str, Any] | None = None,
        **pool: Any,
    ) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.disk = Disk()
        self.registry = Registry()
        self.fleet = Fleet(tuple(WorkerSettings(f"w{i}", memory=memory) for i in range(workers)))
        self.scheduler = Scheduler(Layout(1 << 20))
        listen = ServerSettings(("ipc:///x",), "ipc:///y", **(server or {}))
        settings = Settings(listen, PoolSettings(**pool), (), models=models)
        self.notebook = Notebook(settings)
        self.budget = Budget(self.notebook.footprints, self.notebook.measured)
        self.lobby = Lobby(self.admit, self.refuse)
        self.lifecycle = Lifecycle(
            self.registry,
            settings.pool,
            self.disk,  # type: ignore[arg-type]
            self.notebook,
            self.lobby,
            lambda: self.now,
        )
        self.residence = self.lifecycle.residence = Residence(
            self.registry,
            self.fleet,
            settings.pool,
            self.budget,
            Room(self.registry, self.fleet, self.budget, self.scheduler),
            self.scheduler,
            self.decide,
            self.recycle,
            self.lifecycle,
        )
        self.resolver = Resolver(self.registry)
        self.shadows = Shadows(self.registry, self.resolver)
        taps = Taps(Recorder(), self.shadows)
        self.intake = Intake(self.resolver, Clients(), Meters(), taps, self.budget.hit, self.lifecycle.wake)
        self.answers: dict[int, TfpoolError | Version] = {}
        self.asked = 0
        self.broken: set[str] = set()
        self.bells: dict[str, Bellows | None] = dict.fromkeys(self.fleet.links)
        for model in self.notebook.models():
            self.lifecycle.add(model)

    # -- what the broker does ------------------------------------------------------------------------------------

    def decide(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, ev.Dispatch):
                batch = action.batch
                link = self.fleet.links[batch.worker]
                link.ring(Bell.RUN, batch.id, batch.spec.servable.life, 0, True, [])
            elif isinstance(action, ev.Deliver):
                for piece in action.batch.pieces:
                    self.answer(piece.first, self.registry.by_handle[action.batch.spec.servable.life])
            elif isinstance(action, ev.Refuse):
                for piece in action.segments:
                    self.answer(piece.first, action.error)

    def recycle(self, link: Link) -> None:
        link.state, link.leaving = WorkerState.DRAINING, True
        self.decide(ev.Drain(link.name, True))
        link.ring(Bell.STOP)

    def refuse(self, client: bytes, pieces: list[tuple[int, int]], error: TfpoolError, model: str) -> None:
        for first, count in pieces:
            for number in range(first, first + count):
                self.answer(number, error)

    def answer(self, number: int, what: TfpoolError | Version) -> None:
        assert number not in self.answers, "answered twice"
        self.answers[number] = what

    def admit(self, request: Request) -> None:
        group = request.group
        try:
            for event in self.intake.admit(request):
                self.decide(event)
        except NotLoaded as why:
            self.park(why, request)
        except TfpoolError as error:
            self.refuse(b"c", [(group.first, group.count)], error, "")

    def park(self, why: NotLoaded, request: Request) -> None:
        self.lobby.park(why, request)
        if why.version is not None:
            self.lifecycle.wake(why.version)

    def turn(self) -> None:
        self.lifecycle.look()
        self.lobby.expire(self.now)
        self.decide(ev.Turn())
        self.lifecycle.step(self.now)
        self.shadows.refresh()

    # -- what others do ------------------------------------------------------------------------------------------

    def request(self, model: str, version: int = 0, label: str = "", seconds: float = 1e6) -> int:
        key = RequestKey(model, version, label, "", (Tensor("x", DType.FLOAT, ()),), True)
        self.asked += 1
        group = Group(pack_request_key(key), self.asked, 1, 1, int(seconds * 1000), 0, None, None)
        self.admit(Request(b"c", key, group, [b"1234"], self.now))
        return self.asked

    def join(self, name: str) -> None:
        link = self.fleet.links[name]
        bell = self.bells[name] = Bellows(self, name)
        self.fleet.attach(name, link.generation + 1, bell)  # type: ignore[arg-type]
        self.fleet.ready(link, 1, BASE, BASE)
        self.decide(ev.WorkerJoined(name, link.holder))
        self.residence.joined(link)

    def lose(self, name: str) -> None:
        link = self.fleet.links[name]
        crashed = not link.leaving
        self.bells[name] = None
        self.fleet.detach(link)
        self.residence.lost(link, crashed)
        self.decide(ev.WorkerLost(name, "lost"))
        self.decide(ev.WorkerReaped(link.holder))

    def size(self, path: str) -> int:
        return self.disk.sizes.get(path, MIB)

    def work(self, name: str) -> None:
        """A worker ends the load, or unload, that it is at."""
        link, bell = self.fleet.links[name], self.bells[name]
        assert bell is not None
        what, handle, *rest = bell.slow.popleft()
        if what == "unload":
            bell.held.pop(handle, None)
            bell.told_off.discard(handle)
            self.residence.unloaded(link, handle, bell.unique, bell.unique)
        elif rest[0] in self.broken:
            self.residence.load_failed(link, handle, FailedPrecondition(f"{rest[0]}: broken"))
        else:
            self.residence.warming(link, handle)
            bell.held[handle] = self.size(rest[0])
            found = Footprint(bell.held[handle], bell.held[handle], 0.5)
            self.residence.loaded(link, handle, found, SIGNATURES, {})
            if self.bells[name] is bell:
                link.rss = link.unique = bell.unique

    def run(self, name: str) -> None:
        """A worker ends a run."""
        bell = self.bells[name]
        assert bell is not None
        batch = next(iter(bell.runs))
        del bell.runs[batch]
        self.decide(ev.Completed(name, batch, 0.001, 4))

    def settle(self) -> None:
        """Everything that is under way ends well; nothing new happens."""
        for _ in range(2000):
            self.turn()
            if not self.step_once():
                if not self.lifecycle._retries:
                    return
                self.now = max(self.now, self.lifecycle.next_retry())
        raise AssertionError("it never comes to rest")

    def step_once(self) -> bool:
        if self.disk.looks:
            self.disk.end_look()
        elif self.disk.jobs:
            self.disk.end_job()
        else:
            for name, bell in self.bells.items():
                if bell is None:
                    self.join(name)
                elif bell.runs:
                    self.run(name)
                elif bell.slow:
                    self.work(name)
                elif bell.stopped:
                    self.lose(name)
                else:
                    continue
                return True
            return False
        return True

    # -- what is asked of it -------------------------------------------------------------------------------------

    def model(self, name: str = "m") -> Model:
        return self.registry.models[name]

    def serving(self, name: str = "m") -> list[int]:
        return sorted(number for number, version in self.model(name).versions.items() if version.serving())

    def answered(self, number: int) -> int:
        """The version that answered a request."""
        found = self.answers[number]
        assert isinstance(found, Version), found
        return found.key.version

    def refused(self, number: int) -> TfpoolError:
        found = self.answers[number]
        assert isinstance(found, TfpoolError), found
        return found

    def check(self) -> None:
        """What holds at every moment."""
        known: Counter[int] = Counter()
        staged = set() if self.lifecycle.reload is None else {v.handle for v in self.lifecycle.reload._staged}
        for model in self.registry.models.values():
            for number, version in model.versions.items():
                assert not version.retired, f"{version.key} is retired and routed"
                assert not version.staged
                assert version.key.version == number
                known[version.handle] += 1
            for version in model.leaving:
                assert version.retired
                known[version.handle] += 1
        assert not [handle for handle, times in known.items() if times > 1], "known twice"
        for handle, version in self.registry.by_handle.items():
            assert handle in known or handle in staged or version.retired, f"{version.key} is lost"
            assert version.on or not version.retired, f"{version.key} is retired, nowhere, and not forgotten"
        assert known.keys() <= self.registry.by_handle.keys()
        for link in self.fleet.links.values():
            self._check_link(link)

    def _check_link(self, link: Link) -> None:
        bell = self.bells[link.name]
        states = {v.handle: v.on[link.name] for v in self.registry.versions() if link.name in v.on}
        loading = {handle for handle in link.loading if handle in states}
        for handle, state in states.items():
            key = self.registry.by_handle[handle].key
            if state in (State.LOADING, State.WARMING):
                assert handle in link.loading, f"{key} loads, and nobody loads it"
            elif state is State.NEW:
                assert handle in link.loads or not link.up, f"{key} waits to be loaded, and nobody knows"
            elif state is State.DRAINING:
                known = handle in link.unloading or (handle, link.name) in self.residence._draining
                assert known, f"{key} drains, and nobody unloads it"
            elif state is State.AVAILABLE:
                assert handle in link.resident
                assert bell is not None
                assert handle in bell.held
                assert handle not in bell.told_off, f"{key} is available, and on its way out"
        for handle in loading:
            assert states[handle] in (State.LOADING, State.WARMING, State.DRAINING)
        assert link.reserved.keys() <= link.loading, "memory is reserved for what is not loading"
        for servable, workers in self.scheduler._routes.items():
            if link.name in workers:
                assert states.get(servable.life) in (State.AVAILABLE, State.DRAINING), f"{servable} is routed"
        if bell is not None:
            assert link.resident.keys() == bell.held.keys(), "what it holds is not what we think"

    def check_rest(self) -> None:
        """What holds when everything has ended."""
        self.check()
        lost = [number for number in range(1, self.asked + 1) if number not in self.answers]
        assert not lost, f"requests {lost} are never answered"
        assert not self.residence._draining
        for link in self.fleet.links.values():
            assert not (link.loads or link.loading or link.unloading or link.reserved)
        for model in self.registry.models.values():
            assert not model.leaving
            for number in self.lifecycle.wanted(model) if model.found else ():
                version = model.versions[number]
                if version.goal is Goal.SERVE and version.failures == 0:
                    assert version.state is State.AVAILABLE, f"{version.key} is {version.state}"
            for version in model.versions.values():
                assert version.settled, f"{version.key} is {version.state}"


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """Descriptions and scans come from the newest world's disk."""
    worlds: list[World] = []
    monkeypatch.setattr("tfpool.repository.describe.describe", lambda path: worlds[-1].disk.describe(path))
    monkeypatch.setattr("tfpool.broker.reload.scan", lambda path: worlds[-1].disk.scan(path))
    before = World.__init__

    def init(self: World, *arguments: Any, **options: Any) -> None:
        worlds.append(self)
        before(self, *arguments, **options)

    monkeypatch.setattr(World, "__init__", init)
    return worlds


def model(name: str = "m", **options: Any) -> ModelSettings:
    return ModelSettings(name, f"/{name}", **options)


def put(world: World, *numbers: int, name: str = "m") -> None:
    """Exactly these versions lie on disk, and that has been told."""
    world.disk.found[f"/{name}"] = {number: f"/{name}/{number}" for number in numbers}
    world.disk.looks.append((name, 0))


# -- a random walk ---------------------------------------------------------------------------------------------------

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

    def __init__(self, seed: int, memory: int | None) -> None:
        self.random = Random(seed)
        kinds = self.random.sample(KINDS, 3)
        models = [model(f"m{i}", **kind) for i, kind in enumerate(kinds)]
        self.names = [settings.name for settings in models]
        self.world = World(*models, memory=memory, residue_limit=64 * MIB)
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
            (1, self.breakage),
            (1, self.time),
            (1, self.restart),
            (1, self.reload),
            (1, self.remove),
        ]

    def go(self, steps: int) -> None:
        weights, acts = zip(*self.acts, strict=True)
        for _ in range(steps):
            act = self.random.choices(acts, weights)[0]
            act()
            self.world.turn()
            self.world.check()

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

    def restart(self) -> None:
        link = self.world.fleet.links[self.random.choice(list(self.world.bells))]
        if link.up and not link.leaving:
            self.world.recycle(link)

    def breakage(self) -> None:
        path = f"/{self.random.choice(self.names)}/{self.random.randint(1, 8)}"
        for trouble in (self.world.broken, self.world.disk.garbled):
            if self.random.random() < 0.5:
                trouble.symmetric_difference_update({path})
        self.world.disk.sizes[path] = self.random.choice([MIB, 3 * MIB, 5 * MIB, 6 * MIB + 1])
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
        self.world.check_rest()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("memory", [None, BASE + 8 * MIB])
def test_whatever_happens(seed: int, memory: int | None) -> None:
    walk = Walk(seed, memory)
    for _ in range(3):
        walk.go(150)
        walk.rest()
