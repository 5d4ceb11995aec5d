"""What a form of a model takes: memory and seconds to load, and how long runs of several sizes take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

from tfpool.settings import Form
from tfpool.store.manifest import Cost
from tfpool.worker import inputs, measuring
from tfpool.worker.inputs import find_inner
from tfpool.worker.loader import Loaded, Signature
from tfpool.worker.memory import Meter, trim

MOST_ROWS = 128
CURVES_AS_IF_LOADED = 8.0  # seconds: a tenth of it goes into the curves of a form
_ROUNDS = 7
_ROUND_SECONDS = 0.06


def weigh(meter: Meter, load: Callable[[], Loaded], shared: int, threads: int) -> tuple[Loaded, Cost]:
    """Load a form, run each signature once, and see what that took; ``shared`` are the bytes of mapped files, which
    are nobody's own."""
    trim()
    begun = meter.begin()
    loaded = load()
    for signature in loaded.signatures:
        run_once(signature)
    trim()
    took = meter.end(begun, shared)
    curves = measuring.measure(loaded, (), MOST_ROWS, CURVES_AS_IF_LOADED, threads)
    points = tuple(tuple(curve) for curve in curves)
    return loaded, Cost(took.unique, took.resident, took.seconds, threads, points)


def run_once(signature: Signature) -> None:
    """The first run makes what the later ones use. That made-up inputs may not suit the model is no failure."""
    by_rows = signature.spec.batchable
    if signature.inner and not signature.spec.mutates:
        signature.call(*inputs.make(signature, 1, signature.inner, by_rows))


def gain(mapped: Loaded, inlined: Loaded, curves: Sequence[Sequence[tuple[int, float]]], threads: int) -> float:
    """How many times the rows a second the inlined form runs, of the signature that takes longest, in batches of the
    size that suits the mapped one best: the least of several rounds in turn."""
    clock = thread_time if threads == 1 else perf_counter
    able = [n for n, curve in enumerate(curves) if curve]
    if not able:
        return 1.0
    slowest = max(able, key=lambda n: curves[n][0][1] / curves[n][0][0])
    rows = max(curves[slowest], key=lambda point: point[0] / point[1])[0]
    forms = mapped.signatures[slowest], inlined.signatures[slowest]
    feeds = [inputs.make(form, rows, find_inner(form, by_rows=True)) for form in forms]
    least = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for which, form in enumerate(forms):
            until = clock() + _ROUND_SECONDS
            while True:
                begin = clock()
                form.call(*feeds[which])
                end = clock()
                least[which] = min(least[which], end - begin)
                if end >= until:
                    break
    return least[0] / max(least[1], 1e-9)


FORMS = (Form.MAPPED, Form.INLINED)
