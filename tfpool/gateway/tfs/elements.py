"""JSON values -> tensors. Pure.

Nested lists are looked at level by level, in C: the types and lengths of all lists of a level, then the types of all
elements at once. Python looks at single elements only to say which one is wrong, and at base64.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from itertools import chain
from math import isfinite
from typing import Any, NoReturn

import numpy as np

from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.types import DType, Shape, TensorSpec, numpy_dtype
from tfpool.wire.keys import MAX_RANK
from tfpool.wire.tensors import Array

B64 = "b64"
_SHOWN = 40
_SHOWN_NAMES = 8
_SHOWN_BITS = 128
_FLOATS = frozenset({DType.FLOAT, DType.DOUBLE})
_INTS = frozenset({DType.INT8, DType.INT16, DType.INT32, DType.INT64, DType.UINT8, DType.UINT32, DType.UINT64})
_LEAVES: dict[DType, frozenset[type]] = {
    **dict.fromkeys(_FLOATS, frozenset({float, int})),
    **dict.fromkeys(_INTS, frozenset({int})),
    DType.STRING: frozenset({str, dict}),
    DType.BOOL: frozenset({bool}),
}
"""What the elements of a tensor may be in JSON."""


def tensor(value: Any, spec: TensorSpec) -> Array:
    """A value, or a list nested to any depth, as an array of the dtype of ``spec``; its shape is not looked at.

    Raises InvalidArgument that names the input and the place for ragged lists and for elements that are no such thing,
    Unimplemented for dtypes that have no form in JSON.
    """
    dtype = spec.dtype
    allowed = _LEAVES.get(dtype)
    if allowed is None:
        raise Unimplemented(f"input {spec.name!r} is of {dtype.label}, which has no form in JSON; gRPC takes it")
    leaves, shape = _leaves(value, spec)
    kinds = set(map(type, leaves))
    if not kinds <= allowed:
        _refuse(leaves, shape, spec, next(i for i, leaf in enumerate(leaves) if type(leaf) not in allowed))
    try:
        if dtype in _FLOATS:
            made = _floats(leaves, shape, spec)
        elif dtype in _INTS:
            made = _whole(leaves, shape, spec)
        elif dtype is DType.BOOL:
            made = np.array(leaves, np.bool_)
        else:
            made = _strings(leaves, shape, spec, dict not in kinds)
    except OverflowError:
        whole = [i for i, leaf in enumerate(leaves) if type(leaf) is int]
        _refuse(leaves, shape, spec, max(whole, key=lambda i: abs(leaves[i])))
    return made.reshape(shape)


def is_base64(value: Any) -> bool:
    """Whether it is an object that stands for bytes: ``{"b64": "..."}``, without another key."""
    return type(value) is dict and len(value) == 1 and type(value.get(B64)) is str


def string(value: Any) -> bytes:
    """Text, or bytes in base64, whose padding may lack. Raises ValueError for anything else."""
    if type(value) is str:
        return value.encode()
    if not is_base64(value):
        raise ValueError(f'got {shown(value)}, expected text or {{"{B64}": "..."}}')
    text = value[B64]
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        text = "".join(text.split())  # some encoders break lines
        return b64decode(text + "=" * (-len(text) % 4), validate=True)


def shown(value: Any) -> str:
    """A value for a message: what it is, or how it begins."""
    if type(value) is list:
        return f"a list of {len(value)}"
    if type(value) is dict:
        return f"an object with {listed(value)}" if value else "an empty object"
    if type(value) is int and value.bit_length() > _SHOWN_BITS:
        return f"a number of {value.bit_length()} bits"
    text = json.dumps(value[:_SHOWN] if type(value) is str else value)
    return text if type(value) is not str or len(value) <= _SHOWN else f"{text}..."


def listed(names: Iterable[str]) -> str:
    """A short list for a message."""
    known = list(names)
    more = f" and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else ""
    return (", ".join(shown(name) for name in known[:_SHOWN_NAMES]) or "none") + more


def _leaves(value: Any, spec: TensorSpec) -> tuple[list[Any], Shape]:
    """The elements of nested lists, and their shape; perhaps with lists among them, where others are none."""
    level, shape = [value], [1]
    while level and type(level[0]) is list:
        if len(level) > 1 and (set(map(type, level)) != {list} or len(set(map(len, level))) > 1):
            wanted = len(level[0])
            odd = next(i for i, one in enumerate(level) if type(one) is not list or len(one) != wanted)
            got = shown(level[odd])
            raise InvalidArgument(f"{_place(spec, odd, shape)}: got {got}, expected a list of {wanted} as before it")
        shape.append(len(level[0]))
        if len(shape) > MAX_RANK + 1:
            raise InvalidArgument(f"input {spec.name!r}: got lists nested more than {MAX_RANK} deep")
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level, tuple(shape[1:])


def _floats(leaves: list[Any], shape: Shape, spec: TensorSpec) -> Array:
    """Raises OverflowError for an int beyond every float."""
    with np.errstate(over="ignore"):
        made = np.array(leaves, numpy_dtype(spec.dtype))
    if not np.isfinite(made).all():
        for i in np.flatnonzero(np.isinf(made)).tolist():
            if isfinite(leaves[i]):
                _refuse(leaves, shape, spec, i)
    return made


def _whole(leaves: list[Any], shape: Shape, spec: TensorSpec) -> Array:
    """Raises OverflowError for an int beyond 64 bits."""
    if spec.dtype is DType.UINT64:
        if min(leaves, default=0) < 0:
            _refuse(leaves, shape, spec, next(i for i, leaf in enumerate(leaves) if leaf < 0))
        return np.array(leaves, np.uint64)
    wide = np.array(leaves, np.int64)
    made = wide.astype(numpy_dtype(spec.dtype), copy=False)
    wrong = np.flatnonzero(made != wide)
    if wrong.size:
        _refuse(leaves, shape, spec, int(wrong[0]))
    return made


def _strings(leaves: list[Any], shape: Shape, spec: TensorSpec, text_only: bool) -> Array:
    made = np.empty(len(leaves), object)
    try:
        made[:] = list(map(str.encode if text_only else string, leaves))
    except ValueError:
        for i, leaf in enumerate(leaves):
            try:
                string(leaf)
            except ValueError as error:
                raise InvalidArgument(f"{_place(spec, i, (1, *shape))}: {error}") from None
    return made


def _refuse(leaves: list[Any], shape: Shape, spec: TensorSpec, index: int) -> NoReturn:
    leaf, wanted = leaves[index], spec.dtype.label
    if type(leaf) in _LEAVES[spec.dtype]:
        wanted += ", which cannot hold it"
    raise InvalidArgument(f"{_place(spec, index, (1, *shape))}: got {shown(leaf)}, expected {wanted}")


def _place(spec: TensorSpec, index: int, shape: Sequence[int]) -> str:
    """Where an element is; the first of ``shape`` is 1, for the list that all of it is in."""
    where = [int(i) for i in np.unravel_index(index, tuple(shape))][1:]
    return f"input {spec.name!r}, at {where}" if where else f"input {spec.name!r}"
