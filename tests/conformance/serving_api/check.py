"""TensorFlow Serving's own Python stubs against a pool: ``check.py HTTP_ADDRESS GRPC_ADDRESS MODELS``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from grpc import StatusCode
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

SECONDS = 30.0
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
CHECKS: list[Callable[[Server], None]] = []


class Server:
    """The stubs of both services, and where the models lie."""

    def __init__(self, channel: grpc.Channel, models: str) -> None:
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.directory = models

    def predict(self, model: str, signature: str = "", outputs: tuple[str, ...] = (), **inputs: Any) -> dict[str, Any]:
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            tensor = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value)
            request.inputs[name].CopyFrom(tensor)
        answer = self.prediction.Predict(request, timeout=SECONDS)
        assert answer.model_spec.name == model
        assert answer.model_spec.version.value == 1
        assert answer.model_spec.signature_name == (signature or "serving_default")
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def check(function: Callable[[Server], None]) -> Callable[[Server], None]:
    CHECKS.append(function)
    return function


def refused(call: Callable[[], Any], code: StatusCode, text: str = "") -> None:
    found = None
    try:
        call()
    except grpc.RpcError as error:
        found = error
    assert found is not None, f"nothing was raised, expected {code}"
    assert found.code() is code, (found.code(), found.details())
    assert text in found.details(), found.details()


def example(**features: Any) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        kind = made.features.feature[name]
        if isinstance(value, bytes):
            kind.bytes_list.value.append(value)
        elif isinstance(value, int):
            kind.int64_list.value.append(value)
        else:
            kind.float_list.value.extend(value)
    return made


EXAMPLES = (example(x=[1, 2, 3], word=b"hello", n=4), example(x=[0.5, 0, 0]))


@check
def predict_as_content(server: Server) -> None:
    x = np.arange(512, dtype=np.float32).reshape(2, 256)
    y = server.predict("mlp", x=x)["y"]
    assert y.shape == (2, 128)
    assert y.dtype == np.float32
    assert np.allclose(server.predict("mlp", x=x[:1])["y"], y[:1], rtol=1e-4)


@check
def predict_as_list(server: Server) -> None:
    x = TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0, 2.0, 5.0])
    x.tensor_shape.dim.add(size=3)
    assert server.predict("half_plus_two", x=x)["y"].tolist() == [2.5, 3.0, 4.5]
    del x.float_val[1:]  # the last value of a short list stands for all that follow
    assert server.predict("half_plus_two", x=x)["y"].tolist() == [2.5, 2.5, 2.5]


@check
def outputs_are_lists(server: Server) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    assert server.prediction.Predict(request, timeout=SECONDS).outputs["y"].float_val == [2.5]


@check
def every_dtype(server: Server) -> None:
    values: dict[str, Any] = {
        "bool": [[True, False], [False, True]],
        "string": [[b"a", b""], [b"\xff\x00", "\N{SNOWMAN}".encode()]],
    }
    for name in ("complex64", "complex128"):
        values[name] = [[1 + 2j, -3j], [0, 1e-3]]
    for name in ("float16", "float32", "float64", "bfloat16", "float8_e5m2", "float8_e4m3fn"):
        values[name] = [[0.5, -1.75], [0.0, 1.0]]
    for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"):
        dtype = tf.dtypes.as_dtype(name)
        values[name] = [[dtype.min, dtype.max], [0, 7]]
    for name, value in values.items():
        dtype = tf.dtypes.as_dtype(name)
        x = np.array(value, object if name == "string" else dtype.as_numpy_dtype)
        y = server.predict("dtypes", signature=name, x=tf.make_tensor_proto(x, dtype=dtype))["y"]
        assert y.tolist() == x.tolist(), (name, y, x)


@check
def strings(server: Server) -> None:
    found = server.predict("string_length", text=np.array([b"abc", b""], object))
    assert found["length"].tolist() == [3, 0]
    assert found["upper"].tolist() == [b"ABC", b""]


@check
def output_filter(server: Server) -> None:
    assert list(server.predict("string_length", outputs=("length",), text=[b"abc"])) == ["length"]
    refused(
        lambda: server.predict("string_length", outputs=("nothing",), text=[b"abc"]),
        StatusCode.INVALID_ARGUMENT,
        "nothing",
    )


@check
def versions(server: Server) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    request.model_spec.version.value = 1
    assert server.prediction.Predict(request, timeout=SECONDS).model_spec.version.value == 1
    request.model_spec.version.value = 9
    message = "Servable not found for request: Specific(half_plus_two, 9)"
    refused(lambda: server.prediction.Predict(request, timeout=SECONDS), StatusCode.NOT_FOUND, message)
    request.model_spec.version_label = "none"
    message = "Unrecognized servable version label: none"
    refused(lambda: server.prediction.Predict(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT, message)


@check
def bad_requests(server: Server) -> None:
    refused(
        lambda: server.predict("nobody", x=[1.0]),
        StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(nobody)",
    )
    refused(lambda: server.predict("", x=[1.0]), StatusCode.INVALID_ARGUMENT)
    refused(lambda: server.predict("half_plus_two", "nothing", x=[1.0]), StatusCode.FAILED_PRECONDITION, "nothing")
    refused(lambda: server.predict("half_plus_two", z=[1.0]), StatusCode.INVALID_ARGUMENT)
    refused(lambda: server.predict("half_plus_two", x=[1]), StatusCode.INVALID_ARGUMENT)
    refused(lambda: server.predict("mlp", x=np.zeros((1, 255), np.float32)), StatusCode.INVALID_ARGUMENT)
    short = tf.make_tensor_proto(np.zeros((1, 256), np.float32))
    short.tensor_content = short.tensor_content[:-1]
    refused(lambda: server.predict("mlp", x=short), StatusCode.INVALID_ARGUMENT)
    refused(
        lambda: server.prediction.Predict(predict_pb2.PredictRequest(), timeout=SECONDS),
        StatusCode.INVALID_ARGUMENT,
        "Missing ModelSpec",
    )


@check
def deadline(server: Server) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mlp"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros((4096, 256), np.float32)))
    refused(lambda: server.prediction.Predict(request, timeout=0.0005), StatusCode.DEADLINE_EXCEEDED)


@check
def classify(server: Server) -> None:
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "examples"
    request.input.example_list.examples.extend(EXAMPLES)
    answer = server.prediction.Classify(request, timeout=SECONDS)
    found = [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]
    assert found == [[("sum", 6.0), ("n", 4.0), ("hello", 5.0)], [("sum", 0.5), ("n", 0.0), ("none", 4.0)]]
    assert answer.model_spec.version.value == 1
    request.model_spec.signature_name = "regress"
    refused(lambda: server.prediction.Classify(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT)
    request.model_spec.signature_name = "nothing"
    refused(lambda: server.prediction.Classify(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT)
    request.model_spec.signature_name = ""
    request.input.Clear()
    refused(lambda: server.prediction.Classify(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT, "Input is empty")


@check
def regress(server: Server) -> None:
    for signature in ("regress", "regress_flat"):
        request = regression_pb2.RegressionRequest()
        request.model_spec.name = "examples"
        request.model_spec.signature_name = signature
        request.input.example_list_with_context.examples.extend(EXAMPLES)
        request.input.example_list_with_context.context.CopyFrom(example(n=10))
        answer = server.prediction.Regress(request, timeout=SECONDS)
        assert [one.value for one in answer.result.regressions] == [10.0, 10.5]
        assert answer.model_spec.signature_name == signature


@check
def multi_inference(server: Server) -> None:
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in (("serving_default", "classify"), ("regress", "regress")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "examples"
        task.model_spec.signature_name = signature
    request.input.example_list.examples.extend(EXAMPLES)
    first, second = server.prediction.MultiInference(request, timeout=SECONDS).results
    assert first.classification_result.classifications[0].classes[2].label == "hello"
    assert [one.value for one in second.regression_result.regressions] == [10.0, 0.5]
    assert (first.model_spec.signature_name, second.model_spec.signature_name) == ("serving_default", "regress")
    request.tasks[1].model_spec.name = "half_plus_two"
    refused(lambda: server.prediction.MultiInference(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT)
    del request.tasks[1:]
    request.tasks[0].method_name = "tensorflow/serving/predict"
    refused(lambda: server.prediction.MultiInference(request, timeout=SECONDS), StatusCode.UNIMPLEMENTED)


@check
def metadata(server: Server) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "string_length"
    answer = server.prediction.GetModelMetadata(request, timeout=SECONDS)
    assert answer.model_spec.version.value == 1
    found = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    signature = found.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert signature.inputs["text"].dtype == tf.string.as_datatype_enum
    assert [dim.size for dim in signature.inputs["text"].tensor_shape.dim] == [-1]
    assert signature.outputs["length"].dtype == tf.int32.as_datatype_enum
    del request.metadata_field[:]
    refused(lambda: server.prediction.GetModelMetadata(request, timeout=SECONDS), StatusCode.INVALID_ARGUMENT)


@check
def status(server: Server) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mlp"
    (found,) = server.models.GetModelStatus(request, timeout=SECONDS).model_version_status
    assert (found.version, found.state, found.status.error_code, found.status.error_message) == (1, AVAILABLE, 0, "")
    request.model_spec.version.value = 7
    refused(lambda: server.models.GetModelStatus(request, timeout=SECONDS), StatusCode.NOT_FOUND)
    request.model_spec.name = "nobody"
    refused(lambda: server.models.GetModelStatus(request, timeout=SECONDS), StatusCode.NOT_FOUND)


@check
def reload(server: Server) -> None:
    names = ("half_plus_two", "mlp", "examples", "string_length", "dtypes")

    def config(extra: str = "") -> model_management_pb2.ReloadConfigRequest:
        text = "".join(f'config {{ name: "{n}" base_path: "{server.directory}/{n}" }}' for n in names) + extra
        made = text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())
        return model_management_pb2.ReloadConfigRequest(config=made)

    def tell(request: model_management_pb2.ReloadConfigRequest) -> Any:
        return server.models.HandleReloadConfigRequest(request, timeout=SECONDS)

    place = f"{server.directory}/half_plus_two"
    again = f'config {{ name: "again" base_path: "{place}" version_labels {{ key: "l" value: 1 }} }}'
    assert tell(config(again)).status.error_code == 0
    assert server.predict("again", x=[1.0])["y"].tolist() == [2.5]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "again"
    request.model_spec.version_label = "l"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    assert server.prediction.Predict(request, timeout=SECONDS).model_spec.version.value == 1
    assert tell(config()).status.error_code == 0
    refused(lambda: server.predict("again", x=[1.0]), StatusCode.NOT_FOUND)
    refused(lambda: tell(config('config { name: "r" base_path: "relative" }')), StatusCode.INVALID_ARGUMENT)
    refused(lambda: tell(config('config { name: "mlp" base_path: "/twice" }')), StatusCode.INVALID_ARGUMENT)
    refused(lambda: tell(model_management_pb2.ReloadConfigRequest()), StatusCode.INVALID_ARGUMENT)


def main(grpc_address: str, models: str) -> int:
    failed = 0
    with grpc.insecure_channel(grpc_address) as channel:
        server = Server(channel, models)
        for one in CHECKS:
            try:
                one(server)
                print(f"  ok      {one.__name__}")
            except Exception:
                failed += 1
                print(f"  FAILED  {one.__name__}\n{traceback.format_exc()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[2:4]))
