"""The CPUs that this process may use, and how a pool shares them out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tfpool.errors import InvalidArgument
from tfpool.settings import GatewaySettings, PoolSettings, WorkerSettings


def gateway_processes(gateway: GatewaySettings, cpus: Sequence[int]) -> int:
    """How many gateways share the ports."""
    return gateway.processes or max(1, len(cpus) // 4)


def available_cpus() -> tuple[int, ...]:
    """The CPUs this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def usable_cpus(root: str = "/") -> tuple[int, ...]:
    """As many of :func:`available_cpus` as the container's quota (cgroup v2 or v1) pays for; at least one."""
    cpus = available_cpus()
    return cpus[: max(1, int(min((*_quotas(root), float(len(cpus))))))]


def _quotas(root: str) -> Iterable[float]:
    """The CPU quotas of this process's cgroup and of those around it, in CPUs."""
    v1 = os.path.join(root, "sys/fs/cgroup/cpu")
    quota, period = _words(f"{v1}/cpu.cfs_quota_us"), _words(f"{v1}/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        yield int(quota[0]) / int(period[0])
    own = next((w.removeprefix("0::/") for w in _words(os.path.join(root, "proc/self/cgroup")) if w[:4] == "0::/"), "")
    parts = [part for part in own.split("/") if part and part != ".."]
    for depth in range(len(parts) + 1):
        words = _words(os.path.join(root, "sys/fs/cgroup", *parts[:depth], "cpu.max"))
        if len(words) == 2 and words[0] != "max":
            yield int(words[0]) / int(words[1])


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


def resolve_workers(
    pool: PoolSettings, cpus: Sequence[int], by_hand: Sequence[WorkerSettings] = ()
) -> tuple[WorkerSettings, ...]:
    """The workers of a pool on ``cpus``: those ``by_hand`` completed, or as many as ``pool`` asks for.

    Workers without CPUs divide those that nobody named; more workers than CPUs share them in turn. What is left of
    the memory budget, which is the host's, is divided likewise among those without a GPU. Raises InvalidArgument when
    nothing is left of it.
    """
    count = pool.workers or min(len(cpus), max(2, -(-len(cpus) // 4)))
    drafts = list(by_hand) or [WorkerSettings(f"cpu{i}") for i in range(count)]
    taken = {cpu for draft in drafts for cpu in draft.cpus}
    free = [cpu for cpu in cpus if cpu not in taken] or list(cpus)
    shares = iter(_divide(free, sum(not draft.cpus for draft in drafts)))
    memory: int | None = None
    on_host = [draft for draft in drafts if draft.device == "cpu"]
    unbudgeted = sum(draft.memory is None for draft in on_host)
    if pool.memory_budget is not None and unbudgeted:
        memory = (pool.memory_budget - sum(draft.memory or 0 for draft in on_host)) // unbudgeted
        if memory <= 0:
            raise InvalidArgument(f"got {pool.memory_budget} bytes, expected more than the workers' own together")
    workers = []
    for draft in drafts:
        own = draft.cpus or next(shares)
        threads = draft.threads or pool.threads_per_worker or len(own)
        budget = memory if draft.memory is None and draft.device == "cpu" else draft.memory
        workers.append(replace(draft, cpus=own, threads=threads, memory=budget))
    return tuple(workers)


def _divide(cpus: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """``count`` neighbouring shares that differ by at most one CPU; single CPUs in turn where there are too few."""
    if count > len(cpus):
        return [(cpus[i % len(cpus)],) for i in range(count)]
    return [tuple(cpus[i * len(cpus) // count : (i + 1) * len(cpus) // count]) for i in range(count)]
