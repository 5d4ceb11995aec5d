"""Whose fault the death of a worker was, and what becomes of models that crash workers.

When a worker dies, what it ran and what it loaded are suspects; when its process has been reaped, its status says
whether it died through its own doing. A version that keeps crashing workers is given one to itself, then stopped.
A request that kills is the scheduler's to find: it runs again, with others and at last alone, and the crashes of that
search are one crash.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tfpool.broker.fleet import Link
from tfpool.broker.notebook import Notebook
from tfpool.broker.registry import Crash, Registry, Stopped, Version
from tfpool.broker.residence import Residence
from tfpool.broker.turnover import Turnover
from tfpool.broker.watchdog import Stuck
from tfpool.repository.states import State
from tfpool.scheduler.core import Scheduler
from tfpool.telemetry import log

WINDOW_SECONDS = 60.0
CRASHES_TO_ISOLATE = 3
CRASHES_TO_STOP = 6
ISOLATED_SECONDS = 600.0
MAX_LOAD_FAULTS = 2
MAX_LOAD_DEATHS = 5
FAULTS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)


def fault(status: int, oom: bool) -> str | None:
    """What a process died of, if it was its own doing; None where somebody ended it.

    ``status`` is an exit status, or a negative signal; ``oom``: the kernel was short of memory.
    """
    if status > 0:
        return f"exit status {status}"
    if -status in FAULTS:
        return f"signal {-status}"
    return "lack of memory" if oom and -status == signal.SIGKILL else None


def recent(crashes: Iterable[Crash], now: float) -> tuple[Crash, ...]:
    """Those within the window that ends now."""
    return tuple(crash for crash in crashes if now - crash.when < WINDOW_SECONDS)


def counted(crashes: Iterable[Crash]) -> int:
    """How many crashes count: of those under requests that had died before, as many are free at each depth as there
    were crashes under new ones, for a single request that kills takes one worker at each depth of the search."""
    depths = Counter(crash.depth for crash in crashes)
    first = depths.pop(0, 0)
    return first + sum(max(0, many - first) for many in depths.values())


@dataclass(frozen=True, slots=True)
class _Death:
    """What a worker was at when it died; ``depth`` is how often the requests that it ran had died before, ``forms`` the
    versions that were changing theirs."""

    generation: int
    running: Version | None
    depth: int
    loading: list[Version]
    forms: list[Version]
    stuck: Stuck | None

    def how(self, status: int, oom: bool) -> str | None:
        """See :func:`fault`; who was killed for being stuck may have been stopped by somebody else."""
        if self.stuck is None:
            return fault(status, oom)
        return "hanging" if self.stuck.own_fault else None


class Blame:
    """Hears of deaths from the broker; ``now`` is monotonic seconds."""

    def __init__(
        self, registry: Registry, scheduler: Scheduler, residence: Residence, turnover: Turnover, notebook: Notebook
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._residence = residence
        self._turnover = turnover
        self._notebook = notebook
        self._deaths: dict[str, _Death] = {}
        self._suspects: dict[int, Version] = {}
        self._isolated_until: dict[int, float] = {}
        self._log = log.get("models")

    def died(self, link: Link, stuck: Stuck | None = None) -> None:
        """A worker is dead, or given up as ``stuck``: see what it was at, before that is forgotten."""
        known = self._deaths.get(link.name)
        if known is not None and known.generation == link.generation:
            return
        batch = self._scheduler.running(link.name)
        running = self._registry.by_handle.get(batch.spec.servable.life) if batch is not None else None
        depth = max(piece.deaths for piece in batch.pieces) if batch is not None else 0
        known_here = (self._registry.by_handle.get(handle) for handle in link.loading)
        under_way = (State.LOADING, State.WARMING)
        loading = [v for v in known_here if v is not None and v.on.get(link.name) in under_way]
        forms = [v for handle in link.reforming if (v := self._registry.by_handle.get(handle)) is not None]
        if stuck is not None and stuck.load:
            running, loading = None, [version for version in loading if version.handle == stuck.load]
            forms = [version for version in forms if version.handle == stuck.load]
        elif stuck is not None and stuck.run:
            loading, forms = [], []
        self._deaths[link.name] = _Death(link.generation, running, depth, loading, forms, stuck)

    def reaped(self, worker: str, generation: int, status: int, oom: bool, now: float) -> bool:
        """The process of a dead worker is gone, and this was its status; whether it died through its own doing."""
        death = self._deaths.get(worker)
        if death is None or death.generation != generation:
            return fault(status, oom) is not None
        del self._deaths[worker]
        how = death.how(status, oom)
        clear = how is not None and death.running is None
        own_fault = how is not None and not oom  # for want of memory the original would be worse
        compiled = [v for v in (*death.loading, *death.forms) if v.compiled] if own_fault else []
        for version in compiled:  # nobody need be sure: the original serves as well
            version.unfit = f"loading it compiled killed worker {worker} by {how}"
            self._log.warning("model.unfit", model=version.key.name, version=version.key.version, why=version.unfit)
        for version in death.loading:
            self._died_loading(version, worker, clear, how or f"signal {-status}")
        if how is not None and death.running is not None and not compiled:
            self._crashed(death.running, worker, how, death.depth, now)
        return how is not None

    def _died_loading(self, version: Version, worker: str, clear: bool, how: str) -> None:
        """One load more that did not end; where it was ``clear`` that the load did it, few are enough."""
        version.deaths += 1
        version.faults += clear
        if version.faults >= MAX_LOAD_FAULTS or version.deaths >= MAX_LOAD_DEATHS:
            text = f"loading {version.path} killed {version.deaths} workers, the last by {how}"
            self._residence.load_killed(version, worker, text)

    def _crashed(self, version: Version, worker: str, how: str, depth: int, now: float) -> None:
        version.crashes = recent((*version.crashes, Crash(now, depth)), now)
        name, number, many = version.key.name, version.key.version, counted(version.crashes)
        self._log.warning("model.crashed", model=name, version=number, worker=worker, how=how, count=many)
        if version.retired or version.stopped:
            return
        self._suspects[version.handle] = version
        if many >= CRASHES_TO_STOP:
            self._stop(version, how, now)
        elif version.isolated:
            self._isolated_until[version.handle] = now + ISOLATED_SECONDS
        elif many >= CRASHES_TO_ISOLATE and self._turnover.isolate(version, worker):
            self._isolated_until[version.handle] = now + ISOLATED_SECONDS
            self._log.warning("model.isolated", model=name, version=number, worker=version.isolated)

    def _stop(self, version: Version, how: str, now: float) -> None:
        seconds = max(1.0, now - version.crashes[0].when)
        error = Stopped(f"stopped: it crashed {len(version.crashes)} workers within {seconds:.0f} s, the last by {how}")
        self._log.error("model.stopped", model=version.key.name, version=version.key.version, error=error.message)
        self._notebook.unloaded(version)
        self._residence.stop(version, error)
        self._turnover.release(version)

    def look(self, now: float) -> None:
        """Crashes fade, and in the end isolation does."""
        for handle, version in list(self._suspects.items()):
            version.crashes = recent(version.crashes, now)
            if version.isolated and now >= self._isolated_until[handle]:
                self._log.info("model.released", model=version.key.name, version=version.key.version)
                self._turnover.release(version)
            if not version.crashes and not version.isolated:
                del self._suspects[handle]
                self._isolated_until.pop(handle, None)
