"""A pool in virtual time, to see what a placement policy makes of a demand. Pure.

Requests are counted, not answered: at each tick, what is asked of the servables is divided over the workers that serve
them (see :mod:`tfpool.placement.fluid`). Requests for a servable that is not in memory have it loaded, and wait; the
policy is asked for steps at intervals. Loads take time, and part of their worker's; where there is no room for one,
idle servables leave. A form changes once it is loaded, and at once where it is mapped again. Requests that have waited
for too long are lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from tfpool.placement.fluid import Crowd, serve
from tfpool.placement.guests import Guest, Seat, World
from tfpool.placement.rates import FAST_SECONDS
from tfpool.placement.snapshot import REFORMS, Hold, Kind, Past, Replica, Snapshot, Step
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


class Game:
    """A world and a policy, tick by tick."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.now = 0.0
        self._world = world
        self._policy = policy
        self._seats = {view.name: Seat(view) for view in world.workers}
        self._guests = {tenant.view.handle: Guest(tenant) for tenant in world.tenants}
        self._active: dict[int, None] = {}
        self._past: deque[Past] = deque()
        self._left: dict[tuple[int, str], float] = {}
        self._tally = Tally()
        self._next = world.interval
        for guest in self._guests.values():
            for worker, replica in guest.tenant.view.on.items():
                if worker in self._seats and self._seats[worker].free >= guest.tenant.view.nbytes:
                    self._settle(guest, self._seats[worker])
                    if replica.inlined:
                        self._inline(guest, self._seats[worker])

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

    def _ask(self, guest: Guest, count: int) -> None:
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
            rows = guest.tenant.rows
            seconds = {worker: max(_LEAST, guest.seconds(worker) * rows) for worker in guest.serving()}
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

    def _answer(self, guest: Guest, count: float, queued: float) -> None:
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

    def _despair(self, guest: Guest) -> None:
        while guest.waiting and self.now - guest.waiting[0][0] > self._world.patience:
            _, count, cold = guest.waiting.popleft()
            self._tally.lost += count
            self._tally.crowded += 0.0 if cold else count
            self._tally.cold_seconds += count * self._world.patience if cold else 0.0
            self._tally.waited(count, self._world.patience)

    # -- loads -----------------------------------------------------------------------------------------------------

    def _enqueue(self, guest: Guest, seat: Seat, step: Step | None) -> None:
        guest.put(seat.view.name, Replica(Hold.COMES, self.now))
        seat.loads.append((guest.tenant.view.handle, guest.tenant.view.load_seconds, step))
        if step is not None:
            seat.held[guest.tenant.view.handle] = guest.tenant.view.peak

    def _load(self, seat: Seat) -> None:
        """One tick of loading, one after the other."""
        seat.spent = 0.0
        while seat.loads and seat.spent < self._world.tick:
            handle, needs, step = seat.loads[0]
            guest = self._guests[handle]
            inlines = step is not None and step.kind is Kind.INLINE
            if inlines and seat.view.name not in guest.reforms:  # it has left meanwhile
                seat.loads.popleft()
                continue
            if handle not in seat.held and not self._make_room(guest, seat):
                return
            now = min(needs, self._world.tick - seat.spent)
            seat.spent += now
            if now < needs:
                seat.loads[0] = (handle, needs - now, step)
                return
            seat.loads.popleft()
            if inlines:
                self._inline(guest, seat)
                continue
            self._tally.loads += step is None
            self._settle(guest, seat, self.now - self._world.tick + seat.spent)
            if step is not None and step.source:
                self._leave(guest, self._seats[step.source])

    def _settle(self, guest: Guest, seat: Seat, since: float = 0.0) -> None:
        view = guest.tenant.view
        seat.held[view.handle] = view.nbytes
        guest.put(seat.view.name, Replica(Hold.SERVES, since))
        self._policy.cache.admit(view.handle, max(1, view.nbytes), view.load_seconds)

    def _inline(self, guest: Guest, seat: Seat) -> None:
        """A replica has its inlined form from now on, where there is one and memory for it."""
        name, view = seat.view.name, guest.tenant.view
        seat.held[view.handle] = view.nbytes
        replica, form = guest.on[name], view.inlined
        fits = form is not None and form.nbytes <= seat.free
        guest.put(name, replica._replace(inlined=fits))
        seat.held[view.handle] += form.nbytes if form is not None and fits else 0

    def _make_room(self, guest: Guest, seat: Seat) -> bool:
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

    def _idle(self, guest: Guest, seat: Seat) -> bool:
        """Whether a worker could do without a servable: nobody waits for it but those of this very tick."""
        waits = bool(guest.waiting) and guest.waiting[0][0] < self.now - self._world.tick
        return not waits and seat.view.name in guest.serving()

    def _evict(self, guest: Guest, seat: Seat) -> None:
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
        if step.kind in REFORMS:
            self._tally.reforms += 1
            self._reform(guest, step)
        elif step.kind in _STEP_KINDS:
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

    def _can(self, guest: Guest, step: Step) -> bool:
        if step.source and step.source not in guest.serving():
            return False
        if step.kind is Kind.MAP:
            return guest.faster(step.source) is not None
        if step.kind is Kind.INLINE:
            form, changed = guest.tenant.view.inlined, guest.faster(step.target) or step.target in guest.reforms
            able = form is not None and not changed and step.target in guest.serving()
            return able and form is not None and self._seats[step.target].free >= form.peak
        if step.kind not in _STEP_KINDS:
            return bool(step.source)
        seat = self._seats.get(step.target)
        return seat is not None and step.target not in guest.on and seat.free >= guest.tenant.view.peak

    def _reform(self, guest: Guest, step: Step) -> None:
        """A replica begins to load its inlined form, or is mapped at once."""
        view, form = guest.tenant.view, guest.tenant.view.inlined
        if form is not None and step.kind is Kind.INLINE:
            seat = self._seats[step.target]
            guest.reform(step.target)
            seat.held[view.handle] = view.nbytes + form.peak
            seat.loads.append((view.handle, form.load_seconds, step))
        else:
            self._seats[step.source].held[view.handle] = view.nbytes
            guest.put(step.source, guest.on[step.source]._replace(inlined=False))

    def _leave(self, guest: Guest, seat: Seat) -> None:
        """A servable leaves a worker because a step says so, if it is still there."""
        if guest.on.get(seat.view.name, Replica(Hold.GOES, 0.0)).hold is Hold.SERVES:
            self._left[guest.tenant.view.handle, seat.view.name] = self.now
            self._evict(guest, seat)
