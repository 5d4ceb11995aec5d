"""The answer to an inference request over HTTP: JSON, and after it the bytes of the outputs that are binary. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from tfpool.gateway.http import JSON, Headers, Response
from tfpool.gateway.oip.classes import top
from tfpool.gateway.oip.plan import Plan
from tfpool.gateway.oip.tensors import datatype_of, raw, to_json
from tfpool.types import dtype_of
from tfpool.wire.tensors import Array

HEADER_LENGTH = b"inference-header-content-length"
BINARY = (b"content-type", b"application/octet-stream")


def answer(plan: Plan, model: str, version: int, outputs: Mapping[str, Array]) -> Response:
    """What ``model`` found, as ``plan`` wants it.

    Raises InvalidArgument for an output that is not there or cannot be told as it was asked for, and Unimplemented for
    one that the protocol has no datatype for.
    """
    look, arrays = plan.look(version, outputs)
    known = plan.answers.get(look)
    if known is not None:
        head, headers = known
        return Response(b"".join((head, *arrays)), 200, headers)
    return _answer(plan, model, version, outputs, look)


def _answer(plan: Plan, model: str, version: int, outputs: Mapping[str, Array], look: object) -> Response:
    told: list[dict[str, Any]] = []
    after: list[Any] = []
    lasting = plan.lasting
    for one, found in plan.chosen(outputs):
        array = top(found, one.top, one.name) if one.top else found
        said = {"name": one.name, "datatype": datatype_of(dtype_of(array.dtype)), "shape": array.shape}
        if one.binary:
            data = raw(array)
            said["parameters"] = {"binary_data_size": len(data) if isinstance(data, bytes) else data.nbytes}
            after.append(data)
        else:
            said["data"] = orjson.Fragment(to_json(array, one.name))
        lasting = lasting and one.binary and data is found
        told.append(said)
    head = orjson.dumps(
        {
            **({"id": plan.id} if plan.id else {}),
            "model_name": model,
            "model_version": str(version),
            "outputs": told,
        }
    )
    headers: Headers = (BINARY, (HEADER_LENGTH, b"%d" % len(head))) if after else (JSON,)
    if lasting:
        plan.keep(look, (head, headers))
    return Response(b"".join((head, *after)), 200, headers)
