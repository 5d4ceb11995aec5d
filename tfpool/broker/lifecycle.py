"""Models and their versions: seen on disk, wanted by policy, label or hand, brought to workers and sent away again.

A version that is no longer wanted goes only when one that is wanted serves, unless the model asks for the old one to
go first. Nothing here waits: what the disk says comes from :class:`~tfpool.repository.watcher.Watcher`, what workers
say through :class:`~tfpool.broker.residence.Residence`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from tfpool.broker.aspiring import may_go, take_description, wanted_of
from tfpool.broker.lobby import Lobby
from tfpool.broker.notebook import Notebook
from tfpool.broker.registry import Goal, Model, Registry, Version, failure
from tfpool.broker.residence import Residence
from tfpool.broker.stored import Stored, look_up
from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.repository import describe
from tfpool.repository.describe import Description
from tfpool.repository.states import State
from tfpool.repository.versions import aspired
from tfpool.repository.watcher import Done, Roster, Sighting, Watcher
from tfpool.settings import ModelSettings, PoolSettings, Transition, check_model_name
from tfpool.telemetry import log

if TYPE_CHECKING:
    from tfpool.broker.reload import Reload

LONGEST_RETRY_SECONDS = 60.0
UNBLOCK_SECONDS = 0.005
SETTLING_SECONDS = 10.0


class Lifecycle:
    """``clock`` gives monotonic seconds. ``residence`` is set by who makes it, for each needs the other.

    ``store`` is the directory of compiled models, if there is one. ``reload`` is the transaction under way, if any.
    """

    residence: Residence
    reload: Reload | None = None

    def __init__(
        self,
        registry: Registry,
        pool: PoolSettings,
        watcher: Watcher,
        notebook: Notebook,
        lobby: Lobby,
        clock: Callable[[], float],
        store: str = "",
    ) -> None:
        self._store = store
        self._registry = registry
        self._pool = pool
        self._watcher = watcher
        self._notebook = notebook
        self._lobby = lobby
        self._clock = clock
        self._jobs: dict[Future[Any], Callable[[Future[Any]], None]] = {}
        self._retries: dict[int, Version] = {}
        self._next_unblock = 0.0
        self._settled_by = clock() + SETTLING_SECONDS
        self._rostered = not notebook.has_root
        self._log = log.get("models")

    # -- models ------------------------------------------------------------------------------------------------

    def add(self, settings: ModelSettings, from_root: bool = False) -> Model:
        """Take a model in; its versions follow once they have been seen."""
        model = self._registry.add_model(self._notebook.over(settings))
        model.labels = dict(model.settings.labels)
        model.from_root = from_root
        self.watch(settings)
        return model

    def watch(self, settings: ModelSettings) -> None:
        """Have a model's base path looked at, from now on or again."""
        self._watcher.watch(settings.name, settings.base_path)

    def remove(self, model: Model) -> None:
        """Let go of a model: what waits for it is answered, everything else is refused."""
        name = model.settings.name
        self._watcher.forget(name)
        del self._registry.models[name]
        model.removed = True
        self._registry.epoch += 1
        refusal = NotFound(f"model {name!r} has been removed")
        self._lobby.refuse(name, refusal)
        for version in list(model.versions.values()):
            self._lobby.refuse(version.handle, refusal)
            self.retire(model, version)
        self._log.info("model.removed", model=name)

    def retire(self, model: Model, version: Version) -> None:
        """Let a version answer what waits for it, and go for good; another may answer those who wait to see it."""
        if version.retired:  # another that was nowhere went at once, and this one with it
            return
        self._registry.retire(model, version)
        self._retries.pop(version.handle, None)
        self._lobby.open(version.handle)
        self.residence.drain(version, NotFound(f"{version.key} has been unloaded"))

    # -- what the disk says ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what the watcher has seen."""
        for seen in self._watcher.seen():
            if isinstance(seen, Sighting):
                model = self._registry.models.get(seen.model)
                if model is not None and seen.base_path == model.settings.base_path:
                    self._sighted(model, seen)
            elif isinstance(seen, Roster):
                self._roster(seen)
            elif isinstance(seen, Done):
                self._jobs.pop(seen.future)(seen.future)

    def look_at(self, model: Model) -> int:
        """Have a base path looked at now; ``model.ticket`` is at least the returned one when that is done."""
        return self._watcher.look(model.settings.name)

    def ask(self, job: Callable[[], Any], done: Callable[[Future[Any]], None]) -> None:
        """Have something read from disk; ``done`` is called with the finished future, from :meth:`look`."""
        self._jobs[self._watcher.ask(job)] = done

    def _sighted(self, model: Model, seen: Sighting) -> None:
        model.sighted = True
        model.ticket = max(model.ticket, seen.ticket)
        model.error = seen.error
        if seen.error is not None:
            self._log.warning("model.unseen", model=seen.model, error=seen.error.message)
            self._registry.epoch += 1
            self._lobby.refuse(seen.model, seen.error)
            return
        model.found, model.marks = seen.versions, seen.marks
        for number, version in model.versions.items():
            known, version.mark = version.mark, seen.marks.get(number, version.mark)
            if known and known != version.mark:
                self._changed(version)
        for number in self.residence.adoption.numbers(seen.model) & (model.found.keys() - model.versions.keys()):
            self._new(model, number).kept = True
        self.reconcile(model)
        self._registry.epoch += 1
        self._lobby.open(seen.model)

    def _changed(self, version: Version) -> None:
        """The files of a version are not what they were."""
        if version.on and version.state is not State.FAILED:
            text = "its files have changed; what is loaded stays, a new version number would be served"
            self._log.warning("model.changed", model=version.key.name, version=version.key.version, note=text)
            return
        version.failures = version.deaths = version.faults = 0
        if version.stopped:
            version.crashes = ()
            self._notebook.loaded(version)
        version.described = False
        version.on.clear()
        self._describe(version)

    def _roster(self, roster: Roster) -> None:
        """Models come and go in the root directory; those named elsewhere are left alone."""
        self._rostered = True
        if roster.error is not None:
            self._log.warning("root.unseen", error=roster.error.message)
            return
        for name, model in list(self._registry.models.items()):
            if model.from_root and name not in roster.names:
                self.remove(model)
        for name, base_path in roster.names.items():
            try:
                if name not in self._registry.models and name not in self._notebook.removed:
                    defaults = self._notebook.defaults
                    self.add(ModelSettings(check_model_name(name), base_path, batching=defaults), from_root=True)
            except TfpoolError as error:
                self._log.warning("root.ignored", directory=base_path, error=error.message)

    # -- versions ----------------------------------------------------------------------------------------------

    def reconcile(self, model: Model) -> None:
        """Bring a model's versions in line with what lies on disk and what is wanted of it."""
        if model.removed or not model.found:
            return
        wanted = wanted_of(model)
        if not wanted:
            policy = model.settings.version_policy
            model.error = NotFound(f"{model.settings.base_path}: no version that {policy!r} asks for")
            return
        old = [version for number, version in model.versions.items() if number not in wanted]
        first = model.settings.transition is Transition.RESOURCE
        if first:
            self._retire_all(model, old)
        if not (first and model.leaving):
            for number in sorted(wanted - model.versions.keys()):
                self._new(model, number)
        if old and not first and may_go(model, wanted, old):
            self._retire_all(model, old)

    def _retire_all(self, model: Model, versions: list[Version]) -> None:
        for version in versions:
            self.retire(model, version)

    def _new(self, model: Model, number: int) -> Version:
        version = self._registry.add_version(model, number, model.found[number])
        version.mark = model.marks.get(number, "")
        if self._was_unloaded(version):
            version.goal = Goal.OFF
        elif number in model.loaded_by_hand:
            version.goal = Goal.SERVE
        self._describe(version)
        return version

    def _was_unloaded(self, version: Version) -> bool:
        return self._registry.models[version.key.name].off or self._notebook.was_unloaded(version)

    def _describe(self, version: Version) -> None:
        self.describe(version, self._described)

    def describe(self, version: Version, done: Callable[[Version, Future[Description]], None]) -> None:
        """Have a version's directory read; ``done`` is called with what was read, from :meth:`look`."""

        def read(looked: Future[Stored | None] | None) -> None:
            found = looked is not None and looked.exception() is None
            version.stored = looked.result() if looked is not None and found else None
            self.ask(partial(describe.describe, version.path, roots=self._notebook.roots), partial(done, version))

        if self._store:
            self.ask(partial(look_up, self._store, version.path), read)
        else:
            read(None)

    def _described(self, version: Version, read: Future[Description]) -> None:
        if version.retired:
            return
        try:
            take_description(version, read.result())
        except TfpoolError as error:
            self.residence.give_up(version, error, final=False)  # requests may wait for one that has served before
            self._log.warning("model.failed", model=version.key.name, version=version.key.version, error=error.message)
            return
        model = self._registry.models[version.key.name]
        replaces = any(other is not version and other.proven and other.on for other in model.versions.values())
        version.cold = version.goal is Goal.ON_DEMAND
        version.kept = self.residence.adoption.wants(version, self._was_unloaded(version))
        if version.kept or version.goal is Goal.SERVE or version.urgent or (replaces and version.cold):
            version.urgent = version.urgent or replaces
            self.residence.start(version)
        self._registry.epoch += 1
        self.reconcile(model)

    # -- by hand -----------------------------------------------------------------------------------------------

    def load(self, model: Model, number: int | None) -> Version:
        """Begin to load a version (None: the newest on disk); one that is loaded, or about to be, stays.

        Raises NotFound where there is no such version on disk.
        """
        if model.error is not None and not model.found:
            raise model.error
        number = number if number is not None else max(model.found)
        if number not in model.found:
            have = ", ".join(map(str, sorted(model.found)))
            raise NotFound(f"{model.settings.base_path} has no version {number}; it has {have}")
        if number not in aspired(model.settings.version_policy, model.found):
            model.loaded_by_hand.add(number)
        model.off = False
        if number not in model.versions:
            self.reconcile(model)
        version = model.versions.get(number)
        if version is None:  # the one before it has to leave first
            raise FailedPrecondition(f"{model.settings.name}:{number} waits for older versions to go")
        version.goal = Goal.SERVE
        self._notebook.loaded(version)
        self._registry.epoch += 1
        failed = version.state is State.FAILED
        if failed or version.stopped:
            version.error, version.crashes = None, ()
        if failed:
            version.deaths = version.faults = version.failures = 0
            version.on.clear()
            self._retries.pop(version.handle, None)
        if version.described:
            self.wake(version)
        elif failed:
            self._describe(version)
        return version

    def unload(self, model: Model, version: Version) -> None:
        """Take a version out of memory once it has answered what waits for it; only a load brings it back."""
        version.goal, version.urgent, version.cold = Goal.OFF, False, False
        model.loaded_by_hand.discard(version.key.version)
        self._retries.pop(version.handle, None)
        self._notebook.unloaded(version)
        self._registry.epoch += 1
        self._lobby.open(version.handle)
        self.residence.drain(version, NotFound(f"{version.key} has been unloaded"))

    def relabel(self, model: Model, settings: ModelSettings) -> None:
        """Other labels, or another shadow, from this moment on."""
        model.settings = settings
        model.labels = dict(settings.labels)
        self._registry.epoch += 1
        self.reconcile(model)

    # -- requests ----------------------------------------------------------------------------------------------

    def wake(self, version: Version) -> None:
        """A request, or somebody, needs a version that may not be in memory."""
        if not version.serving():
            self.residence.wake(version)

    # -- how versions fare -------------------------------------------------------------------------------------

    def served(self, version: Version) -> None:
        version.kept = False
        self._retries.pop(version.handle, None)
        self._lobby.open(version.handle)
        model = self._registry.models.get(version.key.name)
        if model is not None and not version.staged:
            self.reconcile(model)

    def failed(self, version: Version, error: TfpoolError, final: bool) -> None:
        version.failures += 1
        version.kept = False
        self._registry.epoch += 1
        self._lobby.refuse(version.handle, failure(version))
        if not (final or version.staged or version.retired) and version.failures <= self._pool.load_retries:
            version.retry_at = self._clock() + min(LONGEST_RETRY_SECONDS, 2.0 ** (version.failures - 1))
            self._retries[version.handle] = version
        model = self._registry.models.get(version.key.name)
        if model is not None and not version.staged:
            self.reconcile(model)

    def gone(self, version: Version) -> None:
        self._registry.epoch += 1
        if version.retired:
            self._registry.drop(version)
        model = self._registry.models.get(version.key.name)
        if model is not None:
            self.reconcile(model)

    # -- time --------------------------------------------------------------------------------------------------

    def next_retry(self) -> float:
        """When a failed load, or one that found no room, is to be tried again (monotonic seconds; inf: never)."""
        following = min((version.retry_at for version in self._retries.values()), default=float("inf"))
        return min(following, self._next_unblock) if self.residence.blocked else following

    def step(self, now: float) -> None:
        """What time, or a finished run, has made possible."""
        self.residence.leaving.step()
        if self.residence.blocked and now >= self._next_unblock:
            self._next_unblock = now + UNBLOCK_SECONDS
            self.residence.unblock()
        if self.reload is not None:
            self.reload.step()
            if self.reload.over:
                self.reload = None
        if self._retries:
            self._retry(now)
        adoption = self.residence.adoption
        if adoption.pending:
            adoption.settling = now < self._settled_by
            if self._rostered and not (adoption.settling and self._jobs):
                adoption.sort_out(self._was_unloaded, self.residence.start)

    def _retry(self, now: float) -> None:
        for version in [v for v in self._retries.values() if v.retry_at <= now]:
            due = self._retries.pop(version.handle, None)  # the one before may have ended this one
            if due is None or version.retired or version.goal is Goal.OFF or version.state is not State.FAILED:
                continue
            version.error = None
            version.on.clear()
            if version.described:
                self.residence.start(version)
            else:
                self._describe(version)

    def settled(self) -> bool:
        """Whether every model that shall serve does, is left for later, or has failed."""
        looked = all(model.sighted for model in self._registry.models.values()) or self._pool.poll_s is None
        return self._rostered and looked and all(version.settled for version in self._registry.versions())
