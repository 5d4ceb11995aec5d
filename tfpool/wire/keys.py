"""Request and output keys: everything that requests of one group, or answers of one batch, have in common.

A key travels packed, as one binary field. Both sides keep the packed form in a dictionary, so that a key is
parsed once and then found by its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from tfpool.errors import InvalidArgument
from tfpool.types import ITEM_BYTES, DType, Shape
from tfpool.wire.messages import check_depth, pack, unpack

MAX_KEY_BYTES = 1 << 16
MAX_NAME = 512
MAX_TENSORS = 2048
MAX_RANK = 32
_MAX_DIM = 1 << 40
_DTYPES = frozenset(int(d) for d in DType)


class Tensor(NamedTuple):
    """``shape`` leaves the rows out where the key is of rows, and is the whole shape where it is not."""

    name: str
    dtype: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Model, version (0: by label or the newest), label, signature ("" : the default) and inputs, by name.

    ``by_rows``: the first dimension of every input is the request's rows and may share a batch.
    """

    model: str
    version: int
    label: str
    signature: str
    inputs: tuple[Tensor, ...]
    by_rows: bool
    row_bytes: tuple[int, ...] = field(init=False)
    frames: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_bytes", _row_bytes(self.inputs))
        object.__setattr__(self, "frames", sum(2 if t.dtype == DType.STRING else 1 for t in self.inputs))


def pack_request_key(key: RequestKey) -> bytes:
    return pack([key.model, key.version, key.label, key.signature, list(key.inputs), key.by_rows])


def unpack_request_key(data: bytes) -> RequestKey:
    """Raises InvalidArgument for anything that is not a packed key."""
    if len(data) > MAX_KEY_BYTES:
        raise InvalidArgument(f"request key: got {len(data)} bytes, expected at most {MAX_KEY_BYTES}")
    fields = check_depth(unpack(data))
    if type(fields) is not list or len(fields) != 6:
        raise InvalidArgument("request key: expected 6 fields")
    model, version, label, signature, inputs, by_rows = fields
    for what, name in (("model", model), ("label", label), ("signature", signature)):
        _name(what, name)
    if type(version) is not int or not 0 <= version < 1 << 63:
        raise InvalidArgument(f"version: got {str(version)[:40]}, expected a whole number")
    if type(by_rows) is not bool or type(inputs) is not list or len(inputs) > MAX_TENSORS:
        raise InvalidArgument(f"request key: expected at most {MAX_TENSORS} inputs")
    return RequestKey(model, version, label, signature, tuple(_tensor(item) for item in inputs), by_rows)


@dataclass(frozen=True, slots=True)
class OutputKey:
    """The outputs of a batch; see :class:`RequestKey`."""

    outputs: tuple[Tensor, ...]
    by_rows: bool
    row_bytes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_bytes", _row_bytes(self.outputs))


def pack_output_key(key: OutputKey) -> bytes:
    return pack([list(key.outputs), key.by_rows])


def unpack_output_key(data: bytes) -> OutputKey:
    """Raises InvalidArgument for anything that is not a packed key."""
    fields = unpack(data)
    if type(fields) is not list or len(fields) != 2 or type(fields[0]) is not list or type(fields[1]) is not bool:
        raise InvalidArgument("output key: expected [outputs, by_rows]")
    return OutputKey(tuple(_tensor(item) for item in fields[0]), fields[1])


def _row_bytes(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(prod(t.shape) * ITEM_BYTES[DType(t.dtype)] for t in tensors)


def _tensor(item: Any) -> Tensor:
    if type(item) is not list or len(item) != 3 or type(item[2]) is not list:
        raise InvalidArgument("a tensor is [name, dtype, shape]")
    name, dtype, shape = item
    _name("tensor name", name)
    if type(dtype) is not int or dtype not in _DTYPES:
        raise InvalidArgument(f"tensor {name!r}: unknown dtype {str(dtype)[:40]}")
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"tensor {name!r}: got rank {len(shape)}, expected at most {MAX_RANK}")
    for dim in shape:
        if type(dim) is not int or not 0 <= dim <= _MAX_DIM:
            raise InvalidArgument(f"tensor {name!r}: got dimension {str(dim)[:40]}, expected a whole number")
    return Tensor(name, dtype, tuple(shape))


def _name(what: str, name: Any) -> None:
    if type(name) is not str or len(name) > MAX_NAME:
        raise InvalidArgument(f"{what}: expected a text of at most {MAX_NAME} characters")
