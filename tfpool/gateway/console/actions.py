"""What may be done from the page: the client's admin verbs, their arguments checked, and who asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfpool.client.aio import AsyncClient
from tfpool.client.verbs import LOAD_TIMEOUT
from tfpool.errors import InvalidArgument
from tfpool.gateway.http import HttpError, Request, Response, json_response


@dataclass(frozen=True, slots=True)
class _Verb:
    """An admin verb with the kinds of its arguments; those in ``optional`` may be left out, or null."""

    needed: Mapping[str, type]
    optional: Mapping[str, type]


_VERSION = {"version": int}
VERBS: Mapping[str, _Verb] = {
    "load": _Verb({"model": str}, _VERSION),
    "unload": _Verb({"model": str}, _VERSION),
    "migrate": _Verb({"model": str, "to": str}, {**_VERSION, "source": str}),
    "label": _Verb({"model": str, "labels": dict}, {}),
    "drain": _Verb({"worker": str}, {}),
    "restart": _Verb({"worker": str}, {}),
}
_KINDS = {str: "text", int: "a whole number", dict: "an object"}


class Actions:
    """Only what the page itself sends is carried out: another page that a browser shows may not send such requests."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def act(self, request: Request, verb: str) -> Response:
        """Carry out a verb; answers when it is done, with what the verb gives.

        Raises HttpError, InvalidArgument and the verb's errors.
        """
        found = VERBS.get(verb)
        if found is None:
            raise HttpError(404, f"the console knows no {verb!r}; it knows {', '.join(VERBS)}")
        check_sender(request)
        arguments = checked(found, verb, request.json())
        return json_response({"done": await self._client.admin(verb, timeout=LOAD_TIMEOUT, **arguments)})


def check_sender(request: Request) -> None:
    """Raises HttpError for what a page of another origin could send without being asked whether it may."""
    kind = request.header(b"content-type").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        said = kind[:40].decode("latin-1")
        raise HttpError(415, f"content-type: got {said!r}, expected 'application/json'")


def checked(verb: _Verb, name: str, sent: object) -> dict[str, Any]:
    """The arguments of a verb, without those that are null. Raises InvalidArgument."""
    if not isinstance(sent, dict):
        raise InvalidArgument(f"{name}: got {_what(sent)}, expected an object")
    kinds = {**verb.needed, **verb.optional}
    for key in sent:
        if key not in kinds:
            raise InvalidArgument(f"{name}: got {key[:40]!r}, expected {', '.join(kinds)}")
    given = {key: value for key, value in sent.items() if value is not None}
    for key in verb.needed:
        if key not in given:
            raise InvalidArgument(f"{name}: {key!r} is missing")
    for key, value in given.items():
        if type(value) is not kinds[key]:
            raise InvalidArgument(f"{name}, {key}: got {_what(value)}, expected {_KINDS[kinds[key]]}")
    return given


def _what(value: object) -> str:
    return _KINDS.get(type(value), "null" if value is None else f"a {type(value).__name__}")
