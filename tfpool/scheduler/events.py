"""The scheduler's vocabulary: every event it understands and every action it asks for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from tfpool.errors import TfpoolError
from tfpool.scheduler.curves import Point
from tfpool.scheduler.work import Batch, BatchId, QueueSpec, Segment, WorkerName
from tfpool.types import ModelKey


class Submit(NamedTuple):
    """Requests have arrived, checked and resolved to a queue."""

    spec: QueueSpec
    segment: Segment


class Cancel(NamedTuple):
    """A client no longer wants these ids (first, count)."""

    client: bytes
    ranges: list[tuple[int, int]]


class ClientGone(NamedTuple):
    """Nobody will hear the answers of this client."""

    client: bytes


class WorkerJoined(NamedTuple):
    """A worker is ready for batches; ``holder`` tells this life of it from others."""

    worker: WorkerName
    holder: Hashable


class WorkerLost(NamedTuple):
    """A worker died. Its bytes stay quarantined until :class:`WorkerReaped`."""

    worker: WorkerName
    why: str


class WorkerReaped(NamedTuple):
    """The dead worker's process is gone; nothing writes to its bytes any more. ``guilty``: it died through what it ran,
    for all we know, and was not ended by somebody else."""

    holder: Hashable
    guilty: bool = True


class Drain(NamedTuple):
    """Give this worker no further batch, or do again."""

    worker: WorkerName
    draining: bool


class Routed(NamedTuple):
    """A worker serves a servable from now on."""

    servable: ModelKey
    worker: WorkerName


class Unrouted(NamedTuple):
    """A worker gets no further batch of a servable."""

    servable: ModelKey
    worker: WorkerName


class Measured(NamedTuple):
    """What a worker's warm-up took: by signature, (rows, seconds) of each size that was run."""

    servable: ModelKey
    worker: WorkerName
    curves: Sequence[Sequence[Point]]


class ServableGone(NamedTuple):
    """Nobody will serve this again: what waits is refused with ``error``."""

    servable: ModelKey
    error: TfpoolError


class QueueClosed(NamedTuple):
    """The broker forgets a queue; the scheduler does when it is empty."""

    id: int


class Completed(NamedTuple):
    """A worker ran a batch: ``run`` seconds from ``begun`` (monotonic seconds), ``out_bytes`` of outputs in all."""

    worker: WorkerName
    batch: BatchId
    run: float
    out_bytes: int
    begun: float = 0.0


class Broken(NamedTuple):
    """A worker could not run a batch."""

    worker: WorkerName
    batch: BatchId
    run: float
    error: TfpoolError


class Late(NamedTuple):
    """A worker has not begun a batch, because a deadline in it had passed."""

    worker: WorkerName
    batch: BatchId


class Turn(NamedTuple):
    """All that was waiting has been handled: expire, then dispatch."""


Event = (
    Submit
    | Cancel
    | ClientGone
    | WorkerJoined
    | WorkerLost
    | WorkerReaped
    | Drain
    | Routed
    | Unrouted
    | Measured
    | ServableGone
    | QueueClosed
    | Completed
    | Broken
    | Late
    | Turn
)


class Dispatch(NamedTuple):
    """Gather the batch's rows into its lease and ring its worker."""

    batch: Batch


class Deliver(NamedTuple):
    """Copy the outputs of a batch out and answer its clients, before the next action."""

    batch: Batch


class Refuse(NamedTuple):
    """Answer these requests with an error."""

    spec: QueueSpec
    segments: list[Segment]
    error: TfpoolError


Action = Dispatch | Deliver | Refuse
