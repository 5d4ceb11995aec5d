"""Replicas that are to leave their workers: they answer what they were given, then they are unloaded.

Until a worker has been told so, a replica may stay after all.
"""

from __future__ import annotations

from collections.abc import Callable

from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.repository.states import State, Step
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.wire.messages import Bell


class Leaving:
    """``waiting`` are those that have not answered everything yet: handles and workers."""

    def __init__(
        self, registry: Registry, fleet: Fleet, scheduler: Scheduler, decide: Callable[[ev.Event], None]
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._scheduler = scheduler
        self._decide = decide
        self.waiting: dict[tuple[int, str], None] = {}

    def answers(self, version: Version) -> bool:
        """Whether a version serves, or has yet to answer what it was given."""
        return bool(version.serving()) or any((version.handle, worker) in self.waiting for worker in version.on)

    def drain_from(self, version: Version, worker: str) -> None:
        """Have a version leave one worker; others go on serving it."""
        self.begin(version, worker)
        if version.serving():
            self._decide(ev.Unrouted(version.key, worker))

    def begin(self, version: Version, worker: str) -> None:
        """Have a version leave one worker once it has answered; at once where it does not serve there."""
        link, serves = self._fleet.links[worker], version.on[worker] is State.AVAILABLE
        if version.step(worker, Step.CANCEL):
            if version.handle in link.loads:
                link.loads.remove(version.handle)
            link.reserved.pop(version.handle, None)
        elif version.step(worker, Step.DRAIN):
            if serves:
                self.waiting[version.handle, worker] = None
            else:
                self.tell_off(link, version)

    def step(self) -> None:
        """Unload what has answered by now."""
        for handle, worker in list(self.waiting):
            version = self._registry.by_handle.get(handle)
            if version is None or version.on.get(worker) is not State.DRAINING:
                del self.waiting[handle, worker]
            elif self._has_answered(version, worker):
                self.tell_off(self._fleet.links[worker], version)

    def tell_off(self, link: Link, version: Version) -> None:
        """Have a worker unload a version, which gets nothing more."""
        self.waiting.pop((version.handle, link.name), None)
        self._decide(ev.Unrouted(version.key, link.name))
        link.unloading.add(version.handle)
        link.ring(Bell.UNLOAD, version.handle)

    def keep(self, version: Version) -> bool:
        """Let a version stay where its worker has not been told yet; True if it serves on."""
        for worker in self._may_stay(version):
            self.waiting.pop((version.handle, worker), None)
            version.step(worker, Step.KEEP)
            version.cold = False
            self._decide(ev.Routed(version.key, worker))
        return bool(version.serving())

    def fall_back(self, version: Version) -> None:
        """The last worker that served a version died: those that were to leave it go on where they still can, and at
        least answer what waits."""
        if not (version.retired or version.goal is Goal.OFF):
            self.keep(version)
            return
        for worker in self._may_stay(version):
            self._decide(ev.Routed(version.key, worker))

    def _may_stay(self, version: Version) -> list[str]:
        leaving = [worker for worker, state in version.on.items() if state is State.DRAINING]
        return [worker for worker in leaving if version.handle not in self._fleet.links[worker].unloading]

    def _has_answered(self, version: Version, worker: str) -> bool:
        """Whether a worker may let go of a version: nobody else may need it, be it since another one dies."""
        runs = self._scheduler.in_flight
        if version.serving():
            return not runs(worker, version.key)
        return not self._scheduler.waiting(version.key) and not any(runs(w, version.key) for w in version.on)
