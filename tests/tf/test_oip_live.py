"""Real SavedModels over the Open Inference Protocol."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest

from tfpool.protos import oip_pb2
from tfpool.testing.fronts import Web

pytestmark = [pytest.mark.process, pytest.mark.tf]


def test_real_models(front: Any) -> None:
    """Strings and numbers, as JSON and binary, over HTTP and gRPC."""
    web = Web(front.http)
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ab", "é"]}
    outputs = [{"name": "upper"}, {"name": "length", "parameters": {"binary_data": True}}]
    answer = web.post("/v2/models/string_length/infer", {"inputs": [text], "outputs": outputs})
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["outputs"][0]["data"] == ["AB", "é"]
    assert np.frombuffer(answer.body[length:], np.int32).tolist() == [2, 2]
    tensors = {side: web.get("/v2/models/string_length").json[side] for side in ("inputs", "outputs")}
    assert tensors == {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "length", "datatype": "INT32", "shape": [-1]},
            {"name": "upper", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    web.close()
    x = np.float32([0, 2])
    request = oip_pb2.ModelInferRequest(
        model_name="half_plus_two",
        inputs=[{"name": "x", "datatype": "FP32", "shape": x.shape}],
        raw_input_contents=[x.tobytes()],
    )
    with grpc.insecure_channel(front.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        found = oip_pb2.ModelInferResponse.FromString(ask(request.SerializeToString(), timeout=20))
    assert (found.model_version, found.outputs[0].name) == ("2", "y")
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [3.0, 4.0]
