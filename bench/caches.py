"""A cache of models on one sequence of requests, in virtual time: what it loads, and the least that any would.

A model has to be in memory whenever it is asked for; what leaves for it is up to the cache, the pool's own or another.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from tfpool.placement.whatif import Cache

_BYTES = (5 << 20, 320 << 20)
_LOAD_SECONDS = 0.02  # of a model without weights
_BYTES_PER_SECOND = 120 << 20  # that a load gets through
_SPEEDS = (0.7, 1.4)


@dataclass(frozen=True)
class Stock:
    """Models: the bytes that each holds, and the seconds of a load."""

    nbytes: Sequence[int]
    seconds: Sequence[float]

    @classmethod
    def of(cls, models: int, seed: int) -> Stock:
        """Models of all sizes, with loads as long as SavedModels' are."""
        random = np.random.default_rng(seed)
        sizes = np.exp(random.uniform(log(_BYTES[0]), log(_BYTES[1]), models))
        seconds = _LOAD_SECONDS + sizes / _BYTES_PER_SECOND * random.uniform(*_SPEEDS, models)
        return cls([int(size) for size in sizes], seconds.tolist())

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.nbytes)


@dataclass(frozen=True)
class Played:
    """Which of the requests had to load their model, and how many models left for others."""

    cold: Sequence[bool]
    evictions: int

    @property
    def loads(self) -> int:
        return sum(self.cold)

    def seconds(self, stock: Stock, picks: Sequence[int]) -> float:
        """Of all loads."""
        return sum(stock.seconds[pick] for pick, cold in zip(picks, self.cold, strict=True) if cold)


def play(cache: Cache, stock: Stock, picks: Sequence[int], room: int) -> Played:
    """What becomes of the requests, where all models together may hold ``room`` bytes. Raises ValueError for a model
    that is larger than that."""
    held: set[Hashable] = set()
    free, evictions = room, 0
    found = []
    for pick in picks:
        cache.hit(pick)
        found.append(pick not in held)
        if pick in held:
            continue
        missing = stock.nbytes[pick] - free
        victims = cache.victims(missing, held) if missing > 0 else ()
        for victim in victims:
            assert isinstance(victim, int)
            cache.evicted(victim)
            held.remove(victim)
            free += stock.nbytes[victim]
        evictions += len(victims)
        free -= stock.nbytes[pick]
        if free < 0:
            raise ValueError(f"got a model of {stock.nbytes[pick]} bytes, expected none larger than the room of {room}")
        held.add(pick)
        cache.admit(pick, stock.nbytes[pick], stock.seconds[pick])
    return Played(found, evictions)


def least_seconds(stock: Stock, picks: Sequence[int], room: int) -> float:
    """A bound on the seconds of loads of any cache, though it knew all that comes.

    To keep a model from one request for it to the next saves a load, and takes its bytes for as long as the requests
    between them. What pays best is kept, up to all the bytes that there are in all that time: PFOO-L, of Berger,
    Beckmann and Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object Sizes" (SIGMETRICS 2018);
    bytes of the model that is asked for are taken off the room, as nobody can do without it.
    """
    spent, saved = 0.0, 0.0
    budget = float(sum(room - stock.nbytes[pick] for pick in picks))
    last: dict[int, int] = {}
    kept: list[tuple[float, float]] = []
    for moment, pick in enumerate(picks):
        spent += stock.seconds[pick]
        if pick in last:
            kept.append((stock.seconds[pick], float(stock.nbytes[pick] * (moment - last[pick] - 1))))
        last[pick] = moment
    for seconds, takes in sorted(kept, key=lambda one: one[1] / one[0]):
        part = min(1.0, budget / takes) if takes else 1.0
        saved += part * seconds
        budget -= part * takes
    return spent - saved


def waits(played: Played, stock: Stock, moments: Sequence[float], picks: Sequence[int]) -> list[float]:
    """Seconds that each request, made at its moment, waits where every load begins at once: its own, or what is left
    of one that an earlier request began."""
    ready: dict[int, float] = {}
    found = []
    for moment, pick, cold in zip(moments, picks, played.cold, strict=True):
        if cold:
            ready[pick] = moment + stock.seconds[pick]
        found.append(max(0.0, ready[pick] - moment))
    return found
