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
    """The pids of a pool by what they are: supervisor, broker, zygote, and each worker's name."""
    workers = {row["pid"]: row["name"] for row in pool.client().workers()}
    found = {}
    for pid, command in family(pool.pid).items():
        name = "supervisor" if pid == pool.pid else workers.get(pid, command.removeprefix("tfpool-"))
        found[name] = pid
    return found


def pid_of(pool: tfpool.Pool, name: str) -> int:
    """The pid of one of a pool's processes. Raises LookupError."""
    found = processes(pool)
    if name not in found:
        raise LookupError(f"the pool has no {name}: it has {', '.join(found)}")
    return found[name]
