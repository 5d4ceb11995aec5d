"""Which models there are, which versions of them, and what each worker holds of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from tfpool.broker.stored import Stored
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, TfpoolError, Unavailable
from tfpool.repository.states import USEFULNESS, State, Step, following
from tfpool.settings import Form, Loading, ModelSettings, Split
from tfpool.types import ModelKey, SignatureSpec

DEFAULT_SIGNATURE = "serving_default"
_RANK = {state: rank for rank, state in enumerate(USEFULNESS)}


class Goal(Enum):
    """What a version is meant to be: loaded, loaded when a request comes, or not before somebody says load."""

    SERVE = "serve"
    ON_DEMAND = "on demand"
    OFF = "off"


GOAL_OF = {Loading.PRELOAD: Goal.SERVE, Loading.LAZY: Goal.ON_DEMAND, Loading.EXPLICIT: Goal.OFF}


class NotLoaded(Unavailable):
    """The version that a request means is not in memory, but can be; None while the model's versions are not known."""

    def __init__(self, settings: ModelSettings, version: Version | None = None) -> None:
        super().__init__(f"{version.key if version else settings.name} is not loaded yet")
        self.settings = settings
        self.version = version

    @property
    def room(self) -> int | str:
        """Where those who ask for it wait: the version's handle, or the model's name."""
        return self.version.handle if self.version is not None else self.settings.name


class Stopped(FailedPrecondition):
    """The error of a version that crashed workers, until somebody loads it again."""


class Crash(NamedTuple):
    """A worker was crashed: when (monotonic seconds), under requests that had died ``depth`` times before."""

    when: float
    depth: int


@dataclass(slots=True)
class Version:
    """One servable. ``on`` has its state on each worker that holds, loads or should load it.

    ``mark`` changes when its files do, ``fingerprint`` is what sizes are remembered by. ``described`` once the graph
    has been read, which says what signatures are ``foreseen``, and the version's own batching parameters; ``proven``
    once it has served; ``cold`` while no worker holds it and none is to, so that a request must wake it; ``urgent``
    when its load may push others out of memory; ``retired`` when it is to go for good; ``staged`` while only a reload
    knows it; ``kept`` while a worker seems to hold it from an earlier broker. ``deaths`` counts workers that died
    loading it, ``faults`` those that this is known to have killed, and ``failures`` its failed loads in a row;
    ``retry_at`` is when the next try is due (monotonic seconds). ``crashes`` are those of late; ``isolated`` names the
    worker that it has to itself. ``asks`` and ``rows`` count what has been asked of it. ``stored`` is what the store
    has for its files; ``uncompiled`` says why it has nothing, ``unfit`` why what it has is not used.
    """

    key: ModelKey
    path: str
    settings: ModelSettings
    goal: Goal = Goal.SERVE
    on: dict[str, State] = field(default_factory=dict)
    signatures: tuple[SignatureSpec, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    foreseen: tuple[SignatureSpec, ...] = ()
    own_batching: dict[str, Any] = field(default_factory=dict)
    mark: str = ""
    fingerprint: str = ""
    disk_bytes: int = 0
    described: bool = False
    proven: bool = False
    cold: bool = False
    urgent: bool = False
    retired: bool = False
    staged: bool = False
    kept: bool = False
    error: TfpoolError | None = None
    load_seconds: float | None = None
    memory_bytes: int | None = None
    peak_bytes: int | None = None
    deaths: int = 0
    faults: int = 0
    failures: int = 0
    retry_at: float = 0.0
    crashes: tuple[Crash, ...] = ()
    isolated: str = ""
    asks: int = 0
    rows: int = 0
    stored: Stored | None = None
    uncompiled: str = ""
    unfit: str = ""

    @property
    def handle(self) -> int:
        """What workers call it."""
        return self.key.life

    @property
    def state(self) -> State:
        if self.on:
            return max(self.on.values(), key=_RANK.__getitem__)
        if self.error is not None:
            return State.FAILED
        return State.UNLOADED if self.described and self.goal is not Goal.SERVE else State.NEW

    @property
    def compiled(self) -> bool:
        """Whether workers load it from the store."""
        able = self.stored is not None and self.stored.usable and not self.unfit
        return able and self.settings.form is not Form.PLAIN and not self.settings.stateful

    @property
    def least(self) -> int:
        """Replicas that it has while it is in memory."""
        return max(1, self.settings.replicas[0])

    @property
    def stopped(self) -> bool:
        return isinstance(self.error, Stopped)

    @property
    def settled(self) -> bool:
        """Whether nothing is going to happen to it by itself, but for another try."""
        return self.state in (State.AVAILABLE, State.FAILED, State.UNLOADED)

    def step(self, worker: str, step: Step) -> bool:
        """Follow the table; False where it has no such arrow (a late message, say)."""
        state = self.on.get(worker)
        after = following(state, step) if state is not None else None
        if after is None:
            return False
        self.on[worker] = after
        if after is State.UNLOADED:
            del self.on[worker]
        return True

    def held_by(self) -> list[str]:
        """Workers that hold it, or are to."""
        return [worker for worker, state in self.on.items() if state is not State.FAILED]

    def serving(self) -> list[str]:
        return [worker for worker, state in self.on.items() if state is State.AVAILABLE]


@dataclass(slots=True)
class Model:
    """``found`` has the versions on disk, and their marks, as last seen; ``sighted`` once they have been looked for.

    ``loaded_by_hand`` are versions outside of the policy that somebody loaded; ``off`` when the whole model was
    unloaded by hand. ``leaving`` are retired versions whose number another may have by now.
    """

    settings: ModelSettings
    labels: dict[str, Split]
    versions: dict[int, Version] = field(default_factory=dict)
    leaving: list[Version] = field(default_factory=list)
    found: dict[int, str] = field(default_factory=dict)
    marks: dict[int, str] = field(default_factory=dict)
    loaded_by_hand: set[int] = field(default_factory=set)
    sighted: bool = False
    off: bool = False
    from_root: bool = False
    removed: bool = False
    ticket: int = 0
    error: TfpoolError | None = None

    def labelled(self) -> set[int]:
        """Versions that labels, or the shadow, name."""
        named = {version for split in self.labels.values() for version, _ in split}
        return named | ({self.settings.shadow[0]} if self.settings.shadow else set())

    def labels_of(self, number: int) -> list[str]:
        return sorted(label for label, split in self.labels.items() if any(v == number for v, _ in split))


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

    def make_version(self, settings: ModelSettings, number: int, path: str) -> Version:
        """A version that workers can be told of; it is not its model's yet."""
        self._handles += 1
        version = Version(ModelKey(settings.name, number, self._handles), path, settings, GOAL_OF[settings.preload])
        self.by_handle[version.handle] = version
        return version

    def add_version(self, model: Model, number: int, path: str) -> Version:
        version = model.versions[number] = self.make_version(model.settings, number, path)
        self.epoch += 1
        return version

    def retire(self, model: Model, version: Version) -> None:
        """A version gets no further request, and leaves once nothing of it is left."""
        version.retired = True
        if model.versions.get(version.key.version) is version:
            del model.versions[version.key.version]
        model.leaving.append(version)
        self.epoch += 1

    def drop(self, version: Version) -> None:
        """Forget a version that is nowhere any more."""
        self.by_handle.pop(version.handle, None)
        model = self.models.get(version.key.name)
        if model is not None and version in model.leaving:
            model.leaving.remove(version)
        self.epoch += 1

    def versions(self) -> list[Version]:
        return list(self.by_handle.values())

    def model(self, name: str) -> Model:
        """Raises NotFound."""
        found = self.models.get(name)
        if found is None:
            raise NotFound(f"no model {name!r}; there are {some_names(self.models)}")
        return found

    def route(self, name: str, number: int, label: str) -> list[tuple[Version, int]]:
        """The version a request means, or versions and weights where its label is split.

        Raises NotFound, or the error that keeps them from serving.
        """
        model = self.model(name)
        if label:
            return self._labelled(model, number, label)
        if number:
            return [(self._numbered(model, number), 1)]
        return [(self._newest(model), 1)]

    def _labelled(self, model: Model, number: int, label: str) -> list[tuple[Version, int]]:
        name = model.settings.name
        if number:
            raise InvalidArgument(f"model {name!r}: got both version {number} and label {label!r}, expected one")
        split = model.labels.get(label)
        if split is None:
            raise NotFound(f"model {name!r} has no label {label!r}; it has {some_names(model.labels)}")
        usable: list[tuple[Version, int]] = []
        refusal: TfpoolError | None = None
        for version, weight in split:
            try:
                if weight:
                    usable.append((self._numbered(model, version), weight))
            except NotLoaded:
                raise
            except TfpoolError as error:
                refusal = FailedPrecondition(f"model {name!r}, label {label!r}: {error.message}")
        if not usable and refusal is not None:
            raise refusal
        return usable

    def _numbered(self, model: Model, number: int) -> Version:
        version = model.versions.get(number)
        if version is None:
            if not model.sighted:
                raise NotLoaded(model.settings)
            raise NotFound(
                f"model {model.settings.name!r} has no version {number}; it has {some_names(model.versions)}"
            )
        return usable(version)

    def _newest(self, model: Model) -> Version:
        """The newest version, but one before it that has served, while it has not yet."""
        versions = sorted(model.versions.values(), key=lambda v: v.key.version, reverse=True)
        able = [v for v in versions if v.state is not State.FAILED and v.goal is not Goal.OFF and not v.stopped]
        proven = [v for v in able if v.proven or v.kept]
        for version in proven or able or versions:
            return usable(version)
        if not model.sighted:
            raise NotLoaded(model.settings)
        raise model.error or Unavailable(f"model {model.settings.name!r} has no version")


def usable(version: Version) -> Version:
    """The version itself. Raises the error that keeps it from serving."""
    if version.state is State.FAILED or version.stopped:
        raise failure(version)
    if version.goal is Goal.OFF:
        name, number = version.key.name, version.key.version
        raise NotFound(f"{version.key} is unloaded; `tfpool load {name}:{number}` loads it")
    return version


def failure(version: Version) -> TfpoolError:
    """What requests for a version that could not be loaded, or was stopped, are told."""
    why = version.error.message if version.error else "unknown"
    if version.stopped:
        again = f"tfpool load {version.key.name}:{version.key.version}"
        return FailedPrecondition(f"{version.key} was {why}; `{again}` loads it again")
    kinds = (kind for kind in (ResourceExhausted, Unavailable) if isinstance(version.error, kind))
    return next(kinds, FailedPrecondition)(f"{version.key} failed to load: {why}")


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
