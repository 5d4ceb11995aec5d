"""What a form of a model takes: memory and seconds to load, and how long runs of several sizes take.

Whatever serves runs beside this. So runs are counted in CPU time where there is one thread, and two forms are compared
in turns: what slows one down slows the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter, thread_time

from tfpool.settings import Form
from tfpool.store.manifest import Cost
from tfpool.worker import inputs, measuring
from tfpool.worker.inputs import Feeds, find_inner
from tfpool.worker.loader import Loaded, Signature
from tfpool.worker.memory import Meter, trim

FORMS = (Form.MAPPED, Form.INLINED)
MOST_ROWS = 128
CURVES_AS_IF_LOADED = 4.0  # seconds: a tenth of it goes into the curves of a form
_ROUNDS = 15
_SECONDS = 1.0  # for the rounds of one size
_TURN_SECONDS = 0.02
_TURN_RUNS = 3


def weigh(meter: Meter, load: Callable[[], Loaded], shared: int) -> tuple[Loaded, Cost]:
    """Load a form, run each signature once, and see what that took; ``shared`` are the bytes of mapped files, which
    are nobody's own."""
    trim()
    begun = meter.begin()
    began = perf_counter()
    loaded = load()
    for signature in loaded.signatures:
        run_once(signature)
    seconds = perf_counter() - began
    trim()
    took = meter.end(begun)
    return loaded, Cost(took.unique, max(took.unique, took.resident - shared), round(seconds, 6))


def timed(cost: Cost, loaded: Loaded, threads: int) -> Cost:
    """The cost with how long runs take, by signature."""
    curves = measuring.measure(loaded, (), MOST_ROWS, CURVES_AS_IF_LOADED, threads)
    return replace(cost, threads=threads, curves=tuple(tuple(curve) for curve in curves))


def run_once(signature: Signature) -> None:
    """The first run makes what the later ones use. That made-up inputs may not suit the model is no failure."""
    shapes = [tensor.shape for tensor in signature.spec.inputs]
    if signature.spec.mutates or None in shapes:
        return
    by_rows = all(shape and shape[0] == -1 for shape in shapes)
    if signature.inner:
        signature.call(*inputs.make(signature, 1, signature.inner, by_rows))
    else:
        find_inner(signature, by_rows)


def gain(mapped: Loaded, inlined: Loaded, curves: Sequence[Sequence[tuple[int, float]]], threads: int) -> float:
    """How many times the rows a second the inlined form runs, of the signature that takes longest: row by row, or in
    batches of the size that suits the mapped one best, whichever is less. A model is hot for many single requests or
    for many in a batch, and is to gain by either."""
    able = [n for n, curve in enumerate(curves) if curve]
    if not able:
        return 1.0
    slowest = max(able, key=lambda n: curves[n][0][1] / curves[n][0][0])
    best = max(curves[slowest], key=lambda point: point[0] / point[1])[0]
    pair = mapped.signatures[slowest], inlined.signatures[slowest]
    clock = thread_time if threads == 1 else perf_counter
    return min(_ratio(pair, rows, clock) for rows in {1, best})


def _ratio(pair: tuple[Signature, Signature], rows: int, clock: Callable[[], float]) -> float:
    """How many times as long the first takes: the median of many turns."""
    feeds = inputs.make(pair[0], rows, find_inner(pair[0], by_rows=True))
    ratios = []
    until = perf_counter() + _SECONDS
    for number in range(_ROUNDS):
        order = pair if number % 2 == 0 else pair[::-1]
        least = {id(signature): _turn(signature, feeds, clock) for signature in order}
        ratios.append(least[id(pair[0])] / least[id(pair[1])])
        if perf_counter() > until and number % 2:
            break
    return statistics.median(ratios)


def _turn(signature: Signature, feeds: Feeds, clock: Callable[[], float]) -> float:
    """Seconds of the quickest of a few runs."""
    least, until, runs = float("inf"), perf_counter() + _TURN_SECONDS, 0
    while runs < _TURN_RUNS or perf_counter() < until:
        begin = clock()
        signature.call(*feeds)
        least = min(least, clock() - begin)
        runs += 1
    return max(least, 1e-9)
