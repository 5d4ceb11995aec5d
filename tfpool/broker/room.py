"""Where a version can go: the workers that may hold it, and which idle versions would make room for it."""

from __future__ import annotations

from collections import Counter

from tfpool.broker.budget import Budget, mib
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.registry import Registry, Version
from tfpool.errors import FailedPrecondition, ResourceExhausted, TfpoolError, Unavailable
from tfpool.placement.planner import Candidate
from tfpool.repository.states import State
from tfpool.scheduler.core import Scheduler


class Room:
    """Looks at workers and budgets, and changes nothing."""

    def __init__(self, registry: Registry, fleet: Fleet, budget: Budget, scheduler: Scheduler) -> None:
        self._registry = registry
        self._fleet = fleet
        self._budget = budget
        self._scheduler = scheduler

    def able(self, version: Version) -> list[Link]:
        """Workers that may hold a version, full or not.

        Raises Unavailable where there is none, ResourceExhausted where it fits into none of them, however empty.
        """
        pins = version.settings.pin
        links = [link for link in self._fleet.candidates() if not pins or link.name in pins]
        links = [link for link in links if link.kept_for in (0, version.handle)]
        if version.isolated:
            links = [link for link in links if link.kept_for]
        if not links:
            raise Unavailable(f"no worker can take {version.key}")
        refusals: list[ResourceExhausted] = []
        able = []
        for link in links:
            refusal = self._budget.impossible(link, version)
            if refusal is None:
                able.append(link)
            else:
                refusals.append(refusal)
        if not able:
            raise refusals[0]
        return able

    def candidates(self, links: list[Link], version: Version) -> list[Candidate]:
        """Of these workers, those with room; where they are too few, also those where idle models would make some;
        and where these are too few, all."""
        ranks: dict[int, list[Link]] = {0: [], 1: [], 2: []}
        for link in links:
            missing = self._budget.missing(link, version)
            loose = sum(self._budget.gives(link, v.handle) for v in self.idle(link)) if missing > 0 else 0
            ranks[0 if missing <= 0 else 1 if missing <= loose else 2].append(link)
        best: list[Link] = []
        for ranked in ranks.values():
            if len(best) < version.least:
                best += ranked
        held: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for other in self._registry.versions():
            for worker in other.on:
                held[worker] += 1
                used[worker] += other.memory_bytes or other.disk_bytes
        return [self._candidate(link, used[link.name], held[link.name]) for link in best]

    @staticmethod
    def _candidate(link: Link, used: int, models: int) -> Candidate:
        loads = len(link.loads) + len(link.loading)
        return Candidate(link.name, used, models, link.settings.memory, loads, link.busy_share)

    def check(self, version: Version, link: Link) -> None:
        """Raises the error that keeps a version from moving to a worker: there must be free memory for it."""
        key, name, pins = version.key, link.name, version.settings.pin
        if not link.up or link.leaving or link not in self._fleet.candidates():
            state = "being replaced" if link.closed or link.leaving else "drained" if link.drained else link.state.value
            raise FailedPrecondition(f"worker {name} is {state}, expected READY")
        if version.on.get(name) not in (None, State.FAILED):
            raise FailedPrecondition(f"{key} is on {name} already ({version.on[name].value})")
        if pins and name not in pins:
            raise FailedPrecondition(f"{key} is pinned to {', '.join(pins)}; {name} may not hold it")
        if link.kept_for or version.isolated:
            raise FailedPrecondition(f"worker {name} is kept for another" if link.kept_for else f"{key} is isolated")
        impossible = self._budget.impossible(link, version)
        if impossible is not None:
            raise ResourceExhausted(f"worker {name} cannot hold {key}: {impossible.message}")
        missing = self._budget.missing(link, version)
        if missing > 0:
            takes = f"it takes {mib(self._budget.need(link, version))}, of which {mib(missing)} are missing"
            raise ResourceExhausted(f"worker {name} has no room for {key}: {takes}")

    def spare(self, version: Version) -> str | None:
        """The worker with the most room among those that can take a version without anybody leaving; None where none
        can."""
        found: list[tuple[float, int, str]] = []
        for link in self._fleet.links.values():
            try:
                self.check(version, link)
            except TfpoolError:
                continue
            models = len(link.resident) + len(link.loads) + len(link.loading)
            found.append((self._budget.missing(link, version), models, link.name))
        return min(found)[2] if found else None

    def idle(self, link: Link) -> list[Version]:
        """Versions on a worker that nobody uses at the moment, or that others serve too."""
        found = []
        for handle in link.resident:
            version = self._registry.by_handle.get(handle)
            if version is None or version.on.get(link.name) is not State.AVAILABLE:
                continue
            waits = self._scheduler.waiting(version.key) and len(version.serving()) == 1
            if not waits and not self._scheduler.in_flight(link.name, version.key):
                found.append(version)
        return found

    def victims(self, link: Link, version: Version) -> list[Version] | None:
        """Which versions should leave a worker so that another can be loaded there; none where there is room, or will
        be once those have left that are leaving. None where too much is in use."""
        leaving, idle = self._budget.leaving(link), self.idle(link)
        for guess in (True, False):  # a guess is no reason to wait for models that are in use
            missing = self._budget.missing(link, version, guess) - leaving
            if missing <= 0:
                return []
            victims = self._budget.victims(missing, idle)
            if victims:
                return victims
        return None

    def clogged(self, link: Link, version: Version) -> bool:
        """Whether what earlier models left behind is all that keeps a version out: a fresh process would have room."""
        if link.loading or link.unloading:
            return False
        loose = sum(self._budget.gives(link, idle.handle) for idle in self.idle(link))
        return self._budget.missing(link, version, guess=False) - loose <= self._budget.residue(link)
