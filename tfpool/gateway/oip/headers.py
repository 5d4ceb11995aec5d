"""An inference request over HTTP: JSON, and after it the bytes of the tensors that say ``binary_data_size``. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from tfpool.errors import InvalidArgument
from tfpool.gateway.http import check_json
from tfpool.gateway.oip.plan import Plan, Wanted, options, plan, refuse_shared_memory, wanted
from tfpool.gateway.oip.tensors import Slot, from_list, slot, wrong_size
from tfpool.wire.tensors import Array

_SIZE = "binary_data_size"
MAX_INPUTS = 1024


def read(text: bytes) -> tuple[Plan, tuple[int, ...]]:
    """What the JSON says, and the bytes that each raw input has after it.

    Raises InvalidArgument for what is no such request, and Unimplemented for shared memory.
    """
    said = _object(_json(text), "the request")
    chosen = options(_parameters(said, "the request"))
    slots: list[Slot] = []
    sizes: list[int] = []
    given: dict[str, Array] = {}
    wanted = _list(said, "inputs")
    if len(wanted) > MAX_INPUTS:
        raise InvalidArgument(f"inputs: got {len(wanted)}, expected at most {MAX_INPUTS}")
    for one in wanted:
        size, into, array = _input(_object(one, "an input"))
        if array is None:
            slots.append(into)
            sizes.append(size)
        elif into.name in given:
            raise InvalidArgument(f"input {into.name!r} comes twice")
        else:
            given[into.name] = array
    outputs = [_output(_object(one, "an output"), chosen.binary) for one in _list(said, "outputs")]
    return plan(chosen, slots, given, outputs, _id(said)), tuple(sizes)


def header_length(said: bytes, body: int) -> int:
    """How many bytes of a body are JSON, as its header says. Raises InvalidArgument."""
    length = int(said) if said.isdigit() and len(said) < 19 else -1
    if not 0 < length <= body:
        raise InvalidArgument(
            f"inference-header-content-length: got {said[:40].decode('latin-1')!r}, expected the length of the JSON "
            f"at the beginning of the body, which has {body} bytes"
        )
    return length


def _json(text: bytes) -> Any:
    check_json(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidArgument(f"the request is no JSON: {error}") from None
    try:  # the words for what JSON has no numbers for; orjson does not know them
        found = json.loads(text)
        orjson.dumps(found)  # nor does it take half characters
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidArgument(f"the request is no JSON: {error}") from None
    return found


def _input(said: Mapping[str, Any]) -> tuple[int, Slot, Array | None]:
    into = slot(said.get("name"), said.get("datatype"), said.get("shape"))
    what = f"input {into.name!r}"
    parameters = _parameters(said, what)
    refuse_shared_memory(what, parameters)
    size = parameters.get(_SIZE)
    if size is None:
        if "data" not in said:
            raise InvalidArgument(f"{what} has neither data nor the parameter {_SIZE}")
        return 0, into, from_list(said["data"], into)
    if "data" in said:
        raise InvalidArgument(f"{what} has both data and the parameter {_SIZE}")
    if type(size) is not int or size < 0:
        raise InvalidArgument(f"{what}, {_SIZE}: got {str(size)[:40]!r}, expected a whole number from 0")
    if size != into.size and into.size >= 0:
        raise wrong_size(into, size)
    return size, into, None


def _output(said: Mapping[str, Any], binary: bool) -> Wanted:
    name = said.get("name")
    return wanted(name, _parameters(said, f"output {str(name)[:80]!r}"), binary)


def _id(said: Mapping[str, Any]) -> str:
    found = said.get("id", "")
    if not isinstance(found, str):
        raise InvalidArgument(f"id: got {type(found).__name__}, expected text")
    return found


def _parameters(said: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    return _object(said.get("parameters", {}), f"the parameters of {what}")


def _list(said: Mapping[str, Any], name: str) -> list[Any]:
    found = said.get(name, [])
    if not isinstance(found, list):
        raise InvalidArgument(f"{name}: got {type(found).__name__}, expected a list")
    return found


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what}: got {type(value).__name__}, expected an object")
    return value
