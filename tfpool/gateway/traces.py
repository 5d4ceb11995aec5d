"""OpenTelemetry spans of requests, made after the fact, so that they cost nothing where nobody wants them.

One request is::

    gateway            what the caller asked for; child of the caller's span, if it sent one
      queue            waited for a batch
      batch            rows of all the requests that ran together
        run            TensorFlow

How long it was queued and ran is measured in the pool, where in the request that was is not: both lie in the middle of
it, what is left divided evenly before and after. The SDK's own variables hold here (``OTEL_TRACES_SAMPLER``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_BSP_...``): by default every request is sampled whose caller does not say that it
is not.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from tfpool.errors import Code, FailedPrecondition

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from tfpool.client.reply import Reply
    from tfpool.gateway.serving import Call
    from tfpool.settings import GatewaySettings

CLOSE_SECONDS = 2.0
"""A collector that does not listen must not hold up the end: its client would try for longer."""
_PATH = "/v1/traces"
_CALLERS = (Code.CANCELLED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
"""Errors that are the caller's: its request failed, but not the server."""


def open_traces(settings: GatewaySettings) -> SpanTraces | None:
    """Where the settings want traces; None where they want none. Raises FailedPrecondition without OpenTelemetry."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise FailedPrecondition(f"otlp_endpoint needs OpenTelemetry: pip install 'tfpool[otel]' ({error})") from None
    endpoint = settings.otlp_endpoint.rstrip("/")
    exporter: SpanExporter = OTLPSpanExporter(endpoint if endpoint.endswith(_PATH) else endpoint + _PATH)
    traces = SpanTraces()
    traces.provider.add_span_processor(BatchSpanProcessor(exporter))
    return traces


class SpanTraces:
    """Makes the spans; who adds a processor to ``provider`` gets them."""

    def __init__(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME") or "tfpool"
        self.provider: TracerProvider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        self._tracer = self.provider.get_tracer("tfpool.gateway")
        self._extract = TraceContextTextMapPropagator().extract
        self._within = set_span_in_context
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def record(self, call: Call, began: float, code: Code, reply: Reply | None) -> None:
        """A request that ``began`` at a moment (monotonic seconds) is over; ``reply`` has its timing, if any."""
        parent = self._extract({"traceparent": call.trace}) if call.trace else None
        end = time.time_ns()
        begin = end - int((time.monotonic() - began) * 1e9)
        target = call.target
        attributes = {
            "tfpool.model": target.model,
            "tfpool.signature": target.signature,
            "tfpool.api": call.api,
            "tfpool.entry": call.entry,
        }
        span = self._tracer.start_span(
            f"{call.api} {target.model}", parent, kind=self._server, attributes=attributes, start_time=begin
        )
        if span.is_recording():
            if code is not Code.OK:
                span.set_attribute("error.type", code.name)
                if code not in _CALLERS:
                    span.set_status(self._failed)
            if reply is not None and reply.timing is not None:
                span.set_attribute("tfpool.version", reply.version)
                self._inside(self._within(span), begin, end, *reply.timing)
        span.end(end)

    def close(self) -> None:
        """Send what is left, within :data:`CLOSE_SECONDS`; blocks as long."""
        last = threading.Thread(target=self.provider.shutdown, daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)

    def _inside(self, gateway: Context, begin: int, end: int, queued: int, run: int, rows: int) -> None:
        """Spans of what the pool measured, in microseconds, between two moments in nanoseconds."""
        start = begin + max(0, end - begin - (queued + run) * 1000) // 2
        formed = min(end, start + queued * 1000)
        over = min(end, formed + run * 1000)
        self._span("queue", gateway, start, formed)
        batch = self._span("batch", gateway, formed, over, {"tfpool.batch.rows": rows})
        self._span("run", self._within(batch), formed, over)

    def _span(self, name: str, within: Context, begin: int, end: int, attributes: dict[str, int] | None = None) -> Any:
        span = self._tracer.start_span(name, within, attributes=attributes, start_time=begin)
        span.end(end)
        return span
