"""Which models there are, which versions of them, and what each worker holds.

A version's state on one worker follows this table; ``lost`` (the worker died) leads back to PENDING from anywhere::

    PENDING --load--> LOADING --warming--> WARMING --loaded--> AVAILABLE --unload--> UNLOADING --unloaded--> (gone)
                         \\___________________/ \\--failed--> FAILED --load--> LOADING
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError, Unavailable
from tfpool.settings import ModelSettings
from tfpool.types import ModelKey, SignatureSpec

DEFAULT_SIGNATURE = "serving_default"


class State(Enum):
    """Of a version on a worker, in rising order of usefulness; a version is as good as its best worker."""

    FAILED = "FAILED"
    UNLOADING = "UNLOADING"
    PENDING = "PENDING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    AVAILABLE = "AVAILABLE"


_ORDER = {state: i for i, state in enumerate(State)}
_NEXT = {
    (State.PENDING, "load"): State.LOADING,
    (State.FAILED, "load"): State.LOADING,
    (State.LOADING, "warming"): State.WARMING,
    (State.LOADING, "loaded"): State.AVAILABLE,
    (State.WARMING, "loaded"): State.AVAILABLE,
    (State.LOADING, "failed"): State.FAILED,
    (State.WARMING, "failed"): State.FAILED,
    (State.PENDING, "failed"): State.FAILED,
    (State.AVAILABLE, "unload"): State.UNLOADING,
}


@dataclass(slots=True)
class Version:
    """One servable. ``on`` has its state on each worker that holds, loads or should load it; ``handle`` is what
    workers call it. ``deaths`` counts workers that died while loading it."""

    key: ModelKey
    path: str
    handle: int
    settings: ModelSettings
    on: dict[str, State] = field(default_factory=dict)
    signatures: tuple[SignatureSpec, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    error: TfpoolError | None = None
    load_seconds: float | None = None
    memory_bytes: int | None = None
    deaths: int = 0

    @property
    def state(self) -> State:
        return max(self.on.values(), key=_ORDER.__getitem__, default=State.PENDING)

    def step(self, worker: str, what: str) -> bool:
        """Follow the table; False where it has no such arrow (a late message, say)."""
        following = _NEXT.get((self.on.get(worker, State.PENDING), what))
        if following is None:
            return False
        self.on[worker] = following
        return True

    def serving(self) -> list[str]:
        return [worker for worker, state in self.on.items() if state is State.AVAILABLE]


@dataclass(slots=True)
class Model:
    settings: ModelSettings
    labels: dict[str, int]
    versions: dict[int, Version] = field(default_factory=dict)
    error: TfpoolError | None = None


class Registry:
    """All models by name. ``epoch`` rises whenever an earlier resolution may no longer hold."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.by_handle: dict[int, Version] = {}
        self.epoch = 0
        self._handles = 0

    def add_model(self, settings: ModelSettings) -> Model:
        model = self.models[settings.name] = Model(settings, dict(settings.labels))
        self.epoch += 1
        return model

    def add_version(self, model: Model, number: int, path: str) -> Version:
        self._handles += 1
        version = Version(ModelKey(model.settings.name, number), path, self._handles, model.settings)
        model.versions[number] = self.by_handle[version.handle] = version
        self.epoch += 1
        return version

    def drop_version(self, version: Version) -> None:
        self.by_handle.pop(version.handle, None)
        self.models[version.key.name].versions.pop(version.key.version, None)
        self.epoch += 1

    def versions(self) -> list[Version]:
        return list(self.by_handle.values())

    def model(self, name: str) -> Model:
        """Raises NotFound."""
        found = self.models.get(name)
        if found is None:
            raise NotFound(f"no model {name!r}; there are {some_names(self.models)}")
        return found

    def resolve(self, name: str, number: int, label: str) -> Version:
        """The version a request means: the one it names, its label's, or the newest that serves.

        Raises NotFound, or the error that keeps the version from serving.
        """
        model = self.model(name)
        if label:
            if number:
                raise InvalidArgument(f"model {name!r}: got both version {number} and label {label!r}, expected one")
            found = model.labels.get(label)
            if found is None:
                raise NotFound(f"model {name!r} has no label {label!r}; it has {some_names(model.labels)}")
            number = found
        if number:
            version = model.versions.get(number)
            if version is None:
                raise NotFound(f"model {name!r} has no version {number} loaded; it has {some_names(model.versions)}")
            return _usable(version)
        serving = [v for v in model.versions.values() if v.state is State.AVAILABLE]
        candidates = serving or list(model.versions.values())
        if not candidates:
            raise model.error or Unavailable(f"model {name!r} has no version loaded")
        return _usable(max(candidates, key=lambda v: v.key.version))


def _usable(version: Version) -> Version:
    if version.state is State.FAILED:
        why = version.error.message if version.error else "unknown"
        raise FailedPrecondition(f"{version.key} failed to load: {why}")
    if not version.signatures:
        raise Unavailable(f"{version.key} is not loaded yet ({version.state.value})")
    return version


def signature_index(version: Version, name: str) -> int:
    """The signature of a name; without one the default, or the only one.

    Raises InvalidArgument that lists what there is.
    """
    names = [s.name for s in version.signatures]
    if not name:
        if DEFAULT_SIGNATURE in names:
            return names.index(DEFAULT_SIGNATURE)
        if len(names) == 1:
            return 0
    if name in names:
        return names.index(name)
    wanted = f"no signature {name!r}" if name else f"no signature {DEFAULT_SIGNATURE!r}, so one must be named"
    skipped = f"; {name!r} cannot be served: {version.skipped[name]}" if name in version.skipped else ""
    raise InvalidArgument(f"{version.key} has {wanted}; it has {some_names(names)}{skipped}")


def some_names(names: Any) -> str:
    """A short list for a message."""
    listed = sorted(map(str, names))
    return (", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")) or "none"
