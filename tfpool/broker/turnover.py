"""Workers that stop serving, for good or because somebody wants them empty: others take what they hold."""

from __future__ import annotations

from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.registry import Registry
from tfpool.broker.residence import Residence
from tfpool.broker.room import Room
from tfpool.errors import TfpoolError, Unavailable
from tfpool.repository.states import State

_GOING = (None, State.DRAINING, State.FAILED)


class Turnover:
    """Moves versions off workers; what moves is decided here, how is :class:`Residence`'s."""

    def __init__(self, registry: Registry, room: Room, residence: Residence) -> None:
        self._registry = registry
        self._room = room
        self._residence = residence

    def halted(self, link: Link) -> None:
        """A worker will not come back: others take its models."""
        link.state = WorkerState.HALTED
        for version in self._registry.versions():
            state = version.on.pop(link.name, None)
            if state is State.DRAINING and not version.held_by():
                self._residence.left(version)
            elif state not in (None, State.DRAINING):
                self._residence.start(version)

    def vacate(self, link: Link) -> None:
        """Have others load what a worker serves, while it goes on serving; see :meth:`step`.

        Raises the error of a version that no other worker can take; nothing has changed then.
        """
        link.state = WorkerState.DRAINING
        held = [v for v in self._registry.versions() if v.on.get(link.name) not in _GOING]
        moving = [v for v in held if not [w for w in v.serving() if w != link.name]]
        try:
            for version in moving:
                self._room.able(version)
        except TfpoolError:
            link.state = WorkerState.READY
            raise
        for version in moving:
            state = version.on.pop(link.name)
            version.urgent = True
            self._residence.start(version)
            version.on[link.name] = state

    def step(self, link: Link) -> bool:
        """Let go of what others serve by now; True when nothing is left.

        Raises the error of a version that no other worker could load; the worker then keeps it.
        """
        for version in self._registry.versions():
            if version.on.get(link.name) in _GOING:
                continue
            others = {w: state for w, state in version.on.items() if w != link.name}
            if State.AVAILABLE in others.values():
                self._residence.drain_from(version, link.name)
            elif all(state is State.FAILED for state in others.values()):
                link.state = WorkerState.READY
                raise version.error or Unavailable(f"no other worker can take {version.key}")
        return not any(v.on.get(link.name, State.FAILED) is not State.FAILED for v in self._registry.versions())
