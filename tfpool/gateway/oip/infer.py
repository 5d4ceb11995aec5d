"""Inference over HTTP: the way of a request from its body to the pool, and of the outputs back."""

from __future__ import annotations

from tfpool.errors import InvalidArgument
from tfpool.gateway.http import Request, Response
from tfpool.gateway.oip import headers
from tfpool.gateway.oip.answers import HEADER_LENGTH, answer
from tfpool.gateway.oip.plan import INFER, TRACE, Plan, target
from tfpool.gateway.oip.tensors import Slot, take
from tfpool.gateway.serving import Call, Gateway
from tfpool.wire.tensors import Array

_TRACE = TRACE.encode()
_ENTRY = "V2"
_KEPT = 2048
_KEPT_BYTES = 4096


class Known:
    """A plan for one model, and where in the bytes after its JSON each raw input lies."""

    __slots__ = ("call", "places", "plan", "size")

    def __init__(self, plan: Plan, sizes: tuple[int, ...], model: str, version: str | None) -> None:
        chosen = plan.options
        self.plan = plan
        self.call = Call(target(model, version, chosen.signature), INFER, _ENTRY, chosen.timeout, chosen.priority)
        self.places: list[tuple[Slot, int, int]] = []
        self.size = 0
        for slot, size in zip(plan.raw, sizes, strict=True):
            self.places.append((slot, self.size, size))
            self.size += size

    def inputs(self, body: bytes, at: int) -> dict[str, Array]:
        """All inputs; the raw ones view ``body`` from ``at`` on. Raises InvalidArgument."""
        if len(body) - at != self.size:
            raise InvalidArgument(
                f"got {len(body) - at} bytes after the JSON of {at}, expected {self.size}: the sum of binary_data_size"
            )
        raw = {slot.name: take(body, at + begin, size, slot) for slot, begin, size in self.places}
        return {**self.plan.given, **raw} if self.plan.given else raw


class Infer:
    """Answers ``/v2/models/M/infer``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._known: dict[tuple[str, str | None, bytes], Known] = {}

    async def infer(self, request: Request, model: str, version: str | None) -> Response:
        body = request.body
        said = trace = b""
        for name, value in request.headers:
            if name == HEADER_LENGTH:
                said = value
            elif name == _TRACE:
                trace = value
        if said:
            at = headers.header_length(said, len(body))
            text = body[:at]
            known = self._known.get((model, version, text)) or self._read(model, version, text)
        else:
            at = len(body)
            known = Known(*headers.read(body), model, version)
        inputs = known.inputs(body, at)
        call = known.call._replace(trace=trace.decode("latin-1")) if trace else known.call
        reply = await self._gateway.predict(call, inputs)
        return answer(known.plan, model, reply.version, reply.result())

    def _read(self, model: str, version: str | None, text: bytes) -> Known:
        known = Known(*headers.read(text), model, version)
        if known.plan.lasting and len(text) <= _KEPT_BYTES:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[(model, version, text)] = known
        return known
