"""When models move: the planner is asked at intervals, or by somebody, and what it says is done.

It says at most one step at a time, from what :class:`Survey` has seen at that moment. Under the policies ``advise`` and
``static`` nothing is done by itself, but for replacing a worker whose memory earlier models have kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.logbook import Logbook
from tfpool.broker.migrations import Migration, Migrations
from tfpool.broker.registry import Registry, Version
from tfpool.broker.residence import Residence
from tfpool.broker.rolling import Rolling
from tfpool.broker.room import Room
from tfpool.broker.survey import Survey
from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.placement.planner import after, plan
from tfpool.placement.snapshot import Kind, Rules, Snapshot, Step
from tfpool.settings import PlacementPolicy, PlacementSettings
from tfpool.telemetry import log

PLANNING_SHARE = 0.01
WORKERS_PER_MOVE = 4
MOST_AT_ONCE = 64
LONGEST_PROPOSAL_SECONDS = 0.1
SHUNNED_SECONDS = 10.0
LONGEST_START_SECONDS = 60.0
ASKED_FOR = "plan"
_MOVES = (Kind.LOAD, Kind.REPLICATE, Kind.MIGRATE)


@dataclass(slots=True)
class Outcome:
    """A step that was taken, as of what was ``seen``: the migration that it became, if it is one, or why it could not
    be taken."""

    step: Step
    seen: Snapshot
    migration: Migration | None = None
    error: TfpoolError | None = None

    @property
    def over(self) -> bool:
        return self.migration is None or self.migration.over


@dataclass(slots=True)
class Applying:
    """Somebody has asked for the plan to be carried out: step after step, until there is none."""

    outcomes: list[Outcome] = field(default_factory=list)
    over: bool = False


class Planning:
    """``applying`` is the plan that somebody has asked to carry out, the last one if it is over. ``next_look`` is when
    the pool is to be looked at again (monotonic seconds)."""

    def __init__(
        self,
        settings: PlacementSettings,
        residue_limit: int,
        registry: Registry,
        fleet: Fleet,
        room: Room,
        residence: Residence,
        migrations: Migrations,
        rolling: Rolling,
        survey: Survey,
        logbook: Logbook,
        settled: Callable[[], bool],
        now: float,
    ) -> None:
        self._settings = settings
        self.rules = Rules(
            settings.horizon_s,
            settings.hysteresis,
            settings.moves_per_minute,
            settings.bytes_per_minute,
            residue_limit,
            settings.idle_s,
        )
        self._registry = registry
        self._fleet = fleet
        self.room = room
        self._residence = residence
        self._migrations = migrations
        self._rolling = rolling
        self.survey = survey
        self._logbook = logbook
        self._settled = settled
        self._started = False
        self._begun = now
        self.next_look = 0.0
        self.applying: Applying | None = None
        self._proposed: tuple[Snapshot, list[Step], bool] | None = None
        self._log = log.get("placement")

    @property
    def policy(self) -> PlacementPolicy:
        return self._settings.policy

    # -- by itself ---------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Look at the pool where that is due, and take a step where that is worth it; go on with a plan under way."""
        if self.applying is not None and not self.applying.over:
            self._go_on(self.applying, now)
        if now < self.next_look:
            return
        began = time.perf_counter()
        self.survey.look(now)
        found: tuple[Snapshot, Step | None] | None = None
        busy = self.applying is not None and not self.applying.over
        self._started = self._started or self._settled() or now > self._begun + LONGEST_START_SECONDS
        if self._started and not busy and not self._occupied():
            snapshot = self.survey.snapshot(now)
            found = snapshot, plan(snapshot, self.rules)
        took = time.perf_counter() - began
        self.next_look = now + max(self._settings.interval_s, took / PLANNING_SHARE)
        if found is None:
            return
        snapshot, step = found
        may = step is not None and (self._settings.policy is PlacementPolicy.AUTO or step.kind is Kind.RECYCLE)
        outcome = self.take(step, snapshot, "planner") if step is not None and may else None
        self._logbook.write(snapshot, self.rules, step, took, "" if outcome is None else said(outcome))

    def _occupied(self) -> bool:
        """Whether enough is moving already."""
        moves = sum(one.by == "planner" for one in self._migrations.active)
        return self._rolling.busy or moves >= max(1, len(self._fleet.links) // WORKERS_PER_MOVE)

    # -- when somebody asks ------------------------------------------------------------------------------------

    def proposal(self, now: float) -> tuple[Snapshot, list[Step], bool]:
        """The pool as it is, the steps that the planner would take, one after the other, and whether these are all:
        it is given a tenth of a second. Who asks again within ``interval_s`` gets the same: anybody may ask."""
        if self._proposed is not None and now < self._proposed[0].now + self._settings.interval_s:
            return self._proposed
        self.survey.look(now)
        snapshot = latest = self.survey.snapshot(now)
        steps: list[Step] = []
        complete, until = False, time.perf_counter() + LONGEST_PROPOSAL_SECONDS
        while not complete and len(steps) < MOST_AT_ONCE and time.perf_counter() < until:
            step = plan(latest, self.rules)
            if step is None:
                complete = True
            else:
                steps.append(step)
                latest = after(latest, step)
        self._proposed = snapshot, steps, complete
        return self._proposed

    def apply(self) -> Applying:
        """Carry the plan out now, whatever the policy; one that is under way goes on."""
        if self.applying is None or self.applying.over:
            self.applying = Applying()
        return self.applying

    def _go_on(self, applying: Applying, now: float) -> None:
        if applying.outcomes and not applying.outcomes[-1].over:
            return
        if self._rolling.busy:
            return
        snapshot = self.survey.snapshot(now)
        step = plan(snapshot, self.rules) if len(applying.outcomes) < MOST_AT_ONCE else None
        if step is None:
            applying.over = True
            return
        applying.outcomes.append(self.take(step, snapshot, ASKED_FOR))

    # -- doing it ----------------------------------------------------------------------------------------------

    def take(self, step: Step, seen: Snapshot, by: str) -> Outcome:
        """Begin a step, if the pool still is as the planner saw it."""
        self._log.info("plan.step", what=step.kind.value, gain=round(step.gain, 3), cost=round(step.cost, 3))
        if step.kind is Kind.RECYCLE:
            self._migrations.note(step.kind, step.source)
            self._rolling.begin([self._fleet.links[step.source]], "recycle", step.reason)
            return Outcome(step, seen)
        version = self._registry.by_handle[step.handle]
        try:
            return Outcome(step, seen, self._begin(version, step, by))
        except TfpoolError as error:
            self._log.info("plan.refused", model=version.key.name, version=version.key.version, error=error.message)
            self.survey.shun(version, until=seen.now + SHUNNED_SECONDS)
            return Outcome(step, seen, error=error)

    def _begin(self, version: Version, step: Step, by: str) -> Migration:
        if step.kind in _MOVES:
            self._make_way(version, self._fleet.links[step.target])
        else:
            self._part(version, self._fleet.links[step.source], last=step.kind is Kind.EVICT)
        return self._migrations.begin(version, step.kind, step.source, step.target, by, step.reason)

    def _make_way(self, version: Version, target: Link) -> None:
        """Check that a version may come to a worker; loads of it that found no room elsewhere are called off. Raises
        the error that keeps it away; they wait on then."""
        waiting = self._residence.without_room(version)
        for worker in waiting:
            self._residence.leaving.begin(version, worker)
        try:
            self.room.check(version, target)
        except TfpoolError:
            if waiting:
                self._residence.start(version)
            raise

    def _part(self, version: Version, link: Link, last: bool) -> None:
        """Check that a version may leave a worker. Raises FailedPrecondition."""
        others = [worker for worker in version.serving() if worker != link.name]
        if len(others) < version.least and not last:
            raise FailedPrecondition(f"{version.key} must stay on {link.name}: it has {len(others)} other replicas")
        if others:
            return
        if version not in self.room.idle(link):
            raise FailedPrecondition(f"{version.key} is in use on {link.name}")
        self._residence.evict(link, version)


def said(outcome: Outcome) -> str:
    """An outcome in a word, for the journal."""
    return "refused" if outcome.error is not None else "begun"
