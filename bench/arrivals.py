"""When requests come, and which models they ask: at random, in bursts, or as somebody has recorded it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from tfpool.wire.tensors import Array

BURST = 10.0  # how much more often requests come in a burst
BURST_SHARE = 0.1  # of the time
BURST_SECONDS = 0.2  # on average
TRACE_HEADER = ["seconds", "model"]
TRACE_BYTES = 64 << 20  # and not more, of a recording
_SPARE = 1.1  # gaps that are drawn at a time, beside those that are likely to be needed


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Array:
    """Moments, increasing, of ``rate`` requests a second."""
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def bursts(rate: float, seconds: float, random: np.random.Generator) -> Array:
    """Moments, increasing, of ``rate`` requests a second on average: a Poisson process of two rates, whose states
    last as long as chance has it (a two-state MMPP)."""
    quiet = rate / (1 + (BURST - 1) * BURST_SHARE)
    found: list[Array] = []
    begun, bursting = 0.0, bool(random.random() < BURST_SHARE)
    while begun < seconds:
        lasting = BURST_SECONDS if bursting else BURST_SECONDS * (1 / BURST_SHARE - 1)
        span = min(random.exponential(lasting), seconds - begun)
        found.append(begun + poisson(quiet * (BURST if bursting else 1.0), span, random))
        begun, bursting = begun + span, not bursting
    return np.concatenate(found)


def gamma(rate: float, seconds: float, cv: float, random: np.random.Generator) -> Array:
    """Moments, increasing, of ``rate`` requests a second, whose gaps are Gamma distributed with the coefficient of
    variation ``cv``: 1 is Poisson, more comes in clumps.

    The process has always been going on: the first gap is what is left of one in which the window begins, and such a
    gap is Gamma distributed with a shape that is greater by one.
    """
    shape, scale = cv**-2, cv**2 / rate
    found = [random.uniform(0.0, 1.0, 1) * random.gamma(shape + 1, scale, 1)]
    while found[-1][-1] < seconds:
        more = 1 + int(_SPARE * rate * (seconds - found[-1][-1]))
        found.append(found[-1][-1] + np.cumsum(random.gamma(shape, scale, more)))
    moments = np.concatenate(found)
    return moments[moments < seconds]


@dataclass(frozen=True)
class Schedule:
    """Requests of ``window`` seconds: when each is due (from the beginning, never decreasing), and the number of the
    model that it asks. Raises ValueError for what is none."""

    moments: Array
    picks: Array
    window: float

    def __post_init__(self) -> None:
        moments, picks = self.moments, self.picks
        if not 0 < self.window < math.inf:
            raise ValueError(f"got a window of {self.window:g} s, expected a finite one")
        if moments.ndim != 1 or moments.shape != picks.shape:
            raise ValueError(f"got moments of shape {moments.shape} and picks of {picks.shape}, expected one for one")
        if not np.all((moments >= 0) & (moments < self.window)) or np.any(np.diff(moments) < 0):
            raise ValueError(f"got moments that decrease, or outside the {self.window:g} s, expected them in order")
        if picks.dtype.kind != "i" or np.any(picks < 0):
            raise ValueError("got picks that are no numbers of models, expected integers from 0")

    @classmethod
    def of_one(cls, moments: Array, window: float) -> Schedule:
        """For a single model."""
        return cls(moments, np.zeros(len(moments), int), window)

    @property
    def rate(self) -> float:
        """Requests a second, on average."""
        return len(self.moments) / self.window

    @property
    def models(self) -> int:
        """How many it takes, at least."""
        return int(self.picks.max()) + 1 if len(self.picks) else 0

    def split(self, count: int) -> list[Schedule]:
        """For so many clients, which take turns; together they are this one."""
        return [replace(self, moments=self.moments[n::count], picks=self.picks[n::count]) for n in range(count)]

    def scaled(self, rate: float) -> Schedule:
        """The same, faster or slower, so that its mean rate is this one."""
        if not 0 < rate < math.inf:
            raise ValueError(f"got {rate:g} requests a second, expected a finite number above 0")
        if not len(self.moments):
            raise ValueError("got no requests, expected some whose rate can be changed")
        factor = self.rate / rate
        window = self.window * factor
        within = np.nextafter(window, 0.0)  # where rounding would make the last moment the end
        return Schedule(np.minimum(self.moments * factor, within), self.picks, window)

    def lasting(self, seconds: float) -> Schedule:
        """Over and over, or only its beginning: so long."""
        times = math.ceil(seconds / self.window)
        moments = (np.arange(times)[:, None] * self.window + self.moments).ravel()
        kept = moments < seconds
        return Schedule(moments[kept], np.tile(self.picks, times)[kept], seconds)


# -- recordings ----------------------------------------------------------------------------------------------------


def trace(path: Path) -> Schedule:
    """A recording: CSV with the header ``seconds,model``, one request a line, in order. It begins with the first of
    them; models are numbered as they first appear.

    Raises BenchError, with the line, for anything else, for more than TRACE_BYTES, and where all came at once; OSError
    where it cannot be read.
    """
    if path.stat().st_size > TRACE_BYTES:
        raise BenchError(f"{path}: got {path.stat().st_size} bytes, expected {TRACE_BYTES} at most")
    moments: list[float] = []
    picks: list[int] = []
    numbers: dict[str, int] = {}
    for where, seconds, model in _lines(path):
        if moments and seconds < moments[-1]:
            raise BenchError(f"{where}: got {seconds:g} s after {moments[-1]:g} s, expected requests in order")
        moments.append(seconds)
        picks.append(numbers.setdefault(model, len(numbers)))
    if not moments or moments[0] == moments[-1]:
        raise BenchError(f"{path}: got {len(moments)} requests that last no time, expected two moments at least")
    since = np.array(moments) - moments[0]
    return Schedule(since, np.array(picks), float(since[-1]) * len(since) / (len(since) - 1))


def _lines(path: Path) -> Iterator[tuple[str, float, str]]:
    """Of each: where it is, seconds, model."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, None)
            if header != TRACE_HEADER:
                raise BenchError(f"{path}:1: got {header}, expected {TRACE_HEADER}")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if len(row) != len(TRACE_HEADER) or not row[1].strip():
                    raise BenchError(f"{where}: got {row}, expected seconds and a model")
                yield where, _seconds(where, row[0]), row[1].strip()
        except (csv.Error, UnicodeDecodeError) as error:
            raise BenchError(f"{path}:{rows.line_num + 1}: got what is no CSV in UTF-8: {error}") from None


def _seconds(where: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise BenchError(f"{where}: got {text[:40]!r}, expected seconds, finite and not negative")
    return seconds
