"""What the gateway's handlers of HTTP are given and give back, and how an error becomes a response. Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from urllib.parse import unquote

import orjson

from tfpool.errors import InvalidArgument, TfpoolError

Headers = Sequence[tuple[bytes, bytes]]
MAX_JSON = 64 << 20
JSON = (b"content-type", b"application/json")


class Access(IntEnum):
    """What a caller may do: each level includes those before it. OPEN needs no token."""

    OPEN = 0
    MONITOR = 1
    PREDICT = 2
    ADMIN = 3


def first(headers: Headers, name: bytes) -> bytes:
    """The first header of a name, given in lower case; empty where there is none."""
    for key, value in headers:
        if key == name:
            return value
    return b""


@dataclass(slots=True)
class Request:
    """One request, its body complete and unpacked. ``path`` is as it was sent; names in ``headers`` are lower case."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    access: Access

    def header(self, name: bytes) -> bytes:
        """See :func:`first`."""
        return first(self.headers, name)

    def json(self) -> object:
        """The body as JSON. Raises InvalidArgument."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise InvalidArgument(f"the body is no JSON: {error}") from None


@dataclass(slots=True)
class Response:
    """``body`` is complete, or comes piece by piece."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    headers: Headers = (JSON,)


class HttpError(Exception):
    """A refusal that only HTTP knows: a body that is too long, a method that is not allowed."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """``handler(request, *names)`` answers ``method`` at paths that match ``pattern`` as a whole; ``names`` are its
    groups, decoded (None: a group that is not there)."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    access: Access

    def match(self, path: str) -> tuple[str | None, ...] | None:
        """The names in a path; None where it is of another route."""
        found = self.pattern.fullmatch(path)
        if found is None:
            return None
        return tuple(None if group is None else unquote(group) for group in found.groups())


def route(method: str, pattern: str, handler: Handler, access: Access) -> Route:
    """A route; ``pattern`` is a regular expression over the path as it was sent."""
    return Route(method, re.compile(pattern, re.ASCII), handler, access)


def check_json(text: bytes) -> None:
    """Raises HttpError for JSON that is so long that reading it would keep everybody else waiting for seconds."""
    if len(text) > MAX_JSON:
        limit = f"got {len(text)} bytes of JSON, expected at most {MAX_JSON}"
        raise HttpError(413, f"{limit}: send tensors as binary data (Open Inference Protocol), or over gRPC")


def json_response(value: object, status: int = 200) -> Response:
    """``value`` as JSON."""
    return Response(orjson.dumps(value), status)


def refusal(error: TfpoolError | HttpError) -> Response:
    """What an error reads as in every protocol over HTTP: ``{"error": "message"}``."""
    if isinstance(error, HttpError):
        return Response(orjson.dumps({"error": error.message}), error.status, (JSON, *error.headers))
    headers: Headers = (JSON,)
    if error.retry_after is not None:
        headers = (JSON, (b"retry-after", str(ceil(error.retry_after)).encode()))
    if error.http_status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    return Response(orjson.dumps({"error": error.message}), error.http_status, headers)
