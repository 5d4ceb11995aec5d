"""Run one batch where it lies: views in, TensorFlow in this thread, outputs beside the inputs.

Inputs are views of shared memory, 64-byte aligned, so that TensorFlow takes them without a copy; it may alias them
until the outputs are copied, which is before the batch is reported done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

from tfpool.errors import FailedPrecondition, Internal, ResourceExhausted
from tfpool.shm.arena import Arena
from tfpool.shm.layout import align
from tfpool.types import DType
from tfpool.wire.keys import OutputKey, Tensor, pack_output_key
from tfpool.wire.tensors import decode_strings, to_buffers
from tfpool.worker.loader import Loaded, Signature, explain

MAX_SPILL = 1 << 32
NOWHERE = -1


@dataclass(slots=True)
class Servable:
    """A model version that this worker serves; ``packed`` holds the last output key of each signature."""

    name: str
    loaded: Loaded
    packed: dict[int, tuple[Any, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What DONE says: seconds run, packed output key, (offset, nbytes) of each buffer, and the memory that holds
    them where they did not fit (a descriptor, now the receiver's to close)."""

    run: float
    key: bytes
    buffers: list[tuple[int, int]]
    spilled: int | None


class Executor:
    """The arenas that this process has mapped, by id, and the way through a run."""

    def __init__(self) -> None:
        self.arenas: dict[int, Arena] = {}

    def run(
        self,
        servable: Servable,
        index: int,
        by_rows: bool,
        rows: int,
        padded: int,
        source: int,
        inputs: list[tuple[int, list[int], int, int]],
        out: tuple[int, int, int],
    ) -> Outcome:
        """Run signature ``index``; ``out`` is (arena, offset, room).

        Raises a TfpoolError where TensorFlow refuses the inputs or fails, or memory is short.
        """
        signature = servable.loaded.signatures[index]
        what = f"{servable.name}, signature {signature.spec.name!r}"
        try:
            feeds = self._feeds(signature, source, inputs, by_rows, rows, padded)
            begin = perf_counter()
            results = signature.call(*feeds)
            run = perf_counter() - begin
            arrays = [_array(results[i]) for i in signature.fetch_of]
            by_rows = by_rows and signature.spec.batchable  # else its outputs need not have rows: they go back whole
            if by_rows:
                arrays = [self._rows(signature, array, rows, padded) for array in arrays]
            key = self._key(servable, index, arrays, by_rows)
            buffers, spilled = self._write(arrays, *out)
        except OSError as error:
            raise ResourceExhausted(f"{what}: no room for the outputs: {error}") from None
        except Exception as error:
            raise explain(error, what) from None
        return Outcome(run, key, buffers, spilled)

    def _feeds(
        self,
        signature: Signature,
        source: int,
        inputs: list[tuple[int, list[int], int, int]],
        by_rows: bool,
        rows: int,
        padded: int,
    ) -> list[np.ndarray[Any, Any]]:
        arena = self.arenas.get(source)
        if arena is None:
            raise FailedPrecondition("the memory that holds the inputs is gone, with the client that owned it")
        view = arena.view
        feeds = []
        for (offset, shape, payload, payload_bytes), spec, dtype in zip(
            inputs, signature.spec.inputs, signature.feed_types, strict=True
        ):
            if spec.dtype is DType.STRING:
                real = [rows, *shape] if by_rows else shape
                lengths = view[offset : offset + 4 * prod(real)]
                feed = decode_strings(lengths, view[payload : payload + payload_bytes], tuple(real))
                if padded > rows:
                    feed = np.concatenate([feed, np.repeat(feed[:1], padded - rows, axis=0)])
            else:
                feed = np.ndarray([padded, *shape] if by_rows else shape, dtype, view, offset)
                if padded > rows:
                    feed[rows:] = feed[0]
            feeds.append(feed)
        return feeds

    def _rows(self, signature: Signature, array: Any, rows: int, padded: int) -> Any:
        if array.shape[:1] != (padded,):
            raise Internal(
                f"signature {signature.spec.name!r} gave shape {array.shape} for a batch of {padded} rows: "
                "it does not keep the rows"
            )
        return array[:rows] if padded > rows else array

    def _key(self, servable: Servable, index: int, arrays: list[Any], by_rows: bool) -> bytes:
        shapes = [array.shape[1:] if by_rows else array.shape for array in arrays]
        known = servable.packed.get(index)
        if known is not None and known[0] == (by_rows, shapes):
            return known[1]
        specs = servable.loaded.signatures[index].spec.outputs
        tensors = tuple(Tensor(s.name, int(s.dtype), tuple(shape)) for s, shape in zip(specs, shapes, strict=True))
        key = pack_output_key(OutputKey(tensors, by_rows))
        servable.packed[index] = ((by_rows, shapes), key)
        return key

    def _write(self, arrays: list[Any], arena: int, offset: int, room: int) -> tuple[list[tuple[int, int]], int | None]:
        """Copy the outputs to shared memory: to ``room`` bytes at ``offset``, or to memory of their own."""
        if arena != NOWHERE and len(arrays) == 1 and arrays[0].dtype.kind not in "OSU" and arrays[0].nbytes <= room:
            array = arrays[0]
            np.copyto(np.ndarray(array.shape, array.dtype, self.arenas[arena].view, offset), array)
            return [(offset, array.nbytes)], None
        buffers = [buffer for array in arrays for buffer in to_buffers(np.ascontiguousarray(array))]
        total = sum(align(len(buffer)) for buffer in buffers)
        if arena != NOWHERE and total <= room:
            return _place(buffers, self.arenas[arena].view, offset), None
        if total > MAX_SPILL:
            raise ResourceExhausted(f"outputs of {total} bytes, expected at most {MAX_SPILL}")
        spill = Arena.create(max(4096, total), "tfpool-spill")
        places = _place(buffers, spill.view, 0)
        fd = os.dup(spill.fd)
        spill.close()
        return places, fd

    def attach(self, arena: int, fd: int, nbytes: int) -> None:
        """Map an arena. Raises InvalidArgument where ``fd`` is none."""
        self.arenas[arena] = Arena.attach(fd, nbytes)

    def detach(self, arena: int) -> None:
        found = self.arenas.pop(arena, None)
        if found is not None:
            found.close()


def _place(buffers: list[Any], view: memoryview, offset: int) -> list[tuple[int, int]]:
    places = []
    for buffer in buffers:
        view[offset : offset + len(buffer)] = buffer
        places.append((offset, len(buffer)))
        offset += align(len(buffer))
    return places


def _array(result: Any) -> np.ndarray[Any, Any]:
    """TensorFlow gives tensors of rank 0 as numpy scalars, or bytes."""
    if isinstance(result, np.ndarray):
        return result
    return np.array(result, object) if isinstance(result, (bytes, str)) else np.asarray(result)
