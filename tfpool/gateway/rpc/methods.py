"""Methods of gRPC: who may call them, and how their errors end a call. Bytes in, bytes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from tfpool.errors import Internal, InvalidArgument, TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.http import Access
from tfpool.gateway.rpc.status import refuse
from tfpool.telemetry import log

_TOKEN = "authorization"
MAX_TIMEOUT = 86_399.0
"""Seconds, the longest that the pool takes; some clients say centuries for no deadline."""

Answer = Callable[[Any, Any], Awaitable[bytes]]
Stream = Callable[[Any, Any], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """``handler`` is grpc's, which answers calls of ``path`` (``/package.Service/Name``)."""

    path: str
    handler: Any
    access: Access


def unary(path: str, answer: Answer, access: Access) -> Method:
    """One request, one response; ``answer(request, context)`` may raise any TfpoolError."""
    complain = _Complaint(path)

    async def answered(request: bytes, context: Any) -> bytes:
        try:
            return await answer(request, context)
        except Exception as error:
            await complain(error, context)
            raise AssertionError("the call has ended") from None

    return Method(path, grpc.unary_unary_rpc_method_handler(answered), access)


def stream(path: str, answers: Stream, access: Access) -> Method:
    """One request, responses until ``answers(request, context)`` ends."""
    complain = _Complaint(path)

    async def answered(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            async for answer in answers(request, context):
                yield answer
        except Exception as error:
            await complain(error, context)

    return Method(path, grpc.unary_stream_rpc_method_handler(answered), access)


def streams(path: str, answers: Stream, access: Access) -> Method:
    """Requests (an asynchronous iterator) and responses at the same time."""
    complain = _Complaint(path)

    async def answered(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async for answer in answers(requests, context):
                yield answer
        except Exception as error:
            await complain(error, context)

    return Method(path, grpc.stream_stream_rpc_method_handler(answered), access)


class Methods:
    """What grpc asks for the handler of each call: nobody gets to one that he may not call."""

    def __init__(self, keeper: Keeper, methods: Iterable[Method]) -> None:
        self._keeper = keeper
        self._methods = {method.path: method for method in methods}

    def service(self, details: Any) -> Any:
        """grpc's handler for a call; None where there is no such method."""
        method = self._methods.get(details.method)
        if method is None:
            return None
        try:
            self._keeper.check(credentials(details.invocation_metadata), method.access)
        except TfpoolError as error:
            return _refusal(error)
        return method.handler


def credentials(metadata: Iterable[tuple[str, Any]]) -> list[tuple[bytes, bytes]]:
    """What a keeper wants to see of a call's metadata."""
    return [(b"authorization", value.encode()) for key, value in metadata if key == _TOKEN]


def read(kind: type[Message], data: bytes) -> Any:
    """The message of a kind that ``data`` is. Raises InvalidArgument."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the request is no {kind.DESCRIPTOR.name}: {error}") from None


def timeout_of(context: Any) -> float | None:
    """Seconds that the caller waits; None where it did not say."""
    left: float | None = context.time_remaining()
    return left if left is None else min(max(left, 0.001), MAX_TIMEOUT)


def header(context: Any, name: str) -> str:
    """The first header of a name; empty where there is none."""
    return next((str(value) for key, value in context.invocation_metadata() if key == name), "")


class _Complaint:
    """Ends a call with the error that its method raised."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._log = log.get("gateway")

    async def __call__(self, error: Exception, context: Any) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, TfpoolError):
            self._log.error("request.failed", method="grpc", path=self._path, error=error)
            error = Internal(f"{type(error).__name__}: {error}")
        await refuse(context, error)


def _refusal(error: TfpoolError) -> Any:
    async def refused(requests: Any, context: Any) -> None:
        await refuse(context, error)

    return grpc.stream_stream_rpc_method_handler(refused)
