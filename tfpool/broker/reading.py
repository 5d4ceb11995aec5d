"""The verbs that only look: models, status, metadata, workers, queues, plan, stats, ready, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfpool.broker import plans, rows
from tfpool.broker.compiling import state_of
from tfpool.broker.fleet import WorkerState
from tfpool.broker.later import soon
from tfpool.broker.registry import Model, NotLoaded
from tfpool.repository.states import State

if TYPE_CHECKING:
    from tfpool.broker.main import Broker


def models(broker: Broker) -> list[dict[str, Any]]:
    """A row for each version of each model."""
    found = broker.registry.models
    return [_asked(broker, row, found[name]) for name in sorted(found) for row in rows.model_rows(found[name])]


def _asked(broker: Broker, row: dict[str, Any], model: Model) -> dict[str, Any]:
    """A version's row with what is asked of it, what that costs, and in which forms it is held."""
    version = model.versions.get(row["version"])
    if version is None:  # it is leaving, or there is none yet
        return {**row, "forms": {}}
    forms = {link.name: form.value for link in broker.fleet.links.values() if (form := link.forms.get(version.handle))}
    store = state_of(version, broker.compiling)
    return {**row, **plans.demand(version, broker.planning.survey), "forms": forms, "store": store}


def status(broker: Broker, model: str) -> list[dict[str, Any]]:
    """The rows of one model, with signatures and meters."""
    found = broker.registry.model(model)
    detailed = rows.detailed_rows(found, broker.meters.model(model).snapshot(), broker.shadows.meter(model))
    for row in detailed:
        version = found.versions.get(row["version"])
        row["curves"] = rows.curves(version, broker.scheduler) if version is not None else []
    return [_asked(broker, row, found) for row in detailed]


def metadata(broker: Broker, model: str, version: int = 0, label: str = "") -> dict[str, Any]:
    """The signatures of the version that a request would reach, loaded or not."""

    def question() -> dict[str, Any] | None:
        try:
            found = broker.registry.route(model, version, label)[0][0]
        except NotLoaded:
            return None
        if not (found.signatures or found.described):
            return None
        specs = found.signatures or found.foreseen
        return {"name": found.key.name, "version": found.key.version, "signatures": rows.signatures(specs)}

    answer: dict[str, Any] = soon(question)
    return answer


def workers(broker: Broker) -> list[dict[str, Any]]:
    versions = broker.registry.versions()
    found = [rows.worker_row(link, versions) for link in broker.fleet.links.values()]
    for row in found:
        row["memory"]["mapped"] = broker.budget.pages.share(row["name"])
    return found


def queues(broker: Broker) -> list[dict[str, Any]]:
    """A row for each queue that something waits in, or that has been used."""
    now = time.monotonic()
    found = []
    for queue in broker.scheduler.backlog.queues.values():
        spec = queue.spec
        version = broker.registry.by_handle.get(spec.servable.life)
        if version is None or spec.signature >= len(version.signatures):
            continue  # of a version that is gone, or of a signature that it had before its files changed
        arrived = queue.segments[0].arrived if queue.segments else None
        found.append(
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
    return found


def plan(broker: Broker) -> dict[str, Any]:
    """What the planner would do, and why; migrations under way, and the last that ended."""
    answer: dict[str, Any] = soon(lambda: plans.proposal(broker))
    return answer


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
        "evictions": broker.residence.evictions,
        "loads": broker.residence.loads,
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

    answer: dict[str, Any] = soon(question)
    return answer


def progress(broker: Broker) -> dict[str, Any]:
    """How far start-up, a reload, migrations and the replacing of workers are, without waiting or planning."""
    versions = broker.registry.versions()
    states = [version.state for version in versions]
    lacking = [model for model in broker.registry.models.values() if not model.versions]
    failed = sum(model.error is not None for model in lacking)
    reload = broker.lifecycle.reload
    return {
        "models": len(states) + len(lacking),
        "available": sum(s is State.AVAILABLE for s in states),
        "unloaded": sum(s is State.UNLOADED for s in states),
        "failed": sum(s is State.FAILED for s in states) + failed,
        "settled": broker.lifecycle.settled(),
        "workers": len(broker.fleet.links),
        "workers_ready": sum(link.up for link in broker.fleet.links.values()),
        "reload": reload.progress() if reload is not None else None,
        "migrations": plans.changes(broker),
        "replacing": [plans.replacement_row(one) for one in broker.rolling.under_way()],
    }


VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb for verb in (models, status, metadata, workers, queues, plan, stats, ready, progress)
}
