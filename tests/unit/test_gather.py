"""Gathering and scattering rows, against numpy's concatenate and slices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.gather import Outputs, check_frames, check_regions, gather, input_fields, spans
from tfpool.errors import InvalidArgument
from tfpool.scheduler.sizing import input_bytes, plan
from tfpool.scheduler.work import BatchPolicy, Input, Queue, QueueSpec, Segment
from tfpool.shm.layout import ALIGN, Layout
from tfpool.types import ITEM_BYTES, DType, ModelKey, numpy_dtype
from tfpool.wire.keys import OutputKey, RequestKey, Tensor, pack_output_key
from tfpool.wire.messages import Group, Region
from tfpool.wire.tensors import Array, decode_strings, take_array, to_buffers

DTYPES = [DType.FLOAT, DType.UINT8, DType.INT64, DType.COMPLEX128, DType.BOOL, DType.STRING, DType.BFLOAT16]
KINDS = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=2).map(tuple)), max_size=3)


def some_array(random: Any, dtype: DType, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(random.getrandbits(32))
    if dtype == DType.STRING:
        made = np.empty(shape, object)
        for index in np.ndindex(shape):
            made[index] = rng.bytes(int(rng.integers(0, 9)))
        return made
    return rng.integers(0, 2, shape).astype(numpy_dtype(dtype))


def same(got: Array, expected: Array) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tolist() == expected.tolist()


@dataclass
class Sent:
    """A segment as it comes off the wire, and the arrays that it was made of."""

    segment: Segment
    arrays: list[Array]


def send(random: Any, kinds: list[tuple[DType, tuple[int, ...]]], first: int, count: int, rows: int) -> Sent:
    arrays = [some_array(random, dtype, (count * rows, *inner)) for dtype, inner in kinds]
    tensors = tuple(Tensor(f"t{i}", int(dtype), inner) for i, (dtype, inner) in enumerate(kinds))
    key = RequestKey("m", 0, "", "", tensors, True)
    frames = [bytes(buffer) for array in arrays for buffer in to_buffers(array)]
    group = Group(b"", first, count, rows, 1000, 0, None, None)
    payload = check_frames(key, group, frames)
    return Sent(Segment(b"c", first, count, rows, 9.0, 0.0, frames, 0, 0, payload), arrays)


def queue_of(kinds: list[tuple[DType, tuple[int, ...]]], policy: BatchPolicy) -> Queue:
    inputs = tuple(
        Input(inner, int(np.prod(inner, dtype=int)) * ITEM_BYTES[dtype], dtype == DType.STRING)
        for dtype, inner in kinds
    )
    return Queue(QueueSpec(1, ModelKey("m", 1), 0, inputs, True, True, True, policy))


@given(
    KINDS.filter(bool),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=5),
    st.integers(1, 24),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_batches_hold_the_rows_in_order(
    kinds: list[tuple[DType, tuple[int, ...]]],
    groups: list[tuple[int, int]],
    most: int,
    pad: bool,
    random: Any,
) -> None:
    """Groups are cut into batches anywhere between two requests; each batch holds the next rows."""
    queue = queue_of(kinds, BatchPolicy(most, sizes=(4, 8, 16, 32) if pad else ()))
    sent = []
    for count, rows in groups:
        sent.append(send(random, kinds, 100 * len(sent), count, rows))
        queue.push(sent[-1].segment)
    expected = [np.concatenate([s.arrays[i] for s in sent]) for i in range(len(kinds))]
    layout, memory = Layout(1 << 20, 4096), memoryview(bytearray((1 << 20) + 4096))
    done = 0
    while queue.segments:
        rows = min(queue.rows, max(most, queue.segments[0].rows))
        lease = layout.lease(input_bytes(queue, rows))
        assert lease is not None
        batch = plan(1, queue, "w", queue.take(rows), lease, False, 0.0)
        gather(batch, memory)
        assert batch.rows <= batch.padded
        assert batch.out_offset <= lease.offset + lease.nbytes
        used = [(lease.offset + lease.nbytes, lease.offset + lease.nbytes)]
        fields = input_fields(batch, queue.spec)
        for (offset, shape, payload, nbytes), (dtype, inner), all_rows in zip(fields, kinds, expected, strict=True):
            assert offset % ALIGN == 0
            assert tuple(shape) == inner
            size = int(np.prod(inner, dtype=int)) * ITEM_BYTES[dtype]
            block = memory[offset : offset + size * batch.rows]
            whole = (batch.rows, *inner)
            if dtype == DType.STRING:
                assert payload % ALIGN == 0
                got = decode_strings(block, memory[payload : payload + nbytes], whole)
                used.append((payload, payload + nbytes))
            else:
                got = np.frombuffer(block, numpy_dtype(dtype)).reshape(whole)
            used.append((offset, offset + size * batch.padded))
            assert same(got, all_rows[done : done + batch.rows])
        ends = sorted(span for span in used if span[1] > span[0])
        assert all(a[1] <= b[0] for a, b in pairwise(ends)), "parts do not overlap"
        assert sum(end - begin for _, begin, end in spans(batch)) == batch.rows
        done += batch.rows
        layout.free(lease)
    assert done == len(expected[0])


@given(KINDS.filter(bool), st.integers(1, 20), st.data(), st.randoms(use_true_random=False))
def test_outputs_are_cut_by_rows(
    kinds: list[tuple[DType, tuple[int, ...]]], rows: int, data: st.DataObject, random: Any
) -> None:
    arrays = [some_array(random, dtype, (rows, *inner)) for dtype, inner in kinds]
    places, memory, at = [], bytearray(1 << 16), 64
    for array in arrays:
        for buffer in to_buffers(array):
            memory[at : at + len(buffer)] = buffer
            places.append((at, len(buffer)))
            at += (len(buffer) + 63) & -64
    tensors = tuple(Tensor(f"y{i}", int(dtype), inner) for i, (dtype, inner) in enumerate(kinds))
    key = OutputKey(tensors, True)
    outputs = Outputs(pack_output_key(key), key, places, memoryview(memory))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=2, max_size=6)))
    pairs = st.lists(st.booleans(), min_size=len(cuts) - 1, max_size=len(cuts) - 1)
    chosen = data.draw(pairs.filter(any))
    ranges = [cut for cut, keep in zip(pairwise(cuts), chosen, strict=True) if keep]
    buffers = iter(outputs.rows(ranges))
    total = sum(b - a for a, b in ranges)
    for (dtype, inner), array in zip(kinds, arrays, strict=True):
        taken = [bytes(next(buffers)) for _ in range(2 if dtype == DType.STRING else 1)]
        got = take_array(dtype, (total, *inner), taken)
        assert same(got, np.concatenate([array[a:b] for a, b in ranges]))
    assert next(buffers, None) is None
    assert [bytes(buffer) for buffer in outputs.whole()] == [bytes(memory[o : o + n]) for o, n in places]


def test_whole_tensors_are_one_piece() -> None:
    inputs = (Input((2, 3), 24, False), Input((), 4, True))
    spec = QueueSpec(1, ModelKey("m", 1), 0, inputs, False, False, True, BatchPolicy())
    queue = Queue(spec)
    matrix, text = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(b"hello", object)
    frames = [bytes(buffer) for array in (matrix, text) for buffer in to_buffers(array)]
    tensors = (Tensor("a", DType.FLOAT, (2, 3)), Tensor("b", DType.STRING, ()))
    group = Group(b"", 7, 1, 0, 1000, 0, None, None)
    payload = check_frames(RequestKey("m", 0, "", "", tensors, False), group, frames)
    queue.push(Segment(b"c", 7, 1, 1, 9.0, 0.0, frames, 0, 0, payload))
    layout, memory = Layout(8192), memoryview(bytearray(8192))
    lease = layout.lease(input_bytes(queue, 1))
    batch = plan(1, queue, "w", [queue.take_one()], lease, False, 0.0)
    gather(batch, memory)
    (offset, shape, _, _), (lengths, _, at, nbytes) = input_fields(batch, spec)
    assert np.frombuffer(memory[offset : offset + 24], np.float32).reshape(shape).tolist() == matrix.tolist()
    assert decode_strings(memory[lengths : lengths + 4], memory[at : at + nbytes], ()).item() == b"hello"


DENSE = RequestKey("m", 0, "", "", (Tensor("x", DType.FLOAT, (3,)),), True)
TEXT = RequestKey("m", 0, "", "", (Tensor("s", DType.STRING, ()),), True)


def group(count: int, rows: int, regions: tuple[Region, ...] | None = None) -> Group:
    return Group(b"", 1, count, rows, 1000, 0, regions, None)


@pytest.mark.parametrize("nbytes", [0, 71, 73, 144])
def test_frames_have_the_bytes_that_the_key_implies(nbytes: int) -> None:
    with pytest.raises(InvalidArgument, match=f"input 'x': got {nbytes} bytes, expected 72 for 6 rows"):
        check_frames(DENSE, group(2, 3), [bytes(nbytes)])


def test_lengths_of_strings_are_checked() -> None:
    lengths = np.array([2, 1], "<u4").tobytes()
    assert check_frames(TEXT, group(2, 1), [lengths, b"abc"]) == ([2, 3],)
    with pytest.raises(InvalidArgument, match="add up to 3 bytes, the payload has 2"):
        check_frames(TEXT, group(2, 1), [lengths, b"ab"])
    with pytest.raises(InvalidArgument, match="input 's': got 8 bytes, expected 12 for 3 rows"):
        check_frames(TEXT, group(3, 1), [lengths, b"abc"])
    huge = np.array([(1 << 32) - 1, (1 << 32) - 1], "<u4").tobytes()
    with pytest.raises(InvalidArgument, match="add up to 8589934590 bytes"):
        check_frames(TEXT, group(2, 1), [huge, b"abc"])


def test_strings_of_no_elements_cost_nothing() -> None:
    """16 million rows of a string tensor [?, 0] are no bytes at all: nobody may be made to allocate for them."""
    key = RequestKey("m", 0, "", "", (Tensor("s", DType.STRING, (0,)),), True)
    with pytest.raises(InvalidArgument):
        check_frames(key, group(1 << 16, 1 << 24), [b"", b""])


def test_regions_have_the_bytes_that_the_key_implies() -> None:
    check_regions(DENSE, group(1, 2, (Region(4096, 24),)))
    with pytest.raises(InvalidArgument, match="input 'x': got 25 bytes, expected 24"):
        check_regions(DENSE, group(1, 2, (Region(4096, 25),)))
    with pytest.raises(InvalidArgument, match="got 0 regions, expected one for each of 1 inputs"):
        check_regions(DENSE, group(1, 2, ()))
    with pytest.raises(InvalidArgument, match="strings travel as frames"):
        check_regions(TEXT, group(1, 1, (Region(4096, 4),)))
