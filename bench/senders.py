"""What all open loops have in common: children that send at moments given beforehand, and what came of it.

Latencies count from when a request was due. How late it really left is noted, so that a generator that cannot keep up
is seen; where one process cannot, several are one load (:class:`Together`).
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from bench.arrivals import Schedule
from bench.children import ANSWER_SECONDS, Channel, Child
from bench.errors import WrongAnswer
from bench.points import CLIENT, Point, at_quantiles, quantile
from tfpool.wire.tensors import Array

START_SECONDS = 0.05
SAFE_SECONDS = 30.0  # a deadline that nobody refuses a request for
REASONS = 8  # kept of a load, why requests failed
_CHECKED = 16  # one answer in so many is compared

P = ParamSpec("P")
S = TypeVar("S", bound="Sender")


@dataclass(frozen=True)
class Traffic:
    """What was asked in ``window`` seconds. Of each request: when it was due (from the beginning), how late it left,
    and the seconds from when it was due to the answer, infinite without one. ``errors`` counts those by code,
    ``reasons`` has what the first of them said, where that is more, and ``cpu`` is the CPU time that asking took."""

    window: float
    due: Array
    lateness: Array
    seconds: Array
    errors: dict[str, int]
    cpu: float = 0.0
    reasons: Sequence[str] = ()

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return sum(self.errors.values())

    def on_time(self, allowed: float) -> int:
        """Requests that were answered within so many seconds."""
        return int(np.sum(self.seconds <= allowed))

    def share(self, allowed: float) -> float:
        """Percent that were answered within so many seconds; all of none."""
        return 100 * self.on_time(allowed) / len(self.seconds) if len(self.seconds) else 100.0

    def ms(self, q: float) -> float:
        """Milliseconds that a share ``q`` of the answers does not exceed."""
        return float(quantile(self._answered(), q)) * 1e3

    def late_ms(self, q: float) -> float:
        """Milliseconds, by which a share ``q`` of the requests did not leave later than they were due."""
        return quantile(np.sort(self.lateness).tolist(), q) * 1e3

    def point(self, system: str, model: str, load: str, level: float, served_us: Mapping[str, float] = {}) -> Point:
        """For plots and tables; ``served_us`` is the CPU time a request of who answered, by role."""
        latencies = self._answered()
        cpu_us = {CLIENT: self._cpu_us(), **served_us}
        quantiles = [1e6 * seconds for seconds in at_quantiles(latencies)]
        ended = (self.due + self.seconds)[np.isfinite(self.seconds)]
        rate = len(latencies) / max(self.window, float(ended.max(initial=0.0)))
        return Point(system, model, load, level, rate, quantiles, cpu_us, failed=self.failed)

    def told(self) -> dict[str, Any]:
        """For a figure's detail."""
        return {
            "requests": len(self.due),
            "answered": int(np.isfinite(self.seconds).sum()),
            "errors": self.errors,
            **({"reasons": list(self.reasons)} if self.reasons else {}),
            "p50_ms": self.ms(0.5),
            "p99_ms": self.ms(0.99),
            "left_late_p99_ms": self.late_ms(0.99),
            "left_late_most_ms": self.late_ms(1.0),
            "client_cpu_us": self._cpu_us(),
        }

    def _answered(self) -> list[float]:
        found: list[float] = np.sort(self.seconds[np.isfinite(self.seconds)]).tolist()
        return found

    def _cpu_us(self) -> float:
        return 1e6 * self.cpu / max(1, len(self.due))


def merged(parts: Sequence[Traffic]) -> Traffic:
    """What the clients of one load saw, as one; in the order in which requests were due."""
    due, lateness, seconds = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("due", "lateness", "seconds")
    )
    order = np.argsort(due, kind="stable")
    errors = sum((Counter(part.errors) for part in parts), Counter[str]())
    reasons = list(dict.fromkeys(reason for part in parts for reason in part.reasons))[:REASONS]
    cpu = sum(part.cpu for part in parts)
    return Traffic(parts[0].window, due[order], lateness[order], seconds[order], dict(errors), cpu, reasons)


class Sender:
    """A child that sends requests at moments it is told. Its ``function`` says when it is connected; told of moments,
    that it has them; and told when to begin, what came of it."""

    def __init__(self, function: Callable[Concatenate[Channel, P], None], *args: P.args, **more: P.kwargs) -> None:
        self._window = 0.0
        self._child = Child(function, *args, **more)
        try:
            self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def load(self, schedule: Schedule, timeout: float | None) -> None:
        """Have it know what to send, with what deadlines; without any, it takes patience. :meth:`go` must follow."""
        self._window = schedule.window
        moments, picks = schedule.moments.tolist(), schedule.picks.tolist()
        self._child.ask({"moments": moments, "picks": picks, "timeout": timeout or SAFE_SECONDS})

    def go(self, begin: float) -> None:
        """Have it send, from then on (monotonic seconds). :meth:`collect` must follow."""
        self._child.tell(begin)

    def collect(self) -> Traffic:
        """What became of it, when all is answered. Raises WrongAnswer and ChildFailed."""
        told = self._child.hear(self._window + ANSWER_SECONDS)
        self._compare(told)
        due, lateness, seconds = (np.array(told[name], float) for name in ("due", "lateness", "seconds"))
        reasons = told.get("reasons", ())
        return Traffic(self._window, due, lateness, seconds, told["errors"], told["cpu"], reasons)

    def _compare(self, told: Mapping[str, Any]) -> None:
        if told["wrong"]:
            raise WrongAnswer(f"{told['wrong']} of {told['checked']} answers are wrong")

    def close(self) -> None:
        self._child.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Together:
    """Several senders that are one load: each has its turn."""

    def __init__(self, senders: Sequence[Sender]) -> None:
        self._senders = senders

    def begin(self, schedule: Schedule, timeout: float | None) -> float:
        """Send at its moments, from now on; gives when that begins (monotonic seconds). Who answers knows of the
        deadlines, unless ``timeout`` is None. :meth:`collect` must follow."""
        for sender, part in zip(self._senders, schedule.split(len(self._senders)), strict=True):
            sender.load(part, timeout)
        begin = time.monotonic() + START_SECONDS
        for sender in self._senders:
            sender.go(begin)
        return begin

    def collect(self) -> Traffic:
        """What became of it, when all is answered. Raises WrongAnswer and ChildFailed."""
        return merged([sender.collect() for sender in self._senders])

    def send(self, schedule: Schedule, timeout: float | None) -> Traffic:
        """Begin, and collect."""
        self.begin(schedule, timeout)
        return self.collect()


# -- the child's side ----------------------------------------------------------------------------------------------


def orders(channel: Channel) -> Iterator[dict[str, Any]]:
    """What a child is told to do, one after the other; where that is to send, with when it begins."""
    gc.freeze()  # a collection would look at all that was imported, and requests leave late
    while (order := channel.hear()) is not None:
        if "moments" in order:
            channel.say("ready")
            if (begin := channel.hear()) is None:
                return
            order["begin"] = begin
        yield order


def to_check(number: int) -> bool:
    """Whether the answer to a client's request of this number is compared: one in sixteen, at a place that moves, so
    that each of the rows that are sent in turn has its share."""
    return number % _CHECKED == number // _CHECKED % _CHECKED
