"""How the work of one moment divides over workers, when whoever is free takes it. Pure.

Work is worker seconds. A crowd's requests wait together; a worker that cannot do all gives every crowd the same share
of its time, and what one leaves over to the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PASSES = 3
_MOST_BUSY = 0.95


@dataclass(frozen=True, slots=True)
class Crowd:
    """Requests of one servable, and the seconds (above 0) that one of them takes, by worker that serves it."""

    count: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Served:
    """How many of a crowd are served, how many of these by workers that were asked for more than they can do, and
    the seconds that they waited for others, on average."""

    count: float
    crowded: float
    waits: float


@dataclass(frozen=True, slots=True)
class Use:
    """Worker seconds that a worker was asked for, and those that it worked."""

    asked: float
    worked: float


def serve(crowds: Sequence[Crowd], able: Mapping[str, float]) -> tuple[list[Served], dict[str, Use]]:
    """What becomes of the crowds, and of the workers (those that were asked for anything), which have ``able`` worker
    seconds each."""
    parts = divide(crowds, able)
    work: dict[str, dict[int, float]] = defaultdict(dict)
    for index, part in enumerate(parts):
        for worker, count in part.items():
            work[worker][index] = count * crowds[index].seconds[worker]
    given = {worker: ration(asked, able[worker]) for worker, asked in work.items()}
    use = {worker: Use(sum(work[worker].values()), sum(given[worker].values())) for worker in work}
    queues = {worker: _queue(use[worker], able[worker], sum(parts[i][worker] for i in work[worker])) for worker in work}
    found = []
    for index, (crowd, part) in enumerate(zip(crowds, parts, strict=True)):
        counts = {worker: given[worker][index] / crowd.seconds[worker] for worker in part}
        count = min(crowd.count, sum(counts.values()))
        crowded = sum(n for worker, n in counts.items() if use[worker].asked > able[worker])
        waits = sum(n * queues[worker] for worker, n in counts.items())
        found.append(Served(count, min(count, crowded), waits / count if count else 0.0))
    return found, use


def divide(crowds: Sequence[Crowd], able: Mapping[str, float]) -> list[dict[str, float]]:
    """How many of each crowd go to each worker: to where the least is waiting, for what the worker can do."""
    parts = [dict.fromkeys(crowd.seconds, crowd.count) if len(crowd.seconds) == 1 else {} for crowd in crowds]
    load: dict[str, float] = defaultdict(float)
    several = []
    for index, crowd in enumerate(crowds):
        if len(crowd.seconds) > 1:
            several.append(index)
        for worker, count in parts[index].items():
            load[worker] += count * crowd.seconds[worker] / able[worker]
    several.sort(key=lambda index: -crowds[index].count * min(crowds[index].seconds.values()))
    for _ in range(_PASSES if len(several) > 1 else 1):
        for index in several:
            costs = {worker: seconds / able[worker] for worker, seconds in crowds[index].seconds.items()}
            for worker, count in parts[index].items():
                load[worker] -= count * costs[worker]
            parts[index] = _level(crowds[index].count, costs, load)
            for worker, count in parts[index].items():
                load[worker] += count * costs[worker]
    return parts


def _level(count: float, costs: Mapping[str, float], load: Mapping[str, float]) -> dict[str, float]:
    """Divides ``count`` so that the workers which get any are equally loaded, and the others are so already."""
    order = sorted(costs, key=lambda worker: (load[worker], worker))
    taken = speed = 0.0  # requests that fill the workers so far up to the level, and those that raise it by 1
    level = load[order[0]]
    filled: list[str] = []
    for worker in order:
        need = taken + (load[worker] - level) * speed
        if filled and need >= count:
            break
        taken, level = need, load[worker]
        speed += 1.0 / costs[worker]
        filled.append(worker)
    level += (count - taken) / speed
    return {worker: (level - load[worker]) / costs[worker] for worker in filled}


def ration(asked: Mapping[int, float], able: float) -> dict[int, float]:
    """What each gets of ``able`` worker seconds: what it asks for, or else no less than any other."""
    if sum(asked.values()) <= able:
        return dict(asked)
    given = {}
    left, waiting = able, len(asked)
    for index, work in sorted(asked.items(), key=lambda item: item[1]):
        given[index] = min(work, left / waiting)
        left -= given[index]
        waiting -= 1
    return given


def _queue(use: Use, able: float, count: float) -> float:
    """Seconds that a request waits for those before it, as in a queue of one server and requests of any length."""
    busy = min(use.asked / able, _MOST_BUSY)
    return use.asked / count * busy / (1.0 - busy) if count else 0.0
