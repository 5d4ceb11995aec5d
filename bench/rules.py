"""Rules that others batch by, for virtual time: a fixed size and timeout, and a size that is felt for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bench.virtual import NEVER, Model, Request, Rule, Run

MakeRule = Callable[[], Rule]

_STEP = 1.0  # rows that a good run adds to the largest batch
_BACK_OFF = 0.9
ONE_BY_ONE = "one by one"
_BOUNDS = {"": NEVER, ", 4 wait": 4, ", 1 waits": 1}  # batches


class Fixed:
    """Batches of ``size`` rows, or of what is there when the first has waited for its model's timeout (seconds).

    Queues are first in, first out, and take turns; a request that finds ``room`` rows before it is refused, and no
    other is ever dropped. So does TensorFlow Serving.
    """

    def __init__(self, size: int, timeouts: Sequence[float], workers: int, room: float = NEVER) -> None:
        self._sizes: list[float] = [size] * len(timeouts)
        self._timeouts = timeouts
        self._room = room
        self._queues: list[deque[tuple[float, int]]] = [deque() for _ in timeouts]
        self._idle = list(range(workers))
        self._turn: deque[int] = deque()  # models that have something waiting
        self._wakeup = NEVER

    def arrived(self, number: int, request: Request) -> None:
        queue = self._queues[request.model]
        if len(queue) >= self._room:
            return
        if not queue:
            self._turn.append(request.model)
        queue.append((request.arrived, number))

    def ended(self, run: Run, seconds: float, now: float) -> None:
        self._idle.append(run.worker)

    def starts(self, now: float) -> Iterable[Run]:
        while self._idle and (model := self._next(now)) is not None:
            queue = self._queues[model]
            requests = [queue.popleft()[1] for _ in range(min(len(queue), int(self._sizes[model])))]
            if queue:
                self._turn.append(model)
            yield Run(self._idle.pop(), model, requests)

    def wakeup(self) -> float:
        return self._wakeup if self._idle else NEVER

    def _next(self, now: float) -> int | None:
        """The next model in turn that has a batch ready; without one, when there will be."""
        self._wakeup = NEVER
        for _ in range(len(self._turn)):
            model = self._turn.popleft()
            queue = self._queues[model]
            due = queue[0][0] + self._timeouts[model]
            if due <= now or len(queue) >= int(self._sizes[model]):
                return model
            self._wakeup = min(self._wakeup, due)
            self._turn.append(model)
        return None


class Aimd(Fixed):
    """What waits goes, up to a size that grows by a row with each run within its model's objective (seconds), and
    shrinks by a tenth with each that takes longer. So does Clipper."""

    def __init__(self, objectives: Sequence[float], workers: int) -> None:
        super().__init__(1, [0.0] * len(objectives), workers)
        self._objectives = objectives

    def ended(self, run: Run, seconds: float, now: float) -> None:
        super().ended(run, seconds, now)
        size = self._sizes[run.model]
        if seconds > self._objectives[run.model]:
            self._sizes[run.model] = max(1.0, size * _BACK_OFF)
        elif len(run.requests) >= int(size):
            self._sizes[run.model] = size + _STEP


def grid(models: Sequence[Model], workers: int, sizes: Sequence[int], waits: Sequence[float]) -> dict[str, MakeRule]:
    """Each size with each timeout (in runs of one row), each length of a queue; and no batches at all."""
    found: dict[str, MakeRule] = {ONE_BY_ONE: partial(Fixed, 1, [0.0] * len(models), workers)}
    for size in sizes:
        for wait in waits:
            timeouts = [wait * model.seconds(1) for model in models]
            for more, bound in _BOUNDS.items():
                found[f"{size} rows, {wait:g} x l(1){more}"] = partial(Fixed, size, timeouts, workers, bound * size)
    return found
