"""Models and versions through whatever may happen to them: the broker's lifecycle with fakes around it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest

from tfpool.broker.aspiring import wanted_of
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
from tfpool.broker.turnover import Turnover
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
        room = Room(self.registry, self.fleet, self.budget, self.scheduler)
        self.residence = self.lifecycle.residence = Residence(
            self.registry,
            self.fleet,
            settings.pool,
            self.budget,
            room,
            self.scheduler,
            self.decide,
            self.recycle,
            self.lifecycle,
        )
        self.turnover = Turnover(self.registry, room, self.residence)
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

    def runs(self, name: str) -> int:
        bell = self.bells[name]
        return len(bell.runs) if bell else 0

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
            assert version.error or version.state is not State.FAILED, f"{version.key} has failed, and nobody knows why"
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
            assert not [*link.loads, *link.loading, *link.unloading, *link.reserved]
        for model in self.registry.models.values():
            assert not model.leaving
            for number in wanted_of(model) if model.found else ():
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


def ready(*models: ModelSettings, on_disk: tuple[int, ...] = (1,), **options: Any) -> World:
    """A world whose models have these versions, at rest."""
    world = World(*models, **options)
    for settings in models:
        put(world, *on_disk, name=settings.name)
    world.settle()
    return world


# -- one thing at a time ---------------------------------------------------------------------------------------------


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
    assert (world.answered(waiting), world.answered(_settled(world, world.request("m")))) == (1, 2)
    assert isinstance(world.refused(world.request("m", 1)), NotFound)
    world.check_rest()


def _settled(world: World, number: int) -> int:
    world.settle()
    return number


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
    world.check_rest()


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
    world.check_rest()


def test_labels_of_models_that_have_not_been_looked_for() -> None:
    world = World(model(labels=(("stable", ((1, 1),)), ("gone", ((9, 1),)))))
    put(world, 1, 2)
    stable, gone, newest = (world.request("m", label=label) for label in ("stable", "gone", ""))
    assert not world.answers
    world.settle()
    assert (world.answered(stable), world.answered(newest)) == (1, 2)
    assert isinstance(world.refused(gone), FailedPrecondition)


def test_a_cold_model_waits_for_the_only_worker_to_be_replaced() -> None:
    world = ready(model(preload=Loading.LAZY), workers=1)
    world.recycle(world.fleet.links["w0"])
    cold = world.request("m")
    assert not world.answers
    world.settle()
    assert world.answered(cold) == 1
    assert world.residence.loads == 1, "nothing is given to one that is leaving"


def test_a_cold_model_that_nobody_can_take_is_refused_at_once() -> None:
    """It has served before, so that requests for it wait in the scheduler rather than in the lobby."""
    world = ready(model(preload=Loading.LAZY), workers=1, load_retries=0)
    world.request("m")
    world.settle()
    link = world.fleet.links["w0"]
    world.residence._evict(link, world.model().versions[1])
    world.settle()
    link.state = WorkerState.HALTED
    refused = world.request("m")
    assert isinstance(world.refused(refused), Unavailable)
    world.check()


def test_a_failure_elsewhere_does_not_outlive_a_success() -> None:
    """It failed on one worker and serves on the other; when it leaves that, it can be loaded again."""
    world = ready(model(), on_disk=(), memory=BASE + 8 * MIB)
    world.broken.add("/m/1")
    put(world, 1)
    while world.model().versions.get(1) is None or not world.model().versions[1].failures:
        world.turn()
        assert world.step_once()
    world.broken.clear()
    version = world.model().versions[1]
    (failed_on,) = version.on
    world.fleet.links[failed_on].resident[999] = MIB  # so that the other is the emptier one
    world.settle()
    (serves_on,) = version.serving()
    del world.fleet.links[failed_on].resident[999]
    version.on["w0" if serves_on == "w1" else "w1"] = State.FAILED
    world.residence._evict(world.fleet.links[serves_on], version)
    world.settle()
    assert version.state is State.UNLOADED
    assert world.answered(_settled(world, world.request("m"))) == 1


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
    first = _settled(world, world.request("m"))
    assert "broken" in world.refused(first).message
    world.broken.clear()
    world.disk.sizes["/m/1"] = 2 * MIB
    world.disk.looks.append(("m", 0))
    world.settle()
    assert world.answered(_settled(world, world.request("m"))) == 1


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


def test_what_drains_answers_even_when_it_is_replaced_meanwhile() -> None:
    world = ready(model(), workers=1)
    waiting = [world.request("m") for _ in range(500)]  # more than the worker may have at once
    world.turn()
    world.lifecycle.unload(world.model(), world.model().versions[1])
    put(world, 2)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    world.work("w0")
    world.turn()
    assert world.serving() == [2]
    assert len(world.answers) < 500
    world.settle()
    assert [world.answered(number) for number in waiting] == [1] * 500
    world.check_rest()


@pytest.mark.parametrize("busy", ["w0", "w1"])
def test_a_replica_stays_until_the_others_have_answered_too(busy: str) -> None:
    """One that dies while both drain leaves its requests to the other."""
    world = ready(model(replicas=(2, 2), batching=BatchingSettings(max_batch_size=1)))
    running = [world.request("m") for _ in range(4)]
    world.turn()
    put(world, 2)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    idle = "w1" if busy == "w0" else "w0"
    while world.runs(idle):
        world.run(idle)
    assert world.runs(busy)
    world.work(idle)
    world.work(busy)
    world.turn()
    assert world.serving() == [2]
    world.lose(busy)
    world.settle()
    assert [world.answered(number) for number in running] == [1] * 4
    world.check_rest()


def test_a_replica_that_is_still_loading_goes_at_once() -> None:
    """It is not kept for the sake of one that serves, nor mistaken for one."""
    world = World(model(replicas=(2, 2)))
    put(world, 1)
    for name in world.bells:
        world.join(name)
    while world.disk.looks or world.disk.jobs:
        world.step_once()
        world.turn()
    world.work("w0")
    running = world.request("m")
    world.turn()
    version = world.model().versions[1]
    world.lifecycle.unload(world.model(), version)
    assert {name: bell.told_off for name, bell in world.bells.items() if bell} == {"w0": set(), "w1": {version.handle}}
    world.lifecycle.load(world.model(), 1)
    assert version.serving() == ["w0"]
    world.lifecycle.unload(world.model(), version)
    world.lose("w0")
    world.settle()
    assert isinstance(world.refused(running), NotFound)
    world.check_rest()


def test_who_asks_for_what_turns_out_too_large_is_told() -> None:
    """Whether before it was loaded, or while it leaves again."""
    world = ready(model(preload=Loading.LAZY), workers=1, memory=BASE + 8 * MIB)
    world.disk.sizes["/m/1"] = 9 * MIB
    first = world.request("m")
    world.turn()
    world.work("w0")
    world.turn()
    between = world.request("m")
    assert world.model().versions[1].state is State.DRAINING
    world.settle()
    for number in (first, between, world.request("m")):
        assert isinstance(world.refused(number), ResourceExhausted)
    world.check_rest()


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


def test_the_last_replica_can_still_be_pushed_out() -> None:
    world = ready(
        model(replicas=(2, 2)),
        model("n", preload=Loading.LAZY),
        model("o", preload=Loading.LAZY),
        memory=(BASE + 5 * MIB) * 10 // 9,
    )
    for name in "mno":
        world.disk.sizes[f"/{name}/1"] = 3 * MIB
    world.lose("w0")
    world.lose("w1")
    world.settle()
    asked = [_settled(world, world.request(name)) for name in "nonomno"]
    assert [world.answered(number) for number in asked] == [1] * 7
    world.check_rest()


def test_a_drained_worker_leaves_nothing_behind_but_what_it_could_not_load() -> None:
    world = ready(model(), model("n"), load_retries=0)
    world.broken.add("/n/1")
    world.lose("w0")
    world.lose("w1")
    world.settle()
    assert world.model("n").versions[1].state is State.FAILED
    for name in ("w0", "w1"):
        link = world.fleet.links[name]
        world.turnover.vacate(link)
        for _ in range(20):
            if world.turnover.step(link):
                break
            world.turn()
            world.step_once()
        assert world.turnover.step(link)
        assert name not in world.model().versions[1].on
        link.state = WorkerState.READY
    assert world.answered(_settled(world, world.request("m"))) == 1


def test_a_worker_is_not_drained_of_what_nobody_else_can_take() -> None:
    world = ready(model(pin=("w0",)))
    link = world.fleet.links["w0"]
    with pytest.raises(Unavailable, match="no worker can take m:1"):
        world.turnover.vacate(link)
    assert link.state is WorkerState.READY
    assert world.answered(_settled(world, world.request("m"))) == 1


@pytest.mark.parametrize("preload", [Loading.PRELOAD, Loading.LAZY])
def test_what_cannot_fit_is_told_although_it_was_placed_before_anybody_had_measured(preload: Loading) -> None:
    world = World(model(preload=preload), memory=BASE + 8 * MIB)
    world.notebook.footprints["/m/1"] = Footprint(9 * MIB, 9 * MIB, 1.0)
    put(world, 1)
    world.disk.end_look()
    world.turn()
    early = world.request("m")
    world.disk.end_job()
    world.settle()
    assert isinstance(world.refused(early), ResourceExhausted)
    assert "9.0 MiB" in world.refused(early).message
    assert world.residence.loads == 0
    assert isinstance(world.refused(world.request("m")), ResourceExhausted)


def test_requests_for_signatures_that_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ready(model(preload=Loading.LAZY), workers=1)
    world.request("m")
    world.settle()
    version = world.model().versions[1]
    world.residence._evict(world.fleet.links["w0"], version)
    world.settle()
    stale = world.request("m")
    other = SignatureSpec("serving_default", "predict", (TensorSpec("z", DType.INT32, (-1,)),), (X,), True)
    monkeypatch.setitem(globals(), "SIGNATURES", (other,))
    world.settle()
    assert "the signatures of m:1 are not what they were" in world.refused(stale).message
    assert isinstance(world.refused(world.request("m")), InvalidArgument)


def test_the_old_one_goes_first_where_memory_matters_more() -> None:
    world = ready(model(transition=Transition.RESOURCE))
    put(world, 1, 2)
    most = 0
    for _ in range(30):
        world.turn()
        world.step_once()
        most = max(most, sum(len(bell.held) for bell in world.bells.values() if bell))
    assert most == 1
    assert world.serving() == [2]


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


# -- reload ----------------------------------------------------------------------------------------------------------


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
    world.check_rest()
    world.broken.clear()
    transaction, done = reload(world, *wanted)
    kept = world.model().versions[2]
    world.settle()
    assert transaction.error is None
    assert (set(world.registry.models), world.serving(), done) == ({"m", "o"}, [1, 2], ["done"])
    assert world.model().versions[2] is kept
    assert world.answered(_settled(world, world.request("m", label="stable"))) == 1
    world.check_rest()


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
    world.check_rest()


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
    world.check_rest()


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


@pytest.mark.parametrize("seed", [*range(10), 213, 642, 761, 942, 1160, 1550])
@pytest.mark.parametrize("memory", [None, BASE + 8 * MIB])
def test_whatever_happens(seed: int, memory: int | None) -> None:
    walk = Walk(seed, memory)
    for _ in range(3):
        walk.go(200)
        walk.rest()
