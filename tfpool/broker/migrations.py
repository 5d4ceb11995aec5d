"""Versions on their way from worker to worker: begun, watched, and brought to a good end whatever dies.

A migration looks at where its version is and follows its table (:mod:`tfpool.placement.migration`); loads, routes and
unloads are :class:`Residence`'s. The source goes on serving until the target does; from then on it only finishes what
it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from tfpool.broker.fleet import Fleet
from tfpool.broker.registry import Goal, Version
from tfpool.broker.residence import Residence
from tfpool.errors import FailedPrecondition, ResourceExhausted, TfpoolError, Unavailable
from tfpool.placement.migration import OVER, Phase, Sign, following
from tfpool.placement.snapshot import Kind, Past, Step
from tfpool.repository.states import State
from tfpool.telemetry import log

REMEMBERED = 50
PAST_SECONDS = 600.0

Life = tuple[str, int]


@dataclass(slots=True)
class Migration:
    """A version comes to ``target`` (if any) and leaves ``source`` (if any). ``by`` is who wanted it.

    ``lives`` are those of the workers that it counts on. Times are monotonic seconds.
    """

    number: int
    version: Version
    kind: Kind
    source: str
    target: str
    by: str
    reason: str
    nbytes: int
    begun: float
    lives: dict[str, Life]
    phase: Phase = Phase.PLANNED
    error: TfpoolError | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        return self.phase in OVER


class Migrations:
    """``active`` are those under way, ``recent`` the last that ended, ``past`` what happened within ten minutes."""

    def __init__(
        self, fleet: Fleet, residence: Residence, clock: Callable[[], float], numbers: Iterator[int] | None = None
    ) -> None:
        self._fleet = fleet
        self._residence = residence
        self._clock = clock
        self._numbers = numbers if numbers is not None else count(1)
        self.active: list[Migration] = []
        self.recent: deque[Migration] = deque(maxlen=REMEMBERED)
        self._past: deque[Past] = deque()
        self._log = log.get("placement")

    # -- beginning ---------------------------------------------------------------------------------------------

    def begin(self, version: Version, kind: Kind, source: str, target: str, by: str, reason: str = "") -> Migration:
        """Have a version loaded by ``target``, where memory is kept for it from now on, then leave ``source``."""
        if target:
            self._residence.bring(version, target)
        return self.watch(version, kind, source, target, by, reason)

    def watch(self, version: Version, kind: Kind, source: str, target: str, by: str, reason: str = "") -> Migration:
        """See a migration through whose load has been ordered already."""
        now = self._clock()
        nbytes = version.memory_bytes or version.disk_bytes
        found = Migration(next(self._numbers), version, kind, source, target, by, reason, nbytes, now, {})
        if not target:
            found.phase = Phase.ROUTED
        self.active.append(found)
        self._past.append(Past(now, kind, version.handle, source, target, nbytes))
        self._tell("model.moving", found)
        if not target:
            self._leave(found)
        self._follow(found)
        return found

    def note(self, step: Step) -> None:
        """Remember a step that is no migration."""
        self._past.append(Past(self._clock(), step.kind, step.handle, step.source, step.target, step.nbytes))

    # -- what others ask ---------------------------------------------------------------------------------------

    def of(self, version: Version) -> Migration | None:
        """The migration of a version that is under way."""
        return next((one for one in self.active if one.version is version), None)

    def past(self) -> tuple[Past, ...]:
        """What was begun within the last ten minutes, the oldest first."""
        while self._past and self._past[0].when < self._clock() - PAST_SECONDS:
            self._past.popleft()
        return tuple(self._past)

    def all(self) -> Iterable[Migration]:
        """The last that ended, and those under way."""
        return [*self.recent, *self.active]

    # -- following the table -----------------------------------------------------------------------------------

    def step(self) -> None:
        """Follow what has happened to those under way."""
        if not self.active:
            return
        for migration in list(self.active):
            self._follow(migration)

    def _follow(self, migration: Migration) -> None:
        while not migration.over:
            sign = self._sign(migration)
            after = following(migration.phase, sign) if sign is not None else None
            if sign is None or after is None:
                return
            before, migration.phase = migration.phase, after
            if after is Phase.ROUTED and migration.source:
                self._leave(migration)
            elif after is Phase.ABORTED:
                self._abort(migration, before, sign)
        migration.ended = self._clock()
        self.active.remove(migration)
        self.recent.append(migration)
        self._tell("model.moved" if migration.phase is Phase.DONE else "model.not_moved", migration)

    def _sign(self, migration: Migration) -> Sign | None:
        """The next thing to be seen."""
        version = migration.version
        elsewhere = version.isolated and migration.target not in ("", version.isolated)
        if version.retired or version.stopped or version.goal is Goal.OFF or elsewhere:
            return Sign.WITHDRAWN
        if migration.target and self._lost(migration, migration.target):
            return Sign.TARGET_LOST
        if migration.phase in (Phase.PLANNED, Phase.LOADING, Phase.WARMING):
            return self._sign_of_target(migration)
        if not migration.source:
            return Sign.ALONE
        if migration.source not in version.on:
            return Sign.GONE
        if self._lost(migration, migration.source):
            return Sign.SOURCE_LOST
        state = version.on[migration.source]
        if migration.phase is not Phase.ROUTED and state is not State.DRAINING:  # it stays after all, or came back
            return Sign.WITHDRAWN if state is State.AVAILABLE else Sign.GONE
        told = version.handle in self._fleet.links[migration.source].unloading
        return Sign.ANSWERED if told and migration.phase is Phase.DRAINING else Sign.LEAVES

    @staticmethod
    def _sign_of_target(migration: Migration) -> Sign | None:
        state = migration.version.on.get(migration.target)
        if state is State.LOADING:
            return Sign.LOADS
        if state is State.WARMING:
            return Sign.LOADS if migration.phase is Phase.PLANNED else Sign.WARMS
        if state is State.AVAILABLE:
            return Sign.SERVES
        if state is State.DRAINING:
            return Sign.WITHDRAWN
        return None if state is State.NEW else Sign.FAILS

    def _lost(self, migration: Migration, worker: str) -> bool:
        """Whether a worker is not the process any more that it was."""
        link = self._fleet.links[worker]
        life = migration.lives.get(worker)
        if life is None:
            if link.up and not link.leaving:  # what waits for the next process is not lost with this one
                migration.lives[worker] = link.holder
            return False
        return life != link.holder or link.bell is None

    # -- what follows ------------------------------------------------------------------------------------------

    def _leave(self, migration: Migration) -> None:
        """The target serves: the source gets no more of this version."""
        if migration.source in migration.version.on:
            self._residence.leaving.drain_from(migration.version, migration.source)

    def _abort(self, migration: Migration, before: Phase, sign: Sign) -> None:
        version, target = migration.version, migration.target
        if sign is Sign.TARGET_LOST:
            migration.error = Unavailable(f"worker {target} died while {version.key} moved there")
            self._fall_back(version, target, before)
        elif sign is Sign.FAILS:
            no_room = ResourceExhausted(f"worker {target} has no room for {version.key} any more")
            migration.error = version.error if version.on.get(target) is State.FAILED else no_room
        else:
            migration.error = FailedPrecondition(f"{version.key} was unloaded, or wanted elsewhere, while it moved")

    def _fall_back(self, version: Version, target: str, before: Phase) -> None:
        """The target died: the source keeps the version, or takes it back; where it cannot any more, others load it."""
        if before in (Phase.ROUTED, Phase.DRAINING, Phase.UNLOADING) and not self._residence.leaving.keep(version):
            version.cold = version.urgent = True
        stay = [w for w, state in version.on.items() if w != target and state not in (State.FAILED, State.DRAINING)]
        if stay and version.on.get(target) not in (None, State.FAILED):  # its next process may load it already
            self._residence.leaving.drain_from(version, target)

    def _tell(self, what: str, migration: Migration) -> None:
        key = migration.version.key
        more = {} if migration.ended is None else {"seconds": round(migration.ended - migration.begun, 3)}
        if migration.error is not None:
            more["error"] = migration.error.message  # type: ignore[assignment]
        write = self._log.info if migration.error is None else self._log.warning
        write(
            what,
            model=key.name,
            version=key.version,
            source=migration.source or "-",
            target=migration.target or "-",
            by=migration.by,
            why=migration.reason,
            **more,
        )
