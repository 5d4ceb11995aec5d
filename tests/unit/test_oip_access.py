"""Who may call what of the Open Inference Protocol, over HTTP and gRPC alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tfpool.gateway.http import Access
from tfpool.gateway.oip.rest import OpenInference
from tfpool.gateway.oip.rpc import SERVICE, InferenceService

GATEWAY: Any = SimpleNamespace(client=None, draining=False, readiness=None)
ROUTES = OpenInference(GATEWAY).routes()
METHODS = {method.path: method.access for method in InferenceService(GATEWAY).methods()}
OPEN, MONITOR, PREDICT, ADMIN = Access.OPEN, Access.MONITOR, Access.PREDICT, Access.ADMIN


@pytest.mark.parametrize(
    ("request_", "method", "access"),
    [
        ("GET /v2/health/live", "ServerLive", OPEN),
        ("GET /v2/health/ready", "ServerReady", OPEN),
        ("GET /v2", "ServerMetadata", MONITOR),
        ("GET /v2/models/m", "ModelMetadata", MONITOR),
        ("GET /v2/models/m/versions/3/ready", "ModelReady", MONITOR),
        ("GET /v2/models/m/config", "ModelConfig", MONITOR),
        ("GET /v2/models/m/stats", "ModelStatistics", MONITOR),
        ("GET /v2/models/stats", "ModelStatistics", MONITOR),
        ("POST /v2/repository/index", "RepositoryIndex", MONITOR),
        ("POST /v2/models/m/infer", "ModelInfer", PREDICT),
        ("POST /v2/models/m/versions/3/infer", "ModelStreamInfer", PREDICT),
        ("POST /v2/repository/models/m/load", "RepositoryModelLoad", ADMIN),
        ("POST /v2/repository/models/m/unload", "RepositoryModelUnload", ADMIN),
        ("GET /v2/systemsharedmemory/status", "SystemSharedMemoryStatus", MONITOR),
        ("POST /v2/cudasharedmemory/region/a/register", "CudaSharedMemoryRegister", ADMIN),
        ("POST /v2/systemsharedmemory/unregister", "SystemSharedMemoryUnregister", ADMIN),
    ],
)
def test_access(request_: str, method: str, access: Access) -> None:
    verb, path = request_.split()
    found = next(route for route in ROUTES if route.method == verb and route.match(path) is not None)
    assert found.access == access
    assert METHODS[f"/{SERVICE}/{method}"] == access


def test_names_in_a_path() -> None:
    found = next(route for route in ROUTES if route.match("/v2/models/a%20b%2Fc/versions/l%C3%A4/infer"))
    assert found.match("/v2/models/a%20b%2Fc/versions/l%C3%A4/infer") == ("a b/c", "lä")
    assert found.match("/v2/models/m/infer") == ("m", None)
    assert found.match("/v2/models//infer") is None
    assert found.match("/v2/models/a/b/infer") is None
