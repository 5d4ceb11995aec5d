"""The check command: is this configuration good?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import json_option
from tfpool.cli.output import print_json, ranges, show, size, table
from tfpool.errors import NotFound, TfpoolError

if TYPE_CHECKING:
    from tfpool.settings import BatchingSettings, ModelSettings, Settings, Split


@click.command()
@click.argument("path", metavar="CONFIG", type=click.Path())
@json_option
@click.pass_context
def check(ctx: click.Context, path: str, as_json: bool) -> None:
    """Validate a configuration.

    CONFIG is ours, or TensorFlow Serving's: a model config file, or batching parameters. Shows what it means on this
    machine. An error names file, line and key; the exit status is 1. What is missing on disk is a warning: the pool
    starts without it.
    """
    from tfpool import config

    try:
        settings = config.load(path)
    except TfpoolError as error:
        if as_json:
            print_json({"valid": False, "error": {"code": error.code.name, "message": error.message}})
        click.echo(f"error: {error.code.name}: {error.message}", err=True)
        ctx.exit(1)
    models = [_model(model) for model in settings.models]
    warnings = [*(f"{model['name']}: {text}" for model in models for text in model["warnings"]), *_general(settings)]
    if as_json:
        print_json(_document(path, settings, models, warnings))
        return
    click.echo(f"{path}: good; {', '.join(settings.server.listen)}, admin {settings.server.admin_listen}")
    rows = ((w.name, w.device, ranges(w.cpus), w.threads, size(w.memory)) for w in settings.workers)
    show(table(("WORKER", "DEVICE", "CPUS", ">THREADS", ">MEMORY"), rows))
    click.echo(f"batching: {_batching(settings.batching)}")
    if models:
        columns = ("~MODEL", "~VERSIONS", "POLICY", "~LABELS", "LOADING", "~BASE PATH")
        show(table(columns, map(_cells, models)))
    for text in warnings:
        click.echo(f"warning: {text}", err=True)


def _document(path: str, settings: Settings, models: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    server, workers = settings.server, settings.workers
    return {
        "valid": True,
        "file": path,
        "listen": server.listen,
        "admin_listen": server.admin_listen,
        "models_root": server.models_root,
        "workers": [{"name": w.name, "device": w.device, "cpus": w.cpus, "memory": w.memory} for w in workers],
        "batching": asdict(settings.batching),
        "models": models,
        "warnings": warnings,
    }


def _model(model: ModelSettings) -> dict[str, Any]:
    from tfpool.repository.scan import scan

    row: dict[str, Any] = {
        "name": model.name,
        "base_path": model.base_path,
        "versions": [],
        "version_policy": model.version_policy,
        "labels": {label: _split(split) for label, split in model.labels},
        "loading": model.preload.value,
        "error": None,
        "warnings": [],
    }
    try:
        row["versions"] = list(scan(model.base_path))
        row["warnings"] = list(_unserved(model, row["versions"]))
    except NotFound as error:
        row["error"] = error.message
        row["warnings"] = [error.message]
    return row


def _unserved(model: ModelSettings, versions: list[int]) -> Iterator[str]:
    """What a model names and will not serve."""
    from tfpool.repository.versions import aspired

    served = aspired(model.version_policy, versions)
    named = [(f"label {label}", version) for label, split in model.labels for version, _ in split]
    if isinstance(model.version_policy, tuple):
        named += [("version_policy", version) for version in model.version_policy]
    if model.shadow:
        named.append(("shadow", model.shadow[0]))
    for what, version in named:
        if version not in versions:
            yield f"{what}: version {version} is not on disk; found {', '.join(map(str, versions))}"
        elif version not in served:
            yield f"{what}: version {version} is not among those of version_policy {_policy(model.version_policy)}"


def _general(settings: Settings) -> Iterator[str]:
    from tfpool.settings import BatchingSettings

    root = settings.server.models_root
    if root and not os.path.isdir(root):
        yield f"models_root: {root}: no such directory"
    if not (root or settings.models) and settings.batching == BatchingSettings():
        yield "there is no model in it"


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    labels = ", ".join(f"{label}={versions}" for label, versions in row["labels"].items())
    versions = ", ".join(map(str, row["versions"]))
    return row["name"], versions, _policy(row["version_policy"]), labels, row["loading"], row["base_path"]


def _batching(batching: BatchingSettings) -> str:
    sizes = f" in sizes {', '.join(map(str, batching.allowed_batch_sizes))}" if batching.allowed_batch_sizes else ""
    wait = f", up to {batching.max_wait_ms:g} ms for company" if batching.max_wait_ms else ""
    return f"up to {batching.max_batch_size} rows{sizes}; at most {batching.max_queue_rows} wait{wait}"


def _policy(policy: str | tuple[int, ...]) -> str:
    return policy if isinstance(policy, str) else ", ".join(map(str, policy))


def _split(split: Split) -> str:
    """As a configuration says it."""
    return str(split[0][0]) if len(split) == 1 else ",".join(f"{version}:{weight}" for version, weight in split)
