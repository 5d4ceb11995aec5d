from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from tfpool.broker.meters import ModelMeter
from tfpool.client.examples import Target
from tfpool.errors import Code, Unavailable
from tfpool.gateway.board import Board, Post
from tfpool.gateway.http import Access, Request, Response
from tfpool.gateway.meters import BOUNDS_US, Meters
from tfpool.gateway.metrics import Metrics
from tfpool.gateway.metrics_pool import MICROSECONDS, ROWS, SECONDS
from tfpool.gateway.serving import Call

Samples = dict[str, dict[tuple[str, ...], float]]
ORDER = ("worker", "model", "version", "signature", "api", "entry", "state", "status", "code", "gateway", "le")


def version(name: str = "half", number: int = 1, **more: Any) -> dict[str, Any]:
    row = {"name": name, "version": number, "state": "AVAILABLE", "workers": ["cpu0"], "labels": [], "error": None}
    return {**row, "memory_bytes": 1000, "peak_bytes": 3000, "load_seconds": 0.5, "loaded": "serve", **more}


def meter() -> dict[str, Any]:
    made = ModelMeter()
    made.requests = 4
    made.ran(3, run=0.002, waited=0.001, requests=3, padded=4)
    made.ran(1, run=0.002, waited=0.5, requests=1, padded=1)
    made.failed(Code.DEADLINE_EXCEEDED, 2)
    return made.snapshot()


MEMORY = {"rss": 9, "unique": 7, "pss": 8, "gpu": None, "base": 5, "budget": None, "residue": 0, "mapped": 2}
WORKER = {"name": "cpu0", "state": "READY", "memory": MEMORY, "busy": 0.25, "deaths": 1}
SHM = {"budget": 100, "leased": 10, "quarantined": 0, "client_arenas": 2}


class Pool:
    """A broker with one model, until a test says otherwise; None: it does not answer."""

    def __init__(self) -> None:
        totals = {"messages": 9, "malformed": 1, "unroutable": 0, "loads": 3, "evictions": 2, "waiting_rows": 6}
        times = {"uptime_seconds": 60.5, "broker_cpu_seconds": 1.5}
        queue = {"model": "half", "version": 1, "signature": "serving_default"}
        self.answers: dict[str, Any] | None = {
            "stats": {**totals, **times, "shm": SHM, "models": {"half": meter()}, "workers": [WORKER]},
            "models": [version()],
            "queues": [{**queue, "rows": 4, "oldest_ms": 20.0}, {**queue, "rows": 2, "oldest_ms": 30.0}],
            "progress": {"migrations": [{"id": 7, "phase": "DONE"}, {"id": 8, "phase": "LOADING"}]},
        }
        self.meters = Meters()
        self.settings = SimpleNamespace(models=(SimpleNamespace(name="half"),))
        self.client = self

    async def call(self, verb: str, timeout: float) -> Any:
        if self.answers is None:
            raise Unavailable("the broker is gone")
        return self.answers[verb]

    def served(self, model: str, code: Code = Code.OK, times: int = 1, entry: str = "REST") -> None:
        for _ in range(times):
            self.meters.served(Call(Target(model, 0, "", ""), "predict", entry), code, 15e-6)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(2)
    yield made
    made.close()


@pytest.fixture
def pool() -> Pool:
    return Pool()


def ask(pool: Any, board: Board, path: str = "/metrics", accept: str = "") -> Response:
    async def go() -> Response:
        metrics = Metrics(pool, Post(board, 0, pool.meters))
        (route,) = (route for route in metrics.routes() if route.match(path) is not None)
        assert route.access is Access.MONITOR
        return await route.handler(Request("GET", path, b"", [(b"accept", accept.encode())], b"", Access.MONITOR))

    return asyncio.run(go())


def text(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


def samples(pool: Pool, board: Board) -> Samples:
    found: Samples = {}
    for family in plain_families(text(ask(pool, board))):
        for sample in family.samples:
            assert sample.labels.keys() <= set(ORDER)
            key = tuple(sample.labels[name] for name in ORDER if name in sample.labels)
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def test_every_number_of_the_pool(pool: Pool, board: Board) -> None:
    found = samples(pool, board)
    expected: Samples = {
        "tfpool_up": {(): 1},
        "tfpool_build_info": {("0.1.0",): 1},
        "tfpool_uptime_seconds": {(): 60.5},
        "tfpool_broker_cpu_seconds_total": {(): 1.5},
        "tfpool_messages_total": {(): 9},
        "tfpool_malformed_messages_total": {(): 1},
        "tfpool_loads_total": {(): 3},
        "tfpool_evictions_total": {(): 2},
        "tfpool_migrations_total": {(): 8},
        "tfpool_migrations_active": {(): 1},
        "tfpool_waiting_rows": {(): 6},
        "tfpool_shm_leased_bytes": {(): 10},
        "tfpool_client_arenas": {(): 2},
        "tfpool_requests_total": {("half",): 4},
        "tfpool_rows_total": {("half",): 4},
        "tfpool_batches_total": {("half",): 2},
        "tfpool_padding_rows_total": {("half",): 1},
        "tfpool_errors_total": {("half", "DEADLINE_EXCEEDED"): 2},
        "tfpool_version_state": {("half", "1", "AVAILABLE"): 1},
        "tfpool_version_available": {("half", "1"): 1},
        "tfpool_version_replicas": {("half", "1"): 1},
        "tfpool_version_memory_bytes": {("half", "1"): 1000},
        "tfpool_version_peak_bytes": {("half", "1"): 3000},
        "tfpool_version_load_seconds": {("half", "1"): 0.5},
        "tfpool_worker_state": {("cpu0", "READY"): 1},
        "tfpool_worker_deaths_total": {("cpu0",): 1},
        "tfpool_worker_busy_ratio": {("cpu0",): 0.25},
        "tfpool_worker_unique_bytes": {("cpu0",): 7},
        "tfpool_worker_model_bytes": {("cpu0", "half", "1"): 1000},
        "tfpool_queue_rows": {("half", "1", "serving_default"): 6},
        "tfpool_queue_oldest_seconds": {("half", "1", "serving_default"): 0.03},
        "tfpool_gateway_in_flight": {("0",): 0},
    }
    assert {name: found.get(name) for name in expected} == expected
    assert not {"tfpool_worker_gpu_bytes", "tfpool_worker_budget_bytes"} & found.keys(), "nobody knows these"


def test_histograms_of_the_pool(pool: Pool, board: Board) -> None:
    found = samples(pool, board)
    assert found["tfpool_queue_seconds_count"] == {("half",): 4}
    assert found["tfpool_queue_seconds_sum"] == {("half",): pytest.approx(0.503)}
    buckets = [(float(key[1]), count) for key, count in found["tfpool_queue_seconds_bucket"].items()]
    assert buckets == sorted(buckets)
    for end, count in buckets:
        assert count == (0 if end < 0.001 else 3 if end < 0.5 else 4)
    rows = found["tfpool_batch_rows_bucket"]
    assert [rows["half", end] for end in ("1.0", "2.0", "4.0", "9.0", "+Inf")] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(("scale", "least", "most"), [(SECONDS, 1e-5, 100), (MICROSECONDS, 10, 1e8), (ROWS, 1, 4096)])
def test_buckets_span_what_they_should(scale: Any, least: float, most: float) -> None:
    ends = [float(end) for _, end in scale.picked]
    assert ends == sorted(set(ends))
    assert ends[0] <= least
    assert ends[-1] >= most
    assert len(ends) <= 25


def test_requests_of_all_gateways(pool: Pool, board: Board) -> None:
    other = Pool()
    other.served("half", times=3)
    other.meters.responses[4] = 2
    Post(board, 1, other.meters).publish()
    pool.served("half")
    pool.served("half", entry="GRPC")
    pool.served("nobody", Code.NOT_FOUND)
    found = samples(pool, board)
    assert found["tfpool_gateway_requests_total"] == {
        ("half", "predict", "REST", "OK"): 4,
        ("half", "predict", "GRPC", "OK"): 1,
        ("", "predict", "REST", "NOT_FOUND"): 1,
    }
    assert found["tfpool_gateway_http_responses_total"] == {("4xx",): 2}
    assert found["tfpool_gateway_request_seconds_count"]["half", "predict", "REST"] == 4
    assert found["tfpool_gateway_request_seconds_sum"]["half", "predict", "REST"] == pytest.approx(60e-6)
    buckets = found["tfpool_gateway_request_seconds_bucket"]
    assert [buckets["half", "predict", "REST", end] for end in ("1e-05", "1.8e-05", "+Inf")] == [0, 4, 4]


def test_series_of_what_is_gone_vanish(pool: Pool, board: Board) -> None:
    other = Pool()
    for each in (pool, other):
        each.served("half")
        each.served("gone")
    Post(board, 1, other.meters).publish()
    assert pool.answers is not None
    body = text(ask(pool, board))
    assert 'model="half"' in body
    assert 'model="gone"' not in body
    pool.answers["models"] = []
    pool.answers["stats"] = {**pool.answers["stats"], "models": {}}
    pool.answers["queues"] = []
    assert 'model="half"' not in text(ask(pool, board))


def test_without_a_broker_the_gateways_still_tell(pool: Pool, board: Board) -> None:
    pool.answers = None
    pool.served("half")
    found = samples(pool, board)
    assert found["tfpool_up"] == {(): 0}
    assert found["tfpool_gateway_requests_total"] == {("half", "predict", "REST", "OK"): 1}
    assert "tfpool_uptime_seconds" not in found


def test_a_version_with_two_lives_is_one_series(pool: Pool, board: Board) -> None:
    assert pool.answers is not None
    pool.answers["models"] = [version(state="DRAINING"), version(state="LOADING", workers=["cpu0"])]
    found = samples(pool, board)
    assert found["tfpool_version_state"] == {("half", "1", "LOADING"): 1}
    assert found["tfpool_worker_model_bytes"] == {("cpu0", "half", "1"): 1000}


def test_names_with_odd_characters_are_escaped(pool: Pool, board: Board) -> None:
    assert pool.answers is not None
    name = 'a"b\\c\u00e9'
    pool.answers["models"] = [version(name)]
    pool.served(name)
    assert samples(pool, board)["tfpool_gateway_requests_total"] == {(name, "predict", "REST", "OK"): 1}


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=nonsense", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain; version=\xff", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_caller_says_in_which_format(accept: str, kind: str, pool: Pool, board: Board) -> None:
    response = ask(pool, board, accept=accept)
    ((name, value),) = response.headers
    assert name == b"content-type"
    assert value.decode().startswith(kind)
    parse = open_families if "openmetrics" in kind else plain_families
    assert "tfpool_up" in {family.name for family in parse(text(response))}


def test_the_names_of_tensorflow_serving(pool: Pool, board: Board) -> None:
    pool.served("half", times=2)
    pool.served("half", Code.INVALID_ARGUMENT)
    response = ask(pool, board, "/monitoring/prometheus/metrics", "application/openmetrics-text; version=1.0.0")
    assert response.headers == ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
    lines = text(response).splitlines()
    for line in (
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="half",status="OK"} 2.0',
        ':tensorflow:serving:request_count{model_name="half",status="INVALID_ARGUMENT"} 1.0',
        "# TYPE :tensorflow:serving:request_latency histogram",
        ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST",le="10",model_name="half"} 0.0',
        ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST",le="18",model_name="half"} 3.0',
        ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST",le="+Inf",model_name="half"} 3.0',
        ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST",model_name="half"} 3.0',
        ':tensorflow:serving:request_example_count_total{model="half"} 4.0',
        ':tensorflow:serving:request_example_counts_sum{model="half"} 4.0',
        ':tensorflow:serving:runtime_latency_sum{API="Predict",model_name="half",runtime="TF1"} 4000.0',
        ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="half"} 4.0',
        ':tensorflow:serving:batching_session:input_batch_size_count{model_name="half"} 4.0',
        ':tensorflow:serving:batching_session:processed_batch_size_sum{model_name="half"} 4.0',
        ':tensorflow:serving:batching_session:padding_size_sum{model_name="half"} 1.0',
    ):
        assert line in lines
    assert not [line for line in lines if "untyped" in line or line.startswith("tfpool")]


def test_bounds_of_latency_are_tensorflow_servings() -> None:
    assert len(BOUNDS_US) == 33
    assert BOUNDS_US[:3] == (10.0, 18.0, 32.4)
