"""Who is in a game of :mod:`tfpool.placement.whatif`: servables and workers, as they are at a moment of it. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tfpool.placement.rates import Rates
from tfpool.placement.snapshot import Hold, Inlined, Replica, ServableView, Step, WorkerView


@dataclass(frozen=True, slots=True)
class Tenant:
    """A servable of the game: as it is seen, without its demand; rows of a request; what a row truly takes, by
    worker, where it is not inlined."""

    view: ServableView
    rows: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class World:
    """Where the game is played. What ``on`` of the servables says is there at the beginning."""

    workers: tuple[WorkerView, ...]
    tenants: tuple[Tenant, ...]
    tick: float = 0.25
    interval: float = 1.0
    patience: float = 10.0


class Seat:
    """What a worker holds, bytes by handle, and its loads: handle, seconds left, the step that asked for it."""

    def __init__(self, view: WorkerView) -> None:
        self.view = view
        self.held: dict[int, int] = {}
        self.loads: deque[tuple[int, float, Step | None]] = deque()
        self.worked = self.busy = 0.0
        self.spent = 0.0  # seconds of this tick on loads

    @property
    def free(self) -> float:
        return math.inf if self.view.room is None else self.view.room - sum(self.held.values())


class Guest:
    """A servable: who waits for it (since when, how many, whether it was cold), where it is, what is asked of it.

    ``reforms`` are the workers that are loading its inlined form.
    """

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.waiting: deque[tuple[float, float, bool]] = deque()
        self.on: dict[str, Replica] = {}
        self.reforms: set[str] = set()
        self.ran = dict.fromkeys(tenant.view.row_seconds)
        self.wanted = tenant.view.wanted
        self.asks = 0
        self.rates = Rates(0, 0, 0.0)
        self.seen: ServableView | None = None  # until something changes

    def serving(self) -> list[str]:
        return [worker for worker, replica in self.on.items() if replica.hold is Hold.SERVES]

    def put(self, worker: str, replica: Replica | None) -> None:
        """It is this to a worker from now on; None: nothing."""
        self.seen = None
        self.on.pop(worker, None)
        self.reforms.discard(worker)
        if replica is not None:
            self.on[worker] = replica

    def reform(self, worker: str) -> None:
        """A worker begins to load its inlined form."""
        self.seen = None
        self.reforms.add(worker)

    def faster(self, worker: str) -> Inlined | None:
        """The inlined form, where the replica on a worker has it."""
        return self.tenant.view.inlined if worker in self.on and self.on[worker].inlined else None

    def seconds(self, worker: str) -> float:
        """What a row truly takes on a worker."""
        faster = self.faster(worker)
        return self.tenant.seconds[worker] / (1.0 if faster is None else faster.gain)

    def look(self, now: float) -> None:
        self.seen = None
        self.rates.look(self.asks, round(self.asks * self.tenant.rows), now)

    def view(self, now: float) -> ServableView:
        """As its planner sees it, with what it was asked for at the last look."""
        if self.seen is None:
            tenant, moving = self.tenant, any(replica.hold is not Hold.SERVES for replica in self.on.values())
            moving = moving or bool(self.reforms)
            self.seen = replace(
                tenant.view,
                fast=self.rates.fast,
                slow=self.rates.slow,
                row_seconds={worker: self.seconds(worker) for worker in self.ran if worker in tenant.seconds},
                on=dict(self.on),
                wanted=self.wanted,
                movable=tenant.view.movable and not moving,
                idle=now - self.rates.asked_at,
            )
        return self.seen
