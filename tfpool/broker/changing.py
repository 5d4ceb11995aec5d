"""The verbs that change the pool: load, unload, add, remove, reload, label, shadow, record, shutdown.

Whatever takes time goes on in the background, also when the caller has left; the answer comes when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tfpool.broker import rows
from tfpool.broker.later import soon
from tfpool.broker.recorder import Recording
from tfpool.broker.registry import Goal, Model, Version, some_names
from tfpool.broker.reload import Reload
from tfpool.config import read_models
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound
from tfpool.repository.states import State
from tfpool.settings import BatchingSettings, ModelSettings, Split, check_shadow, check_split, format_split
from tfpool.wire.messages import Control

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

Row = dict[str, Any]
MAX_RECORDED = 1000


# -- versions ------------------------------------------------------------------------------------------------------


def load(broker: Broker, model: str, version: int | None = None) -> Row:
    """Load a version (the newest on disk); answers when it serves."""
    found = broker.registry.model(model)
    _check_version(version)
    ticket = broker.lifecycle.look_at(found)
    loading: Version | None = None

    def question() -> Row | None:
        nonlocal loading
        if found.removed:
            raise NotFound(f"model {model!r} was removed while it loaded")
        if loading is None:
            if found.ticket < ticket:
                return None
            loading = broker.lifecycle.load(found, version)
        if loading.state is State.AVAILABLE:
            return rows.version_row(found, loading)
        if loading.state is State.FAILED:
            raise loading.error or FailedPrecondition(f"{loading.key} failed to load")
        if loading.retired or loading.goal is Goal.OFF:
            raise FailedPrecondition(f"{loading.key} was unloaded while it loaded")
        return None

    answer: Row = soon(question)
    return answer


def unload(broker: Broker, model: str, version: int | None = None) -> list[Row]:
    """Unload one version, or all, once what waits for them is answered; only a load brings them back."""
    found = broker.registry.model(model)
    _check_version(version)
    chosen = [v for v in found.versions.values() if version is None or v.key.version == version]
    if not chosen:
        have = some_names(found.versions)
        raise NotFound(f"model {model!r} has no version{f' {version}' if version else ''}; it has {have}")
    found.off = found.off or version is None
    for v in chosen:
        broker.lifecycle.unload(found, v)

    def question() -> list[Row] | None:
        return None if any(v.on for v in chosen) else [rows.version_row(found, v) for v in chosen]

    answer: list[Row] = soon(question)
    return answer


# -- models --------------------------------------------------------------------------------------------------------


def add(broker: Broker, model: dict[str, Any]) -> Row:
    """Take a model in: the keys of a ``[[model]]`` table. Answers when its versions serve; if they cannot, it is not
    taken in."""
    settings = _read(broker, {"model": [model]})[0]
    current = broker.registry.models.get(settings.name)
    if current is not None and current.settings != settings:
        raise FailedPrecondition(f"there is a model {settings.name!r} already, at {current.settings.base_path}")

    def done() -> None:
        broker.notebook.added({**model, "base_path": settings.base_path})

    return _reload(broker, {settings.name: settings}, done, keep=True)


def remove(broker: Broker, model: str) -> Row:
    """Let go of a model; answers when no worker holds it any more."""
    found = broker.registry.model(model)
    last = [*found.versions.values(), *found.leaving]
    broker.notebook.took_out(model)
    broker.lifecycle.remove(found)
    broker.models_changed()

    def question() -> Row | None:
        return None if any(version.on for version in last) else {"name": model, "removed": True}

    answer: Row = soon(question)
    return answer


def reload(broker: Broker, tables: dict[str, Any]) -> Row:
    """Have exactly these models: ``{"model": [...], "batching": {...}}``. All that is new is loaded before anything
    changes; if something cannot be, nothing does."""
    wanted = {settings.name: settings for settings in _read(broker, tables)}
    written = {
        table["name"]: {**table, "batching": _written(wanted[table["name"]].batching)}
        for table in tables.get("model", [])
    }

    def done() -> None:
        broker.notebook.reloaded(written)

    return _reload(broker, wanted, done, keep=False)


def _written(batching: BatchingSettings) -> Row:
    """Batching as a table that defaults no longer reach."""
    return {**asdict(batching), "allowed_batch_sizes": list(batching.allowed_batch_sizes)}


def _reload(broker: Broker, wanted: dict[str, ModelSettings], done: Callable[[], None], keep: bool) -> Row:
    going = broker.lifecycle.reload
    if going is not None:
        raise FailedPrecondition("another reload is under way; try again when it has ended")
    roots = broker.settings.server.allowed_roots
    before = set(broker.registry.models)
    transaction = broker.lifecycle.reload = Reload(broker.lifecycle, broker.registry, wanted, roots, keep, done)

    def question() -> Row | None:
        if transaction.error is not None:
            raise transaction.error
        if not transaction.over:
            return None
        found = {name: broker.registry.models[name] for name in wanted if name in broker.registry.models}
        return {
            "models": [row for name in sorted(found) for row in rows.model_rows(found[name])],
            "added": sorted(set(found) - before),
            "removed": sorted(before - set(broker.registry.models)),
        }

    answer: Row = soon(question)
    return answer


def _read(broker: Broker, tables: dict[str, Any]) -> tuple[ModelSettings, ...]:
    workers = [worker.name for worker in broker.settings.workers]
    return read_models(tables, "request", broker.settings.batching, workers)


# -- labels and shadows --------------------------------------------------------------------------------------------


def label(broker: Broker, model: str, labels: dict[str, Any]) -> Row:
    """Set labels (``"3"``, ``"3:90,4:10"``) or take them away (None), all at once. They may lead to versions that
    serve, or that are loaded on demand."""
    found = broker.registry.model(model)
    changed = dict(found.labels)
    for name, value in labels.items():
        if not name or len(name) > 512:
            raise InvalidArgument(f"label: got {name[:40]!r}, expected 1 to 512 characters")
        if value is not None:
            changed[name] = _split(found, name, value)
        elif changed.pop(name, None) is None:
            raise NotFound(f"model {model!r} has no label {name!r}; it has {some_names(found.labels)}")
    broker.lifecycle.relabel(found, replace(found.settings, labels=tuple(changed.items())))
    texts = {name: format_split(split) for name, split in changed.items()}
    broker.notebook.labelled(model, texts)
    return {"name": model, "labels": texts}


def _split(model: Model, name: str, value: Any) -> Split:
    split = check_split(value)
    for number, weight in split:
        version = model.versions.get(number)
        able = version is not None and (version.serving() or (version.proven and version.goal is Goal.ON_DEMAND))
        if weight and not able:
            state = version.state.value if version is not None else "not there"
            what, have = f"{model.settings.name}:{number}", some_names(model.versions)
            raise FailedPrecondition(
                f"label {name!r}: {what} is {state}, expected a version that serves; there are {have} "
                f"(`tfpool load {what}` loads one)"
            )
    return split


def shadow(broker: Broker, model: str, rule: str | None) -> Row:
    """Send copies of a share of a model's requests to a version (``"4:10"``: 10 percent to 4), or end that."""
    found = broker.registry.model(model)
    chosen = check_shadow(rule) if rule is not None else None
    if chosen is not None and (chosen[0] not in found.versions or not found.versions[chosen[0]].serving()):
        raise FailedPrecondition(f"{model}:{chosen[0]} does not serve; `tfpool load {model}:{chosen[0]}` loads it")
    meter = broker.shadows.meter(model)
    broker.lifecycle.relabel(found, replace(found.settings, shadow=chosen))
    broker.notebook.shadowed(model, rule or "")
    broker.models_changed()
    return {"name": model, "shadow": broker.shadows.meter(model) or meter}


def record(broker: Broker, model: str, count: int = 100, seconds: float = 60.0, version: int | None = None) -> Row:
    """The next requests of a version (the newest that serves), at most ``count`` within ``seconds``."""
    if not 0 < count <= MAX_RECORDED or not 0 < seconds <= 86400:
        raise InvalidArgument(f"got {count} requests in {seconds} s, expected at most {MAX_RECORDED} in at most a day")
    found = broker.registry.route(model, version or 0, "")[0][0]
    recording = Recording(model, found.key.version, count, time.monotonic() + seconds)
    broker.recorder.expire(time.monotonic())
    broker.recorder.begin(recording)
    broker.taps.refresh()

    def question() -> Row | None:
        if not recording.done(time.monotonic()):
            return None
        return {"version": found.key.version, "path": found.path, "samples": recording.samples}

    answer: Row = soon(question)
    return answer


# -- the pool --------------------------------------------------------------------------------------------------------


def shutdown(broker: Broker) -> Row:
    """Finish what waits, then end the pool."""
    broker.tell(Control.SHUTDOWN)
    return {"stopping": True}


def _check_version(version: int | None) -> None:
    if version is not None and (type(version) is not int or version < 1):
        raise InvalidArgument(f"version: got {version!r}, expected a whole number from 1")


VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb for verb in (load, unload, add, remove, reload, label, shadow, record, shutdown)
}
