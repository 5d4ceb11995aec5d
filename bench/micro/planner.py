"""A plan, beside one look at each model on each worker."""

from __future__ import annotations

from collections.abc import Sequence

from bench.micro.pair import TURNS, Pair, timed
from bench.optimum import make_pool
from tfpool.placement.planner import plan
from tfpool.placement.snapshot import Rules, Snapshot

# models, workers, seeds of pools, turns
_POOLS: Sequence[tuple[int, int, Sequence[int], int]] = ((200, 8, (0, 1, 2), TURNS), (1000, 64, (1,), 6))


def pairs() -> list[Pair]:
    """Of pools that have much to do, small and large."""
    return [
        _pair(f"{models:,} models on {workers} workers", [make_pool(seed, models, workers) for seed in seeds], turns)
        for models, workers, seeds, turns in _POOLS
    ]


def _pair(name: str, pools: Sequence[Snapshot], turns: int) -> Pair:
    rules = Rules()
    return Pair(
        name,
        timed(lambda: [plan(pool, rules) for pool in pools]),
        timed(lambda: [loads(pool) for pool in pools]),
        turns,
    )


def loads(pool: Snapshot) -> dict[str, float]:
    """The share of its time that each worker would be busy if it did everything."""
    found = dict.fromkeys((worker.name for worker in pool.workers), 0.0)
    for view in pool.servables:
        for name, seconds in view.row_seconds.items():
            found[name] += view.fast.rows * seconds
    return found
