"""Workers that others leave, because they end, somebody wants them empty, or one version shall have them to itself."""

from __future__ import annotations

from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.migrations import Migrations
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.broker.residence import Residence
from tfpool.broker.room import Room
from tfpool.errors import TfpoolError, Unavailable
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State

_GOING = (None, State.DRAINING, State.FAILED)


class Turnover:
    """Moves versions off workers; what moves is decided here, how is :class:`Residence`'s."""

    def __init__(
        self, registry: Registry, fleet: Fleet, room: Room, residence: Residence, migrations: Migrations
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._room = room
        self._residence = residence
        self._migrations = migrations

    def halted(self, link: Link) -> None:
        """A worker will not come back: others take its models."""
        link.state = WorkerState.HALTED
        link.loads.clear()
        link.reserved.clear()
        if link.kept_for in self._registry.by_handle:
            self.release(self._registry.by_handle[link.kept_for])
        for version in self._registry.versions():
            state = version.on.pop(link.name, None)
            if state is State.DRAINING and not version.held_by():
                self._residence.left(version)
            elif state not in (None, State.DRAINING):
                self._residence.start(version)

    # -- drained workers ---------------------------------------------------------------------------------------

    def vacate(self, link: Link) -> None:
        """Have others load what a worker serves, while it goes on serving; see :meth:`step`.

        Raises the error of a version that no other worker can take; nothing has changed then.
        """
        link.state, link.drained = WorkerState.DRAINING, True
        moving = self._only_here(link)
        try:
            for version in moving:
                self._room.able(version)
        except TfpoolError:
            self._back(link)
            raise
        for version in moving:
            before = set(version.on)
            self._start_elsewhere(version, link)
            for target in sorted(version.on.keys() - before):
                self._migrations.watch(version, Kind.MIGRATE, link.name, target, "drain", f"{link.name} is drained")

    def step(self, link: Link) -> bool:
        """Let go of what others serve by now; True when nothing is left.

        Raises the error of a version that no other worker could load; the worker then keeps it.
        """
        for version in self._held(link):
            others = [state for worker, state in version.on.items() if worker != link.name]
            if State.AVAILABLE in others:
                self._residence.leaving.drain_from(version, link.name)
                self._residence.start(version)  # another may take its place
            elif not others and self._placeable(version):  # what was elsewhere is gone by now
                self._start_elsewhere(version, link)
            elif all(state is State.FAILED for state in others):
                self._back(link)
                raise version.error or Unavailable(f"no other worker can take {version.key}")
        return not any(v.on.get(link.name, State.FAILED) is not State.FAILED for v in self._registry.versions())

    @staticmethod
    def _back(link: Link) -> None:
        link.state, link.drained = WorkerState.DRAINING if link.leaving else WorkerState.READY, False

    # -- isolated versions -------------------------------------------------------------------------------------

    def isolate(self, version: Version, worker: str) -> bool:
        """Give a version a worker to itself, ``worker`` if that can be; see :meth:`tend`.

        False where there is none to give: one is left for the others, and each of them must have somewhere to go, now
        or when a request wakes it.
        """
        pins = version.settings.pin
        free = [link for link in self._fleet.candidates() if not link.kept_for]
        if len(free) < 2:
            return False
        able = [link for link in free if (not pins or link.name in pins) and not link.drained]
        able = [link for link in able if version.on.get(link.name) is not State.DRAINING]
        others = [other for other in self._registry.versions() if other is not version and self._placeable(other)]
        for link in sorted(able, key=lambda link: (link.name != worker, len(self._held(link)))):
            link.kept_for, version.isolated = version.handle, link.name
            if all(self._placeable(one) for one in (version, *others)):
                self._seclude(version, link)
                return True
            link.kept_for, version.isolated = 0, ""
        return False

    def _placeable(self, version: Version) -> bool:
        try:
            return bool(self._room.able(version))
        except TfpoolError:
            return False

    def _seclude(self, version: Version, link: Link) -> None:
        """Others are loaded elsewhere, and the version on its own worker."""
        for other in self._only_here(link):
            if other is not version:
                self._start_elsewhere(other, link)
        if version.on.get(link.name) in _GOING:
            before, version.on = version.on, {}
            version.urgent = True
            self._residence.start(version)
            version.on = {**before, **version.on}
        self.tend()

    def tend(self) -> None:
        """Let go of what is where it should not be, once it is where it should be."""
        for link in self._fleet.links.values():
            if not (link.kept_for or link.drained):
                continue
            alone = self._registry.by_handle.get(link.kept_for)
            if link.kept_for and (alone is None or alone.goal is Goal.OFF):
                self._share(link)
                continue
            for other in self._held(link):
                if other is not alone:
                    self._leave(other, link.name, [w for w in other.on if w != link.name])
            for worker in alone.held_by() if alone is not None else ():
                if worker != link.name and alone is not None and alone.on[worker] is not State.DRAINING:
                    self._leave(alone, worker, [link.name])

    def _leave(self, version: Version, worker: str, others: list[str]) -> None:
        """A version leaves a worker if others serve it, or will before this one does; others may take its place."""
        states = [version.on.get(other) for other in others]
        there = any(state not in _GOING for state in states)
        if State.AVAILABLE in states or (there and version.on[worker] is State.NEW):
            self._residence.leaving.drain_from(version, worker)
            self._residence.start(version)
        elif not others and self._placeable(version):  # what was elsewhere is gone by now
            self._start_elsewhere(version, self._fleet.links[worker])

    def release(self, version: Version) -> None:
        """A version shares its worker with others again; those that have too few replicas may have more."""
        for link in self._fleet.links.values():
            if link.kept_for == version.handle:
                self._share(link)

    def _share(self, link: Link) -> None:
        alone = self._registry.by_handle.get(link.kept_for)
        if alone is not None:
            alone.isolated = ""
        link.kept_for = 0
        self._residence.refill()

    # -- what a worker holds -----------------------------------------------------------------------------------

    def _held(self, link: Link) -> list[Version]:
        return [v for v in self._registry.versions() if v.on.get(link.name) not in _GOING]

    def _only_here(self, link: Link) -> list[Version]:
        """Versions that a worker holds and no other serves."""
        return [v for v in self._held(link) if not [w for w in v.serving() if w != link.name]]

    def _start_elsewhere(self, version: Version, link: Link) -> None:
        state = version.on.pop(link.name)
        version.urgent = True
        self._residence.start(version)
        version.on[link.name] = state
        version.cold = version.cold and not version.serving()
