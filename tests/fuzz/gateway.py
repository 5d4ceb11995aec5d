"""What the gateway reads from the network; see :mod:`tests.fuzz.targets`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from tfpool.errors import TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.http import Access, HttpError, Request, Response, route
from tfpool.gateway.oip import headers, infer
from tfpool.gateway.oip.messages import InferReader
from tfpool.gateway.reading import Reader, Turn
from tfpool.gateway.rpc.requests import PredictReader
from tfpool.gateway.tfs import decode
from tfpool.protos import inference_pb2, oip_pb2
from tfpool.settings import GatewaySettings
from tfpool.types import DType, TensorSpec

_SPECS = {
    "x": TensorSpec("x", DType.FLOAT, (-1, 2)),
    "s": TensorSpec("s", DType.STRING, (-1,)),
    "n": TensorSpec("n", DType.UINT8, None),
}


# -- HTTP ----------------------------------------------------------------------------------------------------------


async def _answer(request: Request) -> Response:
    raise AssertionError(request)


class _Server:
    """What a reader needs of one."""

    now = 0.0
    settings = GatewaySettings(max_body=1000)
    app = App(
        settings,
        Keeper(settings),
        (route("GET", "/a", _answer, Access.OPEN), route("POST", "/b", _answer, Access.OPEN)),
    )
    budget = app.budget


class _Reader(Reader):
    def __init__(self) -> None:
        super().__init__(_Server())  # type: ignore[arg-type]
        self.turns: list[object] = []
        self.refused = False

    def _queue(self, turn: Turn) -> None:
        refused = isinstance(turn.asked, Response)
        self.refused |= refused
        self.turns.append(("refused" if refused else turn.asked, turn.keep))  # of two reasons either may be seen first

    def _welcome(self) -> None:
        self.turns.append("continue")


def http(data: bytes) -> None:
    """Requests are the same in whatever pieces they come."""
    whole, pieces = _Reader(), _Reader()
    whole._read(data)
    for i in range(len(data)):
        pieces._read(data[i : i + 1])
    assert whole.turns == pieces.turns
    with suppress(HttpError):
        if whole.refused:
            raise HttpError(400, "")


# -- bodies --------------------------------------------------------------------------------------------------------


def rest(data: bytes) -> None:
    """TensorFlow Serving's JSON."""
    with suppress(TfpoolError):
        body = decode.parse(data)
        decode.signature_name(body)
        if "examples" in body:
            assert all(type(one) is bytes for one in decode.examples(body))
        else:
            names = [name for name in _SPECS if f'"{name}"'.encode() in data] or ["x"]
            found, _ = decode.arrays(body, {name: _SPECS[name] for name in names})
            assert all(array.dtype == np.dtype(object) or array.size >= 0 for array in found.values())


def open_inference(data: bytes) -> None:
    """The Open Inference Protocol's JSON, with what lies behind it; its length comes first."""
    with suppress(TfpoolError):
        at = headers.header_length(data[:3], len(data) - 3)
        known = infer.Known(*headers.read(data[3 : 3 + at]), "m", None)
        known.inputs(data[3:], at)


def grpc_predict(data: bytes) -> None:
    _twice(PredictReader(), data)


def grpc_infer(data: bytes) -> None:
    _twice(InferReader(), data)


def _twice(reader: PredictReader | InferReader, data: bytes) -> None:
    """What is known of a request the second time changes nothing."""
    with suppress(TfpoolError):
        asked, inputs = reader.read(data)
        again, same = reader.read(data)
        assert repr(asked) == repr(again)
        assert {name: array.tobytes() for name, array in inputs.items() if array.dtype != object} == {
            name: array.tobytes() for name, array in same.items() if array.dtype != object
        }


# -- seeds ---------------------------------------------------------------------------------------------------------

_GET, _POST = b"GET /a HTTP/1.1\r\nHost: a\r\n", b"POST /b HTTP/1.1\r\nHost: a\r\n"
_HTTP = (
    _GET + b"\r\n" + _GET + b"Connection: close\r\n\r\n",
    _POST + b"Content-Length: 5\r\n\r\nhello" + _GET + b"\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n" + _GET + b"\r\n",
    _POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello" + _GET + b"\r\n",
    _POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"HEAD http://a/a?b HTTP/1.0\r\nContent-Encoding: gzip\r\n\r\n",
)
_REST = (
    b'{"instances": [[1.0, 2.5e-3], [NaN, -Infinity]], "signature_name": "other"}',
    b'{"instances": [{"x": [1, 2], "s": {"b64": "aGk="}}, {"x": [3, 4], "s": "ho"}]}',
    b'{"inputs": {"x": [[1, 2]], "n": [[0, 255]]}}',
    b'{"examples": [{"a": 1, "b": ["x", {"b64": "aGk="}]}], "context": {"c": 0.5}}',
)
_RAW = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
_LISTED = (
    b'{"id":"7","inputs":[{"name":"s","datatype":"BYTES","shape":[2],"data":["a","b"]}],'
    b'"outputs":[{"name":"y","parameters":{"binary_data":true}}],"parameters":{"priority":1,"timeout":9}}'
)
_OIP = (b"%03d" % len(_RAW) + _RAW + bytes(8), b"%03d" % len(_LISTED) + _LISTED)


def _predict() -> tuple[bytes, bytes]:
    request = inference_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version.value = "m", 3
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add().size = 2
    request.inputs["x"].tensor_content = struct.pack("<2f", 1, 2)
    raw = request.SerializeToString()
    request.inputs["s"].dtype = 7
    request.inputs["s"].tensor_shape.dim.add().size = 1
    request.inputs["s"].string_val.append(b"hi")
    return raw, request.SerializeToString()


def _infer() -> tuple[bytes, bytes]:
    listed, raw = oip_pb2.ModelInferRequest(model_name="m"), oip_pb2.ModelInferRequest(model_name="m")
    for request in (listed, raw):
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    listed.inputs[0].contents.fp32_contents.extend([1, 2])
    raw.raw_input_contents.append(struct.pack("<2f", 1, 2))
    return listed.SerializeToString(), raw.SerializeToString()


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]] = {
    "http": (http, _HTTP),
    "rest": (rest, _REST),
    "open_inference": (open_inference, _OIP),
    "grpc_predict": (grpc_predict, _predict()),
    "grpc_infer": (grpc_infer, _infer()),
}
