"""Arrays -> the body of an answer. Pure.

Floats are the shortest text that reads back as the same number of their own width. NaN and the infinities, for which
JSON has no word, are written as TensorFlow Serving and Python do.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import orjson

from tfpool.client.examples import Classes
from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.gateway.tfs.elements import B64
from tfpool.wire.tensors import Array

_BYTES_SUFFIX = "_bytes"
_PLAIN = frozenset("fdbhilqBHILQ?")
"""Numpy's letters of the dtypes that orjson writes as they are."""


def rows(outputs: Mapping[str, Array]) -> bytes:
    """``predictions``: a value a row, or an object a row where there are several outputs.

    Raises InvalidArgument where the outputs have not all the same number of rows, Unimplemented for a dtype that has no
    form in JSON.
    """
    count = -1
    for name, array in outputs.items():
        if not array.ndim:
            raise InvalidArgument(f"Tensor name: {name} has no shape information: a scalar has no rows; use 'inputs'")
        if count not in (-1, len(array)):
            raise InvalidArgument(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}")
        count = len(array)
    return _written("predictions", outputs, _zipped)


def columns(outputs: Mapping[str, Array]) -> bytes:
    """``outputs``: an array, or an object of arrays by name where there are several.

    Raises Unimplemented for a dtype that has no form in JSON.
    """
    return _written("outputs", outputs, dict)


def classes(found: Classes) -> bytes:
    """``results``: for each example, a list of [label, score]."""
    made = [[[label, _number(score)] for label, score in row] for row in found]
    return orjson.dumps({"results": made}, option=orjson.OPT_SERIALIZE_NUMPY)


def values(found: Array) -> bytes:
    """``results``: a number for each example."""
    return _written("results", {"": found}, dict)


def _written(key: str, outputs: Mapping[str, Array], join: Any) -> bytes:
    text = _text(key, {name: _value(name, array) for name, array in outputs.items()}, join)
    if b"l" in text and b"null" in text:  # looking for one byte costs next to nothing
        text = _text(key, {name: _exact(name, array) for name, array in outputs.items()}, join)
    return text


def _text(key: str, found: dict[str, Any], join: Any) -> bytes:
    whole = next(iter(found.values())) if len(found) == 1 else join(found)
    return orjson.dumps({key: whole}, option=orjson.OPT_SERIALIZE_NUMPY)


def _zipped(found: dict[str, Any]) -> list[dict[str, Any]]:
    names = tuple(found)
    return [dict(zip(names, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _value(name: str, array: Array) -> Any:
    """What orjson writes as this array; null where a number is not finite."""
    kind = array.dtype.char
    if kind not in _PLAIN:
        if kind == "O":
            return _strings(array, name.endswith(_BYTES_SUFFIX))
        if array.dtype.kind == "c":
            raise Unimplemented(f"output {name!r} is of {array.dtype}, which has no form in JSON; gRPC gives it")
        array = array.astype(np.float32)  # halves, bfloat16 ...
    return np.ascontiguousarray(array) if array.ndim else array[()]


def _exact(name: str, array: Array) -> Any:
    """Like :func:`_value`, row by row, with the words for what is not finite."""
    found = _value(name, array)
    if array.dtype.kind == "O" or np.isfinite(found).all():
        return found
    return [orjson.Fragment(_with_words(row)) for row in found] if array.ndim else orjson.Fragment(_with_words(found))


def _with_words(found: Any) -> bytes:
    """The text of a float or an array of them, whose nulls are replaced."""
    pieces = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY).split(b"null")
    flat = np.reshape(found, -1)
    words = [_word(number) for number in flat[~np.isfinite(flat)].tolist()]
    return b"".join(piece + word for piece, word in zip(pieces, [*words, b""], strict=True))


def _word(number: float) -> bytes:
    return b"NaN" if number != number else b"Infinity" if number > 0 else b"-Infinity"


def _number(score: float) -> Any:
    """A float32 that is held in a wider float."""
    return np.float32(score) if isfinite(score) else orjson.Fragment(_word(score))


def _strings(array: Array, binary: bool) -> Any:
    """Text, or base64 for what is bytes by its output's name, or no text at all."""
    made = np.empty(array.size, object)
    made[:] = list(map(_base64 if binary else _text_or_base64, array.reshape(-1).tolist()))
    return made.reshape(array.shape).tolist()


def _text_or_base64(item: bytes) -> Any:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return _base64(item)


def _base64(item: bytes) -> dict[str, str]:
    return {B64: b64encode(item).decode()}
