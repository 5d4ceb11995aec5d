"""How an error ends a call of gRPC."""

from __future__ import annotations

from typing import Any

import grpc

from tfpool.errors import Code, TfpoolError

MAX_DETAILS = 2000
"""Bytes of a message: with more the trailers would not fit into what clients take."""
PUSHBACK = "grpc-retry-pushback-ms"

_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode}
STATUS: dict[Code, grpc.StatusCode] = {code: _BY_NUMBER[code.value] for code in Code}


async def refuse(context: Any, error: TfpoolError) -> None:
    """End the call with an error; one that says when to try again tells clients that retry by themselves."""
    details = error.message.encode(errors="replace")[:MAX_DETAILS].decode(errors="ignore")
    trailers = () if error.retry_after is None else ((PUSHBACK, str(round(error.retry_after * 1000))),)
    await context.abort(STATUS[error.code], details, trailers)
