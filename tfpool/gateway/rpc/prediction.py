"""PredictionService: Predict, Classify, Regress, MultiInference and GetModelMetadata."""

from __future__ import annotations

import asyncio
from typing import Any

from tfpool.client.examples import CLASSIFY, REGRESS, Target
from tfpool.client.examples import Method as Kind
from tfpool.errors import TfpoolError
from tfpool.gateway.http import Access
from tfpool.gateway.rpc.asked import asked_spec, missing_signature
from tfpool.gateway.rpc.describe import check_fields, metadata
from tfpool.gateway.rpc.examples import Task, classes, examples_of, tasks_of, values
from tfpool.gateway.rpc.methods import Method, header, read, timeout_of, unary
from tfpool.gateway.rpc.requests import PredictReader
from tfpool.gateway.rpc.responses import DEFAULT_SIGNATURE, PredictWriter
from tfpool.gateway.serving import Call, Gateway
from tfpool.gateway.tfs import examples
from tfpool.gateway.tfs.errors import translated
from tfpool.protos import inference_pb2, serving_pb2
from tfpool.wire.tensors import Array

SERVICE = "tensorflow.serving.PredictionService"
_ENTRY = "GRPC"
_MULTI = "multi_inference"


class Prediction:
    """Its methods; a request and its answer are serialized messages."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._reader = PredictReader()
        self._writer = PredictWriter()

    def methods(self) -> tuple[Method, ...]:
        return (
            unary(f"/{SERVICE}/Predict", self.predict, Access.PREDICT),
            unary(f"/{SERVICE}/Classify", self.classify, Access.PREDICT),
            unary(f"/{SERVICE}/Regress", self.regress, Access.PREDICT),
            unary(f"/{SERVICE}/MultiInference", self.multi_inference, Access.PREDICT),
            unary(f"/{SERVICE}/GetModelMetadata", self.metadata, Access.MONITOR),
        )

    async def predict(self, request: bytes, context: Any) -> bytes:
        """PredictRequest -> PredictResponse."""
        asked, inputs = self._reader.read(request)
        target = asked.spec.target()
        try:
            reply = await self._gateway.predict(self._call(target, "predict", context), inputs)
        except TfpoolError as error:
            raise translated(missing_signature(error), target) from None
        return self._writer.write(reply.result(), asked.outputs, target.model, reply.version, target.signature)

    async def classify(self, request: bytes, context: Any) -> bytes:
        """ClassificationRequest -> ClassificationResponse."""
        asked = read(inference_pb2.ClassificationRequest, request)
        answer = inference_pb2.ClassificationResponse()
        found = await self._on_examples(asked, answer.model_spec, CLASSIFY, context)
        classes(found, answer.result)
        return answer.SerializeToString()

    async def regress(self, request: bytes, context: Any) -> bytes:
        """RegressionRequest -> RegressionResponse."""
        asked = read(inference_pb2.RegressionRequest, request)
        answer = inference_pb2.RegressionResponse()
        found = await self._on_examples(asked, answer.model_spec, REGRESS, context)
        values(found, answer.result)
        return answer.SerializeToString()

    async def multi_inference(self, request: bytes, context: Any) -> bytes:
        """MultiInferenceRequest -> MultiInferenceResponse: several signatures of one version, on the same examples."""
        asked = read(inference_pb2.MultiInferenceRequest, request)
        first, tasks = tasks_of(asked)
        array = examples_of(asked.input)
        call = self._call(first, _MULTI, context)
        try:
            servable = await self._gateway.catalog.servable(first, call.timeout)
            exactly = first._replace(version=servable.version, label="")
            found = await _all(*(self._run(task, exactly, array, call) for task in tasks))
        except TfpoolError as error:
            raise translated(error, first) from None
        answer = inference_pb2.MultiInferenceResponse()
        for task, (result, version) in zip(tasks, found, strict=True):
            made = answer.results.add()
            _say(made.model_spec, exactly._replace(signature=task.signature), version)
            task.write(result, made)
        return answer.SerializeToString()

    async def metadata(self, request: bytes, context: Any) -> bytes:
        """GetModelMetadataRequest -> GetModelMetadataResponse."""
        asked = read(serving_pb2.GetModelMetadataRequest, request)
        target = asked_spec(asked).target()
        check_fields(asked.metadata_field)
        try:
            servable = await self._gateway.catalog.servable(target, timeout_of(context))
        except TfpoolError as error:
            raise translated(error, target) from None
        return metadata(servable).SerializeToString()

    async def _on_examples(self, asked: Any, spec: inference_pb2.ModelSpec, kind: Kind, context: Any) -> Any:
        target = asked_spec(asked).target()
        call = self._call(target, kind.name, context)
        try:
            found, version = await examples.run(self._gateway, call, kind, examples_of(asked.input))
        except TfpoolError as error:
            raise translated(error, target) from None
        _say(spec, target, version)
        return found

    async def _run(self, task: Task, exactly: Target, array: Array, call: Call) -> tuple[Any, int]:
        mine = call._replace(target=exactly._replace(signature=task.signature))
        return await examples.run(self._gateway, mine, task.kind, array)

    def _call(self, target: Target, api: str, context: Any) -> Call:
        trace = "" if self._gateway.traces is None else header(context, "traceparent")
        return Call(target, api, _ENTRY, timeout_of(context), 0, trace)


def _say(spec: inference_pb2.ModelSpec, target: Target, version: int) -> None:
    spec.name = target.model
    spec.version.value = version
    spec.signature_name = target.signature or DEFAULT_SIGNATURE


async def _all(*runs: Any) -> list[Any]:
    """The results of all; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
