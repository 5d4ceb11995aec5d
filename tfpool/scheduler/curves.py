"""Latency curves: how long a run of so many rows takes, per signature and worker, learnt from warm-up and real runs.

A curve is a *shape* times a *drift*. The shape changes slowly: runs are collected in buckets, two an octave; each keeps
moving means of rows and seconds, over about ten seconds. Because a larger batch never takes less time, the buckets are
made monotone by pooling adjacent violators (Ayer et al., 1955); between them the curve is a straight line, beyond the
last one the last slope goes on. The drift follows at once when runs take longer, or less, than the shape says: when
others use the same CPU, say. Without it the sizes that happen to run at such a time would look bad beside those that do
not; it goes back to one by itself, as the shape follows.

The *knee* is the smallest batch that has nearly the best rows a second: on a CPU larger ones may even lose. Buckets
that no run has touched for a minute are left out where others are fresh, so that the curve's guess takes their place,
and a size that once looked bad is tried again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from tfpool.scheduler.work import Batch, QueueSpec, WorkerName
from tfpool.types import ModelKey

BATCH_OVERHEAD_SECONDS = 60e-6  # what a batch costs its broker and worker beside the run
NEARLY = 0.97
_MEAN_SECONDS = 10.0
_MEAN_RUNS = 20
_DRIFT_SMOOTHING = 0.2
_SETTLED_RUNS = 4
_OUTLIER = 4.0
_LARGEST_JUMP = 3.0
_MOVED = 0.05
_STALE_SECONDS = 60.0
_REFIT_SECONDS = 10.0
_FADE_SECONDS = 1.0
_MAX_KNOWN = 4096


class Point(NamedTuple):
    """Measured: a run of ``rows`` rows takes ``seconds``."""

    rows: float
    seconds: float


class _Bucket:
    __slots__ = ("fitted", "rows", "runs", "seconds", "seen")

    def __init__(self, rows: int, seconds: float, now: float) -> None:
        self.rows = float(rows)
        self.seconds = self.fitted = seconds
        self.seen = now
        self.runs = 1


class Curve:
    """l(b) of one signature on one worker. Times are seconds, ``now`` is monotonic."""

    __slots__ = ("_buckets", "_drift", "_fit", "_fitted_at", "_knees", "_known", "learnt_at")

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._fit: list[Point] = []
        self._fitted_at = 0.0
        self._drift = 1.0
        self._known: dict[int, float] = {}
        self._knees: dict[tuple[int, tuple[int, ...]], int] = {}
        self.learnt_at = 0.0

    @property
    def points(self) -> list[Point]:
        """The fitted curve, by rows."""
        return [Point(rows, seconds * self._drift) for rows, seconds in self._fit]

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """A run of ``rows`` rows took ``seconds``."""
        self.learnt_at = now
        octave = rows.bit_length()
        key = 2 * octave + (rows >= 3 << octave >> 2)
        bucket = self._buckets.get(key)
        if bucket is None or now - bucket.seen >= _STALE_SECONDS or seconds * _OUTLIER < bucket.seconds * self._drift:
            self._buckets[key] = _Bucket(rows, seconds / self._drift, now)  # no run is so quick by accident
            self._refit(now)
            return
        ratio = seconds / (self._shape(rows) or seconds or 1.0)
        if ratio > _LARGEST_JUMP * self._drift:
            ratio = _LARGEST_JUMP * self._drift
            seconds = ratio * bucket.seconds
        bucket.runs += 1
        if bucket.runs > _SETTLED_RUNS:
            self._drift += _DRIFT_SMOOTHING * (ratio - self._drift)
        weight = (
            1 / bucket.runs if bucket.runs <= _MEAN_RUNS else (now - bucket.seen) / (_MEAN_SECONDS + now - bucket.seen)
        )
        bucket.seconds += weight * (seconds - bucket.seconds)
        bucket.rows += weight * (rows - bucket.rows)
        bucket.seen = now
        if abs(bucket.seconds - bucket.fitted) > _MOVED * bucket.fitted or now - self._fitted_at >= _REFIT_SECONDS:
            self._refit(now)

    def run(self, rows: int) -> float:
        """Seconds that a run of ``rows`` rows takes; 0 where nothing is known."""
        return self._shape(rows) * self._drift

    def _shape(self, rows: int) -> float:
        known = self._known.get(rows)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[rows] = self._interpolate(rows)
        return known

    def at_best(self, rows: int, now: float) -> float:
        """The least that a run may take: nobody is refused on a guess, nor for ever on an old figure."""
        age = now - self.learnt_at
        seconds = self.run(rows) if len(self._fit) != 1 else self._fit[0].seconds * self._drift
        return seconds if age < _FADE_SECONDS else seconds * 0.5 ** min(30.0, age / _FADE_SECONDS)

    def rows_within(self, seconds: float, most: int) -> int:
        """The largest batch, of ``most`` rows at most, that takes no longer than ``seconds``; 0 where one row does."""
        if self.run(most) <= seconds:
            return most
        return bisect_left(range(1, most), True, key=lambda rows: self.run(rows) > seconds)

    def knee(self, most: int, sizes: tuple[int, ...] = ()) -> int:
        """The smallest batch with nearly the best rows a second: ``most`` at most, one of ``sizes`` where given."""
        found = self._knees.get((most, sizes))
        if found is None:
            found = self._knees[most, sizes] = self._find_knee(most, sizes)
        return found

    def _find_knee(self, most: int, sizes: tuple[int, ...]) -> int:
        if len(self._fit) < 2:  # nothing is known of larger ones: try
            known = self._fit[0].rows if self._fit else most
            return min(most, max(2, round(2 * known))) if not sizes else most
        allowed = [size for size in sizes if size <= most]
        measured = (min(most, max(1, round(point.rows))) for point in self._fit)
        candidates = allowed or sorted({most, *measured, *_powers(most)})
        rates = [rows / (self._shape(rows) + BATCH_OVERHEAD_SECONDS) for rows in candidates]
        enough = NEARLY * max(rates)
        return next(rows for rows, rate in zip(candidates, rates, strict=True) if rate >= enough)

    def _refit(self, now: float) -> None:
        buckets = sorted(self._buckets.values(), key=lambda bucket: bucket.rows)
        fresh = [bucket for bucket in buckets if now - bucket.seen < _STALE_SECONDS]
        for bucket in buckets:
            bucket.fitted = bucket.seconds
        self._fit = monotone(Point(b.rows, b.seconds) for b in (fresh or buckets))
        self._fitted_at = now
        self._known.clear()
        self._knees.clear()

    def _interpolate(self, rows: int) -> float:
        fit = self._fit
        if not fit:
            return 0.0
        if rows <= fit[0].rows:
            return fit[0].seconds
        if len(fit) == 1:
            return fit[0].seconds * rows / fit[0].rows
        at = min(bisect_left(fit, float(rows), key=lambda point: point.rows), len(fit) - 1)
        low, high = fit[at - 1], fit[at]
        return low.seconds + (high.seconds - low.seconds) * (rows - low.rows) / (high.rows - low.rows)


def monotone(points: Iterable[Point]) -> list[Point]:
    """Points in order of rows, with seconds that never fall: the closest such curve in least squares."""
    pools: list[tuple[float, list[float]]] = []
    for rows, seconds in points:
        pool = [rows]
        while pools and pools[-1][0] > seconds:
            before, members = pools.pop()
            seconds = (before * len(members) + seconds * len(pool)) / (len(members) + len(pool))
            pool = members + pool
        pools.append((seconds, pool))
    fitted = [Point(rows, seconds) for seconds, members in pools for rows in members]
    return fitted[:1] + [after for before, after in pairwise(fitted) if after.rows > before.rows]


def _powers(most: int) -> Iterable[int]:
    return (1 << k for k in range(most.bit_length()))


class Estimates:
    """What runs have cost so far: a curve per servable, signature and worker, and output bytes a row.

    A batch is one run, but for requests that run in place: each of these is one.
    """

    def __init__(self) -> None:
        self._curves: dict[tuple[ModelKey, int], dict[WorkerName, Curve]] = {}
        self._out: dict[tuple[ModelKey, int], int] = {}

    def curves(self, servable: ModelKey, signature: int) -> dict[WorkerName, Curve]:
        """The curves of a signature by worker; the mapping stays the same one as curves come and go."""
        found = self._curves.get((servable, signature))
        if found is None:
            found = self._curves[servable, signature] = {}
        return found

    def out_row_bytes(self, spec: QueueSpec) -> int:
        return self._out.get((spec.servable, spec.signature), 0)

    def seed(self, servable: ModelKey, signature: int, worker: WorkerName, points: Iterable[Point], now: float) -> None:
        """What a warm-up has measured; a worker that has run it before knows better."""
        curves = self.curves(servable, signature)
        if worker not in curves:
            curve = curves[worker] = Curve()
            for rows, seconds in points:
                curve.learn(int(rows), seconds, now)

    def learn(self, batch: Batch, seconds: float, out_bytes: int, now: float) -> None:
        """Take in a batch; ``out_bytes`` are the bytes of a run's outputs, alignment included."""
        queue, rows = batch.queue, batch.padded
        if batch.alone:
            rows = batch.pieces[0].rows
            seconds /= len(batch.pieces)
        curve = queue.curves.get(batch.worker)
        if curve is None:
            curve = queue.curves[batch.worker] = Curve()
        curve.learn(rows, seconds, now)
        if out_bytes > queue.out_row_bytes * rows:
            spec = queue.spec
            queue.out_row_bytes = self._out[spec.servable, spec.signature] = ceil(out_bytes / rows)

    def forget(self, servable: ModelKey) -> None:
        for key in [key for key in self._curves if key[0] == servable]:
            self._curves.pop(key).clear()
        for key in [key for key in self._out if key[0] == servable]:
            del self._out[key]
