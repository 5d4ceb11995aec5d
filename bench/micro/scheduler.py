"""A request through the scheduler, beside the least that any scheduler in Python does for one."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import cycle
from random import Random
from time import thread_time_ns
from typing import cast

from bench.crowd import Crowd, zipf_shares
from bench.micro.pair import Pair, Turn, timed
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler

WORKERS, MODELS = 100, 1000
TOGETHER = 16  # completions that a busy broker takes in before it decides
_SEED = 7
_WARM = 1024  # completions
_COMPLETIONS = 256  # a turn


def pairs() -> list[Pair]:
    """Of a broker that is not busy, and of one that is."""
    bare = Bare()
    return [Pair(name, _crowd(together), timed(bare.request)) for name, together in (("idle", 1), ("busy", TOGETHER))]


def _crowd(together: int) -> Turn:
    crowd = Crowd(WORKERS, MODELS, _SEED)
    timer = _Timer(crowd.scheduler)
    crowd.scheduler = cast(Scheduler, timer)

    def turn(completions: int) -> float:
        spent, served = timer.nanoseconds, crowd.requests
        for _ in range(completions // together):
            crowd.step(together)
        return (timer.nanoseconds - spent) / 1e9 / (crowd.requests - served)

    turn(_WARM)
    return lambda: turn(_COMPLETIONS)


class _Timer:
    """A scheduler that knows the CPU time that it has taken; the crowd's own clock also counts who else runs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.nanoseconds = 0

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        begun = thread_time_ns()
        actions = self._scheduler.handle(event, now)
        self.nanoseconds += thread_time_ns() - begun
        return actions


class Bare:
    """Takes a request in, picks the one that is due first, and lets it go: a place in the queue of its model, one in
    the order of all, one among those that run. It knows no batches, workers, limits, memory, fairness or deaths."""

    def __init__(self) -> None:
        random = Random(_SEED)
        self.queues: dict[str, deque[int]] = {}
        self.order: list[tuple[float, int, str]] = []
        self._running: dict[int, str] = {}
        self._models = cycle(random.choices([f"m{n}" for n in range(MODELS)], zipf_shares(MODELS), k=1 << 16))
        self._patience = cycle([WORKERS * random.random() for _ in range(1 << 12)])
        self._now = 0
        for _ in range(WORKERS):
            self._submit()

    def request(self) -> None:
        """One comes, one begins, one is done."""
        self._submit()
        self._completed(self._turn())

    def _submit(self) -> None:
        model = next(self._models)
        self._now += 1
        queue = self.queues.get(model)
        if queue is None:
            queue = self.queues[model] = deque()
        queue.append(self._now)
        heapq.heappush(self.order, (self._now + next(self._patience), self._now, model))

    def _turn(self) -> int:
        _, _, model = heapq.heappop(self.order)
        number = self.queues[model].popleft()
        self._running[number] = model
        return number

    def _completed(self, number: int) -> None:
        del self._running[number]
