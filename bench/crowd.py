"""The scheduler alone in a crowd: virtual workers and models without end, requests by Zipf, and the time of it all.

Time is virtual, only ``handle()`` is timed. The requests in flight are as many at all times: those of a batch that
has run are followed by as many, to models of their own. So many completions have a Turn ``together``: one, as when a
broker is not busy, or several, as when it takes in what has arrived while it was.

A model has workers in proportion to how often it is asked for, one at least. A worker runs its batches in order.
"""

from __future__ import annotations

import gc
import heapq
from collections import deque
from dataclasses import asdict, dataclass
from itertools import cycle
from random import Random
from time import perf_counter_ns

from bench.children import Channel
from bench.points import quantile
from bench.virtual import Model
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.work import Batch, Segment
from tfpool.shm.layout import MIN_BLOCK, Layout

EXPONENT = 1.0
IN_FLIGHT = 1.5  # requests a worker
_CLIENTS = 16
_PATIENCE = (0.25, 1.0, 30.0)  # seconds until a deadline
_BUFFERS = (b"\0" * 4,)
_LEASES = 8  # of the least size that a worker has room for
_WARM_STEPS = 4  # a worker
_OUT_BYTES = 64
_SLICE = 64  # decisions between looks at the clock


@dataclass(frozen=True)
class Cost:
    """What ``decisions`` (batches that were sent) took: seconds of handle(), and microseconds of what led to each."""

    decisions: int
    requests: int
    refused: int
    events: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float


class Crowd:
    """One scheduler, its workers and its clients."""

    def __init__(self, workers: int, models: int, seed: int) -> None:
        self._dice = Random(seed)
        self.scheduler = Scheduler(Layout(MIN_BLOCK * _LEASES * workers))
        self._models = {}
        self._clients = [b"client %d" % number for number in range(_CLIENTS)]
        self._names = [f"w{number}" for number in range(workers)]
        self._batches: dict[str, deque[Batch]] = {name: deque() for name in self._names}
        self._ends: list[tuple[float, int, str]] = []
        self._number = 0
        self._missing = round(IN_FLIGHT * workers)
        self.now = 0.0
        self.decisions = self.requests = self.refused = self.events = self.nanoseconds = 0
        self.taken: list[float] = []
        self._pending = 0
        for name in self._names:
            self._handle(ev.WorkerJoined(name, name))
        shares = zipf_shares(models)
        made = [self._model(number) for number in range(models)]
        for model, names in zip(made, placed(shares, self._names), strict=True):
            self._models[model.spec.id] = model
            for name in names:
                for event in model.served_by(name):
                    self._handle(event)
        # Drawing one by one costs more than the decision that is measured.
        self._picks = cycle(self._dice.choices(made, shares, k=1 << 20))

    def _model(self, number: int) -> Model:
        fixed = self._dice.uniform(0.5e-3, 5e-3)
        return Model.of(f"m{number}", number, fixed, fixed / 20)

    def _handle(self, event: ev.Event) -> list[ev.Action]:
        begun = perf_counter_ns()
        actions = self.scheduler.handle(event, self.now)
        self._pending += perf_counter_ns() - begun
        self.events += 1
        return actions

    def step(self, together: int) -> None:
        """Completions, the requests that follow them, and a Turn."""
        for _ in range(min(together, len(self._ends))):
            self.now, _, name = heapq.heappop(self._ends)
            batches = self._batches[name]
            batch = batches.popleft()
            run = self._seconds(batch)
            if batches:
                self._start(name, batches[0])
            self._missing += batch.requests
            self.requests += batch.requests
            self._handle(ev.Completed(name, batch.id, run, _OUT_BYTES, self.now - run))
        missing, self._missing = self._missing, 0
        for _ in range(missing):
            self._acted(self._handle(self._request()))
        self._acted(self._handle(ev.Turn()))

    def _request(self) -> ev.Submit:
        dice, spec = self._dice, next(self._picks).spec
        self._number += 1
        client, deadline = dice.choice(self._clients), self.now + dice.choice(_PATIENCE)
        return ev.Submit(spec, Segment(client, self._number, 1, 1, deadline, self.now, _BUFFERS))

    def _acted(self, actions: list[ev.Action]) -> None:
        sent = 0
        for action in actions:
            if isinstance(action, ev.Dispatch):
                sent += 1
                batches = self._batches[action.batch.worker]
                batches.append(action.batch)
                if len(batches) == 1:
                    self._start(action.batch.worker, action.batch)
            elif isinstance(action, ev.Refuse):
                refused = sum(segment.count for segment in action.segments)
                self.refused += refused
                self._missing += refused
        if sent:
            self.taken.extend([self._pending / sent] * sent)
            self.decisions += sent
            self.nanoseconds += self._pending
            self._pending = 0

    def _start(self, name: str, batch: Batch) -> None:
        self._number += 1
        heapq.heappush(self._ends, (self.now + self._seconds(batch), self._number, name))

    def _seconds(self, batch: Batch) -> float:
        return self._models[batch.spec.id].seconds(batch.padded)

    def run(self, seconds: float, together: int = 1) -> Cost:
        """Go on until so many seconds were spent in the scheduler (real ones)."""
        for _ in range(_WARM_STEPS * len(self._names) // together):
            self.step(together)
        self.decisions = self.requests = self.refused = self.events = self.nanoseconds = self._pending = 0
        self.taken.clear()
        while self.nanoseconds < seconds * 1e9:
            for _ in range(-(-_SLICE // together)):
                self.step(together)
        taken = sorted(self.taken)
        p50, p99, most = (quantile(taken, q) / 1e3 for q in (0.5, 0.99, 1.0))
        spent = self.nanoseconds / 1e9
        return Cost(self.decisions, self.requests, self.refused, self.events, spent, p50, p99, most)


def zipf_shares(models: int) -> list[float]:
    """How often each of so many models is asked for; in all 1."""
    weights = [1.0 / (number + 1) ** EXPONENT for number in range(models)]
    total = sum(weights)
    return [weight / total for weight in weights]


def placed(shares: list[float], workers: list[str]) -> list[list[str]]:
    """The workers of each model, as many as its share of the load asks for; those with the least load are taken."""
    loads = [(0.0, number) for number in range(len(workers))]
    found = []
    for share in shares:
        replicas = min(len(workers), max(1, round(share * len(workers))))
        chosen = heapq.nsmallest(replicas, loads) if replicas > 1 else [loads[0]]
        if replicas > 1:
            loads = [(load, number) for load, number in loads if (load, number) not in set(chosen)]
        else:
            heapq.heappop(loads)
        for load, number in chosen:
            loads.append((load + share / replicas, number))
        heapq.heapify(loads)
        found.append([workers[number] for _, number in chosen])
    return found


def decide(channel: Channel) -> None:
    """A child: told numbers of workers and models, a seed, seconds, and numbers of completions that come together, says
    for each of these the cost of the decisions."""
    while (order := channel.hear()) is not None:
        workers, models, seed, seconds, together = order
        crowd = Crowd(workers, models, seed)
        gc.collect()
        gc.freeze()  # as the broker does
        gc.set_threshold(50_000, 20, 20)
        channel.say([asdict(crowd.run(seconds, many)) for many in together])
        gc.unfreeze()
