"""The control plane's door: what CALL understands. Reading verbs work on both endpoints, admin verbs on the admin one.

A verb answers at once by returning a value, or later: it raises :class:`Later` with a question that is asked again
whenever something has changed, until it has an answer or the caller's deadline passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfpool.broker import changing, moving, reading
from tfpool.broker.later import Later
from tfpool.broker.registry import some_names
from tfpool.errors import InvalidArgument, PermissionDenied, Unimplemented
from tfpool.wire.messages import Call

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

__all__ = ["Later", "answer"]

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
    "dict[str, Any]": (dict,),
}


def answer(broker: Broker, call: Call, admin: bool) -> Any:
    """Run one call. Raises a TfpoolError, or Later."""
    reader = reading.VERBS.get(call.method)
    if reader is not None:
        return _run(reader, broker, call)
    writer = changing.VERBS.get(call.method) or moving.VERBS.get(call.method)
    if writer is None:
        known = some_names([*reading.VERBS, *changing.VERBS, *moving.VERBS])
        raise Unimplemented(f"no verb {call.method[:80]!r}; there are {known}")
    if not admin:
        raise PermissionDenied(f"{call.method} is an admin verb: call it on the admin endpoint")
    return _run(writer, broker, call)


def _run(verb: Callable[..., Any], broker: Broker, call: Call) -> Any:
    for name, value in call.arguments.items():
        wanted = verb.__annotations__.get(name, "")
        if type(value) not in _KINDS.get(wanted, (type(value),)):
            raise InvalidArgument(f"{call.method}, {name}: got {type(value).__name__}, expected {wanted}")
    try:
        return verb(broker, **call.arguments)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise InvalidArgument(f"{call.method}: {error}") from None
        raise
