"""Client processes, forked from one light child, that load for the same window of time; and what they tell.

The window is in the machine's monotonic clock, so that all processes, and whoever reads the pool's meters meanwhile,
mean the same seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context  # noqa: TID251 - its pipes lead to our own forks
from multiprocessing.connection import Connection  # noqa: TID251
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

from bench.children import Channel, Child
from bench.errors import WrongAnswer
from bench.points import CLIENT, Point, at_quantiles, quantile
from bench.scenario import Settings
from tfpool.worker.boot import die_with_parent

P = ParamSpec("P")
_KEPT_LATENCIES = 200_000
_START_SECONDS = 0.02


@dataclass(frozen=True)
class Window:
    """When to count (monotonic seconds), how many requests to keep under way, of how many bytes each."""

    begin: float
    end: float
    in_flight: int
    nbytes: int = 0


@dataclass(frozen=True)
class Tally:
    """What one client counted. Latencies (seconds) may be of a sample, and so are the answers that were checked."""

    requests: int
    seconds: float
    cpu_seconds: float
    latencies: Sequence[float] = ()
    checked: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class Load:
    """What all clients saw together. ``cpu_us`` is CPU time a request, of the clients and of who served them."""

    rate: float
    requests: int
    p50_us: float
    p99_us: float
    max_us: float
    checked: int
    wrong: int
    cpu_us: dict[str, float] = field(default_factory=dict)
    quantiles_us: Sequence[float] = ()

    def detail(self) -> dict[str, Any]:
        """For a figure's detail."""
        return asdict(self)

    def point(self, system: str, model: str, level: float, memory_mb: Mapping[str, float] | None = None) -> Point:
        """Of a closed loop with ``level`` requests in flight."""
        return Point(system, model, "closed", level, self.rate, self.quantiles_us, self.cpu_us, memory_mb or {})


Loop = Callable[[Window], Tally]
Prepare = Callable[[int], AbstractContextManager[Loop]]


def merged(tallies: Sequence[Tally]) -> Load:
    """All clients as one. Without latencies these are 0."""
    latencies = sorted(latency for tally in tallies for latency in tally.latencies)
    requests = sum(tally.requests for tally in tallies)
    cpu = sum(tally.cpu_seconds for tally in tallies)
    return Load(
        rate=sum(tally.requests / tally.seconds for tally in tallies),
        requests=requests,
        p50_us=quantile(latencies, 0.5) * 1e6,
        p99_us=quantile(latencies, 0.99) * 1e6,
        max_us=quantile(latencies, 1.0) * 1e6,
        checked=sum(tally.checked for tally in tallies),
        wrong=sum(tally.wrong for tally in tallies),
        cpu_us={CLIENT: cpu / requests * 1e6 if requests else 0.0},
        quantiles_us=[latency * 1e6 for latency in at_quantiles(latencies)],
    )


# -- the child's side ----------------------------------------------------------------------------------------------


def run(channel: Channel, clients: int, prepare: Prepare) -> None:
    """Fork ``clients`` processes, say their pids when all are prepared, and then have them run window after window."""
    mp = get_context("fork")
    ends = []
    for index in range(clients):
        mine, theirs = mp.Pipe()
        process = mp.Process(target=_client, args=(index, prepare, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        ends.append(mine)
    channel.say([end.recv() for end in ends])
    while (order := channel.hear()) is not None:
        for end in ends:
            end.send(order)
        channel.say(asdict(merged([end.recv() for end in ends])))


def _client(index: int, prepare: Prepare, end: Connection, parent: int) -> None:
    die_with_parent(parent)
    with prepare(index) as loop:
        end.send(os.getpid())
        while True:
            tally = loop(Window(**end.recv()))
            step = 1 + len(tally.latencies) // _KEPT_LATENCIES
            end.send(Tally(**{**asdict(tally), "latencies": tally.latencies[::step]}))


def sleep_until(moment: float) -> None:
    """Sleep to a moment of the monotonic clock.

    Who is late goes on at once: a sleep of nothing, too, gives the interpreter's lock away.
    """
    left = moment - time.monotonic()
    if left > 0.0:
        time.sleep(left)


# -- the bench's side ----------------------------------------------------------------------------------------------

Meter = Callable[[], Mapping[str, float]]


class Fleet:
    """A child that runs a fleet. ``meter`` reads the CPU seconds of those who serve it, by role; ``pids`` are of its
    clients."""

    def __init__(
        self,
        label: str,
        meter: Meter,
        function: Callable[Concatenate[Channel, P], None],
        *args: P.args,
        **more: P.kwargs,
    ) -> None:
        self.label = label
        self.meter = meter
        self._child = Child(function, *args, **more)
        try:
            self.pids: list[int] = self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def measure(self, settings: Settings, in_flight: int, nbytes: int = 0) -> Load:
        """One window's load, with ``in_flight`` requests a client. Raises WrongAnswer and ChildFailed."""
        what = f"{in_flight} in flight" if not nbytes else f"{in_flight} in flight, {nbytes >> 10} KiB"
        settings.progress.say(f"{self.label}, {what}")
        begin = time.monotonic() + _START_SECONDS + settings.warm_up
        window = Window(begin, begin + settings.window, in_flight, nbytes)
        self.start(window)
        sleep_until(window.begin)
        before, began = self.meter(), time.monotonic()
        sleep_until(window.end)
        after, seconds = self.meter(), time.monotonic() - began
        load = self.collect(window)
        served = load.rate * seconds
        load.cpu_us.update({role: (after[role] - before[role]) / served * 1e6 for role in after})
        return load

    def start(self, window: Window) -> None:
        """Begin to load; :meth:`collect` must follow."""
        self._child.tell(asdict(window))

    def collect(self, window: Window) -> Load:
        """What the clients say when the window is over. Raises WrongAnswer and ChildFailed."""
        sleep_until(window.end)
        load = Load(**self._child.hear())
        if load.wrong or not load.requests:
            seconds = window.end - window.begin
            raise WrongAnswer(
                f"{self.label}: {load.wrong} of {load.checked} answers are wrong, {load.requests} came in {seconds:g} s"
            )
        return load

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()
