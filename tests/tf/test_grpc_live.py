"""gRPC and TensorFlow: its own tensors go in and come out, and so do the answers of real models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tfpool.gateway.rpc.requests import PredictReader
from tfpool.gateway.rpc.responses import PredictWriter
from tfpool.protos import inference_pb2, serving_pb2, tensor_pb2
from tfpool.testing.models import DTYPES
from tfpool.testing.reference import Reference

pytestmark = [pytest.mark.process, pytest.mark.tf]
SECONDS = 30.0


@pytest.fixture
def channel(front: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(front.grpc) as made:
        yield made


def ask(channel: grpc.Channel, method: str, request: Any, answer: Any) -> Any:
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    return answer.FromString(call(request.SerializeToString(), timeout=SECONDS))


def request_for(model: str, **inputs: Any) -> inference_pb2.PredictRequest:
    """``inputs`` are TensorFlow's TensorProtos."""
    made = inference_pb2.PredictRequest(model_spec={"name": model})
    for name, proto in inputs.items():
        made.inputs[name].CopyFrom(tensor_pb2.Tensor.FromString(proto.SerializeToString()))
    return made


def theirs(data: bytes) -> dict[str, Any]:
    """The outputs of a PredictResponse, as TensorFlow reads them."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    found = inference_pb2.PredictResponse.FromString(data).outputs
    protos = {name: tensor_pb2.TensorProto.FromString(found[name].SerializeToString()) for name in found}
    return {name: tf.make_ndarray(proto) for name, proto in protos.items()}


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype(name: str) -> None:
    """As one piece, and as a list that is shorter than the tensor."""
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(name)
    values = [[b"a", b"\xff\0"]] if name == "string" else [[0, 1], [1, 1]]
    array = np.array(values, object if name == "string" else dtype.as_numpy_dtype)
    for proto in (tf.make_tensor_proto(array), tf.make_tensor_proto(array[0, 1], dtype, shape=[3, 2])):
        _, inputs = PredictReader().read(request_for("m", x=proto).SerializeToString())
        found = theirs(PredictWriter().write(inputs, (), "m", 1, ""))["x"]
        assert found.tolist() == tf.make_ndarray(proto).tolist()
        assert found.dtype == array.dtype


def test_answers_are_those_of_tensorflow(channel: grpc.Channel, sample_models: dict[str, str]) -> None:
    import tensorflow as tf

    inputs = {
        "half_plus_two": {"x": np.float32([1.0, 0.1, -3e38])},
        "string_length": {"text": np.array([b"abc", b"\xff", b""], object)},
    }
    for model, arrays in inputs.items():
        with Reference(sample_models[model]) as reference:
            wanted = reference.predict(arrays)
        request = request_for(model, **{name: tf.make_tensor_proto(array) for name, array in arrays.items()})
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        found = theirs(call(request.SerializeToString(), timeout=SECONDS))
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in wanted.items()
        }


def test_metadata_as_tensorflow_reads_it(channel: grpc.Channel) -> None:
    from tensorflow.core.protobuf import meta_graph_pb2

    request = serving_pb2.GetModelMetadataRequest(
        model_spec={"name": "string_length"}, metadata_field=["signature_def"]
    )
    answer = ask(channel, "GetModelMetadata", request, serving_pb2.GetModelMetadataResponse)
    held = serving_pb2.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
    data = held.signature_def["serving_default"].SerializeToString()
    found = meta_graph_pb2.SignatureDef.FromString(data)
    assert found.method_name == "tensorflow/serving/predict"
    assert [dim.size for dim in found.inputs["text"].tensor_shape.dim] == [-1]
    assert found.outputs["length"].dtype == 3
