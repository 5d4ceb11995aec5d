"""The body of a request -> arrays, for predict; -> serialized tf.Examples, for classify and regress. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

import orjson

from tfpool.client.examples import encode
from tfpool.errors import InvalidArgument
from tfpool.gateway.http import check_json
from tfpool.gateway.tfs.elements import is_base64, listed, shown, string, tensor
from tfpool.types import TensorSpec
from tfpool.wire.tensors import Array

SIGNATURE, INSTANCES, INPUTS, EXAMPLES, CONTEXT = "signature_name", "instances", "inputs", "examples", "context"
_SIMILAR = 0.75
_LOOKED_AT = 16
MAX_ROWS = 1 << 18
"""Of named inputs, which are gone through one by one."""


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises InvalidArgument for anything else, HttpError for what is too long.

    NaN, Infinity and -Infinity are numbers here, though JSON has none such. Of two keys of a name the last counts.
    """
    check_json(body)
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in body and b"Infinity" not in body:
            raise InvalidArgument(f"JSON Parse error: {error}") from None
        found = _with_tokens(body)
    if type(found) is not dict:
        raise InvalidArgument(f"the body: got {shown(found)}, expected an object")
    return found


def signature_name(body: Mapping[str, Any]) -> str:
    """The signature that a body names; empty: the default. Raises InvalidArgument."""
    name = body.get(SIGNATURE, "")
    if type(name) is not str:
        raise InvalidArgument(f"{SIGNATURE!r} key must be a string value: got {shown(name)}")
    return name


def arrays(body: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> tuple[dict[str, Array], bool]:
    """The inputs that ``specs`` describe, and whether they came as rows (``instances``) rather than as columns.

    Raises InvalidArgument for values that do not suit them, Unimplemented for dtypes that have no form in JSON.
    """
    rows = INSTANCES in body
    if rows and INPUTS in body:
        raise InvalidArgument(f"got both {INPUTS!r} and {INSTANCES!r}, expecting only one of them")
    if not rows and INPUTS not in body:
        _refuse_typos(body, (INSTANCES, INPUTS, SIGNATURE))
        raise InvalidArgument(f"Missing {INPUTS!r} or {INSTANCES!r} key")
    if len(body) > 1:
        _refuse_typos(body, (INSTANCES if rows else INPUTS, SIGNATURE))
    columns = _rows(body[INSTANCES], specs) if rows else _columns(body[INPUTS], specs)
    return {name: tensor(values, specs[name]) for name, values in columns.items()}, rows


def examples(body: Mapping[str, Any]) -> Array:
    """Serialized tf.Examples, an object array [n], each with the features of the body's context.

    Raises InvalidArgument.
    """
    _refuse_typos(body, (EXAMPLES, CONTEXT, SIGNATURE))
    if EXAMPLES not in body:
        raise InvalidArgument(f"Missing {EXAMPLES!r} key")
    found = body[EXAMPLES]
    if type(found) is not list or not found:
        raise InvalidArgument(f"{EXAMPLES}: got {shown(found)}, expected a list of one or more objects")
    context = _features(body[CONTEXT], CONTEXT) if CONTEXT in body else None
    return encode([_features(example, f"example {i}") for i, example in enumerate(found)], context)


def _with_tokens(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except RecursionError:
        raise InvalidArgument("JSON Parse error: it is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or an integer of thousands of digits
        raise InvalidArgument(f"JSON Parse error: {error}") from None


def _refuse_typos(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Unknown keys mean nothing, as with TensorFlow Serving; but one that looks like a known one that is not there is
    no unknown key."""
    for key in islice(body, _LOOKED_AT):
        near = () if key in known else get_close_matches(key, [name for name in known if name not in body], 1, _SIMILAR)
        if near:
            raise InvalidArgument(f"got an unknown key {shown(key)}; did you mean {near[0]!r}?")


def _rows(found: Any, specs: Mapping[str, TensorSpec]) -> dict[str, list[Any]]:
    """The rows of each input."""
    if type(found) is not list or not found:
        raise InvalidArgument(f"{INSTANCES}: got {shown(found)}, expected a list of one or more")
    if not _has_names(found[0]):
        return {_only(specs, INSTANCES): found}
    if len(found) > MAX_ROWS:
        raise InvalidArgument(f"{INSTANCES}: got {len(found)} rows, expected at most {MAX_ROWS} of named inputs")
    wanted = specs.keys()
    for i, row in enumerate(found):
        if type(row) is not dict:
            raise InvalidArgument(f"{INSTANCES}[{i}]: got {shown(row)}, expected an object as before it")
        if row.keys() != wanted:
            raise InvalidArgument(f"{INSTANCES}[{i}]: got keys {listed(row)}, must be equal to {listed(wanted)}")
    return {name: [row[name] for row in found] for name in wanted}


def _columns(found: Any, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    if not _has_names(found):
        return {_only(specs, INPUTS): found}
    for name in specs:
        if name not in found:
            raise InvalidArgument(f"Missing named input: {name} in {INPUTS!r}; got {listed(found)}")
    return {name: found[name] for name in specs}


def _has_names(value: Any) -> bool:
    """Whether an object holds inputs by name, and is no string itself."""
    return type(value) is dict and not is_base64(value)


def _only(specs: Mapping[str, TensorSpec], what: str) -> str:
    if len(specs) != 1:
        raise InvalidArgument(f"{what}: got values without a name, expected objects with {listed(specs)}")
    return next(iter(specs))


def _features(example: Any, what: str) -> dict[str, Any]:
    """Features by name, base64 decoded; what else is wrong with their values, the encoder says."""
    if type(example) is not dict:
        raise InvalidArgument(f"{what}: got {shown(example)}, expected an object with features by name")
    found = {}
    for name, value in example.items():
        try:
            if type(value) is list:
                value = [string(item) if type(item) is dict else item for item in value]
            found[name] = string(value) if type(value) is dict else value
        except ValueError as error:
            raise InvalidArgument(f"{what}, feature {shown(name)}: {error}") from None
    return found
