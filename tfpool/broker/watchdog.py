"""Which workers are stuck: silent, at one batch or at one load for far too long, or never ready.

A worker says something every second, if only that it is there. Time is counted as the broker has lived it: while the
broker itself was stopped, or the whole machine was, its workers get no older.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tfpool.broker.fleet import Fleet, Link
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.work import BatchId
from tfpool.settings import PoolSettings

LONGEST_STEP = 2.0
QUIET_SECONDS = 3.0
TIMES_THOUGHT = 10.0
_AT_WORK = "RS"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A worker to be given up. ``own_fault``: not the work of somebody who stopped it, nor of a slow disk; then
    ``load`` has the handle of the version whose load is stuck, or 0, and ``run`` says whether a batch is."""

    link: Link
    why: str
    own_fault: bool = False
    run: bool = False
    load: int = 0


@dataclass(frozen=True, slots=True)
class Quiet:
    """A worker has fallen silent, and should be given nothing for now; or it speaks again."""

    link: Link
    quiet: bool


@dataclass(slots=True)
class _Watch:
    """One life of a worker; times are seconds that the broker has lived."""

    generation: int
    begun: float
    heard: float
    quiet: bool = False
    batch: BatchId | None = None
    since: float = 0.0
    loads: dict[int, float] = field(default_factory=dict)


def process_state(pid: int) -> str:
    """The kernel's letter for what a process is doing (``T``: stopped, ``D``: waits for a disk), or nothing."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    return ""


class Watchdog:
    """Looks at all workers, about once a second; ``now`` is monotonic seconds."""

    def __init__(
        self,
        fleet: Fleet,
        scheduler: Scheduler,
        pool: PoolSettings,
        now: float,
        state_of: Callable[[int], str] = process_state,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._pool = pool
        self._state_of = state_of
        self._looked = now
        self._lived = 0.0
        self._watches: dict[str, _Watch] = {}

    def look(self, now: float) -> list[Stuck | Quiet]:
        """What has become of the workers since the last look."""
        self._lived += min(now - self._looked, LONGEST_STEP)
        self._looked = now
        found: list[Stuck | Quiet] = []
        for link in self._fleet.links.values():
            if link.bell is None:
                self._watches.pop(link.name, None)
                continue
            watch = self._watch(link)
            stuck = self._silent(link, watch) or self._runs(link, watch) or self._loads(link, watch)
            if stuck is not None:
                found.append(stuck)
                continue
            quiet = link.up and self._lived - watch.heard > QUIET_SECONDS
            if quiet is not watch.quiet:
                watch.quiet = quiet
                found.append(Quiet(link, quiet))
        return found

    def _watch(self, link: Link) -> _Watch:
        watch = self._watches.get(link.name)
        if watch is None or watch.generation != link.generation:
            watch = self._watches[link.name] = _Watch(link.generation, self._lived, self._lived)
        if link.heard:
            link.heard = False
            watch.heard = self._lived
        return watch

    def _silent(self, link: Link, watch: _Watch) -> Stuck | None:
        if not link.up:
            limit = self._pool.hang_s if link.outlives else self._pool.load_timeout_s
            late = self._lived - watch.begun > limit
            return self._stuck(link, f"it is not ready after {limit:g} s") if late else None
        silent = self._lived - watch.heard
        if silent <= max(self._pool.hang_s, QUIET_SECONDS):
            return None
        return self._stuck(link, f"it has said nothing for {silent:.1f} s")

    def _runs(self, link: Link, watch: _Watch) -> Stuck | None:
        batch = self._scheduler.running(link.name)
        if batch is None or batch.id != watch.batch:
            watch.batch, watch.since = (batch.id if batch is not None else None), self._lived
            return None
        runs, limit = self._lived - watch.since, self._pool.hang_s + TIMES_THOUGHT * batch.thought
        if runs <= limit:
            return None
        why = f"a batch of {batch.spec.servable} has run for {runs:.1f} s, expected at most {limit:.1f} s"
        return self._stuck(link, why, run=True)

    def _loads(self, link: Link, watch: _Watch) -> Stuck | None:
        watch.loads = {handle: watch.loads.get(handle, self._lived) for handle in (*link.reforming, *link.loading)}
        limit = self._pool.load_timeout_s
        for handle, begun in watch.loads.items():
            if self._lived - begun > limit:
                return self._stuck(link, f"a load has taken more than {limit:g} s", load=handle)
        return None

    def _stuck(self, link: Link, why: str, run: bool = False, load: int = 0) -> Stuck:
        state = self._state_of(link.pid) or "?"
        return Stuck(link, f"{why}; its process is in state {state}", state in _AT_WORK, run, load)
