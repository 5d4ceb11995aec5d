"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from tfpool.errors import NotFound, TfpoolError, Unimplemented
from tfpool.gateway.http import Access
from tfpool.gateway.oip import facts
from tfpool.gateway.oip.facts import Facts
from tfpool.gateway.oip.messages import Asked, InferReader, stream_answer, stream_error, write
from tfpool.gateway.oip.plan import INFER, TRACE
from tfpool.gateway.oip.stream import answered
from tfpool.gateway.rpc.methods import Method, header, read, streams, timeout_of, unary
from tfpool.gateway.serving import Call, Gateway
from tfpool.protos import oip_pb2
from tfpool.wire.tensors import Array

SERVICE = "inference.GRPCInferenceService"
_ENTRY = "V2_GRPC"


class InferenceService:
    """Its methods, each from a serialized request to a serialized response."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._facts = Facts(gateway)
        self._readiness = gateway.readiness
        self._reader = InferReader()

    def methods(self) -> tuple[Method, ...]:
        seen, admin = Access.MONITOR, Access.ADMIN
        named = {
            "ServerLive": (self.live, Access.OPEN),
            "ServerReady": (self.ready, Access.OPEN),
            "ModelReady": (self.model_ready, seen),
            "ServerMetadata": (self.server, seen),
            "ModelMetadata": (self.model, seen),
            "ModelConfig": (self.config, seen),
            "ModelStatistics": (self.statistics, seen),
            "ModelInfer": (self.infer, Access.PREDICT),
            "RepositoryIndex": (self.index, seen),
            "RepositoryModelLoad": (self.load, admin),
            "RepositoryModelUnload": (self.unload, admin),
        }
        for kind in ("System", "Cuda"):
            named[f"{kind}SharedMemoryStatus"] = (self.memory_status, seen)
            named[f"{kind}SharedMemoryRegister"] = (self.memory_register, admin)
            named[f"{kind}SharedMemoryUnregister"] = (self.memory_unregister, admin)
        made = (unary(f"/{SERVICE}/{name}", answer, access) for name, (answer, access) in named.items())
        return (*made, streams(f"/{SERVICE}/ModelStreamInfer", self.stream, Access.PREDICT))

    # -- inference ---------------------------------------------------------------------------------------------

    async def infer(self, request: bytes, context: Any) -> bytes:
        """ModelInferRequest -> ModelInferResponse."""
        asked, inputs = self._reader.read(request)
        return await self._run(asked, inputs, context)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ModelInferRequests -> a ModelStreamInferResponse for each as soon as it is there, also where it failed."""

        async def answer(request: bytes) -> bytes:
            asked: Asked | None = None
            try:
                asked, inputs = self._reader.read(request)
                return stream_answer(await self._run(asked, inputs, context, asked.final))
            except TfpoolError as error:
                return stream_error(error.message, asked.plan.id if asked is not None else "")

        async with aclosing(answered(requests, answer)) as responses:
            async for response in responses:
                yield response

    async def _run(self, asked: Asked, inputs: dict[str, Array], context: Any, final: bool = False) -> bytes:
        options, where = asked.plan.options, asked.target
        timeout, left = options.timeout, timeout_of(context)
        if left is not None and (timeout is None or left < timeout):
            timeout = left
        call = Call(where, INFER, _ENTRY, timeout, options.priority, header(context, TRACE))
        reply = await self._gateway.predict(call, inputs)
        return write(asked.plan, where.model, reply.version, reply.result(), final)

    # -- health and knowledge ----------------------------------------------------------------------------------

    async def live(self, request: bytes, context: Any) -> bytes:
        """This process answers."""
        return _said(oip_pb2.ServerLiveResponse(live=True))

    async def ready(self, request: bytes, context: Any) -> bytes:
        """Every model that shall serve does, or has failed."""
        return _said(oip_pb2.ServerReadyResponse(ready=await self._readiness.pool()))

    async def model_ready(self, request: bytes, context: Any) -> bytes:
        """A worker serves it now; a model that is not there is not ready."""
        asked = read(oip_pb2.ModelReadyRequest, request)
        try:
            ready = not await self._facts.why_not(asked.name, asked.version)
        except NotFound:
            ready = False
        return _said(oip_pb2.ModelReadyResponse(ready=ready))

    async def server(self, request: bytes, context: Any) -> bytes:
        return _said(ParseDict(facts.server(), oip_pb2.ServerMetadataResponse()))

    async def model(self, request: bytes, context: Any) -> bytes:
        asked = read(oip_pb2.ModelMetadataRequest, request)
        return _said(ParseDict(await self._facts.metadata(asked.name, asked.version), oip_pb2.ModelMetadataResponse()))

    async def config(self, request: bytes, context: Any) -> bytes:
        asked = read(oip_pb2.ModelConfigRequest, request)
        config = await self._facts.config(asked.name, asked.version)
        return _said(ParseDict({"config": config}, oip_pb2.ModelConfigResponse()))

    async def statistics(self, request: bytes, context: Any) -> bytes:
        """Of all models without a name."""
        asked = read(oip_pb2.ModelStatisticsRequest, request)
        found = await self._facts.statistics(asked.name, asked.version)
        return _said(ParseDict(found, oip_pb2.ModelStatisticsResponse()))

    # -- the repository ----------------------------------------------------------------------------------------

    async def index(self, request: bytes, context: Any) -> bytes:
        asked = read(oip_pb2.RepositoryIndexRequest, request)
        return _said(ParseDict({"models": await self._facts.index(asked.ready)}, oip_pb2.RepositoryIndexResponse()))

    async def load(self, request: bytes, context: Any) -> bytes:
        """The newest version, as it is configured; answers when it serves."""
        asked = read(oip_pb2.RepositoryModelLoadRequest, request)
        await self._facts.load(asked.model_name, asked.parameters)
        return _said(oip_pb2.RepositoryModelLoadResponse())

    async def unload(self, request: bytes, context: Any) -> bytes:
        """All versions; answers when they are gone."""
        await self._facts.unload(read(oip_pb2.RepositoryModelUnloadRequest, request).model_name)
        return _said(oip_pb2.RepositoryModelUnloadResponse())

    # -- what is not there; of these messages all that counts is whether they are empty ------------------------

    async def memory_status(self, request: bytes, context: Any) -> bytes:
        """No region is ever registered."""
        if request:
            raise NotFound("there is no such shared memory region")
        return b""

    async def memory_register(self, request: bytes, context: Any) -> bytes:
        raise Unimplemented("this server reads no shared memory of its clients; send tensors themselves")

    async def memory_unregister(self, request: bytes, context: Any) -> bytes:
        """Nothing is to be done."""
        return b""


def _said(message: Message) -> bytes:
    return message.SerializeToString()
