"""Fair turns between models on one worker, in worker time; higher priorities first.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a model that begins to wait gets a tag, the later of the
worker's virtual time and the end of what the model has had; the smallest tag goes next; a batch moves its model's
tag on by its worker seconds over the model's weight. What a batch will cost is estimated when it starts and settled
when it ends. Over time each waiting model gets its weight's share of the worker's seconds.

It shares like deficit round robin, but debts outlive an empty queue: the models of clients that keep a few requests
in flight have empty queues after every batch, and round robin would forget each time what the last batch cost.

A model's *level* is the priority of the best of what it has waiting. A lower level goes only when no higher one can.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SPARE = 32  # entries of models that wait no more


class Turns:
    """The models that wait for one worker."""

    __slots__ = ("_finish", "_heap", "_sequence", "_virtual", "_waiting")

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, str]] = []
        self._waiting: dict[str, tuple[int, float, int]] = {}
        self._finish: dict[str, float] = {}
        self._virtual = 0.0
        self._sequence = 0

    def __contains__(self, model: str) -> bool:
        return model in self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, model: str, level: int = 0) -> None:
        """A model begins to wait, or has something of a higher level now."""
        place = self._waiting.get(model)
        if place is None:
            finish = self._finish.get(model, 0.0)
            self._place(model, -level, finish if finish > self._virtual else self._virtual)
        elif -level < place[0]:
            self._place(model, -level, place[1])

    def leave(self, model: str) -> None:
        """A model has nothing waiting here."""
        self._waiting.pop(model, None)
        if self._finish.get(model, 0.0) <= self._virtual:
            self._finish.pop(model, None)

    def first(self) -> str | None:
        """The model whose turn it is."""
        heap, waiting = self._heap, self._waiting
        while heap:
            _, _, number, model = heap[0]
            place = waiting.get(model)
            if place is not None and place[2] == number:
                return model
            heappop(heap)
        return None

    def lower(self, model: str, level: int) -> bool:
        """A model has nothing of a higher level than this any more; whether it had."""
        behind, tag, _ = self._waiting[model]
        if -level <= behind:
            return False
        self._place(model, -level, tag)
        return True

    def pick(self, ready: Callable[[str], bool]) -> str | None:
        """The first model in order that is ``ready``."""
        heap, waiting = self._heap, self._waiting
        passed: list[tuple[int, float, int, str]] = []
        found = None
        while heap:
            _, _, number, model = entry = heap[0]
            place = waiting.get(model)
            if place is None or place[2] != number:
                heappop(heap)
                continue
            if ready(model):
                found = model
                break
            passed.append(heappop(heap))
        for entry in passed:
            heappush(heap, entry)
        return found

    def start(self, model: str, seconds: float, level: int | None = None) -> None:
        """A batch of ``model`` starts, thought to cost ``seconds`` (already over the weight); what else it has waiting
        is of this level (None: nothing waits)."""
        place = self._waiting.get(model)
        tag = max(self._virtual, self._finish.get(model, 0.0)) if place is None else place[1]
        if tag > self._virtual:
            self._virtual = tag
        self._finish[model] = tag + seconds
        if place is None:
            return
        if level is None:
            del self._waiting[model]
        else:
            self._place(model, -level, tag + seconds)

    def settle(self, model: str, seconds: float) -> None:
        """The batch cost this much more (or less) than was thought."""
        finish = self._finish.get(model)
        if finish is None:
            return
        self._finish[model] = finish + seconds
        place = self._waiting.get(model)
        if place is not None:
            self._place(model, place[0], place[1] + seconds)

    def _place(self, model: str, behind: int, tag: float) -> None:
        self._sequence += 1
        self._waiting[model] = behind, tag, self._sequence
        heappush(self._heap, (behind, tag, self._sequence, model))
        if len(self._heap) > 2 * len(self._waiting) + _SPARE:
            self._heap = [(*place, waiting) for waiting, place in self._waiting.items()]
            heapify(self._heap)
