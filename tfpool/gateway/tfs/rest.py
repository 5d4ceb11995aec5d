"""The routes of TensorFlow Serving's REST interface."""

from __future__ import annotations

from typing import Any

from tfpool.client.examples import CLASSIFY, REGRESS, Method, Target
from tfpool.errors import InvalidArgument, NotFound, TfpoolError
from tfpool.gateway.catalog import Servable
from tfpool.gateway.http import Access, Request, Response, Route, json_response, route
from tfpool.gateway.serving import Call, Gateway
from tfpool.gateway.tfs import decode, describe, encode, examples
from tfpool.gateway.tfs.errors import no_version_zero, translated

_WHICH = r"(?i)/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_ENTRY = "REST"
_MAX_VERSION = (1 << 63) - 1
_MAX_DIGITS = 40


class Rest:
    """predict, classify, regress, status and metadata of models."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> tuple[Route, ...]:
        return (
            route("POST", f"{_WHICH}:predict", self.predict, Access.PREDICT),
            route("POST", f"{_WHICH}:classify", self.classify, Access.PREDICT),
            route("POST", f"{_WHICH}:regress", self.regress, Access.PREDICT),
            route("GET", _WHICH, self.status, Access.MONITOR),
            route("GET", f"{_WHICH}/metadata", self.metadata, Access.MONITOR),
            route("GET", "(?i)/v1/models", self.nameless, Access.MONITOR),
        )

    async def predict(self, request: Request, model: str, version: str | None, label: str | None) -> Response:
        """``instances`` or ``inputs`` -> ``predictions`` or ``outputs``."""
        body = decode.parse(request.body)
        target = _target(model, version, label, decode.signature_name(body))
        try:
            return Response(await self._predict(self._call(request, target, "predict"), body))
        except TfpoolError as error:
            raise translated(error, target) from None

    async def classify(self, request: Request, model: str, version: str | None, label: str | None) -> Response:
        """``examples`` -> ``results``: labels with scores."""
        return Response(encode.classes(await self._on_examples(request, CLASSIFY, model, version, label)))

    async def regress(self, request: Request, model: str, version: str | None, label: str | None) -> Response:
        """``examples`` -> ``results``: numbers."""
        return Response(encode.values(await self._on_examples(request, REGRESS, model, version, label)))

    async def status(self, request: Request, model: str, version: str | None, label: str | None) -> Response:
        """The versions of a model and their states."""
        number = None if version is None else _number(version)
        try:
            rows = await self._gateway.client.status(model)
        except NotFound:
            rows = []
        return json_response(describe.status(describe.versions(rows, model, number, label or "")))

    async def metadata(self, request: Request, model: str, version: str | None, label: str | None) -> Response:
        """The signatures of a model."""
        target = _target(model, version, label)
        try:
            return json_response(describe.metadata(await self._gateway.catalog.servable(target)))
        except TfpoolError as error:
            raise translated(error, target) from None

    async def nameless(self, request: Request) -> Response:
        """There is no list of models here: the Open Inference Protocol's index has one."""
        raise InvalidArgument("Missing model name in request.")

    async def _predict(self, call: Call, body: dict[str, Any]) -> bytes:
        catalog, target = self._gateway.catalog, call.target
        servable = await catalog.servable(target)
        try:
            return await self._predicted(call, body, servable)
        except InvalidArgument:
            catalog.forget(target)  # a version with another signature may have come since it was known
            newer = await catalog.servable(target)
            if newer.signatures == servable.signatures:
                raise
        return await self._predicted(call, body, newer)

    async def _predicted(self, call: Call, body: dict[str, Any], servable: Servable) -> bytes:
        inputs, by_rows = decode.arrays(body, servable.signature(call.target.signature).inputs)
        reply = await self._gateway.predict(call, inputs)
        return encode.rows(reply.result()) if by_rows else encode.columns(reply.result())

    async def _on_examples(
        self, request: Request, method: Method, model: str, version: str | None, label: str | None
    ) -> Any:
        body = decode.parse(request.body)
        target = _target(model, version, label, decode.signature_name(body))
        call = self._call(request, target, method.name)
        try:
            return (await examples.run(self._gateway, call, method, decode.examples(body)))[0]
        except TfpoolError as error:
            raise translated(error, target) from None

    def _call(self, request: Request, target: Target, api: str) -> Call:
        traced = self._gateway.traces is not None
        return Call(target, api, _ENTRY, trace=request.header(b"traceparent").decode("latin-1") if traced else "")


def _target(model: str, version: str | None, label: str | None, signature: str = "") -> Target:
    """Raises InvalidArgument, and NotFound for version 0, which stands for the newest elsewhere."""
    number = 0 if version is None else _number(version)
    if version is not None and not number:
        raise no_version_zero(model)
    return Target(model, number, label or "", signature)


def _number(version: str) -> int:
    if len(version) > _MAX_DIGITS or (number := int(version)) > _MAX_VERSION:
        raise InvalidArgument(f"Failed to convert version: {version[:_MAX_DIGITS]} to numeric.")
    return number
