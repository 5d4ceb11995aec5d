"""The pool that is measured: one thread a worker, in processes of its own, gone with the block that uses it."""

from __future__ import annotations

from collections.abc import Mapping

import tfpool
from bench.processes import family
from bench.scenario import Settings


def start(settings: Settings, *models: str, workers: int = 1) -> tfpool.Pool:
    """A pool that serves ``models``, ready."""
    return serve(settings, {name: settings.models.paths[name] for name in models}, workers)


def serve(settings: Settings, paths: Mapping[str, str], workers: int) -> tfpool.Pool:
    """A pool that serves models under names of the caller's choice, ready."""
    settings.progress.say(f"starting a pool of {workers} {'worker' if workers == 1 else 'workers'}")
    return tfpool.Pool(paths, workers=workers, threads_per_worker=1, log_level="warning")


def processes(pool: tfpool.Pool) -> dict[str, int]:
    """The pids of a pool by what they are: supervisor, broker, zygote, worker 1, worker 2 ..."""
    rows = sorted(pool.client().workers(), key=lambda row: str(row["name"]))
    names = {row["pid"]: f"worker {number}" for number, row in enumerate(rows, 1)}
    names[pool.pid] = "supervisor"
    return {names.get(pid, command.removeprefix("tfpool-")): pid for pid, command in family(pool.pid).items()}
