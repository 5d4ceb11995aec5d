"""What the control plane shows of models, versions, signatures and workers: plain rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tfpool.broker.fleet import Link
from tfpool.broker.registry import Model, Version
from tfpool.errors import TfpoolError
from tfpool.repository.states import State
from tfpool.scheduler.core import Scheduler
from tfpool.settings import format_split
from tfpool.types import SignatureSpec


def model_rows(model: Model) -> list[dict[str, Any]]:
    """A row for each version of a model, those that are leaving too; one with version 0 where there is none."""
    versions = sorted([*model.versions.values(), *model.leaving], key=lambda v: (v.key.version, v.handle))
    if versions:
        return [version_row(model, version) for version in versions]
    error = model.error
    state = State.FAILED if error else State.UNLOADED if model.sighted else State.NEW
    return [_row(model.settings.name, 0, state.value, error)]


def version_row(model: Model, version: Version) -> dict[str, Any]:
    row = _row(version.key.name, version.key.version, version.state.value, version.error)
    row["workers"] = sorted(version.held_by())
    row["labels"] = model.labels_of(version.key.version) if not version.retired else []
    row["memory_bytes"] = version.memory_bytes
    row["peak_bytes"] = version.peak_bytes
    row["load_seconds"] = version.load_seconds
    row["loaded"] = version.goal.value
    row["crashes"] = len(version.crashes)
    row["isolated"] = bool(version.isolated)
    return row


def detailed_rows(model: Model, meters: dict[str, Any], shadow: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of one model with signatures, settings and meters."""
    rows = model_rows(model)
    for row in rows:
        version = model.versions.get(row["version"])
        settings = version.settings if version else model.settings
        row["signatures"] = signatures(version.signatures or version.foreseen) if version else []
        row["skipped_signatures"] = version.skipped if version else {}
        row["batching"] = {name: getattr(settings.batching, name) for name in settings.batching.__dataclass_fields__}
        row["base_path"] = settings.base_path
        row["label_splits"] = {label: format_split(split) for label, split in model.labels.items()}
        row["meters"] = meters
        row["shadow"] = shadow
    return rows


def curves(version: Version, scheduler: Scheduler) -> list[dict[str, Any]]:
    """The latency curves of a version: milliseconds by rows, and the largest batch that is worth its time."""
    most, sizes = version.settings.batching.max_batch_size, version.settings.batching.allowed_batch_sizes
    return [
        {
            "signature": signature.name,
            "worker": worker,
            "best_rows": curve.knee(most, sizes) if signature.batchable else 1,
            "points": [[round(point.rows, 1), round(point.seconds * 1000, 4)] for point in curve.points],
        }
        for index, signature in enumerate(version.signatures)
        for worker, curve in sorted(scheduler.estimates.curves(version.key, index).items())
    ]


def worker_row(link: Link, versions: Iterable[Version]) -> dict[str, Any]:
    """A worker, and which of ``versions`` it holds."""
    return {
        "name": link.name,
        "pid": link.pid,
        "state": link.state.value,
        "device": link.settings.device,
        "cpus": list(link.settings.cpus),
        "threads": link.settings.threads,
        "memory": {
            **link.gauge._asdict(),
            "base": link.base,
            "budget": link.settings.memory,
            "residue": link.residue,
        },
        "busy": round(link.busy_share, 4),
        "deaths": link.deaths,
        "models": sorted(str(v.key) for v in versions if link.name in v.held_by()),
    }


def signatures(specs: Iterable[SignatureSpec]) -> list[dict[str, Any]]:
    return [_signature(spec) for spec in specs]


def _row(name: str, version: int, state: str, error: TfpoolError | None) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "state": state,
        "workers": [],
        "labels": [],
        "memory_bytes": None,
        "load_seconds": None,
        "error": error.message if error else None,
        "error_code": error.code.name if error else None,
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
