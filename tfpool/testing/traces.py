"""Demand over time, to judge placement by: whose popularity rotates, a flash crowd, days, and one as of a cloud.

Everything is drawn from a seed. Load 1 is what all workers can do; each trace has the load that it says, on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from tfpool.placement.guests import Tenant, World
from tfpool.placement.snapshot import Demand, Hold, Replica, ServableView, WorkerView

TICK = 0.25
AHEAD_SECONDS = 20.0
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_ROW_SECONDS = (0.3e-3, 10e-3)
_BYTES = (5 << 20, 320 << 20)
_BYTES_PER_SECOND = 120 << 20  # that a load gets through
_PEAK = 1.2
_QUANTILES = ((0.0, 0.1), (0.45, 24.0), (0.81, 1440.0), (1.0, 1e6))  # of applications: invocations a day
_DAY = 1440.0  # seconds of the trace: sixty times as fast
_PERIODIC, _BURSTY = 0.3, 0.4


@dataclass(frozen=True, slots=True)
class Trace:
    """A world, and how many requests come for each of its servables, whose handles are 1, 2 ..., in each tick (ticks x
    servables)."""

    name: str
    world: World
    counts: Counts

    @property
    def seconds(self) -> float:
        return len(self.counts) * self.world.tick

    def ticks(self) -> Iterator[Mapping[int, int]]:
        """By handle, those that are asked for."""
        for row in self.counts:
            (asked,) = np.nonzero(row)
            yield dict(zip((asked + 1).tolist(), row[asked].tolist(), strict=True))

    def future(self, now: float) -> Mapping[int, Demand]:
        """What will be asked for in the next seconds, on average."""
        first = round(now / self.world.tick)
        ahead = self.counts[first : first + round(AHEAD_SECONDS / self.world.tick)]
        if not len(ahead):
            return {}
        rates = ahead.mean(axis=0) / self.world.tick
        rows = (tenant.rows for tenant in self.world.tenants)
        return {i: Demand(float(rate), float(rate) * n) for i, (rate, n) in enumerate(zip(rates, rows, strict=True), 1)}


def rotating(seed: int, load: float = 0.7, exponent: float = 1.0, seconds: float = 240.0) -> Trace:
    """Forty models on two workers, with room for each one and a half times; every 20 s others have most of the work."""
    random = np.random.default_rng([seed, 1])
    models, ticks = 40, round(seconds / TICK)
    shares = np.arange(1, models + 1) ** -exponent
    work = np.empty((ticks, models))
    for first in range(0, ticks, round(20 / TICK)):
        work[first : first + round(20 / TICK)] = random.permutation(shares)
    return _poisson("rotating", random, work, 2, load, memory=1.5)


def flash(seed: int, load: float = 0.4, seconds: float = 240.0) -> Trace:
    """Forty models on two workers; for a minute, one of them is asked for fifty times as often, which is more than one
    worker can do."""
    random = np.random.default_rng([seed, 2])
    models, ticks = 40, round(seconds / TICK)
    shares = random.permutation(np.arange(1, models + 1) ** -0.8)
    shares *= 2 * load / shares.sum()
    famous = int(np.argmin(np.abs(50 * shares - 1.2)))
    work = np.tile(shares, (ticks, 1))
    begin = round(seconds / 3 / TICK)
    work[begin : begin + round(60 / TICK), famous] *= 50
    return _poisson("flash crowd", random, work, 2, float(work.sum(axis=1).mean()) / 2, memory=1.5)


def diurnal(seed: int, load: float = 0.6, seconds: float = 240.0) -> Trace:
    """Sixty models on three workers, with room for most of them; each has its own noon in a day of 240 s."""
    random = np.random.default_rng([seed, 3])
    models, times = 60, np.arange(round(seconds / TICK))[:, None] * TICK
    phases = random.uniform(0, 2 * np.pi, models)
    heights = random.permutation(np.arange(1, models + 1) ** -0.9)
    work = heights * np.maximum(0.0, 1 + 1.5 * np.sin(2 * np.pi * times / 240.0 + phases))
    return _poisson("diurnal", random, work, 3, load, memory=0.8)


def cloud(seed: int, load: float = 0.5, seconds: float = 240.0) -> Trace:
    """Two hundred models on four workers, with room for two fifths of them; sixty times as fast as the clock.

    Shaped like what is published of Azure Functions, of which this has no data: Shahrad et al., "Serverless in the
    Wild" (USENIX ATC 2020), and Zhang et al., "Faster and Cheaper Serverless Computing on Harvested Resources" (SOSP
    2021). 45 % of the applications are invoked once an hour or less, 81 % once a minute or less, and the rest has
    nearly all invocations, over many orders of magnitude. Some come as a clock has it (their intervals do not vary),
    others at random, others in bursts (the coefficient of variation of the intervals is far above 1); the shares of
    these three are ours.
    """
    random = np.random.default_rng([seed, 4])
    models, ticks = 200, round(seconds / TICK)
    places = (random.permutation(models) + random.uniform(0, 1, models)) / models
    shares, logs = zip(*((share, log(rate)) for share, rate in _QUANTILES), strict=True)
    rates = np.exp(np.interp(places, shares, logs)) / _DAY
    days = 1 + 0.3 * np.sin(2 * np.pi * np.arange(ticks) * TICK / _DAY + random.uniform(0, 2 * np.pi))
    kinds = random.uniform(0, 1, models)
    counts = np.empty((ticks, models), np.int64)
    for model, (rate, kind) in enumerate(zip(rates, kinds, strict=True)):
        if kind < _PERIODIC:
            passed = np.floor(random.uniform() + rate * TICK * np.arange(ticks + 1))
            counts[:, model] = np.diff(passed)
        else:
            busy = _bursts(random, ticks) if kind > 1 - _BURSTY else np.ones(ticks)
            counts[:, model] = random.poisson(rate * TICK * days * busy)
    rows, seconds_a_row = _costs(random, models)
    seconds_a_row *= load * 4 / (counts.mean(axis=0) / TICK * rows * seconds_a_row).sum()
    return Trace("cloud", _world(random, rows, seconds_a_row, 4, memory=0.4), counts)


TRACES: Mapping[str, Callable[[int], Trace]] = {
    "rotating": rotating,
    "flash crowd": flash,
    "diurnal": diurnal,
    "cloud": cloud,
}


def _bursts(random: np.random.Generator, ticks: int) -> NDArray[np.float64]:
    """1 on average: high in bursts of some seconds, and nothing between them."""
    share, seconds = random.uniform(0.05, 0.3), random.uniform(2.0, 15.0)
    found = np.zeros(ticks)
    at, bursting = 0, bool(random.uniform() < share)
    while at < ticks:
        lasting = seconds if bursting else seconds * (1 / share - 1)
        end = at + max(1, round(random.exponential(lasting) / TICK))
        found[at:end] = 1 / share if bursting else 0.0
        at, bursting = end, not bursting
    return found


def _poisson(name: str, random: np.random.Generator, work: Floats, workers: int, load: float, memory: float) -> Trace:
    """Requests at random, so often that they make the load; ``work`` has their shares of it, over time."""
    rows, seconds = _costs(random, work.shape[1])
    asked = work / work.sum(axis=1).mean() * workers * load / (rows * seconds)
    return Trace(name, _world(random, rows, seconds, workers, memory), random.poisson(asked * TICK))


def _costs(random: np.random.Generator, models: int) -> tuple[Counts, Floats]:
    """Rows of a request, and seconds of a row."""
    return random.integers(1, 5, models), np.exp(random.uniform(log(_ROW_SECONDS[0]), log(_ROW_SECONDS[1]), models))


def _world(random: np.random.Generator, rows: Counts, seconds: Floats, workers: int, memory: float) -> World:
    """Models of all sizes, and workers that have room for ``memory`` times all models together."""
    sizes = np.exp(random.uniform(log(_BYTES[0]), log(_BYTES[1]), len(rows)))
    nbytes = [round(size) for size in sizes.tolist()]
    loads = [0.02 + size / _BYTES_PER_SECOND * random.uniform(0.7, 1.4) for size in nbytes]
    room = max(int(sum(nbytes) * memory / workers), round(2 * _PEAK * max(nbytes)))
    views = tuple(WorkerView(f"cpu{number}", room=room) for number in range(workers))
    free = dict.fromkeys((view.name for view in views), room)
    tenants = []
    for number, (size, load_seconds) in enumerate(zip(nbytes, loads, strict=True)):
        worker = max(free, key=lambda name: free[name])
        first = {worker: Replica(Hold.SERVES, 0.0)} if free[worker] >= _PEAK * size else {}
        free[worker] -= size if first else 0
        view = ServableView(
            number + 1, f"m{number}", size, round(_PEAK * size), load_seconds, replicas=(1, workers), on=first
        )
        tenants.append(Tenant(view, int(rows[number]), dict.fromkeys(free, float(seconds[number]))))
    return World(views, tuple(tenants), TICK)
