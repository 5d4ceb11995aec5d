"""The pool that is measured: one thread a worker, in processes of its own, gone with the block that uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tfpool
from bench.processes import family
from bench.scenario import Settings


def start(settings: Settings, *models: str, workers: int = 1) -> tfpool.Pool:
    """A pool that serves ``models``, ready."""
    return serve(settings, {name: settings.models.paths[name] for name in models}, workers)


def serve(settings: Settings, paths: Mapping[str, str], workers: int) -> tfpool.Pool:
    """A pool that serves models under names of the caller's choice, ready."""
    return configure(settings, [{"name": name, "base_path": path} for name, path in paths.items()], workers)


def configure(settings: Settings, models: Sequence[Mapping[str, Any]], workers: int, **more: Any) -> tfpool.Pool:
    """A pool that serves ``[[model]]`` tables; ``more`` are settings such as ``memory_budget``; without
    a ``store`` nothing is compiled beside what is measured. Ready."""
    settings.progress.say(f"starting a pool of {workers} {'worker' if workers == 1 else 'workers'}")
    tables = ["".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items()) for model in models]
    file = Path(settings.directory, "pool.toml")
    file.write_text("".join(f"[[model]]\n{table}\n" for table in tables))
    return tfpool.Pool(
        config=file, workers=workers, threads_per_worker=1, **{"log_level": "warning", "store": "off", **more}
    )


def processes(pool: tfpool.Pool) -> dict[str, int]:
    """The pids of a pool by what they are: supervisor, broker, zygote, worker 1, worker 2 ..."""
    rows = sorted(pool.client().workers(), key=lambda row: str(row["name"]))
    names = {row["pid"]: f"worker {number}" for number, row in enumerate(rows, 1)}
    names[pool.pid] = "supervisor"
    return {names.get(pid, command.removeprefix("tfpool-")): pid for pid, command in family(pool.pid).items()}
