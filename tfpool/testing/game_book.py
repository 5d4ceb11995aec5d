"""What has happened in a simulated game, and what clients may have with the pool."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.work import LEAST_QUANTUM, Batch, QueueSpec
from tfpool.testing.game import Request, Source, Table, Violation, Worker
from tfpool.types import ModelKey

RECENT = 60


class Book:
    """One game so far: ``counts`` requests by outcome, ``told`` events by kind. ``calm``: nobody dies, cancels or
    fails."""

    def __init__(self, seed: int, calm: bool, table: Table, scheduler: Scheduler) -> None:
        self.seed = seed
        self.table = table
        self.scheduler = scheduler
        self.now = 0.0
        self.workers: dict[str, Worker] = {}
        self.requests: dict[tuple[bytes, int], Request] = {}
        self.counts: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self._calm = calm
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._sources: dict[int, tuple[Source, list[Any]]] = {}
        self._quarantined: dict[tuple[str, int], int] = {}
        self._accused: dict[tuple[str, int], list[tuple[Request, set[int]]]] = {}
        self._open: dict[tuple[bytes, int], Request] = {}
        self._closed: set[ModelKey] = set()
        self._crowded: set[int] = set()
        self._slowed = self._left = self._came_back = False

    # -- requests in -------------------------------------------------------------------------------------------

    def _admitted(self, spec: QueueSpec, requests: Sequence[Request], before: int) -> None:
        """Limits hold after a submit, and nobody is refused without need; ``before`` rows waited."""
        policy, limits, one = spec.policy, self.table.limits, requests[0]
        if requests[-1].behind + one.rows > LEAST_QUANTUM:
            self._crowded.add(spec.id)
        after = self._rows_in_queue(spec)
        if after > max(before, policy.max_queue_rows):
            self._fail(f"{after} rows wait, max_queue_rows is {policy.max_queue_rows}")
        mine = [request for request in self._open.values() if request.client == one.client]
        rows = sum(request.unanswered for request in mine)
        nbytes = sum(request.unanswered * request.row_bytes for request in mine)
        total = sum(request.unanswered * request.row_bytes for request in self._open.values())
        if rows > limits.client_rows or nbytes > limits.client_bytes or total > limits.total_bytes:
            self._fail(f"{one.client!r} has {rows} rows, {nbytes} bytes, all have {total}: more than {limits}")
        refused = [request for request in requests if request.outcome]
        if not refused or one.deadline <= self.now:
            return
        more = one.rows * len(refused)
        owed = self._still_charged(one.client)
        limited = (
            rows + owed[0] + more > limits.client_rows
            or nbytes + owed[1] + more * one.row_bytes > limits.client_bytes
            or total + owed[2] + more * one.row_bytes > limits.total_bytes
        )
        full = before + one.rows * (len(requests) - len(refused) + 1) > policy.max_queue_rows
        if not full and not limited and not before:
            self._fail(f"{len(refused)} requests were refused by an empty queue")

    def _still_charged(self, client: bytes) -> tuple[int, int, int]:
        """Rows and bytes of a client, and bytes of all, that run for nobody: their requests have an outcome."""
        away = [part for parts in self._accused.values() for part in parts]
        for worker in self.workers.values():
            for batch in worker.batches:
                away += self._rows_of(batch)
        for_nobody = [(request, len(taken)) for request, taken in away if request.outcome or request.gone]
        mine = [(request, rows) for request, rows in for_nobody if request.client == client]
        nbytes, total = (sum(rows * request.row_bytes for request, rows in parts) for parts in (mine, for_nobody))
        return sum(rows for _, rows in mine), nbytes, total

    def _rows_waiting(self, client: bytes, spec: QueueSpec) -> int:
        return sum(r.waiting for r in self._open.values() if r.client == client and r.spec is spec)

    # -- help --------------------------------------------------------------------------------------------------

    def _rows_of(self, batch: Batch) -> list[tuple[Request, set[int]]]:
        found: dict[int, tuple[Request, set[int]]] = {}
        for piece in batch.pieces:
            if piece.join is not None:
                numbers: Iterable[int] = (piece.join.request,)
                rows = set(range(piece.first, piece.first + piece.count))
            else:
                numbers = range(piece.first, piece.first + piece.count)
                rows = set(range(piece.rows))
            for number in numbers:
                request = self.requests[piece.client, number]
                known = found.setdefault(request.order, (request, set()))[1]
                if known & rows:
                    self._fail(f"request {number} is twice in a batch")
                known |= rows
        return list(found.values())

    def _rows_in_queue(self, spec: QueueSpec) -> int:
        queue = self.scheduler.backlog.queues.get(spec.id)
        return queue.rows if queue else 0

    def _fail(self, what: str) -> NoReturn:
        story = "\n".join(self._recent)
        raise Violation(f"seed {self.seed}: {what}\n{story}")
