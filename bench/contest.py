"""Ours beside each peer in turn: a peer is started, and in every repeat all get the same loads, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np

from bench.arrivals import Schedule, poisson
from bench.errors import ChildFailed, PeerAbsent, WrongAnswer
from bench.peers.peer import Array, Peer, Task
from bench.peers.registry import PEERS
from bench.peers.serving import Served, serving
from bench.points import Point
from bench.scenario import Settings, Sheet
from bench.systems import OURS, OURS_HTTP, System, samples, task, theirs

BEST = "the best peer"
FAR_BEHIND = 0.5  # of what the best peer answers
POISSON = "poisson"
_LEAST_REQUESTS = 500  # that an open loop sends, or p99 would be a handful


@dataclass(frozen=True)
class Closed:
    """So many requests in flight."""

    in_flight: int

    @property
    def name(self) -> str:
        return f"{self.in_flight} in flight"

    def put(self, settings: Settings, system: System, seed: int) -> Point:
        """One repeat."""
        return system.closed(settings, self.in_flight)


@dataclass(frozen=True)
class Poisson:
    """Requests at random moments: ``rate`` a second, which is a share of what the roofline does."""

    share: float
    rate: float

    @property
    def name(self) -> str:
        return f"{POISSON} at {100 * self.share:g} %"

    def put(self, settings: Settings, system: System, seed: int) -> Point:
        """One repeat; the same moments for all."""
        seconds = max(settings.window, 0.0 if settings.quick else _LEAST_REQUESTS / self.rate)
        schedule = Schedule.of_one(poisson(self.rate, seconds, np.random.default_rng(seed)), seconds)
        return system.open(settings, schedule, POISSON, self.share)


Load = Closed | Poisson
Round = Mapping[str, Point]  # what each system did, in one repeat
Rounds = Mapping[Load, Sequence[Round]]


def contest(
    settings: Settings, sheet: Sheet, ours: Sequence[System], model: str, loads: Sequence[Load], processes: int = 1
) -> Mapping[str, Rounds]:
    """By peer, what it and ours did. Every point goes to the sheet; a peer that cannot be measured is told there, and
    why. In the quick form the first peer that runs is the only one."""
    rows, answers = samples(settings, model)
    found: dict[str, Rounds] = {}
    leading = 0.0
    for peer in PEERS.values():
        if settings.quick and found:
            sheet.lack(peer.title, "the quick form measures one peer")
            continue
        settings.progress.say(f"starting {peer.title}")
        seen: dict[Load, list[Round]] = {}
        try:
            with _started(peer, task(settings, peer, model, processes), rows, answers) as served:
                _rounds(settings, sheet, [*ours, theirs(settings, served)], loads, seen, leading)
        except PeerAbsent as error:
            sheet.lack(peer.title, str(error))
        if seen:
            found[peer.title] = seen
            leading = max(leading, _most(seen, peer.title))
    return found


@contextmanager
def _started(peer: Peer, asked: Task, rows: Array, answers: Array) -> Iterator[Served]:
    """Raises PeerAbsent for wrong answers too; what goes wrong in the block is not always the peer's."""
    with ExitStack() as stack:
        try:
            served = stack.enter_context(serving(peer, asked, rows, answers))
        except WrongAnswer as error:
            raise PeerAbsent(str(error)) from None
        yield served


def _rounds(
    settings: Settings,
    sheet: Sheet,
    systems: Sequence[System],
    loads: Sequence[Load],
    found: dict[Load, list[Round]],
    leading: float,
) -> None:
    """All repeats, into ``found``; in every other one the order is turned round. Who is far behind the ``leading`` peer
    after the first is measured once, and loads that it cannot bear are spared it. Raises PeerAbsent where the peer
    fails."""
    for number in range(settings.repeat):
        settings.progress.more(1)
        for load in loads:
            if _bears(found, load, systems[-1].name):
                order = systems if number % 2 else systems[::-1]
                points = {one.name: _put(settings, load, one, number, systems[-1]) for one in order}
                for system in systems:
                    sheet.point(points[system.name])
                found.setdefault(load, []).append(points)
        settings.progress.step()
        if _most(found, systems[-1].name) < FAR_BEHIND * leading:
            break


def _put(settings: Settings, load: Load, system: System, number: int, peer: System) -> Point:
    """Raises PeerAbsent where it is the peer that fails: what it did before counts. Ours fails the scenario."""
    try:
        point = load.put(settings, system, number)
    except (WrongAnswer, ChildFailed, OSError) as error:
        if system is not peer:
            raise
        raise PeerAbsent(f"failed in repeat {number + 1}, {load.name}; what it did before counts: {error}") from None
    if point.failed and system is not peer:
        raise WrongAnswer(f"{system.name}, {load.name}: {point.failed} requests have no answer")
    return point


def _bears(found: Rounds, load: Load, name: str) -> bool:
    """Whether the most that it has answered in a closed loop so far is more than would be asked."""
    return isinstance(load, Closed) or _most(found, name) > load.rate


def _most(found: Rounds, name: str) -> float:
    """Requests a second that a system has answered in its best closed loop."""
    closed = [one for seen, repeats in found.items() if isinstance(seen, Closed) for one in repeats]
    return max((one[name].rate for one in closed), default=0.0)


def complete(found: Mapping[str, Rounds]) -> bool:
    """Whether every peer was measured: or the best of them may be another one."""
    return len(found) == len(PEERS)


def best(found: Mapping[str, Rounds], load: Load) -> str:
    """The peer that answers the most in a closed loop, or the quickest (p99) in an open one."""

    def merit(title: str) -> float:
        points = [one[title] for one in found[title][load]]
        if isinstance(load, Closed):
            return median(point.rate for point in points)
        return median(-math.inf if point.failed else -point.at_us(0.99) for point in points)

    return max((title for title in found if load in found[title]), key=merit)


def tell(sheet: Sheet, found: Mapping[str, Rounds], loads: Sequence[Load], what: str = "") -> None:
    """Figures beside each peer and beside the best under each load; ``what`` comes before the load."""
    for load in loads:
        titles = [title for title in found if load in found[title]]
        if not titles:
            continue
        leader = best(found, load)
        for title, where in [*((title, title) for title in titles), (leader, BEST)]:
            for one in found[title][load]:
                _compare(sheet, f"{what}{load.name}", where, one, title)


def _compare(sheet: Sheet, load: str, where: str, points: Round, title: str) -> None:
    other = points[title]
    for name, prefix in ((OURS, ""), (OURS_HTTP, "HTTP, ")):
        mine, told = points[name], {"peer": title, "failed": other.failed}
        if other.load == "closed" and other.level > 1:
            sheet.rate(f"{prefix}{load}, beside {where}", "req/s", mine.rate, other.rate, told)
            continue
        for q, name in ((0.5, "p50"), (0.99, "p99")):
            times = mine.at_us(q) / 1e3, other.at_us(q) / 1e3
            sheet.cost(f"{prefix}{name}, {load}, beside {where}", "ms", *times, told)
