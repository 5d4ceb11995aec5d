"""numpy arrays <-> the tensors of the Open Inference Protocol, as raw bytes and as JSON. Pure.

Raw elements are little-endian, C order; an element of BYTES is its length (uint32) and its bytes. JSON has the elements
in a flat list, or in lists nested as the shape says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import prod
from struct import Struct
from typing import Any

import numpy as np
import orjson

from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.types import DType, Shape, dtype_of, format_shape, numpy_dtype
from tfpool.wire.tensors import Array, Buffer

DATATYPES = {
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
    "UINT16": DType.UINT16,
    "UINT32": DType.UINT32,
    "UINT64": DType.UINT64,
    "INT8": DType.INT8,
    "INT16": DType.INT16,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "FP16": DType.HALF,
    "BF16": DType.BFLOAT16,
    "FP32": DType.FLOAT,
    "FP64": DType.DOUBLE,
    "BYTES": DType.STRING,
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH = Struct("<I")
_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 40
_FLOATS = "fV"  # numpy's kinds; V is bfloat16
assert sys.byteorder == "little"


@dataclass(frozen=True, slots=True)
class Slot:
    """An input whose elements come as raw bytes. ``size`` is how many bytes they take, -1 where they say so themselves
    (BYTES)."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    count: int
    size: int


def datatype_of(dtype: DType) -> str:
    """The protocol's name of a dtype. Raises Unimplemented for one that it has no name for."""
    found = NAMES.get(dtype)
    if found is None:
        raise Unimplemented(f"the Open Inference Protocol has no tensors of {dtype.label}")
    return found


def slot(name: object, datatype: object, shape: object) -> Slot:
    """What a request says of an input. Raises InvalidArgument."""
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"an input's name: got {_shown(name)}, expected text")
    kind = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if kind is None:
        raise InvalidArgument(
            f"input {name!r}: got datatype {_shown(datatype)}, expected one of {', '.join(DATATYPES)}"
        )
    sizes = _shape(shape, name)
    count = prod(sizes)
    dtype = numpy_dtype(kind)
    return Slot(name, dtype, sizes, count, -1 if kind is DType.STRING else count * dtype.itemsize)


def take(buffer: Buffer, at: int, size: int, into: Slot) -> Array:
    """The array of ``size`` bytes of ``buffer`` from ``at`` on: a read-only view, or an object array of bytes.

    Raises InvalidArgument where so many bytes are not the elements of such a tensor.
    """
    if size != into.size and into.size >= 0:
        raise wrong_size(into, size)
    if into.dtype.kind == "O":
        return _take_bytes(buffer, at, size, into)
    if not into.count:
        return np.empty(into.shape, into.dtype)
    if into.dtype.kind == "b":
        return np.frombuffer(buffer, np.uint8, into.count, at).astype(np.bool_).reshape(into.shape)
    return np.frombuffer(buffer, into.dtype, into.count, at).reshape(into.shape)


def wrong_size(into: Slot, size: int) -> InvalidArgument:
    """The refusal of raw bytes that do not fill a tensor."""
    what = f"{into.dtype.name} {format_shape(into.shape)}"
    return InvalidArgument(f"input {into.name!r}: got {size} bytes, expected {into.size} for {what}")


def raw(array: Array) -> bytes | Array:
    """What goes over the wire raw; an array stands for its own bytes."""
    if array.dtype.kind != "O":
        return array
    pack = _LENGTH.pack
    return b"".join(chain.from_iterable((pack(len(item)), item) for item in array.reshape(-1).tolist()))


def _take_bytes(buffer: Buffer, at: int, size: int, into: Slot) -> Array:
    items: list[bytes] = []
    data, end = memoryview(buffer), at + size
    unpack = _LENGTH.unpack_from
    while at < end:
        (length,) = unpack(data, at) if end - at >= 4 else (size,)
        at += 4 + length
        if at > end:
            raise InvalidArgument(
                f"input {into.name!r}: element {len(items)} of BYTES is cut off: each is its length in 4 bytes, and as "
                f"many bytes; there are {size} bytes in all"
            )
        items.append(bytes(data[at - length : at]))
    return from_bytes(items, into)


def _miscount(into: Slot, count: int) -> str:
    return f"input {into.name!r}: got {count} elements, expected {into.count} for shape {format_shape(into.shape)}"


def _shape(shape: object, name: str) -> Shape:
    if not isinstance(shape, Iterable) or isinstance(shape, str | dict):
        raise InvalidArgument(f"input {name!r}: got shape {_shown(shape)}, expected a list of whole numbers")
    sizes = tuple(shape)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise InvalidArgument(f"input {name!r}: got shape {_shown(list(sizes))}, expected whole numbers from 0")
    if len(sizes) > _MAX_RANK:
        raise InvalidArgument(f"input {name!r}: got rank {len(sizes)}, expected at most {_MAX_RANK}")
    if prod(max(size, 1) for size in sizes) > _MAX_ELEMENTS:
        raise InvalidArgument(
            f"input {name!r}: got shape {_shown(list(sizes))}, expected at most {_MAX_ELEMENTS} elements"
        )
    return sizes


# -- JSON ------------------------------------------------------------------------------------------------------------


def from_bytes(items: list[bytes], into: Slot) -> Array:
    """The array of BYTES with these elements. Raises InvalidArgument where there are too few or too many."""
    if len(items) != into.count:
        raise InvalidArgument(_miscount(into, len(items)))
    made = np.empty(len(items), object)
    made[:] = items
    return made.reshape(into.shape)


def from_list(data: object, into: Slot) -> Array:
    """The array of a flat list, or of lists nested as the shape says. Raises InvalidArgument."""
    if not isinstance(data, list):
        raise InvalidArgument(f"input {into.name!r}: got data {_shown(data)}, expected a list")
    items = _flat(data, into)
    if len(items) != into.count:
        raise InvalidArgument(_miscount(into, len(items)))
    kinds = set(map(type, items))
    kind = into.dtype.kind
    if kind == "O":
        _expect(into, kinds, {str}, "text")
        return from_bytes([item.encode() for item in items], into)
    return _numbers(items, kinds, into).reshape(into.shape)


def _numbers(items: list[Any], kinds: set[type], into: Slot) -> Array:
    kind = into.dtype.kind
    if kind == "b":
        _expect(into, kinds, {bool, int}, "true, false, 0 or 1")
        if not {0, 1}.issuperset(items):
            raise InvalidArgument(f"input {into.name!r}: got another number, expected true, false, 0 or 1")
    elif kind in _FLOATS:
        _expect(into, kinds, {int, float}, "numbers")
    else:
        _expect(into, kinds, {int}, "whole numbers")
        limits = np.iinfo(into.dtype)
        if items and not limits.min <= min(items) <= max(items) <= limits.max:
            wrong = next(item for item in items if not limits.min <= item <= limits.max)
            raise InvalidArgument(f"input {into.name!r}: {wrong} is out of the range of {into.dtype.name}")
    try:
        with np.errstate(over="ignore"):
            made = np.array(items, np.float64).astype(into.dtype) if kind == "V" else np.array(items, into.dtype)
        infinite = np.isinf(made) if kind in _FLOATS else None
        overflown = infinite is not None and infinite.any() and (infinite != np.isinf(np.array(items, float))).any()
    except OverflowError:
        overflown = True
    if overflown:
        raise InvalidArgument(f"input {into.name!r}: got a number too large for {into.dtype.name}")
    return made


def _flat(data: list[Any], into: Slot) -> list[Any]:
    """The elements of nested lists, which are as long as the shape says."""
    if not data or type(data[0]) is not list:
        return data
    items: list[Any] = [data]
    for axis, size in enumerate(into.shape):
        if any(type(item) is not list or len(item) != size for item in items):
            raise InvalidArgument(
                f"input {into.name!r}: the lists at depth {axis} are not all of {size} elements, as the shape "
                f"{format_shape(into.shape)} says"
            )
        items = list(chain.from_iterable(items))
    return items


def _expect(into: Slot, kinds: set[type], wanted: set[type], said: str) -> None:
    if not kinds <= wanted:
        got = ", ".join(sorted(_KINDS.get(kind, kind.__name__) for kind in kinds - wanted))
        raise InvalidArgument(f"input {into.name!r}: got {got} among the data, expected {said} for {_name(into)}")


_KINDS = {str: "text", float: "fractions", bool: "true or false", int: "numbers", list: "lists", dict: "objects"}


def _name(into: Slot) -> str:
    return datatype_of(dtype_of(into.dtype))


def to_json(array: Array, name: str) -> bytes:
    """The elements as a flat JSON list; a float is the shortest text that reads back to it, or a word that JSON lacks:
    NaN, Infinity, -Infinity. Raises InvalidArgument for bytes that are no UTF-8.
    """
    flat = array.reshape(-1)
    if flat.dtype.kind == "O":
        try:
            return orjson.dumps([item.decode() for item in flat.tolist()])
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"output {name!r} has bytes that are no UTF-8: ask for binary data (parameter binary_data: true)"
            ) from None
    if flat.dtype.itemsize == 2 and flat.dtype.kind in _FLOATS:
        flat = flat.astype(np.float32)
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if flat.dtype.kind == "f" and b"null" in text:
        return _with_tokens(text, flat[~np.isfinite(flat)].tolist())
    return text


def _with_tokens(text: bytes, values: list[float]) -> bytes:
    """JSON has no word for these ``values``, and null instead: put what everybody reads there."""
    tokens = [b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity" for value in values]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*tokens, b""], strict=True)))


def _shown(value: object) -> str:
    return repr(value)[:80]
