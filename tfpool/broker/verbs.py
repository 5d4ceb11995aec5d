"""The control plane: what CALL understands. Reading verbs work on both endpoints, admin verbs on the admin one.

A verb answers at once by returning a value, or later: it raises :class:`Later` with a question that is asked again
whenever something has changed, until it has an answer or the caller's deadline passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.registry import Model, State, Version, some_names
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unimplemented
from tfpool.types import SignatureSpec
from tfpool.wire.messages import Call, Control

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

Question = Callable[[], "dict[str, Any] | None"]


class Later(Exception):
    """The answer is not there yet; ``question`` returns it, or None."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


def answer(broker: Broker, call: Call, admin: bool) -> Any:
    """Run one call. Raises a TfpoolError, or Later."""
    reader = _READERS.get(call.method)
    if reader is not None:
        return _run(reader, broker, call)
    writer = _WRITERS.get(call.method)
    if writer is None:
        known = some_names([*_READERS, *_WRITERS])
        raise Unimplemented(f"no verb {call.method[:80]!r}; there are {known}")
    if not admin:
        raise PermissionDenied(f"{call.method} is an admin verb: call it on the admin endpoint")
    return _run(writer, broker, call)


_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "int | None": (int, type(None))}


def _run(verb: Callable[..., Any], broker: Broker, call: Call) -> Any:
    for name, value in call.arguments.items():
        wanted = verb.__annotations__.get(name, "")
        if type(value) not in _KINDS.get(wanted, (type(value),)):
            raise InvalidArgument(f"{call.method}, {name}: got {type(value).__name__}, expected {wanted}")
    try:
        return verb(broker, **call.arguments)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise InvalidArgument(f"{call.method}: {error}") from None
        raise


# -- reading -------------------------------------------------------------------------------------------------------


def models(broker: Broker) -> list[dict[str, Any]]:
    """A row for each version of each model."""
    return [row for name in sorted(broker.registry.models) for row in _model_rows(broker.registry.models[name])]


def status(broker: Broker, model: str) -> list[dict[str, Any]]:
    """The rows of one model, with signatures and meters."""
    found = broker.registry.model(model)
    rows = _model_rows(found)
    for row in rows:
        version = found.versions.get(row["version"])
        row["signatures"] = [_signature(s) for s in version.signatures] if version else []
        row["skipped_signatures"] = version.skipped if version else {}
        row["batching"] = asdict(found.settings.batching)
        row["base_path"] = found.settings.base_path
        row["meters"] = broker.meters.model(model).snapshot()
    return rows


def metadata(broker: Broker, model: str, version: int = 0, label: str = "") -> dict[str, Any]:
    """The signatures of the version that a request would reach."""
    found = broker.registry.resolve(model, version, label)
    return {
        "name": found.key.name,
        "version": found.key.version,
        "signatures": [_signature(s) for s in found.signatures],
    }


def workers(broker: Broker) -> list[dict[str, Any]]:
    versions = broker.registry.versions()
    return [_worker_row(link, [v for v in versions if link.name in v.on]) for link in broker.fleet.links.values()]


def queues(broker: Broker) -> list[dict[str, Any]]:
    """A row for each queue that something waits in, or that has been used."""
    now = time.monotonic()
    rows = []
    for queue in broker.scheduler.backlog.queues.values():
        spec = queue.spec
        version = broker.registry.models[spec.servable.name].versions.get(spec.servable.version)
        if version is None:
            continue
        arrived = queue.segments[0].arrived if queue.segments else None
        rows.append(
            {
                "model": spec.servable.name,
                "version": spec.servable.version,
                "signature": version.signatures[spec.signature].name,
                "shapes": [list(item.shape) for item in spec.inputs],
                "rows": queue.rows,
                "oldest_ms": 0.0 if arrived is None else round((now - arrived) * 1000, 3),
                "batch_rows_mean": round(broker.meters.model(spec.servable.name).batch_rows.mean, 2),
            }
        )
    return rows


def stats(broker: Broker) -> dict[str, Any]:
    """Counters and histograms of the pool, its models and workers."""
    layout = broker.scheduler.layout
    return {
        "uptime_seconds": round(time.monotonic() - broker.started, 3),
        "messages": broker.meters.messages,
        "malformed": broker.meters.malformed,
        "unroutable": broker.meters.unroutable,
        "waiting_rows": broker.scheduler.waiting_rows(),
        "broker_cpu_seconds": time.process_time(),
        "shm": {
            "budget": layout.capacity,
            "leased": layout.leased_bytes,
            "quarantined": layout.quarantined_bytes,
            "client_arenas": len(broker.clients.peers),
        },
        "models": {name: meter.snapshot() for name, meter in sorted(broker.meters.models.items())},
        "workers": workers(broker),
    }


def ready(broker: Broker) -> dict[str, Any]:
    """Answers when every model that shall serve does, or has failed."""

    def question() -> dict[str, Any] | None:
        links = broker.fleet.links.values()
        if broker.lifecycle.settled() and all(link.up or link.state is WorkerState.HALTED for link in links):
            failed = [row for row in models(broker) if row["state"] == State.FAILED.value]
            return {"models": len(broker.registry.models), "failed": failed}
        return None

    return _soon(question)


def progress(broker: Broker) -> dict[str, Any]:
    """How far start-up is, without waiting."""
    states = [version.state for version in broker.registry.versions()]
    unversioned = sum(model.error is not None for model in broker.registry.models.values())
    return {
        "models": len(states) + unversioned,
        "available": sum(s is State.AVAILABLE for s in states),
        "failed": sum(s is State.FAILED for s in states) + unversioned,
        "workers": len(broker.fleet.links),
        "workers_ready": sum(link.up for link in broker.fleet.links.values()),
    }


# -- changing ------------------------------------------------------------------------------------------------------


def load(broker: Broker, model: str, version: int | None = None) -> dict[str, Any]:
    """Load a version (the newest on disk); answers when it serves."""
    found = broker.registry.model(model)
    if version is not None and (type(version) is not int or version < 1):
        raise InvalidArgument(f"version: got {version!r}, expected a whole number from 1")
    loading = broker.lifecycle.load(found, version)

    def question() -> dict[str, Any] | None:
        if loading.state is State.AVAILABLE:
            return _version_row(found, loading)
        if loading.state is State.FAILED:
            raise loading.error or FailedPrecondition(f"{loading.key} failed to load")
        if loading.key.version not in found.versions:
            raise FailedPrecondition(f"{loading.key} was unloaded while it loaded")
        return None

    return _soon(question)


def unload(broker: Broker, model: str, version: int | None = None) -> list[dict[str, Any]]:
    """Unload one version, or all; what waits for them is refused."""
    found = broker.registry.model(model)
    chosen = [v for v in found.versions.values() if version is None or v.key.version == version]
    if not chosen:
        have = some_names(found.versions)
        raise NotFound(f"model {model!r} has no version {version if version else ''} loaded; it has {have}")
    rows = [_version_row(found, v) for v in chosen]
    for v in chosen:
        broker.lifecycle.unload(v)
    return rows


def drain(broker: Broker, worker: str) -> dict[str, Any]:
    """Take a worker out of service: others load its models first, then it finishes what it has."""
    link = _link(broker, worker)
    others = [other for other in broker.fleet.candidates() if other is not link]
    held = [v for v in broker.registry.versions() if v.on.get(worker) is State.AVAILABLE]
    if held and not others:
        raise FailedPrecondition(f"no other worker can take the {len(held)} models of {worker}")
    broker.lifecycle.vacate_gently(link)

    def question() -> dict[str, Any] | None:
        if link.state is WorkerState.DRAINING and not broker.lifecycle.step_drain(link, broker.scheduler.in_flight):
            return None
        return _worker_row(link, [v for v in broker.registry.versions() if link.name in v.on])

    return _soon(question)


def restart(broker: Broker, worker: str) -> dict[str, Any]:
    """Replace a worker's process; its requests wait in their queues meanwhile. Answers when it serves again."""
    link = _link(broker, worker)
    generation = link.generation
    broker.recycle(link)

    def question() -> dict[str, Any] | None:
        if link.state is WorkerState.HALTED:
            raise FailedPrecondition(f"worker {worker} does not come back: it is halted")
        held = [v for v in broker.registry.versions() if worker in v.on]
        serving = all(v.on[worker] in (State.AVAILABLE, State.FAILED) for v in held)
        return _worker_row(link, held) if link.generation > generation and link.up and serving else None

    return _soon(question)


def shutdown(broker: Broker) -> dict[str, Any]:
    """Finish what waits, then end the pool."""
    broker.tell(Control.SHUTDOWN)
    return {"stopping": True}


# -- rows ----------------------------------------------------------------------------------------------------------


def _soon(question: Question) -> dict[str, Any]:
    found = question()
    if found is None:
        raise Later(question)
    return found


def _link(broker: Broker, name: str) -> Link:
    link = broker.fleet.links.get(name)
    if link is None:
        raise NotFound(f"no worker {name!r}; there are {some_names(broker.fleet.links)}")
    if not link.up:
        raise FailedPrecondition(f"worker {name} is {link.state.value}, expected READY")
    return link


def _model_rows(model: Model) -> list[dict[str, Any]]:
    rows = [_version_row(model, model.versions[number]) for number in sorted(model.versions)]
    if not rows:
        error = model.error.message if model.error else None
        state = State.FAILED.value if error else "UNLOADED"
        rows.append(_row(model.settings.name, 0, state, error=error))
    return rows


def _version_row(model: Model, version: Version) -> dict[str, Any]:
    row = _row(version.key.name, version.key.version, version.state.value)
    row["workers"] = sorted(version.on)
    row["labels"] = sorted(label for label, number in model.labels.items() if number == version.key.version)
    row["memory_bytes"] = version.memory_bytes
    row["load_seconds"] = version.load_seconds
    row["error"] = version.error.message if version.error else None
    return row


def _row(name: str, version: int, state: str, error: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "state": state,
        "workers": [],
        "labels": [],
        "memory_bytes": None,
        "load_seconds": None,
        "error": error,
    }


def _worker_row(link: Link, held: list[Version]) -> dict[str, Any]:
    return {
        "name": link.name,
        "pid": link.pid,
        "state": link.state.value,
        "device": link.settings.device,
        "cpus": list(link.settings.cpus),
        "threads": link.settings.threads,
        "memory": {"rss": link.rss, "unique": link.unique, "budget": link.settings.memory},
        "busy": round(link.busy_share, 4),
        "deaths": link.deaths,
        "models": sorted(str(v.key) for v in held),
    }


def _signature(spec: SignatureSpec) -> dict[str, Any]:
    def tensors(side: str) -> list[dict[str, Any]]:
        return [
            {"name": t.name, "dtype": t.dtype.label, "shape": None if t.shape is None else list(t.shape)}
            for t in getattr(spec, side)
        ]

    return {
        "name": spec.name,
        "method": spec.method,
        "inputs": tensors("inputs"),
        "outputs": tensors("outputs"),
        "batched": spec.batchable,
        "stateful": spec.mutates,
        "reason": spec.reason,
    }


_READERS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb for verb in (models, status, metadata, workers, queues, stats, ready, progress)
}
_WRITERS: dict[str, Callable[..., Any]] = {verb.__name__: verb for verb in (load, unload, drain, restart, shutdown)}
