"""A pool in virtual time, to see what a placement policy makes of a demand. Pure.

Requests are counted, not answered: at each tick, what is asked of the servables is divided over the workers that serve
them (see :mod:`tfpool.placement.fluid`). Requests for a servable that is not in memory have it loaded, and wait; the
policy is asked for steps at intervals. Loads take time, and part of their worker's; where there is no room for one,
idle servables leave. Requests that have waited for too long are lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tfpool.placement.fluid import Crowd, serve
from tfpool.placement.rates import FAST_SECONDS, Rates
from tfpool.placement.snapshot import Hold, Kind, Past, Replica, ServableView, Snapshot, Step, WorkerView
from tfpool.placement.tally import Outcome, Tally

REVERSED_SECONDS = 120.0
WORKERS_PER_MOVE = 4
_PAST_SECONDS = 600.0
_LOADING_SHARE = 0.5  # of a worker's time that goes into a load, while it loads
_LEAST = 1e-7  # seconds that any request takes
_STEP_KINDS = (Kind.LOAD, Kind.REPLICATE, Kind.MIGRATE)


class Cache(Protocol):
    """Says what leaves a worker for want of room; as :class:`tfpool.placement.eviction.Gdsf`."""

    def admit(self, key: Hashable, nbytes: int, cost: float) -> None: ...

    def hit(self, key: Hashable, count: int = 1) -> None: ...

    def victims(self, needed: int, evictable: Iterable[Hashable]) -> list[Hashable]: ...

    def evicted(self, key: Hashable) -> None: ...

    def forget(self, key: Hashable) -> None: ...


class Policy(Protocol):
    """Who decides. ``cache`` is asked when there is no room."""

    cache: Cache

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        """What to do now, beyond loading what is asked for."""

    def choose(self, snapshot: Snapshot, handle: int) -> str:
        """The worker that loads a servable which is asked for and serves nowhere; empty where none can."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A servable of the game: as it is seen, without its demand; rows of a request; what a row truly takes, by
    worker."""

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


class _Seat:
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


class _Guest:
    """A servable: who waits for it (since when, how many, whether it was cold), where it is, what is asked of it."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.waiting: deque[tuple[float, float, bool]] = deque()
        self.on: dict[str, Replica] = {}
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
        if replica is not None:
            self.on[worker] = replica

    def look(self, now: float) -> None:
        self.seen = None
        self.rates.look(self.asks, round(self.asks * self.tenant.rows), now)

    def view(self, now: float) -> ServableView:
        """As its planner sees it, with what it was asked for at the last look."""
        if self.seen is None:
            tenant, moving = self.tenant, any(replica.hold is not Hold.SERVES for replica in self.on.values())
            self.seen = replace(
                tenant.view,
                fast=self.rates.fast,
                slow=self.rates.slow,
                row_seconds={worker: tenant.seconds[worker] for worker in self.ran if worker in tenant.seconds},
                on=dict(self.on),
                wanted=self.wanted,
                movable=tenant.view.movable and not moving,
                idle=now - self.rates.asked_at,
            )
        return self.seen


class Game:
    """A world and a policy, tick by tick."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.now = 0.0
        self._world = world
        self._policy = policy
        self._seats = {view.name: _Seat(view) for view in world.workers}
        self._guests = {tenant.view.handle: _Guest(tenant) for tenant in world.tenants}
        self._active: dict[int, None] = {}
        self._past: deque[Past] = deque()
        self._left: dict[tuple[int, str], float] = {}
        self._tally = Tally()
        self._next = world.interval
        for guest in self._guests.values():
            for worker in guest.tenant.view.on:
                if worker in self._seats and self._seats[worker].free >= guest.tenant.view.nbytes:
                    self._settle(guest, self._seats[worker])

    def tick(self, asked: Mapping[int, int]) -> None:
        """Time goes on by a tick, in which so many requests come, by handle."""
        for handle, count in asked.items():
            self._ask(self._guests[handle], count)
        for handle in self._active:
            guest = self._guests[handle]
            if not guest.on and (worker := self._policy.choose(self.snapshot(), handle)):
                self._enqueue(guest, self._seats[worker], None)
        self.now += self._world.tick
        for seat in self._seats.values():
            self._load(seat)
        self._serve()
        if self.now >= self._next - 1e-9:
            self._next += self._world.interval
            for guest in self._guests.values():
                guest.look(self.now)
            if not self._occupied():
                for step in self._policy.steps(self.snapshot()):
                    self._take(step)

    def outcome(self) -> Outcome:
        """What has come of it so far."""
        waiting = sum(count for guest in self._guests.values() for _, count, _ in guest.waiting)
        busy = {name: seat.worked / self.now if self.now else 0.0 for name, seat in self._seats.items()}
        return self._tally.outcome(self.now, waiting, busy)

    def snapshot(self) -> Snapshot:
        """The pool as its planner would see it."""
        workers = tuple(
            replace(seat.view, held=sum(seat.held.values()), busy=min(1.0, seat.busy)) for seat in self._seats.values()
        )
        return Snapshot(
            self.now, workers, tuple(guest.view(self.now) for guest in self._guests.values()), tuple(self._past)
        )

    # -- requests --------------------------------------------------------------------------------------------------

    def _ask(self, guest: _Guest, count: int) -> None:
        if count <= 0:
            return
        cold = not guest.serving()
        guest.waiting.append((self.now, count, cold))
        guest.asks += count
        self._active[guest.tenant.view.handle] = None
        self._policy.cache.hit(guest.tenant.view.handle, count)
        self._tally.asked += count
        self._tally.cold += count if cold else 0.0

    def _serve(self) -> None:
        tick = self._world.tick
        guests = [guest for guest in map(self._guests.__getitem__, self._active) if guest.serving()]
        able = {name: tick - _LOADING_SHARE * seat.spent for name, seat in self._seats.items()}
        crowds = []
        for guest in guests:
            costs = guest.tenant.seconds
            seconds = {worker: max(_LEAST, costs[worker] * guest.tenant.rows) for worker in guest.serving()}
            crowds.append(Crowd(sum(count for _, count, _ in guest.waiting), seconds))
            guest.ran.update(seconds)
        served, use = serve(crowds, able)
        for guest, part in zip(guests, served, strict=True):
            self._tally.served += part.count
            self._tally.crowded += part.crowded
            self._answer(guest, part.count, part.waits)
        for name, seat in self._seats.items():
            worked = (use[name].worked if name in use else 0.0) + tick - able[name]
            seat.worked += worked
            seat.busy += (worked / tick - seat.busy) * (1.0 - math.exp(-tick / FAST_SECONDS))
        for handle in list(self._active):
            self._despair(self._guests[handle])
            if not self._guests[handle].waiting:
                del self._active[handle]

    def _answer(self, guest: _Guest, count: float, queued: float) -> None:
        """The longest waiting are answered. Those that came in this tick have waited only for others."""
        begun = min(guest.on[worker].since for worker in guest.serving())
        while guest.waiting and count > 1e-9:
            since, there, cold = guest.waiting.popleft()
            taken = min(there, count)
            count -= taken
            if there - taken > 1e-9:
                guest.waiting.appendleft((since, there - taken, cold))
            loading = max(0.0, begun - since) if cold else 0.0
            self._tally.cold_seconds += taken * loading
            self._tally.waited(taken, max(loading, self.now - self._world.tick - since) + queued)

    def _despair(self, guest: _Guest) -> None:
        while guest.waiting and self.now - guest.waiting[0][0] > self._world.patience:
            _, count, cold = guest.waiting.popleft()
            self._tally.lost += count
            self._tally.crowded += 0.0 if cold else count
            self._tally.cold_seconds += count * self._world.patience if cold else 0.0
            self._tally.waited(count, self._world.patience)

    # -- loads -----------------------------------------------------------------------------------------------------

    def _enqueue(self, guest: _Guest, seat: _Seat, step: Step | None) -> None:
        guest.put(seat.view.name, Replica(Hold.COMES, self.now))
        seat.loads.append((guest.tenant.view.handle, guest.tenant.view.load_seconds, step))
        if step is not None:
            seat.held[guest.tenant.view.handle] = guest.tenant.view.peak

    def _load(self, seat: _Seat) -> None:
        """One tick of loading, one after the other."""
        seat.spent = 0.0
        while seat.loads and seat.spent < self._world.tick:
            handle, needs, step = seat.loads[0]
            guest = self._guests[handle]
            if handle not in seat.held and not self._make_room(guest, seat):
                return
            now = min(needs, self._world.tick - seat.spent)
            seat.spent += now
            if now < needs:
                seat.loads[0] = (handle, needs - now, step)
                return
            seat.loads.popleft()
            self._tally.loads += step is None
            self._settle(guest, seat, self.now - self._world.tick + seat.spent)
            if step is not None and step.source:
                self._leave(guest, self._seats[step.source])

    def _settle(self, guest: _Guest, seat: _Seat, since: float = 0.0) -> None:
        view = guest.tenant.view
        seat.held[view.handle] = view.nbytes
        guest.put(seat.view.name, Replica(Hold.SERVES, since))
        self._policy.cache.admit(view.handle, max(1, view.nbytes), view.load_seconds)

    def _make_room(self, guest: _Guest, seat: _Seat) -> bool:
        """Reserve what a load takes; idle servables leave for it. False where too much is in use."""
        view = guest.tenant.view
        missing = view.peak - seat.free
        if missing > 0:
            idle = [handle for handle in seat.held if self._idle(self._guests[handle], seat)]
            victims = self._policy.cache.victims(math.ceil(missing), idle)
            for victim in victims:
                assert isinstance(victim, int)
                self._tally.evictions += 1
                self._evict(self._guests[victim], seat)
            if not victims:
                return False
        seat.held[view.handle] = view.peak
        return True

    def _idle(self, guest: _Guest, seat: _Seat) -> bool:
        """Whether a worker could do without a servable: nobody waits for it but those of this very tick."""
        waits = bool(guest.waiting) and guest.waiting[0][0] < self.now - self._world.tick
        return not waits and seat.view.name in guest.serving()

    def _evict(self, guest: _Guest, seat: _Seat) -> None:
        guest.put(seat.view.name, None)
        del seat.held[guest.tenant.view.handle]
        if not guest.on:
            guest.wanted = False
            self._policy.cache.evicted(guest.tenant.view.handle)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        """Begin a step; one that has become impossible is refused."""
        guest = self._guests.get(step.handle)
        if guest is None or not self._can(guest, step):
            self._tally.refused += 1
            return
        self._past.append(Past(self.now, step.kind, step.handle, step.source, step.target, step.nbytes))
        while self._past[0].when < self.now - _PAST_SECONDS:
            self._past.popleft()
        if step.kind in _STEP_KINDS:
            gone = self._left.get((step.handle, step.target), -math.inf)
            self._tally.moves += 1
            self._tally.reversed += step.kind is not Kind.LOAD and self.now - gone < REVERSED_SECONDS
            self._tally.moved_bytes += guest.tenant.view.nbytes
            self._enqueue(guest, self._seats[step.target], step)
        else:
            self._tally.evictions += step.kind is Kind.EVICT
            self._leave(guest, self._seats[step.source])

    def _occupied(self) -> bool:
        """Whether enough is moving already."""
        moves = sum(step is not None for seat in self._seats.values() for _, _, step in seat.loads)
        return moves >= max(1, len(self._seats) // WORKERS_PER_MOVE)

    def _can(self, guest: _Guest, step: Step) -> bool:
        if step.source and step.source not in guest.serving():
            return False
        if step.kind not in _STEP_KINDS:
            return bool(step.source)
        seat = self._seats.get(step.target)
        return seat is not None and step.target not in guest.on and seat.free >= guest.tenant.view.peak

    def _leave(self, guest: _Guest, seat: _Seat) -> None:
        """A servable leaves a worker because a step says so, if it is still there."""
        if guest.on.get(seat.view.name, Replica(Hold.GOES, 0.0)).hold is Hold.SERVES:
            self._left[guest.tenant.view.handle, seat.view.name] = self.now
            self._evict(guest, seat)
