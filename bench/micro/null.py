"""The null path, beside a raw zmq echo of every message: clients on one core, who serves them on another.

Left to the kernel, an echo and its client sometimes share a core, and then a round trip takes half as long or less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil

from bench import loads, pool
from bench.children import Child
from bench.echo import load, serve
from bench.fleet import Fleet
from bench.inprocess import make_models
from bench.processes import cpu_seconds
from bench.scenario import Settings

IN_FLIGHT = (1, 64, 256)
WINDOW_SECONDS = 0.5
_MODEL = "half_plus_two"
_CPU = ", CPU"


@dataclass(frozen=True)
class Repeat:
    """Ratios by name, and how many cores others kept busy meanwhile."""

    ratios: Mapping[str, float]
    others: float


def by_the_clock(name: str) -> bool:
    """Whether a ratio is of times that others, who use the machine too, make longer."""
    return not name.endswith(_CPU)


def repeats(settings: Settings) -> Iterator[Repeat]:
    """Of half_plus_two on one worker and one client process to the echo: p50 of one request alone; of several, the time
    and the CPU time (of all processes) that each takes.

    Raises ChildFailed and WrongAnswer.
    """
    settings.progress.say(f"making {_MODEL} with TensorFlow")
    settings = replace(settings, models=make_models(settings.directory, [_MODEL]), seconds=WINDOW_SECONDS)
    endpoint = f"ipc://{settings.directory}/echo"
    with (
        pool.start(settings, _MODEL) as served,
        loads.on(settings, served, _MODEL) as ours,
        Child(serve, endpoint) as server,
        Fleet("raw zmq echo", lambda: {"echo": cpu_seconds(server.pid)}, load, endpoint, 1) as echo,
    ):
        pids = list(pool.processes(served).values())
        _keep_apart(ours, pids)
        _keep_apart(echo, [server.pid])
        for _ in settings.repeats():
            others = _others([*pids, server.pid, *ours.pids, *echo.pids])
            found = {name: ratio for level in IN_FLIGHT for name, ratio in _at(level, settings, ours, echo).items()}
            yield Repeat(found, others())


def _at(level: int, settings: Settings, ours: Fleet, echo: Fleet) -> Mapping[str, float]:
    floor, found = echo.measure(settings, level), ours.measure(settings, level)
    if level == 1:
        return {"1 in flight, p50": found.p50_us / floor.p50_us}
    cpu = sum(found.cpu_us.values()) / sum(floor.cpu_us.values())
    return {f"{level} in flight, time": floor.rate / found.rate, f"{level} in flight{_CPU}": cpu}


def _others(own: Iterable[int]) -> Callable[[], float]:
    """How many cores others than ``own`` have kept busy from now on."""
    own = tuple(own)

    def idle() -> float:
        now = psutil.cpu_times()
        return float(now.idle + now.iowait)

    begun, rested, spent = time.monotonic(), idle(), cpu_seconds(*own)

    def tell() -> float:
        seconds = time.monotonic() - begun
        return (os.cpu_count() or 1) - (idle() - rested + cpu_seconds(*own) - spent) / seconds

    return tell


def _keep_apart(clients: Fleet, servers: Iterable[int]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for pids, core in ((servers, cores[0]), (clients.pids, cores[-1])):
        for pid in pids:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setaffinity(int(thread), [core])
