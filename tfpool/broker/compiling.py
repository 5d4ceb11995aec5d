"""Have models compiled, one at a time, by a process that gives way to all others; what came of it is in the store.

Those that serve come first, then the others, as long as there is room for them in the store. Replicas that were loaded
from their SavedModel change to what was compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.reforms import Reforms
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.broker.stored import Stored, look_up, touch
from tfpool.errors import TfpoolError, Unavailable
from tfpool.repository.states import State
from tfpool.settings import Form, Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Control, unpack

LONGEST_SECONDS = 1800.0
LONGEST_START_SECONDS = 60.0
BUSY_SECONDS = 2.0
RETRY_SECONDS = 10.0
MOST_TRIES = 3
TOUCH_SECONDS = 600.0
FULL = 0.8

Ask = Callable[[Callable[[], Any], Callable[[Future[Any]], None]], None]


@dataclass(slots=True)
class Job:
    """A compilation under way: of the files in ``path``, now at ``stage``."""

    version: Version
    path: str
    bell: Doorbell
    stage: str = "start"
    result: tuple[str, str, str, float] | None = None


@dataclass(slots=True)
class Tries:
    """Of one version: how often it was tried in vain, and when it may be again (monotonic seconds)."""

    count: int = 0
    due: float = 0.0


class Compiling:
    """``ask`` has a job done in another thread, ``watch`` is told of descriptors that come (True) and go (False),
    ``tell`` speaks to the supervisor. ``job`` is the compilation under way."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        fleet: Fleet,
        reforms: Reforms,
        settled: Callable[[], bool],
        ask: Ask,
        watch: Callable[[int, bool], None],
        tell: Callable[..., None],
        now: float,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._fleet = fleet
        self._reforms = reforms
        self._settled = settled
        self._ask = ask
        self._watch = watch
        self._tell = tell
        self._begun = now
        self._started = False
        self._looking = False
        self._tries: dict[int, Tries] = {}
        self._touched = now
        self.job: Job | None = None
        cpu = any(worker.device == "cpu" for worker in settings.workers)
        self.enabled = settings.store.enabled and cpu
        self._log = log.get("store")

    # -- by itself ---------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Begin the next compilation, if none is under way; have replicas change their form."""
        if not self.enabled:
            return
        self._mend(now)
        self._touch(now)
        self._begin_next(now)

    def _begin_next(self, now: float) -> None:
        if self.job is not None or self._looking:
            return
        self._started = self._started or self._settled() or now > self._begun + LONGEST_START_SECONDS
        if self._started:
            version = self._next(now)
            if version is not None:
                self._begin(version)

    def _touch(self, now: float) -> None:
        """What is in use leaves the store last."""
        if now < self._touched + TOUCH_SECONDS:
            return
        self._touched = now
        keys = [v.stored.key for v in self._registry.versions() if v.stored is not None and v.held_by()]
        self._ask(partial(touch, self._settings.store.directory, keys), lambda done: None)

    def _next(self, now: float) -> Version | None:
        able = [version for version in self._registry.versions() if self._wants(version, now)]
        serving = next((version for version in able if version.serving()), None)
        if serving is not None or not able:
            return serving
        filled = sum(v.disk_bytes for v in self._registry.versions() if v.stored is not None and v.stored.usable)
        room = FULL * self._settings.store.budget - filled
        return next((version for version in able if version.disk_bytes < room), None)

    def _wants(self, version: Version, now: float) -> bool:
        if version.stored is not None or not version.described or not may(version):
            return False
        if version.retired or version.staged or version.stopped or version.goal is Goal.OFF:
            return False
        if version.state is State.FAILED:
            return False
        return self._tries_again(version, now)

    def _tries_again(self, version: Version, now: float) -> bool:
        tries = self._tries.get(version.handle)
        return tries is None or (tries.count < MOST_TRIES and tries.due <= now)

    def gave_up(self, version: Version) -> bool:
        """Whether it has been tried often enough."""
        tries = self._tries.get(version.handle)
        return tries is not None and tries.count >= MOST_TRIES

    def _begin(self, version: Version) -> None:
        mine, theirs = Doorbell.pair()
        server, store = self._settings.server, self._settings.store
        order = {
            "path": version.path,
            "store": store.directory,
            "budget": store.budget,
            "threads": max(1, self._settings.workers[0].threads),
            "stateful": list(version.settings.stateful),
            "seconds": LONGEST_SECONDS,
            "log_level": server.log_level,
            "log_format": server.log_format,
        }
        self.job = Job(version, version.path, Doorbell(mine, blocking=False))
        with theirs:
            self._tell(Control.ORDER, order, fds=(theirs.fileno(),))
        self._watch(self.job.bell.fileno(), True)
        self._log.info("model.compiling", model=version.key.name, version=version.key.version)

    # -- what the compiler says --------------------------------------------------------------------------------

    def hears(self, fd: int) -> bool:
        """Whether a descriptor is the compiler's doorbell; what it has said is taken in."""
        job = self.job
        if job is None or job.bell.fileno() != fd:
            return False
        try:
            while (heard := job.bell.hear()) is not None:
                what, *fields = unpack(heard[0])
                if what == "stage":
                    job.stage = fields[0]
                else:
                    job.result = (fields[0], fields[1], fields[2], fields[3])
        except EOFError:
            self._ended(job)
        return True

    def _ended(self, job: Job) -> None:
        self._watch(job.bell.fileno(), False)
        job.bell.close()
        self.job = None
        self._tries = {handle: tries for handle, tries in self._tries.items() if handle in self._registry.by_handle}
        outcome, _, reason, seconds = job.result or ("died", "", f"the compiler died at stage {job.stage!r}", 0.0)
        key = job.version.key
        write = self._log.info if outcome in ("compiled", "known", "busy") else self._log.warning
        write(
            "model.compiled" if outcome in ("compiled", "known") else "model.not_compiled",
            model=key.name,
            version=key.version,
            outcome=outcome,
            seconds=seconds,
            why=reason,
        )
        if outcome in ("compiled", "known", "refused"):
            self._look(job.version)
        else:
            self._failed(job.version, reason, counts=outcome != "busy")

    def _failed(self, version: Version, reason: str, counts: bool = True) -> None:
        """Try again later, unless it was tried often enough."""
        tries = self._tries.setdefault(version.handle, Tries())
        tries.count += counts
        tries.due = self._reforms.now() + (RETRY_SECONDS * 2.0**tries.count if counts else BUSY_SECONDS)
        version.uncompiled = reason
        self._registry.epoch += 1

    def _look(self, version: Version) -> None:
        """See what the store has now."""
        self._looking = True
        self._ask(partial(look_up, self._settings.store.directory, version.path), partial(self._seen, version))

    def _seen(self, version: Version, seen: Future[Stored | None]) -> None:
        self._looking = False
        try:
            version.stored = seen.result()
        except TfpoolError as error:
            self._failed(version, error.message)
            return
        if version.stored is None:
            self._failed(version, "its files changed while it was compiled, or the store lost it")
            return
        version.uncompiled = version.stored.refusal
        self._registry.epoch += 1
        self._begin_next(self._reforms.now())

    # -- replicas ----------------------------------------------------------------------------------------------

    def _mend(self, now: float) -> None:
        """Have replicas that are PLAIN, and need not be, change to what was compiled, and all to the form that their
        settings name: one at a time on a worker, for other loads may wait there."""
        for link in self._fleet.links.values():
            if not link.up or link.leaving or link.reforming or link.settings.device != "cpu":
                continue
            held = [(self._registry.by_handle.get(handle), form) for handle, form in link.forms.items()]
            others = (v for v, form in held if v is not None and v.compiled and _wanted(v, form) is not form)
            able = (v for v in others if v.on.get(link.name) is State.AVAILABLE)
            version = next((v for v in able if self._tries_again(v, now)), None)
            if version is not None:
                self._change(version, link)

    def _change(self, version: Version, link: Link) -> None:
        try:
            form = version.settings.form or Form.MAPPED
            self._reforms.begin(version, link, form, "store", "it has been compiled", self._changed)
        except TfpoolError as error:  # there is no room for it
            self._failed(version, error.message, counts=False)

    def _changed(self, error: TfpoolError | None, version: Version) -> None:
        if error is None:
            self._tries.pop(version.handle, None)
        elif not isinstance(error, Unavailable):  # a worker could not use what the store had
            self._failed(version, error.message)


def _wanted(version: Version, form: Form) -> Form:
    """The form that a replica should have which is compiled and has ``form``."""
    return version.settings.form or (Form.MAPPED if form is Form.PLAIN else form)


def may(version: Version) -> bool:
    """Whether a version may be compiled."""
    return version.settings.form is not Form.PLAIN and not version.settings.stateful and not version.unfit


def state_of(version: Version, compiling: Compiling) -> dict[str, Any]:
    """How a version stands with the store, and why it is not compiled, for people."""
    stored, job = version.stored, compiling.job
    if not compiling.enabled:
        return {"state": "off", "reason": "there is no store"}
    if version.unfit:
        return {"state": "refused", "reason": version.unfit}
    if not may(version):
        why = "its form is set to plain" if version.settings.form is Form.PLAIN else "it is declared stateful"
        return {"state": "off", "reason": why}
    if stored is not None:
        state = "compiled" if stored.usable else "refused"
        return {"state": state, "reason": stored.refusal, "gain": stored.gain, "shared_bytes": stored.shared}
    if job is not None and job.version is version:
        return {"state": "compiling", "reason": job.stage}
    return {"state": "failed" if compiling.gave_up(version) else "waiting", "reason": version.uncompiled}
