"""ModelService: GetModelStatus and HandleReloadConfigRequest."""

from __future__ import annotations

from typing import Any

from tfpool.client.verbs import LOAD_TIMEOUT
from tfpool.config_tfs import read_models
from tfpool.errors import InvalidArgument, NotFound
from tfpool.gateway.http import Access
from tfpool.gateway.rpc import describe
from tfpool.gateway.rpc.asked import asked_spec
from tfpool.gateway.rpc.methods import Method, read, timeout_of, unary
from tfpool.gateway.serving import Gateway
from tfpool.gateway.tfs.describe import versions
from tfpool.protos import serving_pb2

SERVICE = "tensorflow.serving.ModelService"


class Models:
    """Its methods; a request and its answer are serialized messages."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def methods(self) -> tuple[Method, ...]:
        return (
            unary(f"/{SERVICE}/GetModelStatus", self.status, Access.MONITOR),
            unary(f"/{SERVICE}/HandleReloadConfigRequest", self.reload, Access.ADMIN),
        )

    async def status(self, request: bytes, context: Any) -> bytes:
        """GetModelStatusRequest -> GetModelStatusResponse."""
        model, version, label, _ = asked_spec(read(serving_pb2.GetModelStatusRequest, request))
        try:
            rows = await self._gateway.client.call("status", model=model, timeout=timeout_of(context))
        except NotFound:
            rows = []
        return describe.status(versions(rows, model, version, label)).SerializeToString()

    async def reload(self, request: bytes, context: Any) -> bytes:
        """ReloadConfigRequest -> ReloadConfigResponse, once all that is new serves; or an error, and no change."""
        asked = read(serving_pb2.ReloadConfigRequest, request)
        kind = asked.config.WhichOneof("config")
        if kind != "model_config_list":
            raise InvalidArgument(f"config: got {kind or 'none'}, expected model_config_list")
        tables = read_models(asked.config, "config").tables
        await self._gateway.client.reload(tables, timeout=timeout_of(context) or LOAD_TIMEOUT)
        answer = serving_pb2.ReloadConfigResponse()
        answer.status.SetInParent()
        return answer.SerializeToString()
