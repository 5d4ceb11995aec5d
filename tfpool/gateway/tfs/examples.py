"""classify and regress over serialized tf.Examples, for REST and gRPC alike."""

from __future__ import annotations

from typing import Any

from tfpool.client.examples import INPUT, Method, Target
from tfpool.errors import InvalidArgument
from tfpool.gateway.catalog import Servable
from tfpool.gateway.serving import Call, Gateway
from tfpool.wire.tensors import Array


async def run(gateway: Gateway, call: Call, method: Method, examples: Array) -> tuple[Any, int]:
    """What ``method`` reads from the answer to serialized tf.Examples (an object array [n]), and the version that
    gave it.

    Raises the errors of :mod:`tfpool.errors`; InvalidArgument where the signature is not of that kind.
    """
    target = call.target
    checked = await _checked(gateway, target, method)
    reply = await gateway.predict(call, {INPUT: examples})
    if reply.version != checked.version:  # a newer one has come, or the label is split
        exactly = target._replace(version=reply.version, label="")
        _check(await gateway.catalog.servable(exactly), target, method)
    return method.read(reply.result(), len(examples)), reply.version


async def _checked(gateway: Gateway, target: Target, method: Method) -> Servable:
    catalog = gateway.catalog
    try:
        servable = await catalog.servable(target)
        _check(servable, target, method)
    except InvalidArgument:
        catalog.forget(target)  # what was known may be older than the model
        servable = await catalog.servable(target)
        _check(servable, target, method)
    return servable


def _check(servable: Servable, target: Target, method: Method) -> None:
    signature = servable.signature(target.signature)
    sides = {
        side: [{"name": spec.name, "dtype": spec.dtype.label} for spec in specs.values()]
        for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    method.check({"signatures": [{"name": signature.name, **sides}]}, target)
