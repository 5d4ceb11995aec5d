"""Workers replaced one after the other: their models move away first, where there is room, and come back.

What finds no room elsewhere stays, and its requests wait while the worker is replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.migrations import Migration, Migrations
from tfpool.broker.registry import Registry, Version
from tfpool.broker.room import Room
from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State
from tfpool.telemetry import log

_SETTLED = (State.AVAILABLE, State.FAILED)


class Stage(Enum):
    """How far the replacing of a worker is."""

    WAITS = "waits"
    LEAVING = "moving away"
    RESTARTING = "restarting"
    RETURNING = "coming back"
    DONE = "done"
    FAILED = "failed"


OVER = (Stage.DONE, Stage.FAILED)


@dataclass(slots=True)
class Replacement:
    """One worker to be replaced. ``generation`` is that of the process before, which had ``unique`` bytes to itself;
    ``moves`` are the migrations of this stage, ``awaited`` those of others that must end first; ``away`` are the
    versions that shall come back."""

    link: Link
    by: str
    reason: str
    stage: Stage = Stage.WAITS
    generation: int = 0
    unique: int = 0
    moves: list[Migration] = field(default_factory=list)
    awaited: list[Migration] = field(default_factory=list)
    away: list[Version] = field(default_factory=list)
    returned: int | None = None
    error: TfpoolError | None = None

    @property
    def over(self) -> bool:
        return self.stage in OVER


class Rolling:
    """One worker at a time, in the order in which they were asked for. ``recycle`` ends a worker's process once it has
    finished what it was given; ``refill`` places replicas that are lacking, once there is another."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        room: Room,
        migrations: Migrations,
        recycle: Callable[[Link], None],
        refill: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._room = room
        self._migrations = migrations
        self._recycle = recycle
        self._refill = refill
        self._queue: deque[Replacement] = deque()
        self._log = log.get("placement")

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def under_way(self) -> list[Replacement]:
        """Those that are not over, the one in work first."""
        return list(self._queue)

    def begin(self, links: Sequence[Link], by: str, reason: str = "") -> list[Replacement]:
        """Replace workers; one that is to be replaced already is not replaced twice."""
        waiting = {one.link.name: one for one in self._queue}
        found = [waiting.get(link.name) or Replacement(link, by, reason) for link in links]
        self._queue += [one for one in found if one.link.name not in waiting]
        return found

    def step(self) -> None:
        """Go on where something has happened."""
        while self._queue and self._advance(self._queue[0]):
            if self._queue[0].over:
                self._queue.popleft()

    def _advance(self, one: Replacement) -> bool:
        """The next stage, if it has been reached."""
        link = one.link
        if link.state is WorkerState.HALTED:
            link.closed = False
            one.error = FailedPrecondition(f"worker {link.name} does not come back: it is halted")
            return self._enter(one, Stage.FAILED)
        if one.stage is Stage.WAITS:
            if not link.up:
                return False
            self._send_away(one)
            return self._enter(one, Stage.LEAVING)
        if one.stage is Stage.LEAVING:
            if (
                link.generation == one.generation
                and link.up
                and not all(move.over for move in (*one.moves, *one.awaited))
            ):
                return False
            one.away = [move.version for move in one.moves if move.error is None]
            if link.generation == one.generation and link.up:
                one.unique = link.unique
                self._recycle(link)
            link.closed = False
            return self._enter(one, Stage.RESTARTING)
        if one.stage is Stage.RESTARTING:
            if link.generation == one.generation or not (link.up and self._settled(link)):
                return False
            self._verify(one)
            self._refill()
            self._bring_back(one)
            return self._enter(one, Stage.RETURNING)
        if not all(move.over for move in one.moves):
            return False
        return self._enter(one, Stage.DONE)

    def _enter(self, one: Replacement, stage: Stage) -> bool:
        one.stage = stage
        self._fleet.epoch += 1
        self._log.info("worker.replacing", worker=one.link.name, stage=stage.value, moving=len(one.moves), by=one.by)
        return True

    def _send_away(self, one: Replacement) -> None:
        """Have others load what only this worker serves, where they have room; it gets nothing new meanwhile."""
        link = one.link
        one.generation = link.generation
        link.closed = True
        for version in self._registry.versions():
            stateful = any(signature.mutates for signature in version.signatures)
            if version.serving() != [link.name] or version.retired or stateful:
                continue
            under_way = self._migrations.of(version)
            target = self._room.spare(version) if under_way is None else None
            if under_way is not None:
                one.awaited.append(under_way)
            elif target is not None:
                one.moves.append(
                    self._migrations.begin(version, Kind.MIGRATE, link.name, target, one.by, f"{link.name} is replaced")
                )

    def _bring_back(self, one: Replacement) -> None:
        """What has moved away comes back, where it still is wanted and nobody has moved it since."""
        moved, one.moves = one.moves, []
        name = one.link.name
        for move in moved:
            version = move.version
            elsewhere = move.target not in version.serving() or name in version.on
            if move.error is not None or version.retired or elsewhere or self._migrations.of(version) is not None:
                continue
            try:
                self._room.check(version, one.link)
            except TfpoolError as error:
                self._log.warning("model.stays", model=version.key.name, worker=move.target, error=error.message)
                continue
            reason = f"{name} has been replaced"
            one.moves.append(self._migrations.begin(version, Kind.MIGRATE, move.target, name, one.by, reason))

    def _settled(self, link: Link) -> bool:
        """Whether a new process has loaded what it should hold."""
        states = [v.on.get(link.name) for v in self._registry.versions()]
        return all(state is None or state in _SETTLED for state in states)

    def _verify(self, one: Replacement) -> None:
        """See that the memory of the process before has come back."""
        link = one.link
        one.returned = one.unique - link.unique if one.unique else None  # it was not we who ended it
        self._log.info("worker.replaced", worker=link.name, returned=one.returned, bytes=link.unique)
