"""The Open Inference Protocol through a gateway, over HTTP and gRPC, with fake models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tfpool.protos import oip_pb2
from tfpool.testing.fake_worker import FakePool
from tfpool.testing.fronts import Answer, Web

pytestmark = pytest.mark.process

ROW = np.float32([[1, 2, 3]])
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def channel(front: FakePool) -> Iterator[Any]:
    with grpc.insecure_channel(str(front.settings.server.grpc)) as made:
        grpc.channel_ready_future(made).result(20)
        yield made


def call(channel: Any, method: str, request: Any, answer: Any) -> Any:
    path = f"/{SERVICE}/{method}"
    return answer.FromString(channel.unary_unary(path)(request.SerializeToString(), timeout=20))


def x(array: Any = ROW, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": array.reshape(-1).tolist(), **more}


def infer(web: Web, model: str, **said: Any) -> Answer:
    return web.post(f"/v2/models/{model}/infer", said)


def test_infer(web: Web) -> None:
    answer = infer(web, "double", id="a", inputs=[x()])
    assert answer.json == {
        "id": "a",
        "model_name": "double",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]}],
    }


def test_infer_binary(web: Web) -> None:
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    sent = {"inference-header-content-length": str(len(text))}
    for factor in (1, 2):
        answer = web.ask("POST", "/v2/models/double/infer", text + (ROW * factor).tobytes(), sent)
        length = int(answer.headers["inference-header-content-length"])
        assert answer.headers["content-type"] == "application/octet-stream"
        assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 12}
        assert answer.body[length:] == (ROW * factor * 2).tobytes()


def test_versions_labels_and_signatures(web: Web) -> None:
    said = {"inputs": [x()], "parameters": {"signature": "float32"}}
    paths = {"echo": "2", "echo/versions/1": "1", "echo/versions/stable": "1"}
    found = {path: web.post(f"/v2/models/{path}/infer", said).json["model_version"] for path in paths}
    assert found == paths
    text = x(np.array([["a", "é"]], object), "BYTES")
    answer = infer(web, "echo", inputs=[text], parameters={"signature": "string"})
    assert answer.json["outputs"][0] == {**text, "name": "y"}


def test_several_tensors(web: Web) -> None:
    inputs = [
        {"name": "a", "shape": [2, 3], "datatype": "FP32", "data": [[1, 1, 1], [2, 2, 2]]},
        {"name": "b", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]},
        {"name": "s", "shape": [2], "datatype": "BYTES", "data": ["xy", "z"]},
    ]
    answer = infer(web, "add", inputs=inputs, outputs=[{"name": "text"}, {"name": "sum"}])
    assert [(one["name"], one["data"]) for one in answer.json["outputs"]] == [
        ("text", ["x", "zz"]),
        ("sum", [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]),
    ]


def test_without_rows(web: Web) -> None:
    answer = infer(web, "matrix", inputs=[x(np.eye(3, dtype=np.float32))])
    assert {one["name"]: (one["shape"], one["data"]) for one in answer.json["outputs"]} == {
        "diagonal": ([3], [1.0, 1.0, 1.0]),
        "trace": ([], [3.0]),
    }


@pytest.mark.parametrize(
    ("path", "said", "status", "words"),
    [
        ("nobody", {"inputs": [x()]}, 404, "no model 'nobody'"),
        ("double/versions/7", {"inputs": [x()]}, 404, "version 7"),
        ("double/versions/0", {"inputs": [x()]}, 404, "model 'double' has no version 0"),
        ("echo/versions/nolabel", {"inputs": [x()]}, 404, "no label 'nolabel'"),
        ("echo", {"inputs": [x()]}, 400, "has no signature 'serving_default'"),
        ("double", {"inputs": [x(datatype="FP64")]}, 400, "x"),
        ("double", {"inputs": [x(name="other")]}, 400, "other"),
        ("double", {"inputs": [x()], "outputs": [{"name": "z"}]}, 400, "there is no output 'z'"),
        ("double", {"inputs": []}, 400, "inputs: got none"),
        ("broken", {"inputs": [x()]}, 400, "broken on purpose"),
        ("slow", {"inputs": [x(np.float32([0.2]))], "parameters": {"timeout": 1000}}, 504, ""),
    ],
)
def test_refusals(web: Web, path: str, said: Any, status: int, words: str) -> None:
    answer = web.post(f"/v2/models/{path}/infer", said)
    assert answer.status == status, answer.body
    assert words in answer.json["error"]


def test_a_dtype_without_a_name(web: Web) -> None:
    answer = infer(web, "echo", inputs=[x()], parameters={"signature": "complex64"})
    assert answer.status == 400
    assert web.get("/v2/models/echo?signature=complex64").json["inputs"][0]["datatype"] == "COMPLEX64"


def test_what_there_is_to_know(web: Web) -> None:
    assert web.get("/v2").json["name"] == "tfpool"
    assert web.get("/v2/health/live").json == {"live": True}
    assert web.get("/v2/health/ready").json == {"ready": True}
    echo = web.get("/v2/models/echo/versions/stable?signature=string").json
    assert (echo["versions"], echo["platform"]) == (["1", "2"], "tensorflow_savedmodel")
    assert echo["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1]}]
    config = web.get("/v2/models/double/config").json
    assert (config["max_batch_size"], config["input"]) == (8, [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}])
    config = web.get("/v2/models/matrix/config").json
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [3, 3])
    assert "dynamic_batching" not in config
    assert web.get("/v2/models/echo").status == 400


def test_readiness_of_models(web: Web) -> None:
    paths = ("double", "echo/versions/2", "echo/versions/stable", "broken", "nobody", "echo/versions/9")
    found = [web.get(f"/v2/models/{path}/ready").status for path in paths]
    assert found == [200, 200, 200, 503, 404, 404]


def test_statistics(web: Web) -> None:
    def read() -> Any:
        (one,) = web.get("/v2/models/text/stats").json["model_stats"]
        return one

    before = read()
    said = {"inputs": [{"name": "s", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]}]}
    assert infer(web, "text", **said).status == 200
    after = read()
    assert (after["name"], after["version"]) == ("text", "1")
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    gone = {
        name: kind["count"] - before["inference_stats"][name]["count"]
        for name, kind in after["inference_stats"].items()
    }
    assert (gone["success"], gone["queue"], gone["compute_infer"], gone["fail"]) == (1, 1, 1, 0)
    assert {one["name"] for one in web.get("/v2/models/stats").json["model_stats"]} >= {"text", "double", "broken"}
    assert web.get("/v2/models/echo/versions/1/stats").json["model_stats"][0]["version"] == "1"
    assert web.get("/v2/models/nobody/stats").status == 404


def test_the_repository(web: Web) -> None:
    def rows(said: Any) -> dict[tuple[str, str], tuple[str, str]]:
        found = web.post("/v2/repository/index", said).json
        return {(one["name"], one["version"]): (one["state"], one["reason"]) for one in found}

    assert rows({})["double", "1"] == ("READY", "")
    state, reason = rows({})["broken", "1"]
    assert state == "UNAVAILABLE"
    assert "broken on purpose" in reason
    assert ("broken", "1") not in rows({"ready": True})
    unload = web.post("/v2/repository/models/add/unload", {"parameters": {"unload_dependents": True}})
    assert (unload.status, unload.body) == (200, b"")
    assert web.get("/v2/models/add/ready").status == 503
    assert rows({})["add", "1"] == ("UNAVAILABLE", "unloaded")
    assert web.post("/v2/repository/models/add/load", {}).status == 200
    assert web.get("/v2/models/add/ready").status == 200
    assert web.post("/v2/repository/models/add/load", {"parameters": {"config": "{}"}}).status == 501
    assert web.post("/v2/repository/models/nobody/load", {}).status == 404
    assert web.post("/v2/repository/index", {"ready": 1}).status == 400
    assert web.post("/v2/repository/index", []).status == 400


def test_what_is_not_there(web: Web) -> None:
    assert web.get("/v2/systemsharedmemory/status").json == []
    assert web.get("/v2/cudasharedmemory/region/a/status").status == 404
    assert web.post("/v2/systemsharedmemory/region/a/register", {}).status == 501
    assert web.post("/v2/systemsharedmemory/unregister", {}).status == 200
    assert [web.get(path).status for path in ("/v2/logging", "/v2/models/double/trace/setting")] == [501, 501]


def asked(model: str = "double", array: Any = ROW, **more: Any) -> oip_pb2.ModelInferRequest:
    given = {"name": "x", "datatype": "FP32", "shape": array.shape}
    return oip_pb2.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=[array.tobytes()], **more)


def test_messages(channel: Any) -> None:
    for _ in range(2):
        answer = call(channel, "ModelInfer", asked(), oip_pb2.ModelInferResponse)
        assert (answer.model_name, answer.model_version, answer.outputs[0].name) == ("double", "1", "y")
        assert answer.raw_output_contents[0] == (ROW * 2).tobytes()
    assert call(channel, "ModelInfer", asked(id="7"), oip_pb2.ModelInferResponse).id == "7"


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (asked("nobody"), grpc.StatusCode.NOT_FOUND, "no model 'nobody'"),
        (asked(outputs=[{"name": "z"}]), grpc.StatusCode.INVALID_ARGUMENT, "there is no output 'z'"),
        (asked(model_version="0"), grpc.StatusCode.NOT_FOUND, "has no version 0"),
        (asked("slow", np.float32([0.2]), parameters={"timeout": oip_pb2.InferParameter(int64_param=1000)}),
         grpc.StatusCode.DEADLINE_EXCEEDED, ""),
    ],
)  # fmt: skip
def test_messages_that_are_refused(channel: Any, request_: Any, code: Any, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request_, oip_pb2.ModelInferResponse)
    assert caught.value.code() == code
    assert words in caught.value.details()


def test_no_message_at_all(channel: Any) -> None:
    for method in ("ModelInfer", "ModelMetadata"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff", timeout=20)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_messages_tell(channel: Any) -> None:
    model = oip_pb2.ModelMetadataRequest(name="double")
    metadata = call(channel, "ModelMetadata", model, oip_pb2.ModelMetadataResponse)
    assert (metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == ("FP32", [-1, -1])
    config = call(channel, "ModelConfig", model, oip_pb2.ModelConfigResponse).config
    assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (8, 11, [-1])
    statistics = call(channel, "ModelStatistics", model, oip_pb2.ModelStatisticsResponse)
    assert [one.name for one in statistics.model_stats] == ["double"]
    ready = [
        call(channel, "ModelReady", oip_pb2.ModelReadyRequest(name=name), oip_pb2.ModelReadyResponse).ready
        for name in ("double", "broken", "nobody")
    ]
    assert ready == [True, False, False]
    assert call(channel, "ServerReady", oip_pb2.ServerReadyRequest(), oip_pb2.ServerReadyResponse).ready
    index = call(
        channel, "RepositoryIndex", oip_pb2.RepositoryIndexRequest(ready=True), oip_pb2.RepositoryIndexResponse
    )
    assert {one.state for one in index.models} == {"READY"}


def test_loading_by_message(channel: Any) -> None:
    def ready() -> bool:
        asked = oip_pb2.ModelReadyRequest(name="matrix")
        return bool(call(channel, "ModelReady", asked, oip_pb2.ModelReadyResponse).ready)

    model = oip_pb2.RepositoryModelUnloadRequest(model_name="matrix")
    call(channel, "RepositoryModelUnload", model, oip_pb2.RepositoryModelUnloadResponse)
    assert not ready()
    load = oip_pb2.RepositoryModelLoadRequest(model_name="matrix")
    call(channel, "RepositoryModelLoad", load, oip_pb2.RepositoryModelLoadResponse)
    assert ready()


def test_a_stream(channel: Any) -> None:
    """The slow one comes last, and one that fails does not end it."""
    requests = (
        asked("slow", np.float32([0.3]), id="slow"),
        asked("nobody", id="wrong"),
        *(asked("double", ROW * i, id=str(i)) for i in range(3)),
    )
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    sent = (one.SerializeToString() for one in requests)
    found = [oip_pb2.ModelStreamInferResponse.FromString(data) for data in stream(sent, timeout=20)]
    assert found[-1].infer_response.id == "slow"
    assert {one.infer_response.id: bool(one.error_message) for one in found} == {
        **dict.fromkeys(("0", "1", "2", "slow"), False),
        "wrong": True,
    }
