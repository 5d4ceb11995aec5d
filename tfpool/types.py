"""Names shared by every floor: dtypes, tensor and signature specs, model keys.

A shape is a tuple of ints, rows first; -1 is a dimension that the signature leaves open, and a shape of
``None`` an open rank. Dtypes carry TensorFlow's own numbers (``DataType`` in types.proto).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from tfpool.errors import InvalidArgument

Shape = tuple[int, ...]


class DType(IntEnum):
    """Element types that cross the wire, numbered as TensorFlow numbers them."""

    FLOAT = 1
    DOUBLE = 2
    INT32 = 3
    UINT8 = 4
    INT16 = 5
    INT8 = 6
    STRING = 7
    COMPLEX64 = 8
    INT64 = 9
    BOOL = 10
    BFLOAT16 = 14
    UINT16 = 17
    COMPLEX128 = 18
    HALF = 19
    UINT32 = 22
    UINT64 = 23
    FLOAT8_E5M2 = 24
    FLOAT8_E4M3FN = 25

    @property
    def label(self) -> str:
        """The name users know: ``float32``, ``bfloat16``, ``string``."""
        return _NAMES[self]


_NAMES = {
    DType.FLOAT: "float32",
    DType.DOUBLE: "float64",
    DType.INT32: "int32",
    DType.UINT8: "uint8",
    DType.INT16: "int16",
    DType.INT8: "int8",
    DType.STRING: "string",
    DType.COMPLEX64: "complex64",
    DType.INT64: "int64",
    DType.BOOL: "bool",
    DType.BFLOAT16: "bfloat16",
    DType.UINT16: "uint16",
    DType.COMPLEX128: "complex128",
    DType.HALF: "float16",
    DType.UINT32: "uint32",
    DType.UINT64: "uint64",
    DType.FLOAT8_E5M2: "float8_e5m2",
    DType.FLOAT8_E4M3FN: "float8_e4m3fn",
}
_BY_NAME = {name: dtype for dtype, name in _NAMES.items()}
_FROM_ML_DTYPES = frozenset({DType.BFLOAT16, DType.FLOAT8_E5M2, DType.FLOAT8_E4M3FN})
_NUMPY: dict[int, np.dtype[Any]] = {}

ITEM_BYTES = {
    dtype: 4
    if dtype is DType.STRING  # a string travels as a 4-byte length, its bytes apart
    else 2
    if dtype is DType.BFLOAT16
    else 1
    if dtype in _FROM_ML_DTYPES
    else np.dtype(name).itemsize
    for dtype, name in _NAMES.items()
}


def numpy_dtype(dtype: int) -> np.dtype[Any]:
    """The numpy dtype of a wire dtype; strings are ``object`` (arrays of bytes).

    bfloat16 and the float8 kinds come from ml_dtypes, which is imported at their first use only.
    """
    found = _NUMPY.get(dtype)
    if found is None:
        name = _NAMES[DType(dtype)]
        if dtype == DType.STRING:
            found = np.dtype(object)
        elif dtype in _FROM_ML_DTYPES:
            import ml_dtypes

            found = np.dtype(getattr(ml_dtypes, name))
        else:
            found = np.dtype(name)
        _NUMPY[dtype] = found
    return found


def dtype_of(dtype: np.dtype[Any]) -> DType:
    """The wire dtype of a numpy dtype.

    Raises InvalidArgument for one that TensorFlow has no tensor of.
    """
    if dtype.kind in "OSU":
        return DType.STRING
    found = _BY_NAME.get(dtype.name)
    if found is None:
        raise InvalidArgument(
            f"dtype {dtype} has no TensorFlow counterpart; got {dtype.name}, expected one of {', '.join(_BY_NAME)}"
        )
    return found


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature."""

    name: str
    dtype: DType
    shape: Shape | None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype.label} {format_shape(self.shape)}"


def format_shape(shape: Shape | None) -> str:
    """``[?, 28, 28]``, or ``[...]`` for an open rank."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if d < 0 else str(d) for d in shape) + "]"


@dataclass(frozen=True, slots=True)
class SignatureSpec:
    """What a signature takes and gives, and whether its rows may share a batch.

    ``batchable`` is proven when the model is loaded; where it is False, ``reason`` says why and every request
    runs singly. A signature that ``mutates`` assigns variables: it is never run but for a request.
    """

    name: str
    method: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool = False
    mutates: bool = False
    reason: str = ""


class ModelKey(NamedTuple):
    """A servable: one version of one model. ``life`` tells apart two that bear the same number, one after the other."""

    name: str
    version: int
    life: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
