"""What the planner is shown: demand, costs and memory, as the broker has seen them."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from operator import add

from tfpool.broker.budget import Budget, limit
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.meters import Meters
from tfpool.broker.migrations import Migrations
from tfpool.broker.reforms import Reforms
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.broker.residence import Residence
from tfpool.placement.rates import SLOW_SECONDS, Rates
from tfpool.placement.snapshot import NOTHING, Hold, Inlined, Replica, ServableView, Snapshot, WorkerView
from tfpool.repository.states import State
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.curves import BATCH_OVERHEAD_SECONDS
from tfpool.settings import Form, Loading, PlacementSettings

_HOLDS = {
    State.NEW: Hold.COMES,
    State.LOADING: Hold.COMES,
    State.WARMING: Hold.COMES,
    State.AVAILABLE: Hold.SERVES,
    State.DRAINING: Hold.GOES,
}
GUESSED_LOAD_SECONDS = 1.0
FORGOTTEN_ROWS = 0.01
GAIN_BATCHES = 1000
_NO_RUNS = [0.0, 0.0, 0.0]


class Survey:
    """Looks at the pool at intervals, last when it ``looked``; :meth:`snapshot` is what it saw. With ``inline`` models
    may be INLINED where that is worth it."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        budget: Budget,
        residence: Residence,
        scheduler: Scheduler,
        meters: Meters,
        migrations: Migrations,
        reforms: Reforms,
        settings: PlacementSettings,
        inline: bool = True,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._budget = budget
        self._residence = residence
        self._scheduler = scheduler
        self._meters = meters
        self._migrations = migrations
        self._reforms = reforms
        self._settings = settings
        self._inline = inline
        self._rates: dict[int, Rates] = {}
        self._replicas: dict[tuple[int, str], Replica] = {}
        self._shunned: dict[int, float] = {}
        self._costs: dict[tuple[int, str, Form], list[float]] = {}
        self.looked = 0.0

    def shun(self, version: Version, until: float) -> None:
        """Have the planner leave a version alone for a while: what it wanted of it could not be done."""
        self._shunned[version.handle] = until

    def look(self, now: float) -> None:
        """Take in what has been asked since the last look."""
        versions = self._registry.by_handle
        self._take_in_runs(now)
        for handle, version in versions.items():
            rates = self._rates.get(handle)
            if rates is None:
                rates = self._rates[handle] = Rates(0, 0, now - self._settings.interval_s)
            rates.look(version.asks, version.rows, now)
        if len(self._rates) > len(versions):
            self._rates = {handle: rates for handle, rates in self._rates.items() if handle in versions}
        held = ((v.handle, worker, state) for v in versions.values() for worker, state in v.on.items())
        self._replicas = {
            (handle, worker): self._replica(handle, worker, _HOLDS[state], now)
            for handle, worker, state in held
            if state in _HOLDS
        }

    def _take_in_runs(self, now: float) -> None:
        """What runs have cost since the last look; what was before counts for less and less."""
        fade = exp(-(now - self.looked) / SLOW_SECONDS) if now > self.looked else 1.0
        self.looked = now
        faded = ((place, [value * fade for value in cost]) for place, cost in self._costs.items())
        self._costs = {place: cost for place, cost in faded if cost[0] > FORGOTTEN_ROWS}
        for link in self._fleet.links.values():
            for handle, spent in link.spent.items():
                place = handle, link.name, _form(link, handle)
                known = self._costs.get(place)
                self._costs[place] = spent if known is None else list(map(add, known, spent))
            link.spent = {}

    def _replica(self, handle: int, worker: str, hold: Hold, now: float) -> Replica:
        known = self._replicas.get((handle, worker))
        inlined = self._fleet.links[worker].forms.get(handle) is Form.INLINED
        since = known.since if known is not None and known.hold is hold else now
        return Replica(hold, since, inlined)

    def rates(self, version: Version) -> Rates | None:
        """What is asked of a version, as of the last look."""
        return self._rates.get(version.handle)

    def snapshot(self, now: float) -> Snapshot:
        """The pool at ``now``, with demand as of the last look."""
        workers = tuple(self._worker(link) for link in self._fleet.links.values())
        self._shunned = {handle: until for handle, until in self._shunned.items() if until > now}
        moving = {one.version.handle for one in self._migrations.active} | self._shunned.keys()
        moving |= {one.version.handle for one in self._reforms.active}
        servables = tuple(
            self._servable(version, now, version.handle in moving)
            for version in self._registry.versions()
            if self._counts(version)
        )
        return Snapshot(now, workers, servables, self._migrations.past())

    @staticmethod
    def _counts(version: Version) -> bool:
        """Whether a version is anything to the planner: what fails, or was sent away, is not."""
        gone = version.goal is Goal.OFF or version.retired or version.staged or version.stopped
        return version.described and not gone and version.state is not State.FAILED

    def _worker(self, link: Link) -> WorkerView:
        memory = link.settings.memory
        return WorkerView(
            link.name,
            link.settings.device,
            max(1, link.settings.threads),
            None if memory is None else limit(memory) - link.base,
            self._budget.committed(link) - link.base,
            link.residue,
            link.busy_share,
            link.up and not (link.drained or link.leaving or link.closed),
            link.kept_for,
        )

    def _servable(self, version: Version, now: float, moving: bool) -> ServableView:
        rates, known = self._rates.get(version.handle), self._budget.expected(version)
        stuck = self._residence.without_room(version)  # it is nowhere, as far as anybody can tell
        on = {
            worker: self._replicas.get((version.handle, worker)) or Replica(_HOLDS[state], now)
            for worker, state in version.on.items()
            if state in _HOLDS and worker not in stuck
        }
        stateful = any(signature.mutates for signature in version.signatures)
        shared = self._shared(version)
        return ServableView(
            version.handle,
            str(version.key),
            (version.memory_bytes or (known.nbytes if known else version.disk_bytes)) + shared,
            self._budget.foreseen(version) + shared,
            version.load_seconds or (known.load_seconds if known else GUESSED_LOAD_SECONDS),
            rates.fast if rates else NOTHING,
            rates.slow if rates else NOTHING,
            self.row_seconds(version) if rates is not None and not rates.quiet else {},
            self.replicas(version),
            self._pins(version),
            on,
            bool(stuck) or version.settings.preload is Loading.PRELOAD or version.goal is Goal.SERVE,
            not (stateful or moving or version.isolated),
            len(version.crashes),
            now - rates.asked_at if rates else 0.0,
            self._inlined(version),
        )

    def _shared(self, version: Version) -> int:
        """A replica's part of the file that they map; all of it, as long as there is none."""
        known, stored = self._budget.expected(version), version.stored
        if known is None or stored is None or not known.shared:
            return 0
        return self._budget.pages.each(stored.key) or known.shared

    def _inlined(self, version: Version) -> Inlined | None:
        """What the inlined form would take, and gain: as runs have shown, or as was measured when it was compiled."""
        stored, settings = version.stored, version.settings
        if stored is None or not version.compiled or not self._inline or settings.form is not None:
            return None
        mapped, inlined = stored.footprint(Form.MAPPED), stored.footprint(Form.INLINED)
        if mapped is None or inlined is None:
            return None
        more = max(0, inlined.nbytes - mapped.nbytes)
        gain = self._gain(version) or stored.gain
        return Inlined(more, max(more, inlined.peak), inlined.load_seconds, gain)

    def _gain(self, version: Version) -> float | None:
        """How many times the rows a second it has run inlined; None where too little has run in one of the forms."""
        row = {}
        for form in (Form.MAPPED, Form.INLINED):
            costs = [self._costs.get((version.handle, worker, form), _NO_RUNS) for worker in self._fleet.links]
            rows, seconds, batches = (sum(part) for part in zip(*costs, strict=True))
            if batches < GAIN_BATCHES:
                return None
            row[form] = seconds / rows
        return float(max(row[Form.MAPPED], 1e-12) / max(row[Form.INLINED], 1e-12))

    def replicas(self, version: Version) -> tuple[int, int]:
        """The least and the most replicas that a version may have."""
        least, most = version.settings.replicas
        if most is None:
            most = max(least, self._settings.max_replicas or len(self._fleet.links))
        return least, max(1, most)

    def _pins(self, version: Version) -> tuple[str, ...]:
        """Where it may go (empty: anywhere); not to where it has failed to load."""
        failed = {worker for worker, state in version.on.items() if state is State.FAILED}
        if not failed:
            return version.settings.pin
        return tuple(name for name in version.settings.pin or self._fleet.links if name not in failed)

    def row_seconds(self, version: Version) -> Mapping[str, float]:
        """Worker seconds that a row takes, by worker: as its runs of late have cost, or, where there were none, as its
        latency curves have it. One batch differs from the next, and a curve follows the last few."""
        links, handle = self._fleet.links, version.handle
        costs = ((name, self._costs.get((handle, name, _form(link, handle)))) for name, link in links.items())
        measured = {w: (cost[1] + BATCH_OVERHEAD_SECONDS * cost[2]) / cost[0] for w, cost in costs if cost is not None}
        return measured or self._foreseen(version)

    def _foreseen(self, version: Version) -> Mapping[str, float]:
        """By the curves, in batches as they have been of late; of several signatures the one that ran last counts."""
        rows = max(1, round(self._meters.model(version.key.name).recent_rows))
        newest: dict[str, tuple[float, float]] = {}
        for index in range(len(version.signatures)):
            for worker, curve in self._scheduler.estimates.curves(version.key, index).items():
                seconds = curve.run(rows)
                if seconds and curve.learnt_at >= newest.get(worker, (0.0, 0.0))[0]:
                    newest[worker] = curve.learnt_at, (seconds + BATCH_OVERHEAD_SECONDS) / rows
        return {worker: seconds for worker, (_, seconds) in newest.items()}


def _form(link: Link, handle: int) -> Form:
    return link.forms.get(handle, Form.PLAIN)
