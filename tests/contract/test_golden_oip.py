"""The Open Inference Protocol's bodies over HTTP and messages over gRPC, written out by hand."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tfpool.gateway.oip import headers
from tfpool.gateway.oip.answers import answer
from tfpool.gateway.oip.infer import Known
from tfpool.gateway.oip.messages import InferReader, stream_answer, stream_error, write
from tfpool.gateway.oip.plan import Plan
from tfpool.gateway.oip.tensors import raw

TWO_FLOATS = struct.pack("<2f", 1.0, -2.0)


def asked(text: str, after: bytes = b"") -> tuple[Plan, dict[str, Any]]:
    plan, sizes = headers.read(text.encode())
    known = Known(plan, sizes, "m", None)
    return plan, known.inputs(text.encode() + after, len(text.encode()))


def test_json_in_and_out() -> None:
    plan, inputs = asked(
        '{"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, -2.0]}]}'
    )
    assert inputs["x"].tolist() == [[1.0, -2.0]]
    assert inputs["x"].dtype == np.float32
    made = answer(plan, "m", 3, {"y": np.float32([[0.1, 1e30, 3]])})
    assert made.body == (
        b'{"id":"7","model_name":"m","model_version":"3","outputs":'
        b'[{"name":"y","datatype":"FP32","shape":[1,3],"data":[0.1,1e+30,3.0]}]}'
    )
    assert made.headers == ((b"content-type", b"application/json"),)


def test_binary_in_and_out() -> None:
    plan, inputs = asked(
        '{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
        '"parameters":{"binary_data_output":true}}',
        TWO_FLOATS,
    )
    assert inputs["x"].tolist() == [1.0, -2.0]
    made = answer(plan, "m", 1, {"y": np.float32([1, -2])})
    head = (
        b'{"model_name":"m","model_version":"1","outputs":'
        b'[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}'
    )
    assert made.body == head + TWO_FLOATS
    assert made.headers == (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", str(len(head)).encode()),
    )


def test_json_beside_binary() -> None:
    """BYTES: each element is its length in four bytes, and its bytes."""
    text = json.dumps(
        {
            "inputs": [
                {"name": "s", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
                {"name": "n", "shape": [2], "datatype": "INT64", "data": [5, -6]},
                {"name": "b", "shape": [2, 1], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
            ],
            "outputs": [{"name": "t", "parameters": {"binary_data": True}}, {"name": "n"}],
        }
    )
    after = bytes.fromhex("02000000 6869  01000000 ff  01 00")
    plan, inputs = asked(text, after)
    assert inputs["s"].tolist() == [b"hi", b"\xff"]
    assert inputs["n"].tolist() == [5, -6]
    assert inputs["b"].tolist() == [[True], [False]]
    outputs = {"n": np.int64([5, -6]), "other": np.zeros(3), "t": np.array([b"hi", b"\xff"], object)}
    made = answer(plan, "m", 1, outputs)
    length = int(dict(made.headers)[b"inference-header-content-length"])
    assert isinstance(made.body, bytes)
    assert made.body[length:] == after[:-2]
    assert json.loads(made.body[:length])["outputs"] == [
        {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        {"name": "n", "datatype": "INT64", "shape": [2], "data": [5, -6]},
    ]


def test_words_that_json_lacks() -> None:
    plan, inputs = asked('{"inputs":[{"name":"x","shape":[3],"datatype":"FP64","data":[NaN, -Infinity, 2]}]}')
    assert str(inputs["x"].tolist()) == "[nan, -inf, 2.0]"
    body = answer(plan, "m", 1, {"y": np.float32([np.nan, 1, np.inf, -np.inf])}).body
    assert isinstance(body, bytes)
    assert body.endswith(b'"data":[NaN,1.0,Infinity,-Infinity]}]}')


def test_classification() -> None:
    plan, _ = asked(
        '{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0]}],'
        '"outputs":[{"name":"y","parameters":{"classification":2}}]}'
    )
    body = answer(plan, "m", 1, {"y": np.float32([[0.25, 0.5, 0.125], [1, 2, 3]])}).body
    assert isinstance(body, bytes)
    assert json.loads(body)["outputs"] == [
        {
            "name": "y",
            "datatype": "BYTES",
            "shape": [2, 2],
            "data": ["0.500000:1", "0.250000:0", "3.000000:2", "2.000000:1"],
        }
    ]


# ModelInferRequest{model_name: "m" model_version: "2" inputs{name: "x" datatype: "FP32" shape: [1, 2]}
#   outputs{name: "y"} raw_input_contents: 1.0 -2.0}
REQUEST = bytes.fromhex(
    "0a 01 6d"  # model_name = 1
    "12 01 32"  # model_version = 2
    "2a 0d  0a 01 78  12 04 46503332  1a 02 01 02"  # inputs = 5: name = 1, datatype = 2, shape = 3
    "32 03  0a 01 79"  # outputs = 6: name = 1
    "3a 08 0000803f 000000c0"  # raw_input_contents = 7
)
# ModelInferResponse{model_name: "m" model_version: "2" outputs{name: "y" datatype: "FP32" shape: [2]}
#   raw_output_contents: 1.0 -2.0}
RESPONSE = bytes.fromhex(
    "0a 01 6d"  # model_name = 1
    "12 01 32"  # model_version = 2
    "2a 0c  0a 01 79  12 04 46503332  1a 01 02"  # outputs = 5: name = 1, datatype = 2, shape = 3
    "32 08 0000803f 000000c0"  # raw_output_contents = 6
)


def test_a_message_and_its_answer() -> None:
    reader = InferReader()
    for _ in range(2):  # as it is read at first, and once its form is known
        found, inputs = reader.read(REQUEST)
        assert found.target[:2] == ("m", 2)
        assert inputs["x"].tolist() == [[1.0, -2.0]]
        outputs = {"other": np.zeros(2), "y": np.float32([1, -2])}
        assert write(found.plan, "m", 2, outputs) == RESPONSE


def test_a_message_with_lists() -> None:
    # ModelInferRequest{model_name: "m" parameters{"signature": {string_param: "s"}} parameters{"priority":
    #   {int64_param: 1}} inputs{name: "x" datatype: "INT8" shape: [2] contents{int_contents: [1, -1]}}}
    data = bytes.fromhex(
        "0a 01 6d"
        "22 10  0a 09 7369676e6174757265  12 03  1a 01 73"  # parameters = 4: key = 1, value = 2 {string_param = 3}
        "22 0e  0a 08 7072696f72697479  12 02  10 01"  # {int64_param = 2}
        "2a 1b  0a 01 78  12 04 494e5438  1a 01 02  2a 0d  12 0b 01 ffffffffffffffffff01"  # contents = 5: int_contents
    )
    found, inputs = InferReader().read(data)
    assert inputs["x"].tolist() == [1, -1]
    assert inputs["x"].dtype == np.int8
    assert found.target.signature == "s"
    assert found.plan.options.priority == 1


def test_stream_messages() -> None:
    assert stream_answer(b"abc") == bytes.fromhex("12 03 616263")  # infer_response = 2
    assert stream_error("no", "7") == bytes.fromhex("0a 02 6e6f  12 03  1a 01 37")  # error_message = 1, id = 3 within


def test_bytes_elements() -> None:
    assert raw(np.array([[b"a"], [b""]], object)) == bytes.fromhex("01000000 61 00000000")
