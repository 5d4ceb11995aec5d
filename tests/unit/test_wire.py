from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfpool.errors import InvalidArgument
from tfpool.types import ITEM_BYTES, DType, dtype_of, numpy_dtype
from tfpool.wire import keys, messages, tensors
from tfpool.wire.keys import OutputKey, RequestKey, Tensor
from tfpool.wire.messages import Group, Hello, Piece, Region, Verb

NAMES = st.text(max_size=20)
SHAPES = st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple)
TENSORS = st.builds(Tensor, NAMES, st.sampled_from([int(d) for d in DType]), SHAPES)
REGIONS = st.builds(Region, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
BUDGETS = st.integers(0, messages.MAX_BUDGET_MS)
PRIORITIES = st.integers(-100, 100)
IDS = st.integers(0, 1 << 62)
FLAGS = st.integers(0, 3)
GROUPS = st.one_of(
    st.builds(
        Group,
        st.binary(max_size=40),
        IDS,
        st.integers(1, messages.MAX_COUNT),
        st.integers(1, messages.MAX_ROWS),
        BUDGETS,
        PRIORITIES,
        st.none(),
        st.none() | REGIONS,
        FLAGS,
    ),
    st.builds(
        Group,
        st.binary(max_size=40),
        IDS,
        st.just(1),
        st.integers(0, messages.MAX_ROWS),
        BUDGETS,
        PRIORITIES,
        st.none() | st.lists(REGIONS, max_size=4).map(tuple),
        st.none() | REGIONS,
        FLAGS,
    ),
)
REQUEST_KEYS = st.builds(
    RequestKey,
    NAMES,
    st.integers(0, (1 << 63) - 1),
    NAMES,
    NAMES,
    st.lists(TENSORS, max_size=4).map(tuple),
    st.booleans(),
)
OUTPUT_KEYS = st.builds(OutputKey, st.lists(TENSORS, max_size=4).map(tuple), st.booleans())
LEAVES = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary() | NAMES
BODIES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=9) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=30
)
DECODERS: list[Callable[[Any], object]] = [
    messages.decode_groups,
    messages.decode_hello,
    messages.decode_cancel,
    messages.decode_call,
]
READERS: list[Callable[[bytes], object]] = [
    messages.decode,
    messages.unpack,
    keys.unpack_request_key,
    keys.unpack_output_key,
]


def through_the_wire(verb: Verb, body: object) -> Any:
    got, unpacked = messages.decode(messages.encode(verb, body))
    assert got == verb
    return unpacked


@given(st.lists(GROUPS, min_size=1, max_size=5))
def test_predict_round_trip(groups: list[Group]) -> None:
    verb, body = messages.decode(messages.encode(messages.Verb.PREDICT, groups))
    assert verb == Verb.PREDICT
    assert messages.decode_groups(body) == groups


@given(
    st.none()
    | st.builds(
        Hello,
        IDS.map(lambda i: i % 4096 + 1),
        st.integers(0, 1 << 31),
        st.integers(4096, 1 << 40),
        st.binary(min_size=16, max_size=16),
    )
)
def test_hello_round_trip(hello: Hello | None) -> None:
    assert messages.decode_hello(through_the_wire(Verb.HELLO, hello)) == hello


@given(st.lists(st.tuples(IDS, st.integers(1, messages.MAX_COUNT)), max_size=5))
def test_cancel_and_error_round_trip(ranges: list[tuple[int, int]]) -> None:
    assert messages.decode_cancel(through_the_wire(Verb.CANCEL, ranges)) == ranges
    error = messages.Error(ranges, 8, "full")
    assert messages.decode_error(through_the_wire(Verb.ERROR, error)) == error


@given(IDS, NAMES, st.dictionaries(NAMES, st.none() | NAMES | st.integers(0, 9), max_size=3), BUDGETS)
def test_call_round_trip(number: int, method: str, arguments: dict[str, Any], budget: int) -> None:
    call = messages.Call(number, method, arguments, budget)
    assert messages.decode_call(through_the_wire(Verb.CALL, call)) == call


@given(
    st.binary(),
    st.lists(st.builds(Piece, IDS, IDS, IDS), max_size=4),
    st.tuples(IDS, IDS, IDS),
    st.none() | st.lists(REGIONS, max_size=3).map(tuple),
    IDS,
)
def test_answer_round_trip(
    spec: bytes, pieces: list[Piece], timing: tuple[int, int, int], regions: tuple[Region, ...] | None, version: int
) -> None:
    answer = messages.Answer(spec, pieces, timing, regions, version)
    assert messages.decode_answer(through_the_wire(Verb.ANSWER, answer)) == answer


@given(REQUEST_KEYS, OUTPUT_KEYS)
def test_key_round_trip(request_key: RequestKey, output_key: OutputKey) -> None:
    assert keys.unpack_request_key(keys.pack_request_key(request_key)) == request_key
    assert keys.unpack_output_key(keys.pack_output_key(output_key)) == output_key


def test_a_request_key_knows_its_row_bytes_and_frames() -> None:
    inputs = (Tensor("a", DType.FLOAT, (2, 3)), Tensor("s", DType.STRING, (5,)), Tensor("b", DType.BFLOAT16, ()))
    key = RequestKey("m", 0, "", "", inputs, True)
    assert key.row_bytes == (24, 20, 2)
    assert key.frames == 4


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=200))
def test_readers_take_any_bytes(reader: Callable[[bytes], object], data: bytes) -> None:
    _reads_or_refuses(reader, data)


@pytest.mark.parametrize("reader", READERS)
@given(body=BODIES)
def test_readers_take_any_messagepack(reader: Callable[[bytes], object], body: Any) -> None:
    packed = msgpack.packb(body)
    _reads_or_refuses(reader, packed)
    _reads_or_refuses(reader, bytes((messages.VERSION, 3)) + packed)


@pytest.mark.parametrize("decoder", DECODERS)
@given(body=BODIES)
def test_decoders_take_any_body(decoder: Callable[[Any], object], body: Any) -> None:
    _reads_or_refuses(decoder, body)


@given(REQUEST_KEYS, st.data())
def test_a_damaged_key_is_read_or_refused(key: RequestKey, data: st.DataObject) -> None:
    packed = bytearray(keys.pack_request_key(key))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    _reads_or_refuses(keys.unpack_request_key, bytes(packed))
    _reads_or_refuses(keys.unpack_request_key, bytes(packed[: data.draw(st.integers(0, len(packed)))]))


@given(st.lists(GROUPS, min_size=1, max_size=2), st.data())
def test_a_damaged_group_is_read_or_refused(groups: list[Group], data: st.DataObject) -> None:
    body = messages.unpack(msgpack.packb(groups))
    fields = data.draw(st.sampled_from(body))
    fields[data.draw(st.integers(0, 7))] = data.draw(BODIES)
    _reads_or_refuses(messages.decode_groups, body)


def _reads_or_refuses(reader: Callable[[Any], object], data: Any) -> None:
    with suppress(InvalidArgument):
        reader(data)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "truncated"),
        (b"\x01\x03", "truncated"),
        (b"\x02\x03\x90", "protocol version: got 2, expected 1"),
        (b"\x01\x03\x91", "malformed"),
        (b"\x01\x03\x90\x90", "malformed"),
        (b"\x01\x03\xc1", "malformed"),
        (b"\x01\x03\x81\x01\x02", "malformed"),
        (b"\x01\x03\xd4\x01\x00", "malformed"),
        (b"\x01\x03\xdd\xff\xff\xff\xff", "malformed"),
        (b"\x01\x03" + b"\x91" * 100_000, "malformed"),
        (b"\x01\x03" + b"\x00" * (1 << 20), "header too long"),
    ],
)
def test_bad_headers_are_refused(header: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        messages.decode(header)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": "text"}, "the key is str"),
        ({"first": -1}, "first id: got -1"),
        ({"first": True}, "first id: got True"),
        ({"count": 0}, "count: got 0"),
        ({"rows": 1 << 25}, "rows: got"),
        ({"rows": 0, "count": 2}, "whole tensors travel one request a group, got 2"),
        ({"regions": [[0, 1]], "count": 2}, "arena references travel one request a group, got 2"),
        ({"regions": [[0, -1]], "count": 1}, "nbytes: got -1"),
        ({"regions": {}, "count": 1}, "regions are an array"),
        ({"reply": [1]}, "a region is"),
        ({"budget_ms": 1.5}, "budget_ms: got 1.5"),
        ({"priority": 101}, "priority: got 101"),
    ],
)
def test_bad_groups_are_refused(change: dict[str, Any], problem: str) -> None:
    group = Group(b"k", 1, 2, 3, 1000, 0, None, None)._replace(**change)
    with pytest.raises(InvalidArgument, match=problem):
        messages.decode_groups([list(group)])


@pytest.mark.parametrize("body", [[], None, [[]], [[None] * 9], [0]])
def test_bad_predicts_are_refused(body: object) -> None:
    with pytest.raises(InvalidArgument, match="predict"):
        messages.decode_groups(body)


DENSE = [dtype for dtype in DType if dtype != DType.STRING]


@pytest.mark.parametrize("dtype", DENSE)
@given(data=st.data())
def test_dense_tensors_round_trip(dtype: DType, data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * ITEM_BYTES[dtype]
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if dtype == DType.BOOL:
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, numpy_dtype(dtype)).reshape(shape)
    assert dtype_of(array.dtype) == dtype
    (buffer,) = tensors.to_buffers(array)
    assert bytes(buffer) == raw
    back = tensors.take_array(dtype, shape, [buffer])
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, shape, raw)


@given(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.data())
def test_string_tensors_round_trip(shape: tuple[int, ...], data: st.DataObject) -> None:
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = data.draw(st.binary(max_size=6) | st.text(max_size=4))
    lengths, payload = tensors.to_buffers(array)
    back = tensors.take_array(DType.STRING, shape, [lengths, payload])
    assert back.shape == shape
    for index in np.ndindex(shape):
        item = array[index]
        assert back[index] == (item.encode() if isinstance(item, str) else item)
    if array.size:
        assert tensors.payload_sizes(lengths, len(payload), 1) == [len(payload)]


def test_shares_of_a_string_tensor() -> None:
    lengths, payload = tensors.to_buffers(np.array([b"a", b"bcd", b"", b"ef"], object))
    assert bytes(payload) == b"abcdef"
    assert tensors.payload_sizes(lengths, len(payload), 2) == [4, 2]


@pytest.mark.parametrize("payload", [b"ab", b"abcd"])
def test_lengths_must_add_up(payload: bytes) -> None:
    lengths = np.array([1, 2], "<u4").tobytes()
    with pytest.raises(InvalidArgument, match=f"add up to 3 bytes, the payload has {len(payload)}"):
        tensors.decode_strings(lengths, payload, (2,))
    with pytest.raises(InvalidArgument, match="add up to 3 bytes"):
        tensors.payload_sizes(lengths, len(payload), 2)


def test_as_tensor_makes_what_the_wire_carries() -> None:
    turned = tensors.as_tensor(np.arange(6, dtype=">i4").reshape(2, 3).T)
    assert turned.flags.c_contiguous
    assert turned.dtype == np.dtype("int32")
    assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors.as_tensor(1.5).shape == ()
    assert tensors.as_tensor(np.ones(2, ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16
    assert tensors.as_tensor(["a", "bc"]).dtype.kind == "O"


@pytest.mark.parametrize("value", [[[1], [2, 3]], np.array(["2020-01-01"], "M8[D]"), np.zeros(1, [("a", "i4")])])
def test_as_tensor_refuses_what_tensorflow_has_not(value: object) -> None:
    with pytest.raises(InvalidArgument):
        tensors.as_tensor(value, "x")


@pytest.mark.parametrize("value", [[b"ab\0", b"\0"], ["ab\0", "\0"], b"ab\0"])
def test_strings_keep_their_last_zero_bytes(value: Any) -> None:
    lengths, payload = tensors.to_buffers(tensors.as_tensor(value))
    assert bytes(payload) == (b"ab\0" if isinstance(value, bytes) else b"ab\0\0")
    assert len(lengths) == 4 * (1 if isinstance(value, bytes) else 2)


def test_strings_hold_text_and_bytes_only() -> None:
    with pytest.raises(InvalidArgument, match="input 'x': got an element of type int"):
        tensors.to_buffers(np.array([b"a", 3], object), "x")
