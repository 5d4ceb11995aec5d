"""TensorFlow Serving's REST in front of a real broker: what is served, refused in its words, and cancelled."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfpool.testing.fake_worker import FakePool
from tfpool.testing.fronts import Web

pytestmark = pytest.mark.process


def test_predict(web: Web) -> None:
    rows = web.post("/v1/models/double:predict", {"instances": [[1, 2.5], [0.1, -3]]})
    assert (rows.status, rows.body) == (200, b'{"predictions":[[2.0,5.0],[0.2,-6.0]]}')
    columns = web.post("/v1/models/double:predict", b'{"inputs": {"x": [[NaN, Infinity]]}}')
    assert (columns.status, columns.body) == (200, b'{"outputs":[[NaN,Infinity]]}')


def test_several_inputs_and_outputs(web: Web) -> None:
    sent = [{"a": [2, 1, 0], "b": [0.5], "s": "xy"}, {"a": [1, 1, 1], "b": [0], "s": {"b64": "/w=="}}]
    rows = web.post("/v1/models/add:predict", {"instances": sent})
    assert rows.json == {
        "predictions": [{"sum": [2.5, 1.5, 0.5], "text": "xx"}, {"sum": [1.0, 1.0, 1.0], "text": {"b64": "/w=="}}]
    }


def test_versions_and_labels(web: Web) -> None:
    body = {"signature_name": "uint64", "instances": [(1 << 64) - 1]}
    for where in ("", "/versions/1", "/versions/2", "/labels/stable"):
        answer = web.post(f"/v1/models/echo{where}:predict", body)
        assert (answer.status, answer.body) == (200, b'{"predictions":[18446744073709551615]}')
    labelled = web.get("/v1/models/echo/labels/stable")
    assert labelled.json["model_version_status"] == [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    assert [one["version"] for one in web.get("/v1/models/echo").json["model_version_status"]] == ["2", "1"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("none:predict", 404, "Servable not found for request: Latest(none)"),
        ("echo/versions/9:predict", 404, "Servable not found for request: Specific(echo, 9)"),
        (
            "echo/versions/9223372036854775807:predict",
            404,
            "Servable not found for request: Specific(echo, 922337203685",
        ),
        ("echo/labels/none:predict", 400, "Unrecognized servable version label: none"),
        ("double:predict", 400, "double:1, signature 'serving_default', input 'x': got shape [?], expected [?, ?]"),
        ("matrix:predict", 400, "matrix:1, signature 'serving_default', input 'x': got shape [?], expected [3, 3]"),
        ("broken:predict", 400, "broken:1 failed to load: "),
    ],
)
def test_refusals(web: Web, path: str, status: int, words: str) -> None:
    answer = web.post(f"/v1/models/{path}", {"instances": [1.0]})
    assert answer.status == status
    assert answer.json["error"].startswith(words)


def test_a_model_that_failed(web: Web) -> None:
    (found,) = web.get("/v1/models/broken").json["model_version_status"]
    assert (found["state"], found["status"]["error_code"]) == ("END", "FAILED_PRECONDITION")
    assert "broken on purpose" in found["status"]["error_message"]


def test_metadata(web: Web) -> None:
    found = web.get("/v1/models/add/metadata").json
    assert found["model_spec"] == {"name": "add", "signature_name": "", "version": "1"}
    inputs = found["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert {name: tensor["dtype"] for name, tensor in inputs.items()} == {
        "a": "DT_FLOAT",
        "b": "DT_FLOAT",
        "s": "DT_STRING",
    }


def test_many_at_once_have_their_own_answers(front: FakePool) -> None:
    address = str(front.settings.server.http)

    def ask(number: int) -> bool:
        web = Web(address)
        try:
            numbers = np.random.default_rng(number).normal(size=(8, 1 + number % 3)).astype(np.float32)
            answer = web.post("/v1/models/double:predict", {"instances": numbers.tolist()})
            return bool(np.array_equal(np.float32(json.loads(answer.body)["predictions"]), numbers * 2))
        finally:
            web.close()

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(64)))
