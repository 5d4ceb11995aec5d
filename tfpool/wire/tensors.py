"""numpy arrays <-> the buffers that carry them.

A dense tensor is one buffer, C order. A string tensor is two: the lengths of its elements (uint32, little-endian)
and their bytes, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.types import DType, Shape, dtype_of, numpy_dtype

Buffer = bytes | bytearray | memoryview
Array = np.ndarray[Any, np.dtype[Any]]
_LENGTH = np.dtype("<u4")


def as_tensor(value: Any, name: str = "") -> Array:
    """What the user gave, as a C-contiguous array of native byte order and of a dtype that TensorFlow has.

    Raises InvalidArgument for ragged lists and foreign dtypes.
    """
    try:
        array = np.asarray(value)
    except UnicodeDecodeError:  # text beside bytes
        array = np.asarray(value, object)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"input {name!r} is not an array: {error}") from None
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.asarray(value, object)  # numpy's own string dtypes drop zero bytes at the end
    dtype_of(array.dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array


def to_buffers(array: Array, name: str = "") -> list[Buffer]:
    """The buffers of a contiguous array: views where that is possible.

    Raises InvalidArgument where a string tensor holds something other than text and bytes.
    """
    if array.dtype.kind in "OSU":
        return encode_strings(array, name)
    return [array.reshape(-1).view(np.uint8).data]


def encode_strings(array: Array, name: str = "") -> list[Buffer]:
    """Lengths and bytes of a string tensor; text is UTF-8."""
    items: list[bytes] = []
    for item in array.reshape(-1).tolist():
        if isinstance(item, str):
            items.append(item.encode())
        elif isinstance(item, bytes):
            items.append(item)
        else:
            kind = type(item).__name__
            raise InvalidArgument(f"input {name!r}: got an element of type {kind}, expected str or bytes")
    lengths = np.fromiter(map(len, items), _LENGTH, len(items))
    return [lengths.view(np.uint8).data, b"".join(items)]


def decode_strings(lengths: Buffer, payload: Buffer, shape: Shape) -> Array:
    """An object array of bytes.

    Raises InvalidArgument where the lengths do not add up to the payload.
    """
    sizes = np.frombuffer(lengths, _LENGTH)
    check_strings(sizes, len(payload))
    data = bytes(payload)
    ends = list(accumulate(sizes.tolist(), initial=0))
    out = np.empty(len(sizes), object)
    out[:] = [data[a:b] for a, b in pairwise(ends)]
    return out.reshape(shape)


def check_strings(sizes: np.ndarray[Any, np.dtype[Any]], payload: int) -> None:
    """Raises InvalidArgument where ``sizes`` do not add up to ``payload`` bytes."""
    total = int(sizes.sum(dtype=np.int64))
    if total != payload:
        raise InvalidArgument(f"string tensor: the lengths add up to {total} bytes, the payload has {payload}")


def payload_sizes(lengths: Buffer, payload: int, count: int) -> list[int]:
    """Bytes of payload of each of ``count`` equal shares of a string tensor.

    Raises InvalidArgument where the lengths do not add up to the payload.
    """
    sizes = np.frombuffer(lengths, _LENGTH)
    check_strings(sizes, payload)
    if count == 1:
        return [payload]
    shares: list[int] = sizes.reshape(count, -1).sum(1, dtype=np.int64).tolist()
    return shares


def from_buffer(data: Buffer, dtype: int, shape: Shape) -> Array:
    """A dense array that views ``data`` (read-only where ``data`` is)."""
    return np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)


def take_array(dtype: int, shape: Shape, buffers: Sequence[Buffer]) -> Array:
    """The array of one tensor from its one buffer (dense) or two (strings)."""
    if dtype == DType.STRING:
        return decode_strings(buffers[0], buffers[1], shape)
    return from_buffer(buffers[0], dtype, shape)
