"""The workers as the broker knows them: their doorbells, their state, what they are loading."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tfpool.broker.inventory import Inventory, Item
from tfpool.settings import Form, WorkerSettings
from tfpool.shm.doorbell import Doorbell
from tfpool.wire.messages import Bell, Gauge, pack

_NOTHING = Gauge(0, 0, 0)


class WorkerState(Enum):
    """STARTING: no process is ready; BACKOFF: it died and waits to be replaced; HALTED: given up."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    BACKOFF = "BACKOFF"
    HALTED = "HALTED"


@dataclass(slots=True)
class Link:
    """One worker. ``loads`` wait for a free place among ``loading``; both hold handles. ``arenas`` are mapped there.

    Times are seconds, memory is bytes. ``gauge`` is what it told last. ``unique`` is what it has to itself of the
    memory that its budget bounds, which is that of its GPU if it has one that tells; ``base`` what it had of it when it
    was empty; ``resident`` what each model added, by handle; ``reserved`` what the loads under way may take;
    ``unloading`` has been told to go; ``inventory`` is left of an earlier broker, and is ``resident`` by negative
    handles.
    ``deaths`` counts the processes that died under this name. ``heard`` says that the worker has spoken since somebody
    last looked; ``outlives`` that it has been left by an earlier broker; ``drained`` that nobody wants it to serve;
    ``closed`` that it is given no models, for it is about to be replaced; ``kept_for`` is the version that it is kept
    for, or 0. ``residue`` are bytes that unloaded models have left behind, as of the last unload. ``spent`` has, since
    the planner last looked, the rows, seconds and batches of each version that has run. ``forms`` tells in which form
    each model is held here, ``reforming`` which are changing it.
    """

    settings: WorkerSettings
    state: WorkerState = WorkerState.STARTING
    bell: Doorbell | None = None
    generation: int = 0
    pid: int = 0
    loads: deque[int] = field(default_factory=deque)
    loading: set[int] = field(default_factory=set)
    unloading: set[int] = field(default_factory=set)
    resident: dict[int, int] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    inventory: Inventory = field(default_factory=Inventory)
    arenas: set[int] = field(default_factory=set)
    gauge: Gauge = _NOTHING
    on_gpu: bool = False
    unique: int = 0
    base: int = 0
    busy: float = 0.0
    busy_share: float = 0.0
    deaths: int = 0
    leaving: bool = False
    outlives: bool = False
    heard: bool = False
    drained: bool = False
    closed: bool = False
    kept_for: int = 0
    residue: int = 0
    forms: dict[int, Form] = field(default_factory=dict)
    reforming: set[int] = field(default_factory=set)
    spent: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def holder(self) -> tuple[str, int]:
        """This life of the worker, for leases."""
        return self.name, self.generation

    @property
    def up(self) -> bool:
        return self.bell is not None and self.state in (WorkerState.READY, WorkerState.DRAINING)

    def tells(self, gauge: Gauge) -> None:
        """The worker has measured its memory. A GPU that tells nothing for once leaves what it told before."""
        self.gauge = gauge
        self.unique = gauge.unique if not self.on_gpu else self.unique if gauge.gpu is None else gauge.gpu

    def ran(self, handle: int, rows: int, seconds: float) -> None:
        """A batch of a version has run here."""
        self.busy += seconds
        spent = self.spent.get(handle)
        if spent is None:
            self.spent[handle] = [float(rows), seconds, 1.0]
        else:
            spent[0] += rows
            spent[1] += seconds
            spent[2] += 1

    def ring(self, verb: Bell, *fields: Any, fds: tuple[int, ...] = ()) -> None:
        """Tell the worker. A dead worker hears nothing; its end of file is on its way."""
        if self.bell is not None:
            try:
                self.bell.ring(pack([verb, *fields]), fds)
            except (BrokenPipeError, ConnectionResetError):
                pass


class Fleet:
    """All workers by name, and by the descriptor of their doorbells. ``epoch`` rises as workers come and go."""

    def __init__(self, workers: tuple[WorkerSettings, ...]) -> None:
        self.links = {settings.name: Link(settings) for settings in workers}
        self.by_fd: dict[int, Link] = {}
        self.epoch = 0

    def attach(self, name: str, generation: int, bell: Doorbell) -> Link:
        link = self.links[name]
        link.bell, link.generation, link.state = bell, generation, WorkerState.STARTING
        self.by_fd[bell.fileno()] = link
        return link

    def ready(self, link: Link, pid: int, gauge: Gauge, base: Gauge, inventory: Iterable[Item]) -> None:
        """The worker may be given batches; ``base`` was its memory when it was empty."""
        link.state = WorkerState.DRAINING if link.drained else WorkerState.READY
        link.pid, link.on_gpu = pid, base.gpu is not None
        link.base = link.unique = base.unique if base.gpu is None else base.gpu
        link.tells(gauge)
        link.inventory = Inventory(inventory)
        link.resident.update((item.handle, item.nbytes) for item in link.inventory if item.nbytes is not None)
        self.epoch += 1

    def detach(self, link: Link) -> None:
        """The worker's process is dead, or as good as."""
        if link.bell is not None:
            del self.by_fd[link.bell.fileno()]
            link.bell.close()
        self.epoch += 1
        link.bell = None
        link.state = WorkerState.BACKOFF
        link.leaving = link.outlives = False
        link.pid = link.unique = link.base = 0
        link.gauge, link.on_gpu = _NOTHING, False
        link.busy_share = 0.0
        link.residue = 0
        link.inventory = Inventory()
        for held in (link.loads, link.loading, link.unloading, link.resident, link.reserved, link.arenas):
            held.clear()
        link.forms.clear()
        link.reforming.clear()

    def candidates(self) -> list[Link]:
        """Workers that may be given models: all that are, or will be, ready."""
        out = (WorkerState.HALTED, WorkerState.DRAINING)
        links = [link for link in self.links.values() if not (link.drained or link.closed)]
        return [link for link in links if link.leaving or link.state not in out]
