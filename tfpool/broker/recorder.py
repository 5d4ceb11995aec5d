"""Record live requests, so that they can warm a model up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tfpool.broker.resolve import Resolved
from tfpool.errors import ResourceExhausted
from tfpool.scheduler.work import Segment
from tfpool.types import DType

MAX_RECORDINGS = 8
MAX_BYTES = 256 << 20


@dataclass(slots=True)
class Recording:
    """The next ``count`` requests of a version. A sample is (signature, inputs), as the ``record`` verb gives it."""

    model: str
    version: int
    count: int
    until: float
    nbytes: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

    def done(self, now: float) -> bool:
        return len(self.samples) >= self.count or self.nbytes >= MAX_BYTES or now >= self.until


class Recorder:
    """All recordings under way."""

    def __init__(self) -> None:
        self._recordings: list[Recording] = []

    def models(self) -> set[str]:
        return {recording.model for recording in self._recordings}

    def begin(self, recording: Recording) -> None:
        """Raises ResourceExhausted where as many run as may."""
        if len(self._recordings) >= MAX_RECORDINGS:
            raise ResourceExhausted(f"{MAX_RECORDINGS} recordings are under way, expected fewer")
        self._recordings.append(recording)

    def expire(self, now: float) -> None:
        """Let go of recordings that are done, whether somebody took them or not."""
        self._recordings = [recording for recording in self._recordings if not recording.done(now)]

    def note(self, found: Resolved, segment: Segment) -> None:
        """Requests pass by: keep as many as somebody wants."""
        for recording in self._recordings:
            if (recording.model, recording.version) != found.version.key[:2]:
                continue
            for i in range(min(segment.count, recording.count - len(recording.samples))):
                if recording.nbytes >= MAX_BYTES:
                    break
                sample = _sample(found, segment, i)
                recording.nbytes += sum(len(data) + len(payload or b"") for *_, data, payload in sample["inputs"])
                recording.samples.append(sample)


def _sample(found: Resolved, segment: Segment, i: int) -> dict[str, Any]:
    """The ``i``-th request of a segment: its signature's name, and name, dtype, shape and bytes of each input."""
    signature = found.version.signatures[found.spec.signature]
    by_rows, rows = found.key.by_rows, segment.rows
    inputs = []
    buffer = text = 0
    for tensor, item in zip(found.key.inputs, found.spec.inputs, strict=True):
        size = item.row_bytes * rows if by_rows else item.row_bytes
        begin = (segment.start + i) * size
        data, payload = bytes(memoryview(segment.buffers[buffer])[begin : begin + size]), None
        buffer += 1
        if tensor.dtype == DType.STRING:
            ends, row = segment.payload[text], (segment.start + i) * rows
            start = ends[row - 1] if row else 0
            payload = bytes(memoryview(segment.buffers[buffer])[start : ends[row + rows - 1]])
            buffer, text = buffer + 1, text + 1
        shape = [rows, *tensor.shape] if by_rows else list(tensor.shape)
        inputs.append([tensor.name or signature.inputs[0].name, int(tensor.dtype), shape, data, payload])
    return {"signature": signature.name, "inputs": inputs}
