"""TensorFlow Serving's services without a network: what they answer, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.contract.grpc_line import TRACE, Context, Ended, Line
from tfpool.client.examples import Target
from tfpool.errors import Code, InvalidArgument, ResourceExhausted
from tfpool.gateway.access import Keeper
from tfpool.gateway.http import Access
from tfpool.gateway.rpc import health
from tfpool.gateway.rpc.reflection import pool
from tfpool.gateway.rpc.status import MAX_DETAILS, PUSHBACK, STATUS
from tfpool.gateway.serving import Call
from tfpool.protos import inference_pb2, serving_pb2
from tfpool.settings import GatewaySettings
from tfpool.wire.tensor_proto import set_tensor, to_array


@pytest.fixture(scope="module")
def line() -> Line:
    return Line()


X = np.float32([2, 4])


def test_predict(line: Line) -> None:
    answer = line.predict("half", x=X)
    assert to_array(answer.outputs["y"]).tolist() == [4, 5]
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 2, "serving_default")


def test_a_call_is_traced(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Call] = []
    monkeypatch.setattr(line.desk.gateway, "traces", SimpleNamespace(record=lambda call, *_: calls.append(call)))
    line.predict("half", x=X, seconds=2.0)
    assert calls == [Call(Target("half", 0, "", ""), "predict", "GRPC", 2.0, 0, TRACE)]


@pytest.mark.parametrize(
    ("spec", "version"),
    [({"version": {"value": 1}}, 1), ({"version_label": "stable"}, 1), ({"version_label": "new/est"}, 2)],
)
def test_versions_and_labels(line: Line, spec: dict[str, Any], version: int) -> None:
    request = inference_pb2.PredictRequest(model_spec=inference_pb2.ModelSpec(name="half", **spec))
    set_tensor(request.inputs["x"], X)
    data = line.ask("PredictionService/Predict", request.SerializeToString())
    assert inference_pb2.PredictResponse.FromString(data).model_spec.version.value == version


def spec(**fields: Any) -> inference_pb2.ModelSpec:
    return inference_pb2.ModelSpec(**fields)


NOT_FOUND, INVALID, FAILED = StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
REFUSALS = [
    (spec(name="none"), NOT_FOUND, "Servable not found for request: Latest(none)"),
    (spec(name="half", version={"value": 9}), NOT_FOUND, "Servable not found for request: Specific(half, 9)"),
    (spec(name="half", version={"value": 0}), NOT_FOUND, "Servable not found for request: Specific(half, 0)"),
    (spec(name="half", version={"value": -3}), NOT_FOUND, "Servable not found for request: Specific(half, -3)"),
    (spec(name="half", version_label="none"), INVALID, "Unrecognized servable version label: none"),
    (spec(), INVALID, "ModelSpec has no name specified."),
    (None, INVALID, "Missing ModelSpec"),
]


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
@pytest.mark.parametrize(("where", "code", "details"), REFUSALS)
def test_what_is_not_there(line: Line, method: str, where: Any, code: StatusCode, details: str) -> None:
    example = inference_pb2.Input(example_list={"examples": [{}]})
    request: Any
    if method == "MultiInference":
        task = inference_pb2.InferenceTask(model_spec=where, method_name="tensorflow/serving/classify")
        request = inference_pb2.MultiInferenceRequest(tasks=[task], input=example)
        details = details.replace("Missing ModelSpec", "ModelSpec has no name specified.")
    elif method == "GetModelMetadata":
        request = serving_pb2.GetModelMetadataRequest(model_spec=where, metadata_field=["signature_def"])
    elif method == "Predict":
        request = inference_pb2.PredictRequest(model_spec=where)
        set_tensor(request.inputs["x"], X)
    else:
        request = inference_pb2.ClassificationRequest(model_spec=where, input=example)
    with pytest.raises(Ended) as ended:
        line.ask(f"PredictionService/{method}", request.SerializeToString())
    assert (ended.value.code, ended.value.details) == (code, details)


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress"])
def test_a_signature_that_is_not_there(line: Line, method: str) -> None:
    """For Predict, and only that, the pool is not as the request needs it, rather than the request wrong."""
    request: Any = inference_pb2.PredictRequest(model_spec=spec(name="half", signature_name="none"))
    set_tensor(request.inputs["x"], X)
    if method != "Predict":
        examples = inference_pb2.Input(example_list={"examples": [{}]})
        request = inference_pb2.ClassificationRequest(model_spec=request.model_spec, input=examples)
    with pytest.raises(Ended, match="has no signature 'none'") as ended:
        line.ask(f"PredictionService/{method}", request.SerializeToString())
    assert ended.value.code is (FAILED if method == "Predict" else INVALID)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"z": X}, "z"),
        ({}, "x"),
        ({"x": X.astype(np.int32)}, "int32"),
        ({"x": X.reshape(1, 2)}, "shape"),
    ],
)
def test_inputs_that_do_not_suit(line: Line, inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(Ended, match=text) as ended:
        line.predict("half", **inputs)
    assert ended.value.code is INVALID


METHODS = [
    *(f"PredictionService/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")),
    *(f"ModelService/{name}" for name in ("GetModelStatus", "HandleReloadConfigRequest")),
    "grpc.health.v1.Health/Check",
]
GARBAGE = [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x04\x0a\x0a", b"\x0a\x01\xff"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "request_", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x04\x0a\x0a", b"\x0a\x03\x0a\x01\xff"]
)
def test_garbage(line: Line, method: str, request_: bytes) -> None:
    with pytest.raises(Ended, match="the request is no ") as ended:
        line.ask(method, request_)
    assert ended.value.code is INVALID


def test_methods_that_are_not_there(line: Line) -> None:
    for method in ("PredictionService/Nothing", "Nothing/Predict"):
        with pytest.raises(Ended) as ended:
            line.ask(method)
        assert ended.value.code is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("tasks", "code"),
    [
        ([], INVALID),
        ([("features", "", "predict")], StatusCode.UNIMPLEMENTED),
        ([("features", "", "classify"), ("half", "", "classify")], INVALID),
        ([("features", "", "classify"), ("", "", "classify")], INVALID),
        ([("features", "", "classify"), ("features", "serving_default", "classify")], INVALID),
        ([("features", "", "classify"), ("features", "", "regress")], INVALID),
        ([("features", "", "classify"), ("features", "none", "regress")], INVALID),
        ([("features", "regress", "classify")], INVALID),
    ],
)
def test_tasks_that_do_not_go_together(line: Line, tasks: Any, code: StatusCode) -> None:
    request = inference_pb2.MultiInferenceRequest(input={"example_list": {"examples": [{}]}})
    for model, signature, method in tasks:
        request.tasks.add(
            model_spec=spec(name=model, signature_name=signature), method_name=f"tensorflow/serving/{method}"
        )
    with pytest.raises(Ended) as ended:
        line.ask("PredictionService/MultiInference", request.SerializeToString())
    assert ended.value.code is code


@pytest.mark.parametrize("method", ["Classify", "Regress", "MultiInference"])
def test_no_examples(line: Line, method: str) -> None:
    request: Any = inference_pb2.ClassificationRequest(model_spec=spec(name="features"))
    if method == "MultiInference":
        request = inference_pb2.MultiInferenceRequest()
        request.tasks.add(model_spec=spec(name="features"), method_name="tensorflow/serving/classify")
    with pytest.raises(Ended, match="Input is empty") as ended:
        line.ask(f"PredictionService/{method}", request.SerializeToString())
    assert ended.value.code is INVALID


def test_the_context_is_for_every_example(line: Line) -> None:
    request = inference_pb2.RegressionRequest(model_spec=spec(name="features", signature_name="regress"))
    listed = request.input.example_list_with_context
    listed.context.features.feature["n"].int64_list.value.append(5)
    listed.examples.add().features.feature["x"].float_list.value.append(1)
    listed.examples.add().features.feature["n"].int64_list.value.append(1)
    data = line.ask("PredictionService/Regress", request.SerializeToString())
    assert [one.value for one in inference_pb2.RegressionResponse.FromString(data).result.regressions] == [6, 1]


@pytest.mark.parametrize("fields", [[], ["signature"], ["signature_def", "other"]])
def test_metadata_fields(line: Line, fields: list[str]) -> None:
    request = serving_pb2.GetModelMetadataRequest(model_spec=spec(name="half"), metadata_field=fields)
    with pytest.raises(Ended) as ended:
        line.ask("PredictionService/GetModelMetadata", request.SerializeToString())
    assert ended.value.code is INVALID


def test_metadata_of_an_open_rank(line: Line) -> None:
    request = serving_pb2.GetModelMetadataRequest(model_spec=spec(name="echo"), metadata_field=["signature_def"])
    data = line.ask("PredictionService/GetModelMetadata", request.SerializeToString())
    held = serving_pb2.GetModelMetadataResponse.FromString(data).metadata["signature_def"].value
    found = serving_pb2.SignatureDefMap.FromString(held).signature_def
    assert found["bfloat16"].inputs["x"].dtype == 14
    assert found["bfloat16"].inputs["x"].tensor_shape.unknown_rank


@pytest.mark.parametrize(
    ("where", "code", "details"),
    [
        (spec(name="none"), NOT_FOUND, "Could not find any versions of model none"),
        (spec(name="half", version={"value": 9}), NOT_FOUND, "Could not find version 9 of model half"),
        (spec(name="half", version={"value": 0}), NOT_FOUND, "Could not find version 0 of model half"),
        (None, INVALID, "Missing ModelSpec"),
    ],
)
def test_status_of_what_is_not_there(line: Line, where: Any, code: StatusCode, details: str) -> None:
    request = serving_pb2.GetModelStatusRequest(model_spec=where)
    with pytest.raises(Ended) as ended:
        line.ask("ModelService/GetModelStatus", request.SerializeToString())
    assert (ended.value.code, ended.value.details) == (code, details)


def reload_request(*models: Any, **config: Any) -> bytes:
    request = serving_pb2.ReloadConfigRequest(**config)
    for model in models:
        request.config.model_config_list.config.add(**model)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (reload_request(), "config: got none, expected model_config_list"),
        (reload_request(config={"custom_model_config": {}}), "config: got custom_model_config, expected"),
        (reload_request({"name": "m", "base_path": "m"}), "base_path: got 'm', expected an absolute path"),
        (reload_request({"base_path": "/m"}), "name"),
        (reload_request({"name": "m"}), "base_path"),
        (reload_request({"name": "m", "base_path": "/m", "model_platform": "other"}), "model_platform: got 'other'"),
        (reload_request({"name": "m", "base_path": "/m", "model_type": 2}), "model_type: got OTHER"),
    ],
)
def test_configs_that_cannot_be(line: Line, request_: bytes, text: str) -> None:
    with pytest.raises(Ended, match=text) as ended:
        line.ask("ModelService/HandleReloadConfigRequest", request_)
    assert ended.value.code is INVALID


# -- errors --------------------------------------------------------------------------------------------------------


def test_the_code_of_every_error(line: Line) -> None:
    assert {code.name: status.name for code, status in STATUS.items()} == {code.name: code.name for code in Code}
    for code in (7, 8, 9, 13, 14):
        with pytest.raises(Ended, match="told so") as ended:
            line.predict("fails", code=np.int32([code]))
        assert ended.value.code.value[0] == code
        assert ended.value.trailers == ({PUSHBACK: "2500"} if code == 8 else {})


def test_an_exception_that_nobody_expected(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(line.desk.client, "submit", fail)
        with pytest.raises(Ended, match="KeyError: 'a bug'") as ended:
            line.predict("half", x=X)
    assert ended.value.code is StatusCode.INTERNAL
    assert line.predict("half", x=X).outputs


def test_a_long_message_is_cut(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ResourceExhausted("\N{SNOWMAN}" * MAX_DETAILS)

    monkeypatch.setattr(line.desk.client, "submit", fail)
    with pytest.raises(Ended) as ended:
        line.predict("half", x=X)
    assert MAX_DETAILS - 3 <= len(ended.value.details.encode()) <= MAX_DETAILS


@pytest.mark.parametrize(("seconds", "timeout"), [(None, None), (1.5, 1.5), (-1.0, 0.001), (1e12, 86_399.0)])
def test_deadlines(line: Line, monkeypatch: pytest.MonkeyPatch, seconds: float | None, timeout: float | None) -> None:
    seen: list[Any] = []

    def submit(*_: Any, **options: Any) -> None:
        seen.append(options["timeout"])
        raise InvalidArgument("enough")

    monkeypatch.setattr(line.desk.client, "submit", submit)
    with pytest.raises(Ended, match="enough"):
        line.predict("half", seconds=seconds, x=X)
    assert seen == [timeout]


# -- who may ---------------------------------------------------------------------------------------------------------

NEEDED = {
    "PredictionService/Predict": Access.PREDICT,
    "PredictionService/Classify": Access.PREDICT,
    "PredictionService/Regress": Access.PREDICT,
    "PredictionService/MultiInference": Access.PREDICT,
    "PredictionService/GetModelMetadata": Access.MONITOR,
    "ModelService/GetModelStatus": Access.MONITOR,
    "ModelService/HandleReloadConfigRequest": Access.ADMIN,
}


@pytest.mark.parametrize("method", NEEDED)
@pytest.mark.parametrize("access", [None, *Access])
def test_access(line: Line, method: str, access: Access | None) -> None:
    with pytest.raises(Ended) as ended:
        line.ask(method, b"\xff", says=access.name if access is not None else "")
    if access is None:
        assert ended.value.code is StatusCode.UNAUTHENTICATED
    else:
        assert ended.value.code is (INVALID if access >= NEEDED[method] else StatusCode.PERMISSION_DENIED)


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.touch(0o600)
    file.write_text("predict call-" + "b" * 20)
    line = Line(Keeper(GatewaySettings(tokens=str(file))))
    status = serving_pb2.GetModelStatusRequest(model_spec=spec(name="half")).SerializeToString()
    assert line.ask("ModelService/GetModelStatus", status, says="Bearer call-" + "b" * 20)
    with pytest.raises(Ended) as ended:
        line.ask("ModelService/HandleReloadConfigRequest", says="Bearer call-" + "b" * 20)
    assert ended.value.code is StatusCode.PERMISSION_DENIED
    for says in ("", "Bearer call-" + "c" * 20, "Bearer \N{SNOWMAN}"):
        with pytest.raises(Ended) as ended:
            line.ask("ModelService/GetModelStatus", status, says=says)
        assert ended.value.code is StatusCode.UNAUTHENTICATED


# -- health and reflection -------------------------------------------------------------------------------------------

SERVING = health_pb2.HealthCheckResponse.SERVING


def checked(line: Line, name: str) -> int:
    data = line.ask("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service=name).SerializeToString())
    return int(health_pb2.HealthCheckResponse.FromString(data).status)


def test_health_of_a_model(line: Line) -> None:
    assert checked(line, "half") == SERVING
    with pytest.raises(Ended) as ended:
        checked(line, "none")
    assert ended.value.code is NOT_FOUND


def test_health_of_the_pool_is_for_everybody_and_that_of_models_is_not(line: Line) -> None:
    for name in ("", "tensorflow.serving.PredictionService"):
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        assert line.ask("grpc.health.v1.Health/Check", request, says="")
    for name in ("half", "none"):
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        with pytest.raises(Ended) as ended:
            line.ask("grpc.health.v1.Health/Check", request, says="")
        assert ended.value.code is StatusCode.UNAUTHENTICATED


def test_watching_what_is_not_there(line: Line) -> None:
    request = health_pb2.HealthCheckRequest(service="none").SerializeToString()
    (data,) = line.listen("grpc.health.v1.Health/Watch", request, 1, says="MONITOR")
    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert health_pb2.HealthCheckResponse.FromString(data).status == unknown


def test_a_watch_ends_with_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WATCH_SECONDS", 0.0)
    line = Line()
    request = health_pb2.HealthCheckRequest(service="half").SerializeToString()
    answers = health.Health(line.desk.gateway, Keeper(GatewaySettings()), ()).watch(request, Context(None, ()))

    async def watch() -> list[int]:
        found = []
        async for data in answers:
            found.append(health_pb2.HealthCheckResponse.FromString(data).status)
            line.desk.gateway.draining = True
        return found

    assert asyncio.run(watch()) == [SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(line: Line, version: str) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        yield reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="tensorflow.serving.PredictionService"
        ).SerializeToString()

    listed, found = map(
        reflection_pb2.ServerReflectionResponse.FromString,
        line.listen(f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", requests(), 2),
    )
    names = {service.name for service in listed.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names
    assert len(found.file_descriptor_response.file_descriptor_proto) > 5


def test_names_that_everybody_knows() -> None:
    known = pool()
    predict = known.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name["Predict"]
    value = predict.input_type.fields_by_name["inputs"].message_type.fields_by_name["value"].message_type
    assert (predict.input_type.full_name, value.full_name) == (
        "tensorflow.serving.PredictRequest",
        "tensorflow.TensorProto",
    )
    assert value.fields_by_name["dtype"].enum_type.full_name == "tensorflow.DataType"
    assert value.fields_by_name["tensor_shape"].message_type.full_name == "tensorflow.TensorShapeProto"
    assert known.FindServiceByName("inference.GRPCInferenceService")
    with pytest.raises(KeyError):
        known.FindMessageTypeByName("tfpool.PredictRequest")
