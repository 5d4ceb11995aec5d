"""The error tree, the same on every floor and every wire.

Each class knows its canonical gRPC code, and the HTTP status TensorFlow Serving gives it::

    TfpoolError
    ├── Cancelled            1   499
    ├── InvalidArgument      3   400
    ├── DeadlineExceeded     4   504
    ├── NotFound             5   404
    ├── PermissionDenied     7   403
    ├── ResourceExhausted    8   429
    ├── FailedPrecondition   9   400
    ├── Unimplemented       12   501
    ├── Internal            13   500
    ├── Unavailable         14   503
    └── Unauthenticated     16   401

An error crosses a wire as ``(code, message)``; :func:`from_code` makes the same class on the other side.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical status codes (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class TfpoolError(Exception):
    """Base of every error tfpool raises on purpose.

    ``retry_after`` is when another try may do better, in seconds; None where nobody knows.
    """

    code: ClassVar[Code] = Code.INTERNAL
    http_status: ClassVar[int] = 500
    retry_after: float | None = None

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after is not None:
            self.retry_after = retry_after


class Cancelled(TfpoolError):
    """The caller cancelled the request, or closed the client."""

    code = Code.CANCELLED
    http_status = 499


class InvalidArgument(TfpoolError):
    """The request itself is wrong; it would fail anywhere."""

    code = Code.INVALID_ARGUMENT
    http_status = 400


class DeadlineExceeded(TfpoolError):
    """The deadline passed before an answer was there."""

    code = Code.DEADLINE_EXCEEDED
    http_status = 504


class NotFound(TfpoolError):
    """No such model, version, label, signature or worker."""

    code = Code.NOT_FOUND
    http_status = 404


class PermissionDenied(TfpoolError):
    """The caller may not do this here (an admin verb on the predict endpoint, say)."""

    code = Code.PERMISSION_DENIED
    http_status = 403


class ResourceExhausted(TfpoolError):
    """A queue, a budget or a limit is full; later may work."""

    code = Code.RESOURCE_EXHAUSTED
    http_status = 429


class FailedPrecondition(TfpoolError):
    """The pool is not in the state this needs (a model that failed to load, say)."""

    code = Code.FAILED_PRECONDITION
    http_status = 400


class Unimplemented(TfpoolError):
    """Not supported by this server."""

    code = Code.UNIMPLEMENTED
    http_status = 501


class Internal(TfpoolError):
    """A bug, or TensorFlow failed while running the model."""

    code = Code.INTERNAL
    http_status = 500


class Unavailable(TfpoolError):
    """Nobody can serve this now; a retry may find somebody."""

    code = Code.UNAVAILABLE
    http_status = 503


class Unauthenticated(TfpoolError):
    """The caller did not say who it is."""

    code = Code.UNAUTHENTICATED
    http_status = 401


_BY_CODE: dict[int, type[TfpoolError]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Unimplemented,
        Internal,
        Unavailable,
        Unauthenticated,
    )
}


def from_code(code: int, message: str, retry_after: float | None = None) -> TfpoolError:
    """The error of a canonical code; an unknown code is Internal."""
    return _BY_CODE.get(code, Internal)(message, retry_after)
