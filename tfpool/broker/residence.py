"""Versions on workers: placed, loaded when there is room, drained, unloaded; and what the end of a worker means.

A load waits at its worker until there is memory for it. One that a request or a person asks for pushes idle models
out; one that is merely preloaded does not: it stays out until a request comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tfpool.broker.adoption import Adoption
from tfpool.broker.budget import Budget, usual
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.inventory import order
from tfpool.broker.leaving import Leaving
from tfpool.broker.registry import Goal, Registry, Version, failure
from tfpool.broker.room import Room
from tfpool.errors import FailedPrecondition, Internal, NotFound, ResourceExhausted, TfpoolError, Unavailable
from tfpool.placement.planner import place
from tfpool.repository.memo import Footprint
from tfpool.repository.states import State, Step
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.settings import Form, PoolSettings
from tfpool.telemetry import log
from tfpool.types import SignatureSpec
from tfpool.wire.messages import Bell


class Listener(Protocol):
    """Who is told how versions fare."""

    def served(self, version: Version) -> None:
        """A worker serves it now."""

    def failed(self, version: Version, error: TfpoolError, final: bool) -> None:
        """No worker could load it; ``final``: another try would be of no use."""

    def gone(self, version: Version) -> None:
        """No worker holds it any more."""


class Residence:
    """``leaving`` are replicas on their way out. ``recycle`` replaces the process of a worker, whose requests wait
    meanwhile. ``loads`` and ``evictions`` count
    those so far."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        pool: PoolSettings,
        budget: Budget,
        room: Room,
        scheduler: Scheduler,
        decide: Callable[[ev.Event], None],
        recycle: Callable[[Link], None],
        listener: Listener,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._pool = pool
        self._budget = budget
        self._room = room
        self._scheduler = scheduler
        self._decide = decide
        self._recycle = recycle
        self.adoption = Adoption(registry, fleet, budget)
        self.leaving = Leaving(registry, fleet, scheduler, decide)
        self._listener = listener
        self._blocked: dict[str, None] = {}
        self.loads = self.evictions = 0
        self._log = log.get("models")

    # -- loading -----------------------------------------------------------------------------------------------

    def start(self, version: Version) -> None:
        """Place a version on as many workers as it wants, and load it there."""
        held = [w for w, state in version.on.items() if state not in (State.FAILED, State.DRAINING)]
        if len(held) >= version.least:
            return  # all of them are there or on their way: nobody need be looked at for another
        try:
            able = self._room.able(version)
        except TfpoolError as error:
            if not held:
                self.give_up(version, error, final=isinstance(error, ResourceExhausted))
            return
        able = [link for link in able if version.on.get(link.name) is not State.DRAINING]
        if not able and not held:
            version.cold = version.urgent = True  # it starts again once it is gone
            return
        version.cold = False
        wanted = version.least
        fresh = [link for link in able if link.name not in held]
        heirs = self.adoption.heirs(fresh, version)[: wanted - len(held)]
        others = place(self._room.candidates(able, version), [*held, *heirs], wanted, version.memory_bytes)
        for name in (*heirs, *others):
            version.on[name] = State.NEW
            link = self._fleet.links[name]
            if not self.adoption.claim(link, version):
                link.loads.append(version.handle)
                self._next_loads(link)

    def refill(self) -> None:
        """There are more workers, or more replicas wanted: place those that versions lack."""
        for version in self._registry.versions():
            here = any(state not in (State.FAILED, State.DRAINING) for state in version.on.values())
            if here and not (version.retired or version.stopped):
                self.start(version)

    def bring(self, version: Version, worker: str) -> None:
        """Have one more worker load a version. Memory is kept for it there from now on."""
        link = self._fleet.links[worker]
        version.on[worker] = State.NEW
        version.cold = False
        self._budget.reserve(link, version)
        self._registry.epoch += 1
        link.loads.append(version.handle)
        self._next_loads(link)

    def wake(self, version: Version) -> None:
        """A request needs a version that is not in memory, or is about to leave it."""
        version.urgent = True
        if version.described and not self.leaving.keep(version):
            self.start(version)

    def _next_loads(self, link: Link) -> None:
        """Begin loads, in order, while there are places and memory for them."""
        self._blocked.pop(link.name, None)
        while link.up and not link.leaving and link.loads and len(link.loading) < self._pool.load_concurrency:
            version = self._registry.by_handle.get(link.loads[0])
            if version is None or version.on.get(link.name) is not State.NEW:
                handle = link.loads.popleft()
                if handle not in link.loading:
                    link.reserved.pop(handle, None)
                continue
            if self._budget.impossible(link, version):  # it was placed before the worker had been measured
                link.loads.popleft()
                link.reserved.pop(version.handle, None)
                version.step(link.name, Step.CANCEL)
                self.start(version)
                continue
            if self._budget.missing(link, version) > 0:
                asked = version.urgent or bool(self._scheduler.waiting(version.key))
                if self.adoption.clutters(link, asked):
                    self._blocked[link.name] = None
                    return
                if asked:
                    if not self._make_room(link, version):
                        if self._prefer_promised(link):
                            continue
                        self._blocked[link.name] = None
                        return
                else:
                    link.loads.popleft()
                    self._postpone(link, version)
                    continue
            link.loads.popleft()
            self._load(link, version)

    def _prefer_promised(self, link: Link) -> bool:
        """Put the first load that has its room already before those that wait for some; whether there is one."""
        for handle in list(link.loads)[1:]:
            version = self._registry.by_handle.get(handle)
            waits = handle in link.reserved and version is not None and version.on.get(link.name) is State.NEW
            if waits and version is not None and self._budget.missing(link, version) <= 0:
                link.loads.remove(handle)
                link.loads.appendleft(handle)
                return True
        return False

    def _load(self, link: Link, version: Version) -> None:
        self.loads += 1
        version.step(link.name, Step.LOAD)
        link.loading.add(version.handle)
        self._budget.reserve(link, version)
        self._log.info("model.loading", model=version.key.name, version=version.key.version, worker=link.name)
        link.ring(Bell.LOAD, version.handle, *order(version))

    def _postpone(self, link: Link, version: Version) -> None:
        """There is no room for a version that nobody has asked for yet."""
        link.reserved.pop(version.handle, None)
        version.step(link.name, Step.CANCEL)
        if all(state in (State.FAILED, State.DRAINING) for state in version.on.values()):
            version.on = {worker: state for worker, state in version.on.items() if state is State.DRAINING}
            version.error = None
            version.goal = Goal.ON_DEMAND
            version.cold = True
            self._registry.epoch += 1
        self._log.info("model.postponed", model=version.key.name, version=version.key.version, worker=link.name)

    def _make_room(self, link: Link, version: Version) -> bool:
        """Push out what is idle; False while room is still to come."""
        victims = self._room.victims(link, version)
        for victim in victims or ():
            self.evict(link, victim)
        if victims is None and self._room.clogged(link, version):
            self._log.info("worker.residue", worker=link.name, bytes=self._budget.residue(link))
            self._recycle(link)
        return victims == [] and not self._budget.leaving(link)

    def evict(self, link: Link, version: Version) -> None:
        """Take an idle version out of memory; the next request for it brings it back."""
        self._log.info("model.evicted", model=version.key.name, version=version.key.version, worker=link.name)
        self.evictions += 1
        version.step(link.name, Step.DRAIN)
        if not version.serving():
            version.cold, version.urgent, version.error = True, False, None
            version.goal = Goal.ON_DEMAND if version.goal is Goal.SERVE else version.goal
        self.leaving.tell_off(link, version)

    # -- unloading ---------------------------------------------------------------------------------------------

    def drain(self, version: Version, refusal: TfpoolError) -> None:
        """Have a version leave all workers once what waits for it is answered; at once where it serves nowhere."""
        answers = self.leaving.answers(version)
        for worker in list(version.on):
            self.leaving.begin(version, worker)
        if not answers:
            self._decide(ev.ServableGone(version.key, refusal))
        self.leaving.step()
        if not version.on:
            self.left(version)

    @property
    def blocked(self) -> bool:
        """Whether loads wait for models that are in use."""
        return bool(self._blocked)

    def without_room(self, version: Version) -> list[str]:
        """Workers that would load a version next, and have no room for it; nothing where others load or serve it."""
        links = [self._fleet.links[worker] for worker in version.held_by()]
        first = (link for link in links if next(iter(link.loads), 0) == version.handle)
        stuck = [link.name for link in first if link.name in self._blocked]
        return stuck if len(stuck) == len(links) else []

    def unblock(self) -> None:
        """Try the loads again that found no room. It looks at all that is held: not after every batch."""
        for worker in list(self._blocked):
            self._next_loads(self._fleet.links[worker])

    def left(self, version: Version, unanswered: TfpoolError | None = None) -> None:
        """No worker holds a version any more; ``unanswered`` is for the last requests of one that was to go for good,
        where its worker died before it had answered them."""
        version.on.clear()  # those that could not load it may try again
        if version.retired:
            self._budget.forget(version)
        if version.retired or version.goal is Goal.OFF:
            refusal = unanswered if version.retired else None
            gone = NotFound(f"{version.key} has been unloaded")
            self._decide(ev.ServableGone(version.key, refusal or gone))
        elif version.state is State.FAILED:
            self._decide(ev.ServableGone(version.key, failure(version)))
        elif version.cold and (version.urgent or self._scheduler.waiting(version.key)):
            version.urgent = True
            self.start(version)
            return
        else:
            version.cold = True  # who asks for it wakes it
        self._listener.gone(version)

    # -- what workers say --------------------------------------------------------------------------------------

    def warming(self, link: Link, handle: int) -> None:
        version = self._registry.by_handle.get(handle)
        if version is not None:
            version.step(link.name, Step.WARM)

    def loaded(
        self,
        link: Link,
        handle: int,
        found: Footprint,
        signatures: tuple[SignatureSpec, ...],
        skipped: dict[str, str],
        form: Form = Form.PLAIN,
        key: str = "",
    ) -> None:
        """A load has ended well; ``key`` names the file of the store that it maps, if it does."""
        link.loading.discard(handle)
        version = self._registry.by_handle.get(handle)
        if version is not None:
            self._budget.admitted(link, version, found, form, key)
        if version is None or not version.step(link.name, Step.LOADED):
            self._next_loads(link)  # it has been told to go while it loaded
            return
        version.error, version.deaths, version.faults, version.failures = None, 0, 0, 0
        version.proven, version.urgent, version.cold = True, False, False
        if form is Form.PLAIN and version.compiled and link.settings.device == "cpu":
            version.stored = None  # the worker has found that the store has it no more
        if usual(version, form):
            version.load_seconds, version.memory_bytes = found.load_seconds, found.nbytes
            version.peak_bytes = found.peak
        version.skipped = skipped
        if version.signatures and signatures != version.signatures:
            changed = FailedPrecondition(f"the signatures of {version.key} are not what they were; ask again")
            self._decide(ev.ServableGone(version.key, changed))
        version.signatures = signatures
        self._registry.epoch += 1
        self._decide(ev.Routed(version.key, link.name))
        self._log.info(
            "model.available",
            model=version.key.name,
            version=version.key.version,
            worker=link.name,
            seconds=found.load_seconds,
            bytes=found.nbytes,
            form=form.value,
        )
        self._listener.served(version)
        self._relieve(link, version)
        self._next_loads(link)

    def held(self, link: Link, handle: int) -> Version | None:
        """The version that a worker calls by this handle, if it serves it."""
        version = self._registry.by_handle.get(handle)
        return version if version is not None and link.name in version.serving() else None

    def gauged(self, link: Link) -> None:
        """A worker tells its memory."""
        self._relieve(link, None)

    def _relieve(self, link: Link, newest: Version | None) -> None:
        """A load, or runs, may have taken more than was foreseen: bring the worker back under its budget."""
        excess = self._budget.excess(link) - self._budget.leaving(link)
        if excess <= 0 or link.loading or link.reforming:
            return
        error = self._budget.impossible(link, newest) if newest is not None else None
        if newest is not None and error is not None and newest.serving() == [link.name]:
            self.leaving.drain_from(newest, link.name)
            self.give_up(newest, error, final=True)
            return
        for victim in self._budget.victims(excess, [v for v in self._room.idle(link) if v is not newest]):
            self.evict(link, victim)

    def load_failed(self, link: Link, handle: int, error: TfpoolError) -> None:
        link.loading.discard(handle)
        link.reserved.pop(handle, None)
        version = self._registry.by_handle.get(handle)
        if version is not None and version.step(link.name, Step.FAIL):
            self._failed(version, error)
        self._next_loads(link)

    def unloaded(self, link: Link, handle: int) -> None:
        link.unloading.discard(handle)
        version = self._registry.by_handle.get(handle)
        evicted = version is not None and version.cold
        elsewhere = any(handle in other.resident for other in self._fleet.links.values() if other is not link)
        self._budget.released(link, handle, evicted, elsewhere)
        if version is not None and version.step(link.name, Step.UNLOADED) and not version.held_by():
            self.left(version)
        if not (link.loading or link.unloading or link.leaving):
            link.residue = max(0, self._budget.residue(link))
        self._next_loads(link)

    def _failed(self, version: Version, error: TfpoolError, final: bool = False) -> None:
        self._log.warning("model.failed", model=version.key.name, version=version.key.version, error=error.message)
        version.error = error
        if not version.serving() and version.state is State.FAILED:
            self.give_up(version, error, final)

    def stop(self, version: Version, error: TfpoolError) -> None:
        """Take a version out of service: what waits is refused, what runs may end. Only a load brings it back."""
        version.error = error
        self.drain(version, failure(version))
        self.give_up(version, error, final=True)

    def give_up(self, version: Version, error: TfpoolError, final: bool) -> None:
        """No worker can serve a version: what waits is refused."""
        version.error = error
        self._registry.epoch += 1
        self._decide(ev.ServableGone(version.key, failure(version)))
        self._listener.failed(version, error, final)

    # -- workers come and go -----------------------------------------------------------------------------------

    def joined(self, link: Link) -> None:
        """A worker is ready: it loads what it should hold, and has not kept from an earlier broker."""
        for version in self._registry.versions():
            if version.on.get(link.name) is State.NEW:
                adopted = self.adoption.claim(link, version)
                if adopted and version.handle in link.loads:
                    link.loads.remove(version.handle)
                elif not adopted and version.handle not in link.loads:
                    link.loads.append(version.handle)
        self.adoption.came(link)
        self._next_loads(link)

    def lost(self, link: Link) -> None:
        """A worker died; its replacement will load its models again."""
        self._budget.pages.lost(link.name)
        for version in self._registry.versions():
            state = version.on.get(link.name)
            lost = state is not None and version.step(link.name, Step.LOST)
            if state is State.FAILED and version.held_by():
                version.step(link.name, Step.CANCEL)  # the next process may do better
            ends = state is State.DRAINING and (version.retired or version.goal is Goal.OFF)
            if lost and (state is State.AVAILABLE or ends) and not version.serving():
                self.leaving.fall_back(version)
            if lost and state is State.DRAINING and not version.held_by():
                self.left(version, Unavailable(f"worker {link.name} died while {version.key} was being replaced"))
        self._registry.epoch += 1

    def load_killed(self, version: Version, worker: str, why: str) -> None:
        """The load of a version has killed its worker, and shall not be tried there again."""
        if version.step(worker, Step.FAIL):
            self._failed(version, Internal(why), final=True)
