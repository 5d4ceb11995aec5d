"""The broker without its sockets, between a disk and workers that do only what a test tells them to."""

from __future__ import annotations

from typing import Any

from tfpool.broker.blame import Blame
from tfpool.broker.budget import Budget
from tfpool.broker.clients import Clients
from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.intake import Intake
from tfpool.broker.lifecycle import Lifecycle
from tfpool.broker.lobby import Lobby, Request
from tfpool.broker.meters import Meters
from tfpool.broker.migrations import Migrations
from tfpool.broker.notebook import Notebook
from tfpool.broker.recorder import Recorder
from tfpool.broker.reforms import Reforms
from tfpool.broker.registry import Model, NotLoaded, Registry, Version
from tfpool.broker.residence import Residence
from tfpool.broker.resolve import Resolver
from tfpool.broker.rolling import Rolling
from tfpool.broker.room import Room
from tfpool.broker.shadow import Shadows
from tfpool.broker.stored import Stored
from tfpool.broker.taps import Taps
from tfpool.broker.turnover import Turnover
from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.repository.memo import Footprint
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.settings import Form, ModelSettings, PoolSettings, ServerSettings, Settings, WorkerSettings
from tfpool.shm.layout import Layout
from tfpool.testing.world_fakes import BASE, MIB, Bellows, Disk
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Bell, Gauge, Group

X = TensorSpec("x", DType.FLOAT, (-1,))


class World:
    """All of the broker but its sockets.

    ``answers`` has what became of each request, by its number; ``broken`` the version directories that do not load;
    ``signatures`` are those of all that loads. With ``store`` models may be compiled, see :meth:`compile`.
    """

    def __init__(
        self,
        *models: ModelSettings,
        workers: int = 2,
        memory: int | None = None,
        server: dict[str, Any] | None = None,
        store: bool = False,
        **pool: Any,
    ) -> None:
        self.now = 100.0
        self.disk = Disk()
        self.registry = Registry()
        self.fleet = Fleet(tuple(WorkerSettings(f"w{i}", memory=memory) for i in range(workers)))
        self.scheduler = Scheduler(Layout(1 << 20))
        listen = ServerSettings(("ipc:///x",), "ipc:///y", **(server or {}))
        settings = Settings(listen, PoolSettings(**pool), (), models=models)
        self.notebook = Notebook(settings)
        self.budget = Budget(self.notebook.footprints, self.notebook.measured)
        self.lobby = Lobby(self.admit, self.refuse, 1 << 30)
        self.lifecycle = Lifecycle(
            self.registry,
            settings.pool,
            self.disk,  # type: ignore[arg-type]
            self.notebook,
            self.lobby,
            lambda: self.now,
            "/store" if store else "",
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
        self.reforms = Reforms(self.registry, self.fleet, self.budget, lambda: self.now)
        self.migrations = Migrations(self.fleet, self.residence, lambda: self.now)
        self.turnover = Turnover(self.registry, self.fleet, room, self.residence, self.migrations)
        self.rolling = Rolling(self.registry, self.fleet, room, self.migrations, self.recycle, self.residence.refill)
        self.room = room
        self.blame = Blame(self.registry, self.scheduler, self.residence, self.turnover, self.notebook)
        self.resolver = Resolver(self.registry)
        self.shadows = Shadows(self.registry, self.resolver)
        taps = Taps(Recorder(), self.shadows)
        self.meters = Meters()
        self.intake = Intake(self.resolver, Clients(), self.meters, taps, self.budget.hit, self.lifecycle.wake)
        self.answers: dict[int, TfpoolError | Version] = {}
        self.asked = 0
        self.broken: set[str] = set()
        self.signatures = (SignatureSpec("serving_default", "predict", (X,), (X,), True),)
        self.bells: dict[str, Bellows | None] = dict.fromkeys(self.fleet.links)
        for model in self.notebook.models():
            self.lifecycle.add(model)

    # -- what the broker does ------------------------------------------------------------------------------------

    def decide(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, ev.Dispatch):
                batch = action.batch
                link = self.fleet.links[batch.worker]
                link.ring(Bell.RUN, batch.id, batch.spec.servable.life, 0, True, batch.start_by, [])
            elif isinstance(action, ev.Deliver):
                for piece in action.batch.pieces:
                    self.answer(piece.first, self.registry.by_handle[action.batch.spec.servable.life])
            elif isinstance(action, ev.Refuse):
                for piece in action.segments:
                    self.answer(piece.first, action.error)

    def recycle(self, link: Link) -> None:
        link.state, link.leaving, link.drained = WorkerState.DRAINING, True, False
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
            for event in self.intake.admit(request, self.now):
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
        """One turn of the broker's loop."""
        self.lifecycle.look()
        self.lobby.expire(self.now)
        self.decide(ev.Turn())
        self.blame.look(self.now)
        self.turnover.tend()
        self.reforms.step()
        self.migrations.step()
        self.rolling.step()
        self.lifecycle.step(self.now)
        self.shadows.refresh()

    # -- what others do ------------------------------------------------------------------------------------------

    def request(self, model: str, version: int = 0, label: str = "", seconds: float = 1e6) -> int:
        """Ask for one row; returns the request's number."""
        key = RequestKey(model, version, label, "", (Tensor("x", DType.FLOAT, ()),), True)
        self.asked += 1
        group = Group(pack_request_key(key), self.asked, 1, 1, int(seconds * 1000), 0, None, None)
        self.admit(Request(b"c", key, group, [b"1234"], self.now))
        return self.asked

    def join(self, name: str, bell: Bellows | None = None) -> None:
        """A worker has started, or, with a ``bell``, one that has outlived another world has come."""
        link = self.fleet.links[name]
        bell = self.bells[name] = bell or Bellows(name)
        self.fleet.attach(name, link.generation + 1, bell)  # type: ignore[arg-type]
        self.fleet.ready(link, 1, bell.gauge, Gauge(BASE, BASE, BASE), bell.inventory())
        self.decide(ev.WorkerJoined(name, link.holder))
        self.residence.joined(link)

    def lose(self, name: str, status: int = -9) -> None:
        """A worker has died, by itself or not (a status or a negative signal), or left as it was told to."""
        link = self.fleet.links[name]
        self.bells[name] = None
        self.blame.died(link)
        self.fleet.detach(link)
        self.residence.lost(link)
        self.decide(ev.WorkerLost(name, "lost"))
        self.decide(ev.WorkerReaped(link.holder))
        self.blame.reaped(*link.holder, status, False, self.now)

    def size(self, path: str) -> int:
        """Bytes of a version once it is loaded."""
        return self.disk.sizes.get(path, MIB)

    def work(self, name: str) -> None:
        """A worker ends the load, or unload, that it is at."""
        link, bell = self.fleet.links[name], self.bells[name]
        assert bell is not None
        what, handle, *rest = bell.slow.popleft()
        if what == "unload":
            bell.drops(handle)
            link.tells(bell.gauge)
            self.residence.unloaded(link, handle)
        elif what == "reform":
            self._reform(link, bell, handle, *rest)
        elif what == "load" and handle < 0:  # nobody has claimed it: its load is a secret
            self._loads(bell, handle, *rest)
        elif what == "load" and rest[0] in self.broken:
            bell.orders.pop(handle, None)
            self.residence.load_failed(link, handle, FailedPrecondition(f"{rest[0]}: broken"))
        else:
            self.residence.warming(link, handle)
            if what == "load":
                self._loads(bell, handle, *rest)
            found, form, key = bell.took(handle)
            self.residence.loaded(link, handle, found, self.signatures, {}, form, key)
            if self.bells[name] is bell:
                link.tells(bell.gauge)

    def _loads(self, bell: Bellows, handle: int, path: str, form: str) -> None:
        """A worker loads what it was told to, in the form that it was told to if the store has that."""
        stored = self.disk.store.get(path)
        if form == Form.PLAIN.value or stored is None or stored.refusal:
            bell.holds(handle, Form.PLAIN, Footprint(self.size(path), self.size(path), 0.5), "")
        else:
            bell.holds(handle, Form(form), stored.footprints[Form(form)], stored.key)

    def _reform(self, link: Link, bell: Bellows, handle: int, path: str, form: str) -> None:
        """A worker changes a form, whether somebody waits for it or not."""
        stored = self.disk.store.get(path)
        able = stored is not None and not stored.refusal
        if able:
            self._loads(bell, handle, path, form)
        if handle > 0 and able:  # else nobody has claimed it
            self.reforms.changed(link, handle, *bell.took(handle))
        elif handle > 0:
            self.reforms.failed(link, handle, "the store does not have it")
        link.tells(bell.gauge)

    def compile(self, version: Version, refusal: str = "", gain: float = 1.5) -> Stored:
        """A version is in the store from now on, and the broker knows: mapped it takes a quarter of what the original
        does, and shares as much as that."""
        nbytes = self.size(version.path)
        private = nbytes // 4
        sizes = {Form.PLAIN: nbytes, Form.MAPPED: private, Form.INLINED: private + nbytes}
        shared = {Form.MAPPED: nbytes}
        footprints = {form: Footprint(size, size, 0.1, shared.get(form, 0)) for form, size in sizes.items()}
        stored = Stored(f"{nbytes} of {version.path}", refusal, {} if refusal else footprints, gain)
        self.disk.store[version.path] = version.stored = stored
        return stored

    def runs(self, name: str) -> int:
        """How many batches a worker has."""
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
                self.turn()  # what this turn's last step has made possible
                if self.step_once():
                    continue
                if not (self.lifecycle._retries or self.residence.blocked):
                    return
                self.now = max(self.now, self.lifecycle.next_retry())
        raise AssertionError("it never comes to rest")

    def settle_but_loads(self) -> None:
        """All that the disk has to say is said."""
        while self.disk.looks or self.disk.jobs:
            self.step_once()
            self.turn()

    def step_once(self) -> bool:
        """The next thing that is under way ends; whether there was one."""
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
        """The numbers of the versions that serve."""
        return sorted(number for number, version in self.model(name).versions.items() if version.serving())

    def answered(self, number: int) -> int:
        """The version that answered a request."""
        found = self.answers[number]
        assert isinstance(found, Version), found
        return found.key.version

    def refused(self, number: int) -> TfpoolError:
        """The error that a request ended with."""
        found = self.answers[number]
        assert isinstance(found, TfpoolError), found
        return found


def model(name: str = "m", **options: Any) -> ModelSettings:
    """The settings of a model below ``/``."""
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


def settled(world: World, number: int) -> int:
    """The same request, once everything has come to rest."""
    world.settle()
    return number
