"""A gateway's gRPC methods without a network: bytes in, bytes out; numpy functions stand for the pool."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from grpc import StatusCode

from tests.contract.serving_desk import Desk
from tests.contract.tfs_models import LABELS, MODELS
from tfpool.errors import PermissionDenied, Unauthenticated
from tfpool.gateway.http import Access, Headers
from tfpool.gateway.rpc.services import services
from tfpool.protos import inference_pb2
from tfpool.wire.tensor_proto import set_tensor

SERVICE = "tensorflow.serving."
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""What every call says of itself."""


class Ended(grpc.aio.AbortError):  # type: ignore[misc]
    """A call that ended with another status than OK."""

    def __init__(self, code: StatusCode, details: str, trailers: Any) -> None:
        super().__init__(code, details)
        self.code, self.details, self.trailers = code, details, dict(trailers)


class Context:
    """What grpc tells a method of its call."""

    def __init__(self, seconds: float | None, metadata: Any) -> None:
        self._seconds = seconds
        self._metadata = metadata

    def time_remaining(self) -> float | None:
        return self._seconds

    def invocation_metadata(self) -> Any:
        return self._metadata

    async def abort(self, code: StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        raise Ended(code, details, trailing_metadata)


class Doorman:
    """Knows what a caller may do by the word that it says: the name of an access."""

    def check(self, headers: Headers, wanted: Access) -> Access:
        said = dict(headers).get(b"authorization")
        if said is None and wanted > Access.OPEN:
            raise Unauthenticated("who are you?")
        allowed = Access[(said or b"OPEN").decode()]
        if allowed < wanted:
            raise PermissionDenied(f"expected {wanted.name}")
        return allowed


class Line:
    """Calls to a gateway's methods: numpy functions stand for the pool, and a doorman for the keeper."""

    def __init__(self, keeper: Any = None) -> None:
        self.desk = Desk(MODELS, lambda gateway: (), LABELS)
        self._methods = services(self.desk.gateway, keeper or Doorman())

    def ask(self, method: str, request: bytes = b"", seconds: float | None = None, says: str = "ADMIN") -> bytes:
        """The response of a unary method. Raises Ended."""
        metadata = (("traceparent", TRACE), *((("authorization", says),) if says else ()))
        path = f"/{method}" if method.startswith("grpc.") else f"/{SERVICE}{method}"
        handler = self._methods.service(SimpleNamespace(method=path, invocation_metadata=metadata))
        if handler is None:
            raise Ended(StatusCode.UNIMPLEMENTED, "Method not found!", ())
        call = handler.stream_stream if handler.request_streaming else handler.unary_unary
        answer: bytes = asyncio.run(call(request, Context(seconds, metadata)))
        return answer

    def listen(self, method: str, requests: Any, count: int, says: str = "") -> list[bytes]:
        """The first responses of a method that gives many."""
        metadata = (("authorization", says),) if says else ()
        handler = self._methods.service(SimpleNamespace(method=f"/{method}", invocation_metadata=metadata))

        async def hear() -> list[bytes]:
            answers = (handler.stream_stream or handler.unary_stream)(requests, Context(None, metadata))
            found = [await anext(answers) for _ in range(count)]
            await answers.aclose()
            return found

        return asyncio.run(hear())

    def predict(self, model: str, signature: str = "", seconds: float | None = None, **inputs: Any) -> Any:
        request = inference_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            set_tensor(request.inputs[name], np.asarray(value))
        return inference_pb2.PredictResponse.FromString(
            self.ask("PredictionService/Predict", request.SerializeToString(), seconds)
        )
