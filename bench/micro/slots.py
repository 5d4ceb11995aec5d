"""Rows of many requests into a batch's memory and its outputs out of it, beside ``np.copyto`` of the same bytes."""

from __future__ import annotations

import numpy as np

from bench.micro.pair import Pair, timed
from tfpool.broker.gather import Outputs, gather
from tfpool.scheduler.work import Batch, BatchPolicy, Input, InputPlace, Queue, QueueSpec, Segment
from tfpool.types import DType, ModelKey
from tfpool.wire.keys import OutputKey, Tensor
from tfpool.wire.tensors import Array, from_buffer

REQUESTS = 64
_BYTES = (4 << 10, 64 << 10)  # a row


def pairs() -> list[Pair]:
    """A row a request, small ones and larger ones."""
    return [pair for nbytes in _BYTES for pair in _pairs(nbytes)]


def _pairs(nbytes: int) -> list[Pair]:
    rows = [np.full((1, nbytes // 4), n, np.float32) for n in range(REQUESTS)]
    arena = np.zeros(nbytes * REQUESTS, np.uint8)
    view, there = arena.data, arena.view(np.float32).reshape(REQUESTS, 1, -1)
    batch = _batch([row.tobytes() for row in rows], nbytes)
    outputs = Outputs(b"", OutputKey((Tensor("y", DType.FLOAT, (nbytes // 4,)),), True), [(0, len(arena))], view)
    ranges = [(n, n + 1) for n in range(0, REQUESTS, 2)]  # every other one is of another client
    taken = [there[n].copy() for n, _ in ranges]

    def out() -> Array:
        (joined,) = outputs.rows(ranges)
        return from_buffer(joined, DType.FLOAT, (len(ranges), nbytes // 4))

    def copy_in() -> None:
        for target, row in zip(there, rows, strict=True):
            np.copyto(target, row)

    def copy_out() -> None:
        for target, (n, _) in zip(taken, ranges, strict=True):
            np.copyto(target, there[n])

    name = f"{REQUESTS} rows of {nbytes >> 10} KiB"
    return [
        Pair(f"{name} in", timed(lambda: gather(batch, view)), timed(copy_in)),
        Pair(f"half of {name} out", timed(out), timed(copy_out)),
    ]


def _batch(frames: list[bytes], nbytes: int) -> Batch:
    policy = BatchPolicy()
    spec = QueueSpec(0, ModelKey("m", 1), 0, (Input((nbytes // 4,), nbytes, False),), True, True, True, policy)
    pieces = [Segment(b"client", n, 1, 1, 0.0, 0.0, [frame]) for n, frame in enumerate(frames)]
    many = len(frames)
    return Batch(
        0, Queue(spec), "w", pieces, many, many, many, None, False, (InputPlace(0, 0, 0),), 0, 0, sent=0.0, start_by=0.0
    )
