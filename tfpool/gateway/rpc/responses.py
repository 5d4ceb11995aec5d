"""Arrays to the bytes of a PredictResponse. Pure.

Elements go into the list of their dtype (``float_val``, ``int64_val``), as TensorFlow Serving puts them: clients read
those. For most dtypes such a list is the very bytes of the array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.gateway.rpc.fields import LENGTH, pack_bytes, pack_varint
from tfpool.types import DType, Shape, dtype_of
from tfpool.wire.tensors import Array

DEFAULT_SIGNATURE = "serving_default"
_KEPT = 4096
_CHUNK = 1 << 16

_RAW = {
    DType.FLOAT: 5,
    DType.DOUBLE: 6,
    DType.COMPLEX64: 9,
    DType.BOOL: 11,
    DType.COMPLEX128: 12,
    DType.FLOAT8_E5M2: 18,
    DType.FLOAT8_E4M3FN: 18,
}
_VARINTS = {
    **dict.fromkeys((DType.INT32, DType.UINT8, DType.INT16, DType.INT8, DType.UINT16), 7),
    DType.INT64: 10,
    **dict.fromkeys((DType.HALF, DType.BFLOAT16), 13),
    DType.UINT32: 16,
    DType.UINT64: 17,
}
_STRINGS = 8


class PredictWriter:
    """Knows how the answers that it has written begin and end."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, np.dtype[Any], Shape], bytes] = {}
        self._specs: dict[tuple[str, int, str], bytes] = {}

    def write(
        self, outputs: Mapping[str, Array], wanted: Sequence[str], model: str, version: int, signature: str
    ) -> bytes:
        """A serialized PredictResponse with the outputs ``wanted`` (none: all).

        Raises InvalidArgument for one that is not there.
        """
        parts: list[Any] = []
        heads = self._heads
        for name in dict.fromkeys(wanted) or outputs:
            array = outputs.get(name)
            if array is None:
                have = ", ".join(outputs)
                raise InvalidArgument(f"output tensor alias not found in signature: {name}; it has {have}")
            head = heads.get((name, array.dtype, array.shape))
            if head is not None and array.flags.c_contiguous:
                parts += (head, array)
            else:
                parts.append(self._entry(name, array))
        spec = self._specs.get((model, version, signature))
        parts.append(spec if spec is not None else self._spec(model, version, signature))
        return b"".join(parts)

    def _entry(self, name: str, array: Array) -> bytes:
        """An output as a whole; where its elements lie as in memory, what is before them is remembered."""
        dtype = dtype_of(array.dtype)
        head = b"\x08" + pack_varint(dtype) + pack_bytes(2, *(pack_bytes(2, _size(size)) for size in array.shape))
        if dtype in _RAW:
            content, number = array.tobytes(), _RAW[dtype]
        elif dtype in _VARINTS:
            content, number = packed(array), _VARINTS[dtype]
        else:
            items = array.reshape(-1).tolist()
            return _output(name, head, *(pack_bytes(_STRINGS, _text(item)) for item in items))
        begin = pack_varint(number << 3 | LENGTH) + pack_varint(len(content))
        entry = _output(name, head, begin, content)
        if dtype in _RAW:
            if len(self._heads) >= _KEPT:
                self._heads.clear()
            self._heads[name, array.dtype, array.shape] = entry[: len(entry) - len(content)]
        return entry

    def _spec(self, model: str, version: int, signature: str) -> bytes:
        if len(self._specs) >= _KEPT:
            self._specs.clear()
        number = pack_bytes(2, b"\x08" + pack_varint(version))
        name, signed = pack_bytes(1, model.encode()), pack_bytes(3, (signature or DEFAULT_SIGNATURE).encode())
        made = self._specs[model, version, signature] = pack_bytes(2, name, number, signed)
        return made


def _output(name: str, *tensor: bytes) -> bytes:
    return pack_bytes(1, pack_bytes(1, name.encode()), pack_bytes(2, *tensor))


def _size(size: int) -> bytes:
    return b"\x08" + pack_varint(size) if size else b""


def _text(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def packed(array: Array) -> bytes:
    """Whole numbers, and floats of two bytes by their bits, as varints; negative ones have ten bytes."""
    if array.dtype.kind not in "iu":
        array = np.ascontiguousarray(array).view(np.uint16)
    wide = array.reshape(-1).astype(np.uint64 if array.dtype.kind == "u" else np.int64).view(np.uint64)
    return b"".join(_varints(wide[at : at + _CHUNK]) for at in range(0, len(wide), _CHUNK))


def _varints(values: np.ndarray[Any, np.dtype[np.uint64]]) -> bytes:
    most = int(values.max())
    if most < 0x80:
        return values.astype(np.uint8).tobytes()
    shifts = np.arange(0, most.bit_length(), 7).astype(np.uint64)
    rest = values[:, np.newaxis] >> shifts
    used = rest != 0
    used[:, 0] = True
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    octets: bytes = ((rest & np.uint64(0x7F)).astype(np.uint8) | more.view(np.uint8) << 7)[used].tobytes()
    return octets
