"""What a pool's placement costs: requests that wait, on average. Pure.

Seconds of waiting a second are the same thing (Little's law), so a cost over a horizon is in seconds of waiting. It is
a sum over workers, of the requests that queue there, and over servables that are not in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from tfpool.placement.snapshot import Demand, ServableView, WorkerView

Number = TypeVar("Number", float, np.ndarray)

KNEE = 0.95
STEEP = 1 / (1 - KNEE) ** 2 - 1  # the slope at the knee
AWAY = 2 * STEEP  # that of a worker with twice the work it can do
WANTED = 1.0  # as if one request waited for what shall be in memory
REPLICA = 0.25
LOADING = 0.3  # the share of a worker's time that a load takes from what is served there
_SMALL = 0.05  # the work of a servable that is too little for its batches to matter
UNKNOWN_ROW_SECONDS = 1e-3
_QUEUE_AT_KNEE = KNEE**2 / (1 - KNEE)


def queue(load: float) -> float:
    """Requests that wait at a worker with ``load`` (its share of time that it has work): load^2 / (1 - load).

    From the knee on it grows steadily with the load, ever more steeply, so that any overload is worth mending.
    """
    if load <= KNEE:
        return load * load / (1 - load)
    over = load - KNEE
    return _QUEUE_AT_KNEE + STEEP * over * (1 + over / 2)


def queues(loads: np.ndarray) -> np.ndarray:
    """:func:`queue` of each load."""
    low: np.ndarray = np.minimum(loads, KNEE)
    over: np.ndarray = np.maximum(loads - KNEE, 0.0)
    return np.asarray(low * low / (1 - low) + STEEP * over * (1 + over / 2))


def slope(load: float) -> float:
    """How fast :func:`queue` grows."""
    return 1 / (1 - load) ** 2 - 1 if load <= KNEE else STEEP * (1 + load - KNEE)


def level(steep: float) -> float:
    """The load at which the queue grows that fast: the inverse of :func:`slope`, 0 for what is below 0."""
    if steep <= STEEP:
        return 1 - (1 + steep) ** -0.5 if steep > 0 else 0.0
    return KNEE + steep / STEEP - 1


def near_crashers(crashers: Number, load: Number) -> Number:
    """What it adds that ``crashers`` servables of a worker crash it: its work suffers, and each other."""
    dearer: Number = crashers * (load + crashers - 1)
    return dearer


def absence(demand: Demand, load_seconds: float, row_seconds: float) -> float:
    """What it costs that a servable is in no memory: each request that comes now and then waits for a load, and those
    that come often for each other. Its work is not saved by that: it counts as on a worker that has too much of it."""
    return min(1.0, demand.asks * load_seconds) + AWAY * demand.rows * row_seconds


def spread(work: float) -> float:
    """What each further replica costs of a servable that is ``work`` for a worker: its batches get smaller."""
    return REPLICA * min(1.0, work / _SMALL)


def loading(load: float) -> float:
    """Requests that wait while something is loaded at a worker: for the load, and for what it takes from the others."""
    return 1.0 + queue(min(load + LOADING, KNEE))


def row_seconds(servable: ServableView, workers: Sequence[WorkerView]) -> list[float]:
    """Worker seconds that a row takes on each worker, in the form that the replica there has.

    Where it has not run, they are those of the workers with the same device, else of any, by the number of threads.
    """
    known = servable.row_seconds
    everywhere = [known.get(worker.name, 0.0) for worker in workers]
    if all(everywhere):
        return everywhere
    gains, mapped = _gains(servable), mapped_row_seconds(servable, workers)
    return (
        [each / gains.get(worker.name, 1.0) for each, worker in zip(mapped, workers, strict=True)] if gains else mapped
    )


def mapped_row_seconds(servable: ServableView, workers: Sequence[WorkerView]) -> list[float]:
    """The same as if no replica were inlined."""
    known = dict(servable.row_seconds)
    for name, gain in _gains(servable).items():
        if name in known:
            known[name] *= gain
    if not known:
        return [UNKNOWN_ROW_SECONDS] * len(workers)
    devices = _thread_seconds(known, workers)
    if not devices:
        mean = sum(known.values()) / len(known)
        return [known.get(worker.name, mean) for worker in workers]
    anywhere = sum(devices.values()) / len(devices)
    return [
        known.get(worker.name) or devices.get(worker.device, anywhere) / max(1, worker.threads) for worker in workers
    ]


def _gains(servable: ServableView) -> dict[str, float]:
    """How many times as fast its inlined replicas are, by worker."""
    form = servable.inlined
    return {} if form is None else {worker: form.gain for worker, replica in servable.on.items() if replica.inlined}


def _thread_seconds(known: Mapping[str, float], workers: Sequence[WorkerView]) -> dict[str, float]:
    """By device, the mean of what a row takes of all threads together."""
    seen: dict[str, list[float]] = {}
    for worker in workers:
        if worker.name in known:
            seen.setdefault(worker.device, []).append(known[worker.name] * max(1, worker.threads))
    return {device: sum(values) / len(values) for device, values in seen.items()}


def divide(bases: Sequence[float], seconds: Sequence[float], rows: float) -> list[float]:
    """The load that ``rows`` a second add to each of several workers, which have ``bases`` and take ``seconds`` a row.

    Whoever is free takes a batch, so they fill up like vessels that are joined: so that the queues are shortest.
    """
    if len(bases) == 1:
        return [rows * seconds[0]]
    if rows <= 0:
        return [0.0] * len(bases)
    if max(seconds) <= min(seconds) * (1 + 1e-9):
        return _divide_evenly(bases, rows * seconds[0])
    return _divide_by_speed(bases, seconds, rows)


def _divide_evenly(bases: Sequence[float], work: float) -> list[float]:
    rising = sorted(bases)
    below, surface = 0.0, 0.0
    for count, base in enumerate(rising, 1):
        below += base
        surface = (below + work) / count
        if count == len(rising) or surface <= rising[count]:
            break
    return [max(0.0, surface - base) for base in bases]


def _divide_by_speed(bases: Sequence[float], seconds: Sequence[float], rows: float) -> list[float]:
    pairs = list(zip(bases, seconds, strict=True))
    low = min(second * slope(base) for base, second in pairs)
    high = min(second * slope(base + rows * second) for base, second in pairs)  # one of them alone would do
    for _ in range(40):
        middle = (low + high) / 2
        if sum(max(0.0, level(middle / second) - base) / second for base, second in pairs) < rows:
            low = middle
        else:
            high = middle
        if high - low <= 1e-9 * high:
            break
    loads = [max(0.0, level(high / second) - base) for base, second in pairs]
    taken = sum(load / second for load, second in zip(loads, seconds, strict=True))
    return [load * rows / taken for load in loads] if taken > 0 else [rows * seconds[0], *[0.0] * (len(pairs) - 1)]
