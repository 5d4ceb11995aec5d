"""Bodies of requests to arrays and back, beside the parsers alone and numpy."""

from __future__ import annotations

import numpy as np
import orjson

from bench.micro.pair import Pair, timed
from tfpool.gateway.rpc.requests import PredictReader, parse
from tfpool.gateway.tfs import decode, encode
from tfpool.protos import inference_pb2
from tfpool.types import DType, TensorSpec
from tfpool.wire.tensor_proto import set_tensor
from tfpool.wire.tensors import Array

ROWS, COLUMNS = 32, 256


def pairs() -> list[Pair]:
    """JSON and protobuf, 32 rows of 256 floats; elements as one piece and as a list of numbers."""
    rows = np.random.default_rng(7).standard_normal((ROWS, COLUMNS), np.float32)
    text = orjson.dumps({"instances": rows.tolist()})
    specs = {"x": TensorSpec("x", DType.FLOAT, (-1, COLUMNS))}
    reader, piece, numbers = PredictReader(), _request(rows, False), _request(rows, True)
    return [
        Pair(
            "JSON in",
            timed(lambda: decode.arrays(decode.parse(text), specs)),
            timed(lambda: np.array(orjson.loads(text)["instances"], np.float32)),
        ),
        Pair(
            "JSON out",
            timed(lambda: encode.rows({"y": rows})),
            timed(lambda: orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)),
        ),
        Pair(
            "a TensorProto in",
            timed(lambda: reader.read(piece)),
            timed(lambda: _content(piece)),
        ),
        Pair(
            "a TensorProto of numbers in",
            timed(lambda: parse(numbers)),
            timed(lambda: _listed(numbers)),
        ),
    ]


def _request(rows: Array, listed: bool) -> bytes:
    request = inference_pb2.PredictRequest()
    request.model_spec.name = "mlp"
    tensor = request.inputs["x"]
    set_tensor(tensor, rows)
    if listed:
        tensor.ClearField("tensor_content")
        tensor.float_val.extend(rows.ravel().tolist())
    return request.SerializeToString()


def _content(data: bytes) -> Array:
    tensor = inference_pb2.PredictRequest.FromString(data).inputs["x"]
    return np.frombuffer(tensor.tensor_content, np.float32).reshape(ROWS, COLUMNS)


def _listed(data: bytes) -> Array:
    tensor = inference_pb2.PredictRequest.FromString(data).inputs["x"]
    return np.array(tensor.float_val, np.float32).reshape(ROWS, COLUMNS)
