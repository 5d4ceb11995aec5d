"""numpy arrays <-> the ``Tensor`` message (``tfpool/protos/tensor.proto``, TensorFlow's TensorProto).

Elements are in ``tensor_content``, or in the list of their kind. Such a list may be shorter than the tensor: its last
value then stands for all that follow, and an empty one for zeros. One that is longer is cut off, as TensorFlow does.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.types import ITEM_BYTES, DType, Shape, dtype_of, format_shape, numpy_dtype
from tfpool.wire.tensors import Array, as_tensor

if TYPE_CHECKING:
    from tfpool.protos import tensor_pb2

MAX_BYTES = 1 << 31
_MAX_RANK = 32  # as many as every numpy knows
_POINTER_BYTES = 8
_INTS = ("int_val", np.dtype(np.int32))
_HALVES = ("half_val", np.dtype(np.int32))
_LISTS: dict[DType, tuple[str, np.dtype[Any]]] = {
    DType.FLOAT: ("float_val", np.dtype(np.float32)),
    DType.DOUBLE: ("double_val", np.dtype(np.float64)),
    DType.INT32: _INTS,
    DType.UINT8: _INTS,
    DType.INT16: _INTS,
    DType.INT8: _INTS,
    DType.COMPLEX64: ("scomplex_val", np.dtype(np.float32)),
    DType.INT64: ("int64_val", np.dtype(np.int64)),
    DType.BOOL: ("bool_val", np.dtype(np.bool_)),
    DType.BFLOAT16: _HALVES,
    DType.UINT16: _INTS,
    DType.COMPLEX128: ("dcomplex_val", np.dtype(np.float64)),
    DType.HALF: _HALVES,
    DType.UINT32: ("uint32_val", np.dtype(np.uint32)),
    DType.UINT64: ("uint64_val", np.dtype(np.uint64)),
}


def to_array(tensor: tensor_pb2.Tensor, name: str = "") -> Array:
    """The array that a message holds: strings as an object array of bytes, else perhaps a read-only view.

    Raises InvalidArgument, naming the tensor ``name``, for an unknown dtype, an open or negative dimension, more than
    2 GiB, or a ``tensor_content`` that does not fill the shape.
    """
    try:
        dtype = DType(tensor.dtype)
    except ValueError:
        raise InvalidArgument(f"tensor {name!r}: dtype number {tensor.dtype} has no counterpart in numpy") from None
    shape = _shape(tensor, dtype, name)
    if dtype is DType.STRING:
        return _strings(tensor, shape, name)
    if prod(shape) == 0:
        return np.empty(shape, numpy_dtype(dtype))
    if tensor.tensor_content:
        return _content(tensor.tensor_content, dtype, shape, name)
    return _values(tensor, dtype, prod(shape), name).reshape(shape)


def set_tensor(tensor: tensor_pb2.Tensor, array: Array) -> None:
    """Put ``array`` into an empty message: strings into ``string_val``, all else into ``tensor_content``.

    Raises InvalidArgument for what TensorFlow has no tensor of.
    """
    array = as_tensor(array)
    dtype = dtype_of(array.dtype)
    tensor.dtype = int(dtype)
    tensor.tensor_shape.SetInParent()  # rank 0 is a shape too
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if dtype is DType.STRING:
        try:
            tensor.string_val.extend(item.encode() if isinstance(item, str) else item for item in array.reshape(-1))
        except TypeError as error:
            raise InvalidArgument(f"a string tensor holds text or bytes: {error}") from None
    else:
        tensor.tensor_content = array.tobytes()


def _shape(tensor: tensor_pb2.Tensor, dtype: DType, name: str) -> Shape:
    if tensor.tensor_shape.unknown_rank:
        raise InvalidArgument(f"tensor {name!r}: got an open rank, expected a shape")
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if len(shape) > _MAX_RANK:
        raise InvalidArgument(f"tensor {name!r}: got rank {len(shape)}, expected at most {_MAX_RANK}")
    if min(shape, default=0) < 0:
        raise InvalidArgument(f"tensor {name!r}: got shape {format_shape(shape)}, expected no open dimension")
    nbytes = prod(shape) * (_POINTER_BYTES if dtype is DType.STRING else ITEM_BYTES[dtype])
    if nbytes > MAX_BYTES or max(shape, default=0) > MAX_BYTES:
        raise InvalidArgument(
            f"tensor {name!r}: got shape {format_shape(shape)} of {dtype.label}, expected at most {MAX_BYTES} bytes"
        )
    return shape


def _content(data: bytes, dtype: DType, shape: Shape, name: str) -> Array:
    wanted = prod(shape) * ITEM_BYTES[dtype]
    if len(data) != wanted:
        raise InvalidArgument(
            f"tensor {name!r}: got {len(data)} bytes of content, expected {wanted} "
            f"for {dtype.label} {format_shape(shape)}"
        )
    return np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)


def _values(tensor: tensor_pb2.Tensor, dtype: DType, count: int, name: str) -> Array:
    given = _given(tensor, dtype, name)
    if given.size >= count:
        return given[:count]
    out = np.empty(count, given.dtype)
    out[: given.size] = given
    out[given.size :] = given[-1] if given.size else np.zeros(1, given.dtype)[0]
    return out


def _given(tensor: tensor_pb2.Tensor, dtype: DType, name: str) -> Array:
    """The elements that a message lists, which may be fewer than its shape has."""
    if dtype not in _LISTS:
        return np.frombuffer(tensor.float8_val, numpy_dtype(dtype))
    field, source = _LISTS[dtype]
    given = np.array(getattr(tensor, field), source)
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        if given.size % 2:
            raise InvalidArgument(f"tensor {name!r}: got {given.size} numbers, expected pairs for {dtype.label}")
        return given.view(numpy_dtype(dtype))
    if _LISTS[dtype] is _HALVES:
        return given.astype(np.uint16).view(numpy_dtype(dtype))
    return given.astype(numpy_dtype(dtype), copy=False)


def _strings(tensor: tensor_pb2.Tensor, shape: Shape, name: str) -> Array:
    count = prod(shape)
    items = list(tensor.string_val[:count])
    if count and not items and tensor.tensor_content:
        items = _packed_strings(tensor.tensor_content, count, name)
    out = np.empty(count, object)
    out[: len(items)] = items
    out[len(items) :] = items[-1] if items else b""
    return out.reshape(shape)


def _packed_strings(data: bytes, count: int, name: str) -> list[bytes]:
    """Strings in ``tensor_content``: as many varint lengths, then the bytes."""
    sizes, at = [], 0
    for _ in range(count):
        size = shift = 0
        while True:
            if at >= len(data) or shift > 28:
                raise InvalidArgument(f"tensor {name!r}: the content ends within the lengths of {count} strings")
            byte = data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes.append(size)
    if at + sum(sizes) != len(data):
        got = len(data) - at
        raise InvalidArgument(f"tensor {name!r}: got {got} bytes of strings, expected {sum(sizes)}")
    return [data[a:b] for a, b in pairwise(accumulate(sizes, initial=at))]
