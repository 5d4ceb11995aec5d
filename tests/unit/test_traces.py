from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tfpool.client.examples import Target
from tfpool.errors import Code, FailedPrecondition
from tfpool.gateway.serving import Call
from tfpool.gateway.traces import SpanTraces, open_traces
from tfpool.settings import GatewaySettings

CALLER = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
MICRO = 1000


class Traced:
    """Spans of requests, as a collector gets them; ``found`` has them by name."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._traces = SpanTraces()
        self._traces.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def record(self, trace: str = "", code: Code = Code.OK, timing: Any = (200, 300, 8), took: float = 0.001) -> None:
        call = Call(Target("half", 0, "", "serving_default"), "predict", "REST", trace=trace)
        reply: Any = SimpleNamespace(timing=timing, version=3)
        self._traces.record(call, time.monotonic() - took, code, reply)

    @property
    def found(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Traced:
    return Traced()


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0


def test_a_request_is_four_spans(traced: Traced) -> None:
    traced.record()
    assert sorted(traced.found) == ["batch", "predict half", "queue", "run"]
    gateway, queue, batch, run = (traced.found[name] for name in ("predict half", "queue", "batch", "run"))
    assert [parent(span) for span in (gateway, queue, batch, run)] == [
        0,
        gateway.context.span_id,
        gateway.context.span_id,
        batch.context.span_id,
    ]
    assert {span.context.trace_id for span in (gateway, queue, batch, run)} == {gateway.context.trace_id}
    assert gateway.kind is SpanKind.SERVER
    assert attributes(batch) == {"tfpool.batch.rows": 8}
    assert attributes(gateway) == {
        "tfpool.model": "half",
        "tfpool.version": 3,
        "tfpool.signature": "serving_default",
        "tfpool.api": "predict",
        "tfpool.entry": "REST",
    }


def test_spans_follow_each_other_within_the_request(traced: Traced) -> None:
    before = time.time_ns()
    traced.record(took=0.001)
    began, ended = times(traced.found["predict half"])
    assert before <= ended <= time.time_ns()
    assert ended - began >= 1000 * MICRO
    (queued, formed), (ran, over) = times(traced.found["queue"]), times(traced.found["run"])
    assert times(traced.found["batch"]) == (ran, over)
    assert (formed - queued, over - ran) == (200 * MICRO, 300 * MICRO)
    assert formed == ran
    assert (queued - began) - (ended - over) in (-1, 0)


def test_times_that_do_not_fit_are_cut_off(traced: Traced) -> None:
    traced.record(took=0.0001, timing=(200, 300, 8))
    began, ended = times(traced.found["predict half"])
    for name in ("queue", "batch", "run"):
        begin, end = times(traced.found[name])
        assert began <= begin <= end <= ended


def test_a_request_without_an_answer_is_one_span(traced: Traced) -> None:
    traced.record(code=Code.UNAVAILABLE, timing=None)
    (span,) = traced.found.values()
    assert attributes(span)["error.type"] == "UNAVAILABLE"
    assert "tfpool.version" not in attributes(span)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.OK, StatusCode.UNSET),
        (Code.INVALID_ARGUMENT, StatusCode.UNSET),
        (Code.NOT_FOUND, StatusCode.UNSET),
        (Code.CANCELLED, StatusCode.UNSET),
        (Code.INTERNAL, StatusCode.ERROR),
        (Code.DEADLINE_EXCEEDED, StatusCode.ERROR),
    ],
)
def test_only_the_servers_errors_are_errors(code: Code, status: StatusCode, traced: Traced) -> None:
    traced.record(code=code)
    assert traced.found["predict half"].status.status_code is status


# -- whose trace it is -------------------------------------------------------------------------------------------------


def test_the_callers_span_is_the_parent(traced: Traced) -> None:
    traced.record(trace=f"00-{CALLER}-{SPAN}-01")
    assert {f"{span.context.trace_id:032x}" for span in traced.found.values()} == {CALLER}
    assert f"{parent(traced.found['predict half']):016x}" == SPAN


def test_who_does_not_sample_gets_no_spans(traced: Traced) -> None:
    traced.record(trace=f"00-{CALLER}-{SPAN}-00")
    assert traced.found == {}


@pytest.mark.parametrize("trace", ["nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{CALLER}-{SPAN}-01", "00-é-\x00-01"])
def test_what_is_no_trace_is_a_request_of_its_own(trace: str, traced: Traced) -> None:
    traced.record(trace=trace)
    assert parent(traced.found["predict half"]) == 0
    assert len(traced.found) == 4


def test_the_sdks_own_variables_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-service")
    traced = Traced()
    traced.record()
    assert traced.found == {}
    traced.record(trace=f"00-{CALLER}-{SPAN}-01")
    assert traced.found["run"].resource.attributes["service.name"] == "my-service"


# -- where they go -----------------------------------------------------------------------------------------------------


def test_without_an_endpoint_there_are_none() -> None:
    assert open_traces(GatewaySettings()) is None


@pytest.mark.parametrize("given", ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces"])
def test_they_go_to_the_endpoint(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    endpoints: list[str] = []
    sent: list[str] = []

    class Exporter:
        def __init__(self, endpoint: str) -> None:
            endpoints.append(endpoint)

        def export(self, spans: Any) -> SpanExportResult:
            sent.extend(json.loads(span.to_json())["name"] for span in spans)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Exporter)
    traces = open_traces(GatewaySettings(otlp_endpoint=given))
    assert traces is not None
    traces.record(Call(Target("half", 0, "", ""), "predict", "GRPC"), time.monotonic(), Code.OK, None)
    traces.close()
    assert endpoints == ["http://h:4318/v1/traces"]
    assert sent == ["predict half"]


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'tfpool\[otel\]'"):
        open_traces(GatewaySettings(otlp_endpoint="http://h:4318"))


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfpool.gateway.traces.CLOSE_SECONDS", 0.01)
    listens = threading.Event()
    traces = SpanTraces()
    monkeypatch.setattr(traces.provider, "shutdown", lambda: listens.wait(20.0))
    began = time.monotonic()
    traces.close()
    listens.set()
    assert time.monotonic() - began < 10.0
