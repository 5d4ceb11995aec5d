"""Move rows: from frames and clients' arenas into a batch's lease, and outputs back out, each byte once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.scheduler.sizing import payload_range
from tfpool.scheduler.work import Batch, QueueSpec, Segment
from tfpool.types import ITEM_BYTES, DType
from tfpool.wire.keys import OutputKey, RequestKey
from tfpool.wire.messages import MAX_COUNT, Group
from tfpool.wire.tensors import Buffer, payload_sizes


def gather(batch: Batch, view: memoryview) -> None:
    """Copy the rows of every piece into the lease, in order. ``view`` is the whole arena."""
    buffer = text = 0
    for item, place in zip(batch.spec.inputs, batch.inputs, strict=True):
        at = place.offset
        for piece in batch.pieces:
            size = item.row_bytes * piece.rows if batch.spec.by_rows else item.row_bytes
            begin, nbytes = piece.start * size, piece.count * size
            source = piece.buffers[buffer]
            view[at : at + nbytes] = source if len(source) == nbytes else memoryview(source)[begin : begin + nbytes]
            at += nbytes
        buffer += 1
        if item.text:
            at = place.payload
            for piece in batch.pieces:
                begin, end = payload_range(piece, text, piece.count)
                view[at : at + end - begin] = memoryview(piece.buffers[buffer])[begin:end]
                at += end - begin
            buffer += 1
            text += 1


def check_frames(key: RequestKey, group: Group, frames: Sequence[bytes]) -> tuple[list[int], ...]:
    """Whether the frames of a group have the bytes that its key implies; where each row's text ends.

    Raises InvalidArgument.
    """
    rows = group.rows * group.count if key.by_rows else 1
    ends: list[list[int]] = []
    at = 0
    for tensor, row_bytes in zip(key.inputs, key.row_bytes, strict=True):
        if len(frames[at]) != row_bytes * rows:
            raise InvalidArgument(
                f"input {tensor.name!r}: got {len(frames[at])} bytes, expected {row_bytes * rows} for {rows} rows"
            )
        if tensor.dtype == DType.STRING:
            if not row_bytes and rows > MAX_COUNT:  # each row costs the broker something, even if it has no bytes
                raise InvalidArgument(f"input {tensor.name!r}: got {rows} empty rows, expected at most {MAX_COUNT}")
            ends.append(list(accumulate(payload_sizes(frames[at], len(frames[at + 1]), max(rows, 1)))))
            at += 1
        at += 1
    return tuple(ends)


def check_regions(key: RequestKey, group: Group) -> None:
    """Whether referenced tensors have the bytes that the key implies. Raises InvalidArgument."""
    regions = group.regions or ()
    if len(regions) != len(key.inputs):
        raise InvalidArgument(f"got {len(regions)} regions, expected one for each of {len(key.inputs)} inputs")
    rows = group.rows if key.by_rows else 1
    for tensor, row_bytes, region in zip(key.inputs, key.row_bytes, regions, strict=True):
        if tensor.dtype == DType.STRING:
            raise InvalidArgument(f"input {tensor.name!r}: strings travel as frames, not by reference")
        if region.nbytes != row_bytes * rows:
            raise InvalidArgument(f"input {tensor.name!r}: got {region.nbytes} bytes, expected {row_bytes * rows}")


@dataclass(slots=True)
class Outputs:
    """The outputs of a batch where the worker wrote them: ``places`` are (offset, nbytes) of each buffer."""

    packed: bytes
    key: OutputKey
    places: list[tuple[int, int]]
    view: memoryview

    def whole(self) -> list[Buffer]:
        return [self.view[offset : offset + nbytes] for offset, nbytes in self.places]

    def rows(self, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """The buffers of these row ranges, one behind the other: a view where there is one range only."""
        buffers: list[Buffer] = []
        at = 0
        for tensor, row_bytes in zip(self.key.outputs, self.key.row_bytes, strict=True):
            offset, _ = self.places[at]
            buffers.append(self._join([(offset + a * row_bytes, offset + b * row_bytes) for a, b in ranges]))
            at += 1
            if tensor.dtype == DType.STRING:
                lengths_offset, lengths_bytes = self.places[at - 1]
                payload, _ = self.places[at]
                lengths = np.frombuffer(self.view[lengths_offset : lengths_offset + lengths_bytes], "<u4")
                ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
                step = row_bytes // ITEM_BYTES[DType.STRING]
                buffers.append(
                    self._join([(payload + int(ends[a * step]), payload + int(ends[b * step])) for a, b in ranges])
                )
                at += 1
        return buffers

    def _join(self, ranges: Sequence[tuple[int, int]]) -> Buffer:
        if len(ranges) == 1:
            return self.view[ranges[0][0] : ranges[0][1]]
        return b"".join([self.view[a:b] for a, b in ranges])


def spans(batch: Batch) -> Iterable[tuple[Segment, int, int]]:
    """Each piece with its rows in the batch (begin, end)."""
    at = 0
    for piece in batch.pieces:
        following = at + piece.count * piece.rows
        yield piece, at, following
        at = following


def input_fields(batch: Batch, spec: QueueSpec) -> list[Any]:
    """What RUN says of the inputs: offset, shape, payload offset and bytes of each."""
    return [
        [place.offset, item.shape, place.payload, place.payload_bytes]
        for item, place in zip(spec.inputs, batch.inputs, strict=True)
    ]
