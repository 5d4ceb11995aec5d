"""A pool in virtual time: models with given latency curves, requests at given moments, and who decides what runs.

Who decides is a :class:`Rule`: the real scheduler (:class:`Ours`), or one that the bench knows (:mod:`bench.rules`).
All see the same requests and the same workers, every worker has every model, and what is between a client and a
worker costs nothing. What is counted are answers within their deadlines.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.curves import Point
from tfpool.scheduler.work import Batch, BatchPolicy, Input, QueueSpec, Segment
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey

NEVER = float("inf")
_JITTER = 0.05  # a run takes so much more or less, at random
_CAPACITY = 1 << 26
_OUT_BYTES = 64
_BUFFERS = (b"\0" * 4,)
_CLIENT = b"client"


@dataclass(frozen=True, slots=True)
class Model:
    """A model with one queue of rows of 4 bytes. A batch of b rows takes ``fixed`` + b * ``row`` seconds."""

    spec: QueueSpec
    fixed: float
    row: float

    @classmethod
    def of(cls, name: str, number: int, fixed: float, row: float, policy: BatchPolicy | None = None) -> Model:
        """Version 1 of ``name``; ``number`` is its queue's."""
        spec = QueueSpec(
            id=number,
            servable=ModelKey(name, 1),
            signature=0,
            inputs=(Input((), 4, False),),
            by_rows=True,
            batchable=True,
            retry=True,
            policy=policy or BatchPolicy(),
        )
        return cls(spec, fixed, row)

    def seconds(self, rows: int) -> float:
        """What a batch of so many rows takes."""
        return self.fixed + rows * self.row

    def served_by(self, worker: str) -> tuple[ev.Routed, ev.Measured]:
        """What the scheduler hears when a worker has warmed the model up."""
        sizes = [1 << power for power in range(self.spec.policy.max_rows.bit_length())]
        curve = [Point(size, self.seconds(size)) for size in sizes]
        return ev.Routed(self.spec.servable, worker), ev.Measured(self.spec.servable, worker, [curve])


@dataclass(frozen=True, slots=True)
class Request:
    """One row to a model, by its number."""

    model: int
    arrived: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Run:
    """Requests, by their numbers, that go through a worker together."""

    worker: int
    model: int
    requests: Sequence[int]
    batch: Batch | None = None


class Rule(Protocol):
    """Decides what runs. A worker that was given a run is busy until it has ended."""

    def arrived(self, number: int, request: Request) -> None: ...

    def ended(self, run: Run, seconds: float, now: float) -> None: ...

    def starts(self, now: float) -> Iterable[Run]:
        """Runs that begin now, on idle workers."""

    def wakeup(self) -> float:
        """When to ask again though nothing has happened."""


@dataclass(frozen=True)
class Outcome:
    """What became of ``offered`` requests. ``late`` were answered, but too late; ``begun_late`` began past their
    deadline; the others were dropped."""

    offered: int
    on_time: int
    late: int
    begun_late: int
    runs: int

    @property
    def share(self) -> float:
        """On-time answers over requests."""
        return self.on_time / self.offered


def play(rule: Rule, models: Sequence[Model], requests: Sequence[Request], seed: int) -> Outcome:
    """Have ``requests``, in the order of their arrival, decided by ``rule``, until nothing more happens."""
    dice = Random(seed)
    ends: list[tuple[float, int, Run, float]] = []
    coming = deque(range(len(requests)))
    on_time = late = begun_late = runs = 0
    now = 0.0
    while True:
        due = min(requests[coming[0]].arrived if coming else NEVER, ends[0][0] if ends else NEVER, rule.wakeup())
        if due == NEVER:
            return Outcome(len(requests), on_time, late, begun_late, runs)
        now = max(now, due)
        while ends and ends[0][0] <= now:
            _, _, run, seconds = heapq.heappop(ends)
            for number in run.requests:
                in_time = requests[number].deadline >= now
                on_time, late = on_time + in_time, late + (not in_time)
            rule.ended(run, seconds, now)
        while coming and requests[coming[0]].arrived <= now:
            number = coming.popleft()
            rule.arrived(number, requests[number])
        for run in rule.starts(now):
            begun_late += sum(requests[number].deadline <= now for number in run.requests)
            seconds = models[run.model].seconds(len(run.requests)) * (1 + _JITTER * dice.uniform(-1, 1))
            runs += 1
            heapq.heappush(ends, (now + seconds, runs, run, seconds))


class Ours:
    """The real scheduler, with workers that run their batches in order and give back what is too late to begin."""

    def __init__(self, models: Sequence[Model], workers: int) -> None:
        self._models = models
        self._numbers = {model.spec.id: number for number, model in enumerate(models)}
        self._scheduler = Scheduler(Layout(_CAPACITY))
        self._batches: list[deque[Batch]] = [deque() for _ in range(workers)]
        self._running = [False] * workers
        for worker in range(workers):
            self._tell(ev.WorkerJoined(str(worker), worker), 0.0)
            for model in models:
                for event in model.served_by(str(worker)):
                    self._tell(event, 0.0)

    def arrived(self, number: int, request: Request) -> None:
        segment = Segment(_CLIENT, number, 1, 1, request.deadline, request.arrived, _BUFFERS)
        self._tell(ev.Submit(self._models[request.model].spec, segment), request.arrived)

    def ended(self, run: Run, seconds: float, now: float) -> None:
        assert run.batch is not None
        self._running[run.worker] = False
        self._tell(ev.Completed(str(run.worker), run.batch.id, seconds, _OUT_BYTES, now - seconds), now)

    def starts(self, now: float) -> Iterable[Run]:
        self._tell(ev.Turn(), now)
        while sum(self._refused(worker, now) for worker in range(len(self._batches))):
            self._tell(ev.Turn(), now)
        for worker, batches in enumerate(self._batches):
            if batches and not self._running[worker]:
                batch = batches.popleft()
                self._running[worker] = True
                requests = [n for piece in batch.pieces for n in range(piece.first, piece.first + piece.count)]
                yield Run(worker, self._numbers[batch.spec.id], requests, batch)

    def wakeup(self) -> float:
        return self._scheduler.wakeup()

    def _refused(self, worker: int, now: float) -> bool:
        """Whether an idle worker has given back the batch that it should have begun."""
        batches = self._batches[worker]
        if self._running[worker] or not batches or batches[0].start_by > now:
            return False
        self._tell(ev.Late(str(worker), batches.popleft().id), now)
        return True

    def _tell(self, event: ev.Event, now: float) -> None:
        for action in self._scheduler.handle(event, now):
            if isinstance(action, ev.Dispatch):
                self._batches[int(action.batch.worker)].append(action.batch)
