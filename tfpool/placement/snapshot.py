"""What the planner sees and says: a pool at one moment, and one step that would make it better. Pure.

Times are seconds on one clock, sizes are bytes. Everything is frozen, so that a decision can be repeated from its
snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Demand(NamedTuple):
    """What is asked of a servable: requests a second, and rows a second."""

    asks: float
    rows: float


NOTHING = Demand(0.0, 0.0)


class Hold(Enum):
    """What a worker is to a servable: it serves it, loads it, or is letting go of it."""

    SERVES = "serves"
    COMES = "comes"
    GOES = "goes"


class Replica(NamedTuple):
    """A servable on a worker, and since when it has been what it is. ``inlined``: in its faster, larger form."""

    hold: Hold
    since: float
    inlined: bool = False


class Inlined(NamedTuple):
    """The form of a servable that has its weights to itself: bytes that it keeps, and takes at the height of its load,
    beside the form that it replaces; ``gain`` (above 0) is how many times the rows a second it runs."""

    nbytes: int
    peak: int
    load_seconds: float
    gain: float


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker. ``room`` is what models may fill of it (None: no limit), ``held`` what they do, with loads that have
    begun, and with the ``residue`` that earlier models have left. ``busy`` is the share of its time that it ran.

    ``open``: it may be given models. One that is ``kept_for`` a servable (a handle) takes no other.
    """

    name: str
    device: str = "cpu"
    threads: int = 1
    room: int | None = None
    held: int = 0
    residue: int = 0
    busy: float = 0.0
    open: bool = True
    kept_for: int = 0

    @property
    def free(self) -> float:
        """Bytes that are left (below 0: it holds too much)."""
        return float("inf") if self.room is None else self.room - self.held


@dataclass(frozen=True, slots=True)
class ServableView:
    """A model version. ``nbytes`` is what it keeps, ``peak`` what loading it takes; ``fast`` and ``slow`` are averages
    of what is asked of it over a short and a long time. ``row_seconds`` has the worker seconds that a row takes, by
    worker, where it has run, in the form that the replica there has.

    ``replicas`` are (least, most). ``wanted``: it shall be in memory, also where nobody asks for it at the moment.
    ``movable``: it may be loaded elsewhere (it keeps no state, and is not on its way already). ``crashes`` are workers
    that it has crashed of late. ``idle`` are seconds since it was last asked for.

    ``nbytes`` and ``peak`` are those of a replica as it is first loaded; ``nbytes`` counts the pages of a mapped file
    that replicas share once a host, in equal parts. ``inlined`` is the form that a replica may change to where it is
    worth the memory (None: there is none).
    """

    handle: int
    name: str
    nbytes: int
    peak: int
    load_seconds: float
    fast: Demand = NOTHING
    slow: Demand = NOTHING
    row_seconds: Mapping[str, float] = field(default_factory=dict)
    replicas: tuple[int, int] = (1, 1)
    pins: tuple[str, ...] = ()
    on: Mapping[str, Replica] = field(default_factory=dict)
    wanted: bool = True
    movable: bool = True
    crashes: int = 0
    idle: float = 0.0
    inlined: Inlined | None = None

    def faster(self, worker: str) -> Inlined | None:
        """The inlined form, where the replica on a worker has it."""
        replica = self.on.get(worker)
        return self.inlined if replica is not None and replica.inlined else None

    def kept(self, worker: str) -> int:
        """Bytes that a replica keeps on a worker."""
        faster = self.faster(worker)
        return self.nbytes if faster is None else self.nbytes + faster.nbytes


class Kind(Enum):
    """What a step does to a servable, or to a worker; INLINE and MAP have a replica change its form where it is."""

    LOAD = "load"
    REPLICATE = "replicate"
    MIGRATE = "migrate"
    DROP = "drop"
    EVICT = "evict"
    RECYCLE = "recycle"
    INLINE = "inline"
    MAP = "map"


REFORMS = frozenset({Kind.INLINE, Kind.MAP})


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. ``source`` is the worker that lets go, ``target`` the one that loads (empty: none);
    ``nbytes`` are those that are loaded or given back.

    ``gain`` is what it saves within the horizon and ``cost`` what it disturbs, both in seconds of waiting. ``reason``
    is for people.
    """

    kind: Kind
    handle: int
    name: str
    source: str
    target: str
    nbytes: int
    gain: float
    cost: float
    reason: str


class Past(NamedTuple):
    """A step that was taken, and when."""

    when: float
    kind: Kind
    handle: int
    source: str
    target: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool at ``now``; ``past`` has the steps of the last minutes, the oldest first."""

    now: float
    workers: tuple[WorkerView, ...]
    servables: tuple[ServableView, ...]
    past: tuple[Past, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """How eager the planner is; see :class:`tfpool.settings.PlacementSettings`. ``residue`` is what a worker may keep
    of models that have left, before it is recycled; ``idle`` is how long nobody must have asked for a servable that
    need not be in memory."""

    horizon: float = 60.0
    hysteresis: float = 2.0
    moves_per_minute: int = 60
    bytes_per_minute: int = 16 << 30
    residue: int = 256 << 20
    idle: float = 300.0
