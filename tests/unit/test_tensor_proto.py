"""Tensor messages: every dtype there and back, the short lists of TensorFlow, and what is refused."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.protos import tensor_pb2
from tfpool.types import DType, numpy_dtype
from tfpool.wire.tensor_proto import MAX_BYTES, set_tensor, to_array


def message(dtype: int, shape: tuple[int, ...], **fields: Any) -> tensor_pb2.Tensor:
    tensor = tensor_pb2.Tensor(dtype=dtype, **fields)
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def there_and_back(array: Any) -> Any:
    tensor = tensor_pb2.Tensor()
    set_tensor(tensor, array)
    return to_array(tensor_pb2.Tensor.FromString(tensor.SerializeToString()))


@given(st.sampled_from(list(DType)), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 1 << 32))
def test_there_and_back(dtype: DType, shape: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    if dtype is DType.STRING:
        count = int(np.prod(shape))
        array = np.empty(count, object)
        array[:] = [random.bytes(int(random.integers(0, 5))) for _ in range(count)]
        array = array.reshape(shape)
    else:
        kind = numpy_dtype(dtype)
        nbytes = int(np.prod(shape)) * kind.itemsize
        data = bytes(b & 1 for b in random.bytes(nbytes)) if dtype is DType.BOOL else random.bytes(nbytes)
        array = np.frombuffer(data, kind).reshape(shape)
    got = there_and_back(array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes() if dtype is not DType.STRING else got.tolist() == array.tolist()


HALF_OF_1_5 = 0x3E00
BFLOAT_OF_1_5 = 0x3FC0
LISTS = [
    (DType.FLOAT, {"float_val": [1.5, 2.5]}, [1.5, 2.5, 2.5]),
    (DType.DOUBLE, {"double_val": [1.5]}, [1.5, 1.5, 1.5]),
    (DType.INT32, {"int_val": [-1, 2]}, [-1, 2, 2]),
    (DType.UINT8, {"int_val": [255]}, [255] * 3),
    (DType.INT16, {"int_val": [-300, 7, 8]}, [-300, 7, 8]),
    (DType.INT8, {"int_val": [-128]}, [-128] * 3),
    (DType.UINT16, {"int_val": [65535]}, [65535] * 3),
    (DType.STRING, {"string_val": [b"a", b""]}, [b"a", b"", b""]),
    (DType.COMPLEX64, {"scomplex_val": [1, 2, 3, 4]}, [1 + 2j, 3 + 4j, 3 + 4j]),
    (DType.COMPLEX128, {"dcomplex_val": [1, -2]}, [1 - 2j] * 3),
    (DType.INT64, {"int64_val": [-(1 << 62)]}, [-(1 << 62)] * 3),
    (DType.BOOL, {"bool_val": [True, False]}, [True, False, False]),
    (DType.HALF, {"half_val": [HALF_OF_1_5]}, [1.5] * 3),
    (DType.BFLOAT16, {"half_val": [BFLOAT_OF_1_5]}, [1.5] * 3),
    (DType.UINT32, {"uint32_val": [(1 << 32) - 1]}, [(1 << 32) - 1] * 3),
    (DType.UINT64, {"uint64_val": [(1 << 64) - 1]}, [(1 << 64) - 1] * 3),
    (DType.FLOAT8_E5M2, {"float8_val": bytes([0x3C, 0x40])}, [1.0, 2.0, 2.0]),
]


@pytest.mark.parametrize(("dtype", "fields", "expected"), LISTS, ids=[case[0].label for case in LISTS])
def test_the_last_value_stands_for_the_rest(dtype: DType, fields: dict[str, Any], expected: list[Any]) -> None:
    got = to_array(message(dtype, (3, 1), **fields))
    assert got.dtype == numpy_dtype(dtype)
    assert got.shape == (3, 1)
    assert got.reshape(-1).tolist() == expected


@pytest.mark.parametrize("dtype", DType)
def test_no_value_stands_for_zeros(dtype: DType) -> None:
    assert to_array(message(dtype, (2,))).tolist() == [b"" if dtype is DType.STRING else 0] * 2


def test_more_values_than_elements_are_cut_off() -> None:
    assert to_array(message(DType.FLOAT, (1,), float_val=[1, 2])).tolist() == [1.0]
    assert to_array(message(DType.STRING, (1,), string_val=[b"a", b"b"])).tolist() == [b"a"]


def test_a_scalar_and_an_empty_tensor() -> None:
    assert to_array(message(DType.INT32, (), int_val=[7])).shape == ()
    assert to_array(message(DType.INT32, (0, 5))).shape == (0, 5)


def test_strings_within_the_content() -> None:
    long = b"x" * 300
    got = to_array(message(DType.STRING, (2,), tensor_content=bytes([2, 0xAC, 0x02]) + b"ab" + long))
    assert got.tolist() == [b"ab", long]


BAD = [
    (message(DType.FLOAT, (3,), tensor_content=struct.pack("<2f", 1, 2)), "got 8 bytes of content, expected 12"),
    (message(DType.FLOAT, (1,), tensor_content=bytes(8)), "got 8 bytes of content, expected 4"),
    (message(DType.FLOAT, (2, -1), float_val=[1]), r"got shape \[2, \?\], expected no open dimension"),
    (message(DType.FLOAT, (MAX_BYTES,), float_val=[1]), "expected at most 2147483648 bytes"),
    (message(DType.STRING, (MAX_BYTES // 4,)), "expected at most 2147483648 bytes"),
    (message(DType.BOOL, (1 << 40, 0)), "expected at most 2147483648 bytes"),
    (message(DType.FLOAT, (1,) * 300), "got rank 300"),
    (message(99, (1,)), "dtype number 99"),
    (message(0, (1,)), "dtype number 0"),
    (message(DType.COMPLEX64, (1,), scomplex_val=[1]), "expected pairs"),
    (message(DType.STRING, (2,), tensor_content=b"\x01"), "ends within the lengths"),
    (message(DType.STRING, (1,), tensor_content=b"\xff\xff\xff\xff\xff\x01"), "ends within the lengths"),
    (message(DType.STRING, (1,), tensor_content=b"\x05ab"), "got 2 bytes of strings, expected 5"),
]


@pytest.mark.parametrize(("tensor", "match"), BAD, ids=[match for _, match in BAD])
def test_what_is_refused(tensor: tensor_pb2.Tensor, match: str) -> None:
    with pytest.raises(InvalidArgument, match=f"tensor 'x': .*{match}"):
        to_array(tensor, "x")


def test_an_open_rank_is_refused() -> None:
    tensor = tensor_pb2.Tensor(dtype=1)
    tensor.tensor_shape.unknown_rank = True
    with pytest.raises(InvalidArgument, match="open rank"):
        to_array(tensor)


def test_text_becomes_utf_8_and_other_objects_are_refused() -> None:
    assert there_and_back(np.array(["ü", b"\xff"], object)).tolist() == ["ü".encode(), b"\xff"]
    with pytest.raises(InvalidArgument, match="text or bytes"):
        there_and_back(np.array(["a", 3], object))
    with pytest.raises(InvalidArgument, match="datetime64"):
        there_and_back(np.array(["2020-01-01"], "datetime64[D]"))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_read(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        tensor = tensor_pb2.Tensor.FromString(data)
    except DecodeError:
        return
    if int(np.prod([max(1, min(dim.size, 1 << 20)) for dim in tensor.tensor_shape.dim])) > 1 << 20:
        return
    with suppress(InvalidArgument):
        to_array(tensor)
