"""When models move: the planner is asked at intervals, or by somebody, and what it says is done.

It says at most one step at a time, from what :class:`Survey` has seen at that moment, and thinks in a thread of its
own. Under the policies ``advise`` and ``static`` nothing is done by itself, but for replacing a worker whose memory
earlier models have kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, NamedTuple

from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.logbook import Logbook
from tfpool.broker.migrations import Migration, Migrations
from tfpool.broker.reforms import Reform, Reforms
from tfpool.broker.registry import Registry, Version
from tfpool.broker.residence import Residence
from tfpool.broker.rolling import Rolling
from tfpool.broker.room import Room
from tfpool.broker.survey import Survey
from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.placement.planner import after, plan
from tfpool.placement.snapshot import Kind, Rules, Snapshot, Step
from tfpool.settings import Form, PlacementPolicy, PlacementSettings
from tfpool.telemetry import log

PLANNING_SHARE = 0.05
LONGEST_SLEEP = 10.0
WORKERS_PER_MOVE = 4
MOST_AT_ONCE = 64
LONGEST_PROPOSAL_SECONDS = 1.0
SHUNNED_SECONDS = 10.0
LONGEST_START_SECONDS = 60.0
ASKED_FOR = "plan"
BEGUN, REFUSED = "begun", "refused"

Ask = Callable[[Callable[[], Any], Callable[[Future[Any]], None]], None]
_MOVES = (Kind.LOAD, Kind.REPLICATE, Kind.MIGRATE)
_FORMS = {Kind.INLINE: Form.INLINED, Kind.MAP: Form.MAPPED}


@dataclass(slots=True)
class Outcome:
    """A step that was taken, as of what was ``seen``: what it became, a migration or a change of form, if it is one, or
    why it could not be taken."""

    step: Step
    seen: Snapshot
    work: Migration | Reform | None = None
    error: TfpoolError | None = None

    @property
    def over(self) -> bool:
        return self.work is None or self.work.over


@dataclass(slots=True)
class Applying:
    """Somebody has asked for the plan to be carried out: step after step, until there is none."""

    outcomes: list[Outcome] = field(default_factory=list)
    over: bool = False


class Thought(NamedTuple):
    """What the planner says to a snapshot, and the seconds of a CPU that it took."""

    snapshot: Snapshot
    step: Step | None
    took: float


class Proposal(NamedTuple):
    """All the steps that the planner would take from a snapshot, one after the other; or the first ones, where that
    takes too long to find out (not ``complete``)."""

    snapshot: Snapshot
    steps: list[Step]
    complete: bool


def think(snapshot: Snapshot, rules: Rules) -> Thought:
    """At most one step."""
    began = time.thread_time()
    step = plan(snapshot, rules)
    return Thought(snapshot, step, time.thread_time() - began)


def propose(snapshot: Snapshot, rules: Rules) -> Proposal:
    """As many steps as can be found within a second."""
    latest, steps = snapshot, list[Step]()
    until = time.monotonic() + LONGEST_PROPOSAL_SECONDS
    while len(steps) < MOST_AT_ONCE and time.monotonic() < until:
        step = plan(latest, rules)
        if step is None:
            return Proposal(snapshot, steps, True)
        steps.append(step)
        latest = after(latest, step)
    return Proposal(snapshot, steps, False)


class Planning:
    """``ask`` has a job done in another thread, and calls back with the finished future. ``applying`` is the plan that
    somebody has asked to carry out, the last one if it is over. ``next_look`` is when the pool is to be looked at again
    (monotonic seconds)."""

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
        reforms: Reforms,
        survey: Survey,
        logbook: Logbook,
        settled: Callable[[], bool],
        ask: Ask,
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
        self._reforms = reforms
        self.survey = survey
        self._logbook = logbook
        self._settled = settled
        self._ask = ask
        self._thinks = self._proposing = False
        self._started = False
        self._begun = now
        self.next_look = 0.0
        self.applying: Applying | None = None
        self._proposed: Proposal | None = None
        self._fresh_until = 0.0
        self._log = log.get("placement")

    @property
    def policy(self) -> PlacementPolicy:
        return self._settings.policy

    # -- by itself ---------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Look at the pool where that is due, and have the planner think; go on with a plan under way."""
        if self._thinks:
            return
        if self.applying is not None and not self.applying.over:
            self._go_on(self.applying, now)
        elif now >= self.next_look:
            self.next_look = now + self._settings.interval_s
            self.survey.look(now)
            self._started = self._started or self._settled() or now > self._begun + LONGEST_START_SECONDS
            if self._started and not self._occupied():
                self._think(self.survey.snapshot(now), self._decided)

    def _think(self, snapshot: Snapshot, done: Callable[[Thought], None]) -> None:
        """Have the planner look at a snapshot, in another thread: requests do not wait for it."""

        def thought(future: Future[Thought]) -> None:
            self._thinks = False
            error = future.exception()
            if error is not None:  # a planner that fails moves nothing, and stops nobody
                self._log.error("plan.failed", error=repr(error))
            done(Thought(snapshot, None, 0.0) if error is not None else future.result())

        self._thinks = True
        self._ask(partial(think, snapshot, self.rules), thought)

    def _decided(self, thought: Thought) -> None:
        """Take the step, if the policy lets us, and write down what was decided."""
        step = thought.step
        rest = min(thought.took / PLANNING_SHARE, LONGEST_SLEEP * self._settings.interval_s)
        self.next_look = max(self.next_look, thought.snapshot.now + rest)
        may = step is not None and (self.policy is PlacementPolicy.AUTO or step.kind is Kind.RECYCLE)
        outcome = self.take(step, thought.snapshot, "planner") if step is not None and may else None
        said = "" if outcome is None else REFUSED if outcome.error is not None else BEGUN
        self._logbook.write(thought.snapshot, self.rules, step, thought.took, said)

    def _occupied(self) -> bool:
        """Whether enough is moving already."""
        moves = sum(one.by == "planner" for one in self._migrations.active) + len(self._reforms.active)
        return self._rolling.busy or moves >= max(1, len(self._fleet.links) // WORKERS_PER_MOVE)

    # -- when somebody asks ------------------------------------------------------------------------------------

    def proposal(self, now: float) -> Proposal | None:
        """The pool as it is, and what the planner would do; None while it thinks. Who asks again within ``interval_s``
        gets the same."""
        if self._proposed is not None and now >= self._fresh_until:
            self._proposed = None
        if self._proposed is None and not self._proposing:
            self._proposing = True
            self.survey.look(now)
            self._ask(partial(propose, self.survey.snapshot(now), self.rules), self._has_proposed)
        if self._proposed is not None:  # it is fresh from when somebody first hears it
            self._fresh_until = min(self._fresh_until, now + self._settings.interval_s)
        return self._proposed

    def _has_proposed(self, future: Future[Proposal]) -> None:
        self._proposing, self._fresh_until = False, inf
        error = future.exception()
        if error is not None:
            self._log.error("plan.failed", error=repr(error))
        self._proposed = Proposal(Snapshot(0.0, (), ()), [], False) if error is not None else future.result()

    def apply(self) -> Applying:
        """Carry the plan out now, whatever the policy; one that is under way goes on."""
        if self.applying is None or self.applying.over:
            self.applying = Applying()
        return self.applying

    def _go_on(self, applying: Applying, now: float) -> None:
        if self._rolling.busy or (applying.outcomes and not applying.outcomes[-1].over):
            return
        if len(applying.outcomes) >= MOST_AT_ONCE:
            applying.over = True
            return

        def decided(thought: Thought) -> None:
            if thought.step is None:
                applying.over = True
            else:
                applying.outcomes.append(self.take(thought.step, thought.snapshot, ASKED_FOR))

        self._think(self.survey.snapshot(now), decided)

    # -- doing it ----------------------------------------------------------------------------------------------

    def take(self, step: Step, seen: Snapshot, by: str) -> Outcome:
        """Begin a step, if the pool still is as the planner saw it."""
        self._log.info("plan.step", what=step.kind.value, gain=round(step.gain, 3), cost=round(step.cost, 3))
        if step.kind is Kind.RECYCLE:
            self._migrations.note(step)
            self._rolling.begin([self._fleet.links[step.source]], "recycle", step.reason)
            return Outcome(step, seen)
        version = self._registry.by_handle.get(step.handle)
        if version is None:  # it went while the planner thought
            return Outcome(step, seen, error=NotFound(f"{step.name} is gone"))
        try:
            return Outcome(step, seen, self._begin(version, step, by))
        except TfpoolError as error:
            self._log.info("plan.refused", model=version.key.name, version=version.key.version, error=error.message)
            self.survey.shun(version, until=seen.now + SHUNNED_SECONDS)
            return Outcome(step, seen, error=error)

    def _begin(self, version: Version, step: Step, by: str) -> Migration | Reform:
        form = _FORMS.get(step.kind)
        if form is not None:
            link = self._fleet.links[step.target or step.source]
            reform = self._reforms.begin(version, link, form, by, step.reason, self._reformed)
            self._migrations.note(step)
            return reform
        if step.kind in _MOVES:
            self._make_way(version, self._fleet.links[step.target])
        else:
            self._part(version, self._fleet.links[step.source], last=step.kind is Kind.EVICT)
        return self._migrations.begin(version, step.kind, step.source, step.target, by, step.reason)

    def _reformed(self, error: TfpoolError | None, version: Version) -> None:
        if error is not None:
            self.survey.shun(version, until=self.survey.looked + SHUNNED_SECONDS)

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
