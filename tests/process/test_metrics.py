"""Metrics, readiness and health of a live gateway; readiness while workers die; counts that outlive a gateway."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tfpool.testing.fake_worker import FakePool, Orders, until, version
from tfpool.testing.fronts import Web, await_front

pytestmark = pytest.mark.process

DASHBOARD = Path(__file__).parents[2] / "configs" / "grafana.json"
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


@pytest.fixture(scope="module")
def served(front: FakePool) -> None:
    """Something has been asked for."""
    with front.client() as client:
        client.predict("double", {"x": np.ones((3, 2), np.float32)})


def value(web: Web, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(web.get("/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


@pytest.mark.usefixtures("served")
def test_metrics_of_the_pool(web: Web) -> None:
    answer = web.get("/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert value(web, "tfpool_up") == 1
    assert value(web, "tfpool_requests_total", model="double") >= 1
    assert value(web, "tfpool_rows_total", model="double") >= 3
    assert value(web, "tfpool_version_available", model="echo", version="2") == 1
    assert value(web, "tfpool_version_state", model="broken", state="FAILED") == 1
    assert value(web, "tfpool_worker_model_bytes", model="double") >= 0
    assert value(web, "tfpool_gateway_connections") >= 1


@pytest.mark.usefixtures("served")
def test_metrics_by_tensorflow_servings_names(web: Web) -> None:
    body = web.get("/monitoring/prometheus/metrics").body.decode()
    assert "# TYPE :tensorflow:serving:request_count counter\n" in body
    assert re.search(r':tensorflow:serving:request_example_count_total{model="double"} [3-9]', body)


def test_metrics_as_openmetrics(web: Web) -> None:
    answer = web.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, inner in node.items():
            if key in ("expr", "query") and isinstance(inner, str):
                yield inner
            yield from expressions(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from expressions(inner)


@pytest.mark.usefixtures("served")
def test_the_dashboard_knows_these_metrics(web: Web) -> None:
    there = set()
    for line in web.get("/metrics").body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            there |= {name + suffix for suffix in _SUFFIXES["histogram"]} if kind == "histogram" else {name}
    dashboard = json.loads(DASHBOARD.read_text())
    named = {name for text in expressions(dashboard) for name in re.findall(r"\btfpool_\w+", text)}
    assert len(named) > 20
    assert named <= there
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"] if "targets" in panel)


def test_counts_outlive_a_gateway(front: FakePool) -> None:
    address = str(front.settings.server.http)
    first = Web(address)
    for _ in range(3):
        first.post("/v1/models/double:predict", {"instances": [[1.0]]})
    counted = value(first, "tfpool_gateway_requests_total", model="double", code="OK")
    assert counted >= 3
    first.close()
    (pid,) = front.children("tfpool-gateway")
    os.kill(pid, signal.SIGKILL)
    until(lambda: front.children("tfpool-gateway") not in ([], [pid]))
    await_front(address)
    second = Web(address)
    assert value(second, "tfpool_gateway_requests_total", model="double", code="OK") == counted
    second.close()


# -- health ------------------------------------------------------------------------------------------------------------


def test_the_pool_is_ready_though_a_model_failed(web: Web) -> None:
    answer = web.get("/readyz")
    assert (answer.status, answer.json["ready"]) == (200, True)
    assert list(answer.json["failed"]) == ["broken"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("double", 200),
        ("echo/versions/1", 200),
        ("echo/labels/stable", 200),
        ("broken", 503),
        ("nobody", 404),
        ("echo/versions/7", 404),
        ("echo/labels/nobody", 404),
    ],
)
def test_readiness_of_a_model(path: str, status: int, web: Web) -> None:
    answer = web.get(f"/readyz/{path}")
    assert answer.status == status
    assert set(answer.json) == {200: {"ready"}, 503: {"ready", "reason"}, 404: {"error"}}[status]


def test_a_model_whose_worker_just_died_is_not_ready(front: FakePool, web: Web) -> None:
    with front.client() as client:
        (row,) = client.status("matrix")
        (worker,) = (worker for worker in client.workers() if worker["name"] in row["workers"])
        hold = Orders(front.base("matrix") / "1").hold
        hold.touch()
        try:
            os.kill(worker["pid"], signal.SIGKILL)
            until(lambda: web.get("/readyz/matrix").status == 503)
            until(lambda: web.get("/readyz").status == 503)
            assert "matrix" in web.get("/readyz").json["missing"]
        finally:
            hold.unlink()
        until(lambda: web.get("/readyz/matrix").status == 200)
        until(lambda: web.get("/readyz").status == 200)
    assert value(web, "tfpool_worker_deaths_total", worker=worker["name"]) >= 1


def test_the_pool_stays_ready_while_a_new_version_loads(front: FakePool, web: Web) -> None:
    base = front.base("add")
    made = version(base, 2, hold="")
    until(lambda: value(web, "tfpool_version_state", model="add", version="2", state="LOADING"))
    assert web.get("/readyz/add").status == web.get("/readyz").status == 200
    assert web.get("/readyz/add/versions/2").status == 503
    Orders(made).hold.unlink()
    until(lambda: web.get("/readyz/add/versions/2").status == 200)
    until(lambda: not value(web, "tfpool_version_available", model="add", version="1"))
