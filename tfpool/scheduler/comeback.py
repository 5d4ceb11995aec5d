"""Requests that come back from a worker without an answer: what runs again, with whom, and what is given up.

A batch that TensorFlow refused runs again in halves, until the request at fault is alone. A batch whose worker died
runs again as it was; if that one dies too, in halves among themselves. A request that was alone with two such workers
is condemned once it is known what the second died of: not when somebody ended it from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from tfpool.errors import DeadlineExceeded, FailedPrecondition, TfpoolError, Unavailable
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Accounts
from tfpool.scheduler.staff import Staff
from tfpool.scheduler.work import Batch, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

MAX_DEATHS = 2  # of a request that ran alone, where the workers died through their own doing
MAX_LONE_DEATHS = 5  # whoever ended the workers

Refuse = Callable[[QueueSpec, Iterable[Segment], TfpoolError, list[ev.Action]], None]


class Comeback:
    """``gone`` has the errors of servables that nobody serves any more."""

    def __init__(self, staff: Staff, accounts: Accounts, gone: dict[ModelKey, TfpoolError], refuse: Refuse) -> None:
        self._staff = staff
        self._accounts = accounts
        self._gone = gone
        self._refuse = refuse
        self._accused: dict[Hashable, list[tuple[Queue, Segment, str]]] = {}

    def broken(self, batch: Batch, error: TfpoolError, actions: list[ev.Action]) -> None:
        """A worker could not run a batch."""
        gone = self._gone.get(batch.spec.servable)
        if batch.requests == 1 or not batch.spec.retry or gone is not None:
            alone = batch.requests == 1 or not batch.spec.retry
            self._refuse(batch.spec, batch.pieces, error if alone else gone or error, actions)
            return
        for piece in batch.pieces:
            piece.limit = max(1, batch.rows // 2)
        self._again(batch.queue, batch.pieces)

    def late(self, batch: Batch, now: float, actions: list[ev.Action]) -> None:
        """A worker has not begun a batch, because a deadline in it had passed."""
        gone = self._gone.get(batch.spec.servable)
        late = [piece for piece in batch.pieces if gone is not None or piece.deadline <= now]
        self._again(batch.queue, [piece for piece in batch.pieces if gone is None and piece.deadline > now])
        error = gone or DeadlineExceeded("the deadline passed before the run began")
        self._refuse(batch.spec, late, error, actions)

    def orphaned(self, batch: Batch, ran: bool, why: str, holder: Hashable, actions: list[ev.Action]) -> None:
        """The worker of a batch died, while running it (``ran``) or before: only what ran may have killed it."""
        gone = self._gone.get(batch.spec.servable)
        again: list[Segment] = []
        lost: list[Segment] = []
        for piece in batch.pieces:
            piece.deaths += ran
            piece.lone_deaths += ran and batch.requests == 1
            if gone is not None or (ran and not batch.spec.retry):
                lost.append(piece)
            elif ran and piece.deaths >= MAX_DEATHS and batch.requests == 1:
                self._accused.setdefault(holder, []).append((batch.queue, piece, why))
            else:
                if ran and piece.deaths >= MAX_DEATHS:
                    piece.limit = max(1, batch.rows // 2)
                again.append(piece)
        self._again(batch.queue, again)
        error = gone or Unavailable(f"worker {batch.worker} died while running this: {why}")
        self._refuse(batch.spec, lost, error, actions)

    def reaped(self, holder: Hashable, guilty: bool, actions: list[ev.Action]) -> None:
        """It is known what a worker died of: judge those that were alone with it."""
        for queue, piece, why in self._accused.pop(holder, ()):
            gone = self._gone.get(queue.spec.servable)
            if gone is not None:
                self._refuse(queue.spec, [piece], gone, actions)
            elif guilty or piece.lone_deaths >= MAX_LONE_DEATHS:
                text = f"this request is in quarantine: {piece.deaths} workers died while running it, the last of them"
                self._refuse(queue.spec, [piece], FailedPrecondition(f"{text}: {why}"), actions)
            else:
                self._again(queue, [piece])

    def _again(self, queue: Queue, pieces: list[Segment]) -> None:
        """Return to the queue, but for the parts of a large request that has failed."""
        for piece in reversed(pieces):
            if piece.join is not None and piece.join.failed:
                self._accounts.clear(piece)
            else:
                queue.push_back(piece)
        if queue.segments:
            self._staff.wake(queue)
