"""How long runs of several sizes take, measured once a model is warm: the beginning of its latency curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

from tfpool.types import SignatureSpec
from tfpool.worker.inputs import find_inner, make, tile
from tfpool.worker.loader import Loaded, Signature

SHARE_OF_LOAD = 0.1
LEAST_SECONDS = 0.05
FEW_ROWS = 3
_TRIES = 2
_MUCH_WORSE = 0.8

Curve = list[tuple[int, float]]


def measure(loaded: Loaded, sizes: Sequence[int], most: int, load_seconds: float, threads: int) -> list[Curve]:
    """By signature: (rows, seconds) of batches of ``sizes`` (of powers of two where there are none) up to ``most``.

    It takes a tenth of what the load took, or 50 ms. Sizes beyond that, or beyond where rows a second fall, are left to
    real runs. With one thread, time in which this thread did not run is not counted.
    """
    seconds = max(LEAST_SECONDS, SHARE_OF_LOAD * load_seconds) / max(
        1, sum(_may_run(s.spec) for s in loaded.signatures)
    )
    clock = thread_time if threads == 1 else perf_counter
    ladder = list(sizes) or [*(1 << k for k in range(most.bit_length()) if 1 << k < most), most]
    return [_curve(s, ladder, seconds, clock) if _may_run(s.spec) else [] for s in loaded.signatures]


def _may_run(spec: SignatureSpec) -> bool:
    return spec.batchable and not spec.mutates


def _curve(signature: Signature, ladder: list[int], budget: float, clock: Callable[[], float]) -> Curve:
    curve: Curve = []
    few = make(signature, FEW_ROWS, find_inner(signature, by_rows=True))
    end = perf_counter() + budget
    best = 0.0
    for rows in ladder:
        guess = curve[-1][1] * rows / curve[-1][0] if curve else 0.0
        if curve and perf_counter() + guess > end:
            break
        feeds = tile(signature, few, rows)
        took = []
        for _ in range(_TRIES):
            begin = clock()
            signature.call(*feeds)
            took.append(clock() - begin)
            if perf_counter() + took[-1] > end:
                break
        curve.append((rows, min(took)))
        rate = rows / max(1e-9, min(took))
        if rate < _MUCH_WORSE * best:
            break
        best = max(best, rate)
    return curve
