"""Other models, or other settings of them, as a transaction: what is new is loaded, then everything changes at once.

While it is prepared, requests are served as before. When a version cannot be loaded, or a label names one that is not
there, what has been loaded for it leaves again and nothing has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from tfpool.broker.aspiring import own_settings, take_description, wanted_of
from tfpool.broker.lifecycle import Lifecycle
from tfpool.broker.registry import Goal, Model, Registry, Version
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, TfpoolError
from tfpool.repository.describe import Description
from tfpool.repository.scan import scan
from tfpool.repository.states import State
from tfpool.settings import Form, ModelSettings


class Reload:
    """``wanted`` are the models by name; those not named are removed, or kept where ``keep`` says so.

    ``done`` is called when everything has changed; ``error`` says why nothing has, once it is ``over``.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        registry: Registry,
        wanted: dict[str, ModelSettings],
        roots: tuple[str, ...],
        keep: bool,
        done: Callable[[], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._registry = registry
        self._wanted = wanted
        self._keep = keep
        self._done = done
        self._drafts: dict[str, Model] = {}
        self._staged: list[Version] = []
        self._reused: list[Version] = []
        self._unseen = 0
        self.over = False
        self.error: TfpoolError | None = None
        for settings in wanted.values():
            current = registry.models.get(settings.name)
            if current is None or current.settings != settings:
                self._unseen += 1
                lifecycle.ask(partial(_look, settings.base_path, roots), partial(self._seen, settings))

    def progress(self) -> dict[str, int]:
        """How many of the versions that it needs serve already."""
        needed = [*self._staged, *self._reused]
        return {"versions": len(needed), "ready": sum(_ready(version) for version in needed)}

    def step(self) -> None:
        """Finish, if everything is there or something failed."""
        if self.over or self._unseen:
            return
        needed = [*self._staged, *self._reused]
        failed = next((v for v in needed if v.state is State.FAILED or (v.retired and not v.staged)), None)
        if failed is not None:
            self._abort(failed.error or FailedPrecondition(f"{failed.key} has gone meanwhile"), str(failed.key))
        elif all(_ready(version) for version in needed):
            self._commit()

    # -- preparing ---------------------------------------------------------------------------------------------

    def _seen(self, settings: ModelSettings, looked: Future[dict[int, str]]) -> None:
        self._unseen -= 1
        if self.over:
            return
        try:
            self._draft(settings, looked.result())
        except TfpoolError as error:
            self._abort(error, settings.name)

    def _draft(self, settings: ModelSettings, found: dict[int, str]) -> None:
        """A model as it is to be; its new versions begin to load. Raises NotFound where there are none."""
        draft = self._drafts[settings.name] = Model(settings, dict(settings.labels), found=found, sighted=True)
        for label, split in settings.labels:
            missing = [number for number, _ in split if number not in found]
            if missing:
                have = ", ".join(map(str, found))
                raise NotFound(f"label {label!r} names version {missing[0]}; {settings.base_path} has {have}")
        wanted = wanted_of(draft)
        if not wanted:
            raise NotFound(f"{settings.base_path}: no version that {settings.version_policy!r} asks for")
        current = self._registry.models.get(settings.name)
        for number in sorted(wanted):
            held = current.versions.get(number) if current is not None else None
            if held is not None and held.state is not State.FAILED and _same(held, settings, found[number]):
                draft.versions[number] = held
                self._reused.append(held)
            else:
                draft.versions[number] = self._stage(settings, number, found[number])

    def _stage(self, settings: ModelSettings, number: int, path: str) -> Version:
        version = self._registry.make_version(settings, number, path)
        version.staged = version.urgent = True
        self._staged.append(version)
        self._lifecycle.describe(version, self._described)
        return version

    def _described(self, version: Version, read: Future[Description]) -> None:
        if self.over:
            return
        try:
            take_description(version, read.result())
        except TfpoolError as error:
            self._abort(error, str(version.key))
            return
        version.cold = version.goal is Goal.ON_DEMAND
        if version.goal is Goal.SERVE:
            self._lifecycle.residence.start(version)

    # -- the end -----------------------------------------------------------------------------------------------

    def _abort(self, error: TfpoolError, what: str) -> None:
        self.over = True
        message = error.message if what in error.message else f"{what}: {error.message}"
        self.error = type(error)(f"nothing was changed: {message}")
        for version in self._staged:
            version.retired = True
            self._lifecycle.residence.drain(version, self.error)

    def _commit(self) -> None:
        drafts = self._drafts.values()
        try:
            settings = {v.handle: own_settings(v, d.settings) for d in drafts for v in d.versions.values()}
        except InvalidArgument as error:  # batching parameters in the directory of a version do not fit the new ones
            self._abort(error, "")
            return
        self.over = True
        old: list[tuple[Model, Version]] = []
        for name, draft in self._drafts.items():
            old += self._take(name, draft, settings)
        self._registry.epoch += 1
        for model, version in old:
            self._lifecycle.retire(model, version)
        if not self._keep:
            for name in set(self._registry.models) - set(self._wanted):
                model = self._registry.models[name]
                if not model.from_root:
                    self._lifecycle.remove(model)
        for name in self._drafts:
            self._lifecycle.reconcile(self._registry.models[name])
        self._lifecycle.residence.refill()
        self._done()

    def _take(self, name: str, draft: Model, settings: dict[int, ModelSettings]) -> list[tuple[Model, Version]]:
        """Have a model be as its draft; the versions that leave with that."""
        model = self._registry.models.get(name)
        if model is None:
            model = self._registry.add_model(draft.settings)
        moved = not model.found or model.settings.base_path != draft.settings.base_path
        model.settings, model.labels, model.found = draft.settings, draft.labels, draft.found
        model.error, model.off, model.sighted, model.from_root = None, False, True, False
        model.loaded_by_hand.clear()
        old = [(model, v) for number, v in model.versions.items() if draft.versions.get(number) is not v]
        for version in draft.versions.values():
            version.settings = settings[version.handle]
            version.staged = False
            model.versions[version.key.version] = version
        if moved:
            model.marks = {}
            self._lifecycle.watch(draft.settings)
        else:
            self._lifecycle.look_at(model)  # what has been seen meanwhile is told once more
        return old


def _ready(version: Version) -> bool:
    return version.state is State.AVAILABLE or (version.described and version.goal is not Goal.SERVE)


def _same(version: Version, settings: ModelSettings, path: str) -> bool:
    """Whether a version that is there may serve on under other settings."""
    has = version.settings
    alike = (has.stateful, has.pin, has.preload) == (settings.stateful, settings.pin, settings.preload)
    plain = (has.form is Form.PLAIN) == (settings.form is Form.PLAIN)  # other forms are changed to where it is
    return alike and plain and version.path == path and version.goal is not Goal.OFF


def _look(base_path: str, roots: tuple[str, ...]) -> dict[int, str]:
    """The versions in a base path. Raises PermissionDenied for one outside of what is allowed, and NotFound."""
    if roots and not any(_inside(base_path, root) for root in roots):
        raise PermissionDenied(f"{base_path} is outside of allowed_roots: {', '.join(roots)}")
    return scan(base_path)


def _inside(path: str, root: str) -> bool:
    try:
        real, top = os.path.realpath(path), os.path.realpath(root)
    except ValueError:  # a null byte
        return False
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)
