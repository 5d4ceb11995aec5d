"""TensorFlow Serving's REST over real models: the answers are TensorFlow's own, of this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tfpool.client.examples import encode
from tfpool.testing.fronts import Web
from tfpool.testing.reference import Reference

pytestmark = [pytest.mark.process, pytest.mark.tf]
EXAMPLES: list[dict[str, Any]] = [{"x": [1.0, 2.0, 3.5], "word": "häuser", "n": 7}, {"x": [0.1, 0.5, 2.0]}]


@pytest.fixture
def paths(front: Any) -> dict[str, str]:
    found: dict[str, str] = front.paths
    return found


@pytest.fixture
def web(front: Any) -> Iterator[Web]:
    made = Web(front.http)
    yield made
    made.close()


def reference(path: str, inputs: dict[str, Any], signature: str = "serving_default") -> dict[str, Any]:
    with Reference(path) as found:
        outputs: dict[str, Any] = found.predict(inputs, signature)
        return outputs


def test_half_plus_two(web: Web, paths: dict[str, str]) -> None:
    x = np.float32([1.0, 0.1, -3e38, 1e-40])
    wanted = reference(paths["half_plus_two"], {"x": x})["y"]
    got = web.post("/v1/models/half_plus_two:predict", {"instances": x.tolist()})
    assert (got.status, np.float32(got.json["predictions"]).tolist()) == (200, wanted.tolist())


def test_mlp(web: Web, paths: dict[str, str]) -> None:
    x = np.random.default_rng(7).normal(size=(3, 256)).astype(np.float32)
    wanted = reference(paths["mlp"], {"x": x})["y"]
    rows = web.post("/v1/models/mlp:predict", {"instances": [{"x": row} for row in x.tolist()]})
    columns = web.post("/v1/models/mlp/versions/1:predict", {"inputs": x.tolist()})
    np.testing.assert_allclose(np.float32(rows.json["predictions"]), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.float32(columns.json["outputs"]), wanted, rtol=1e-5, atol=1e-5)


def test_string_length(web: Web, paths: dict[str, str]) -> None:
    wanted = reference(paths["string_length"], {"text": np.array([b"abc", b"\xff", "é".encode()], object)})
    got = web.post("/v1/models/string_length:predict", {"inputs": ["abc", {"b64": "/w=="}, "é"]})
    assert got.json == {"outputs": {"length": wanted["length"].tolist(), "upper": ["ABC", {"b64": "/w=="}, "é"]}}


def test_classify_and_regress(web: Web, paths: dict[str, str]) -> None:
    inputs = {"inputs": encode(EXAMPLES)}
    wanted = reference(paths["examples"], inputs)
    got = web.post("/v1/models/examples:classify", {"examples": EXAMPLES}).json["results"]
    assert [[label for label, _ in row] for row in got] == [[c.decode() for c in row] for row in wanted["classes"]]
    assert np.float32([[score for _, score in row] for row in got]).tolist() == wanted["scores"].tolist()
    values = web.post("/v1/models/examples:regress", {"signature_name": "regress", "examples": EXAMPLES})
    regressed = reference(paths["examples"], inputs, "regress")["outputs"].reshape(-1)
    assert np.float32(values.json["results"]).tolist() == regressed.tolist()
    refused = web.post("/v1/models/examples:regress", {"examples": EXAMPLES})
    assert (refused.status, "does not regress" in refused.json["error"]) == (400, True)


def test_metadata(web: Web) -> None:
    found = web.get("/v1/models/mlp/metadata").json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert found["method_name"] == "tensorflow/serving/predict"
    assert found["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}, {"size": "256", "name": ""}]
