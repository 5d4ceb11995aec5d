"""Inference requests of the Open Inference Protocol: what they say, what is refused, and what is remembered."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument, NotFound, Unimplemented
from tfpool.gateway.http import Access, Request
from tfpool.gateway.oip import headers, infer
from tfpool.gateway.oip.infer import Infer
from tfpool.gateway.oip.messages import InferReader, write
from tfpool.gateway.oip.plan import options, target
from tfpool.gateway.serving import Call
from tfpool.protos import oip_pb2

X = {"name": "x", "shape": [2], "datatype": "FP32"}
BINARY = {**X, "parameters": {"binary_data_size": 8}}
DATA = {**X, "data": [1, 2]}
FLOATS = np.float32([1, 2]).tobytes()


class FakeReply:
    version = 4

    def __init__(self, outputs: dict[str, Any]) -> None:
        self._outputs = outputs

    def result(self) -> dict[str, Any]:
        return self._outputs


class FakeGateway:
    """Gives y = 2 x, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def predict(self, call: Call, inputs: dict[str, Any]) -> FakeReply:
        self.calls.append(call)
        return FakeReply({"y": inputs["x"] * 2})


def ask(room: Infer, said: object, after: bytes = b"", version: str | None = None, **more: str) -> Any:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    sent = [(b"inference-header-content-length", b"%d" % len(text))] if after else []
    sent += [(name.encode(), value.encode()) for name, value in more.items()]
    request = Request("POST", "/v2/models/m/infer", b"", sent, text + after, Access.ADMIN)
    return asyncio.run(room.infer(request, "m", version))


def told(response: Any) -> Any:
    return json.loads(response.body)


def room() -> tuple[Infer, FakeGateway]:
    gateway = FakeGateway()
    return Infer(gateway), gateway  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"{", "the request is no JSON: "),
        (b'{"inputs": [NaN}', "the request is no JSON: "),
        (b"[" * 100_000 + b"NaN", "the request is no JSON: "),
        (b'{"id": "\\ud800", "inputs": [NaN]}', "the request is no JSON: "),
        ([], "the request: got list, expected an object"),
        ({}, "inputs: got none, expected one or more"),
        ({"inputs": {}}, "inputs: got dict, expected a list"),
        ({"inputs": [1]}, "an input: got int, expected an object"),
        ({"inputs": [X]}, "input 'x' has neither data nor the parameter binary_data_size"),
        ({"inputs": [{**BINARY, "data": [1, 2]}]}, "input 'x' has both data and the parameter binary_data_size"),
        ({"inputs": [DATA, DATA]}, "input 'x' comes twice"),
        ({"inputs": [BINARY, BINARY]}, "input 'x' comes twice"),
        ({"inputs": [DATA, BINARY]}, "input 'x' comes twice"),
        ({"inputs": [DATA], "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' comes twice"),
        ({"inputs": [DATA], "outputs": [{}]}, "an output's name: got 'None', expected text"),
        ({"inputs": [DATA], "outputs": 1}, "outputs: got int, expected a list"),
        ({"inputs": [DATA], "id": 7}, "id: got int, expected text"),
        ({"inputs": [DATA], "parameters": []}, "the parameters of the request: got list, expected an object"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 7}}]}, "got 7 bytes, expected 8 for float32 [2]"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": "8"}}]}, "binary_data_size: got '8', expected a whole"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": -8}}]}, "binary_data_size: got '-8', expected a whole"),
        ({"inputs": [DATA], "parameters": {"priority": "1"}}, "parameter priority: got '1', expected a whole number"),
        ({"inputs": [DATA], "parameters": {"timeout": -1}}, "parameter timeout: got '-1', expected a whole number"),
        ({"inputs": [DATA], "parameters": {"signature": 1}}, "parameter signature: got int, expected text"),
        ({"inputs": [DATA], "parameters": {"binary_data_output": 1}}, "expected true or false"),
        ({"inputs": [DATA], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "expected true or"),
        ({"inputs": [DATA], "outputs": [{"name": "y", "parameters": {"classification": True}}]}, "classification"),
    ],
)
def test_no_such_request(said: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        ask(room()[0], said)


@pytest.mark.parametrize(
    "said",
    [
        {"inputs": [{**X, "parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 8}}]},
        {"inputs": [DATA], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "a"}}]},
    ],
)
def test_shared_memory_is_refused(said: object) -> None:
    with pytest.raises(Unimplemented, match="this server reads no shared memory of its clients"):
        ask(room()[0], said)


@pytest.mark.parametrize("said", [b"", b"0", b"-1", b"1.5", b"11", b"9" * 30, "²".encode()])
def test_a_header_length_that_cannot_be(said: bytes) -> None:
    with pytest.raises(InvalidArgument, match="the length of the JSON at the beginning of the body, which has 10 by"):
        headers.header_length(said, 10)


@pytest.mark.parametrize("after", [FLOATS[:-1], FLOATS + b"x", b"x" * 100])
def test_bytes_after_the_json_that_do_not_add_up(after: bytes) -> None:
    with pytest.raises(InvalidArgument, match=rf"got {len(after)} bytes after the JSON of \d+, expected 8: the sum"):
        ask(room()[0], {"inputs": [BINARY]}, after)


def test_raw_inputs_without_any_bytes() -> None:
    with pytest.raises(InvalidArgument, match="got 0 bytes after the JSON of"):
        ask(room()[0], {"inputs": [BINARY]})


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(InvalidArgument, match="there is no output 'z'; the outputs are y"):
        ask(room()[0], {"inputs": [DATA], "outputs": [{"name": "y"}, {"name": "z"}]})


def test_what_a_request_says_comes_to_the_pool() -> None:
    asking, gateway = room()
    parameters = {"priority": 1, "timeout": 2_500_000, "signature": "s", "sequence_id": 3, "anything": [1]}
    ask(asking, {"inputs": [DATA], "parameters": parameters}, version="3", traceparent="00-a-b-01")
    ask(asking, {"inputs": [DATA]}, version="stable")
    assert gateway.calls == [
        Call(target("m", "3", "s"), "infer", "V2", 2.5, 1, "00-a-b-01"),
        Call(target("m", "stable"), "infer", "V2"),
    ]


def test_the_same_words_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, gateway = room()
    said = {"inputs": [BINARY], "parameters": {"binary_data_output": True}}
    first = ask(asking, said, FLOATS)
    monkeypatch.setattr(headers, "read", None)  # it would raise
    assert ask(asking, said, FLOATS) == first
    again = ask(asking, said, np.float32([3, 4]).tobytes(), traceparent="00-a-b-01")
    assert again.body.endswith(np.float32([6, 8]).tobytes())
    assert [call.trace for call in gateway.calls] == ["", "", "00-a-b-01"]


@pytest.mark.parametrize("more", [{"id": "7"}, {"inputs": [BINARY, {**DATA, "name": "z"}]}])
def test_words_that_hardly_come_again_are_not_kept(more: dict[str, Any]) -> None:
    asking, _ = room()
    ask(asking, {"inputs": [BINARY], **more}, FLOATS)
    assert not asking._known


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_KEPT", 4)
    asking, _ = room()
    for i in range(10):
        ask(asking, {"inputs": [BINARY], "parameters": {"anything": i}}, FLOATS)
        assert len(asking._known) <= 4
    ask(asking, {"inputs": [BINARY], "parameters": {"anything": "x" * 5000}}, FLOATS)
    assert max(len(text) for _, _, text in asking._known) < 4096


def test_a_kept_answer_is_for_outputs_that_look_the_same() -> None:
    """Another version may give other outputs to the same words."""
    asking, gateway = room()
    said = {"inputs": [BINARY], "parameters": {"binary_data_output": True}}
    looks = [{"y": np.float32([1, 2])}, {"y": np.int32([1, 2])}, {"y": np.float32([[1, 2]])}, {"w": np.float32([1, 2])}]

    async def predict(call: Call, inputs: Any) -> FakeReply:
        return FakeReply(looks[0])

    gateway.predict = predict  # type: ignore[method-assign]
    answers = []
    while looks:
        response = ask(asking, said, FLOATS)
        assert ask(asking, said, FLOATS) == response
        length = int(dict(response.headers)[b"inference-header-content-length"])
        answers.append(json.loads(response.body[:length])["outputs"][0])
        looks.pop(0)
    assert [(one["name"], one["datatype"], one["shape"]) for one in answers] == [
        *(("y", "FP32", [2]), ("y", "INT32", [2]), ("y", "FP32", [1, 2]), ("w", "FP32", [2]))
    ]


def test_priorities_of_triton_go_the_other_way() -> None:
    given = [options({"priority": n}).priority for n in (1, 0, 2, 3, 4, 1 << 40)]
    assert given == [1, 0, 0, -1, -2, -100]


def test_timeouts_end_within_a_day() -> None:
    assert options({"timeout": 0}).timeout is None
    assert options({"timeout": 1}).timeout == 1e-6
    assert options({"timeout": (1 << 64) - 1}).timeout == 86399.0


@pytest.mark.parametrize("version", ["0", "00", str(1 << 63), "9" * 50])
def test_versions_that_can_never_be(version: str) -> None:
    with pytest.raises(NotFound, match="model 'm' has no version"):
        target("m", version)


# -- messages --------------------------------------------------------------------------------------------------------


def message(**fields: Any) -> oip_pb2.ModelInferRequest:
    return oip_pb2.ModelInferRequest(**{"model_name": "m", **fields})


def tensor(shape: tuple[int, ...] = (2,), datatype: str = "FP32", **contents: Any) -> Any:
    kind = oip_pb2.ModelInferRequest.InferInputTensor
    made = kind(name="x", datatype=datatype, shape=shape)
    if contents:
        made.contents.MergeFrom(oip_pb2.InferTensorContents(**contents))
    return made


OTHER = oip_pb2.ModelInferRequest.InferInputTensor(name="z", datatype="FP32", shape=[2])
LISTS = [
    ("BOOL", {"bool_contents": [True, False]}, [True, False]),
    ("INT8", {"int_contents": [-1, 2]}, [-1, 2]),
    ("INT16", {"int_contents": [-300, 2]}, [-300, 2]),
    ("INT32", {"int_contents": [-1, 2]}, [-1, 2]),
    ("INT64", {"int64_contents": [-1, 1 << 60]}, [-1, 1 << 60]),
    ("UINT8", {"uint_contents": [1, 255]}, [1, 255]),
    ("UINT16", {"uint_contents": [1, 2]}, [1, 2]),
    ("UINT32", {"uint_contents": [1, 2]}, [1, 2]),
    ("UINT64", {"uint64_contents": [1, (1 << 64) - 1]}, [1, (1 << 64) - 1]),
    ("FP32", {"fp32_contents": [1.5, 2]}, [1.5, 2]),
    ("FP64", {"fp64_contents": [1.5, 2]}, [1.5, 2]),
    ("BYTES", {"bytes_contents": [b"\xff", b""]}, [b"\xff", b""]),
]


@pytest.mark.parametrize(("datatype", "contents", "values"), LISTS)
def test_lists_of_every_kind(datatype: str, contents: Any, values: Any) -> None:
    data = message(inputs=[tensor(datatype=datatype, **contents)]).SerializeToString()
    _, inputs = InferReader().read(data)
    assert inputs["x"].tolist() == values


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (message(inputs=[tensor()], model_name=""), "model_name: got none"),
        (message(), "inputs: got none, expected one or more"),
        (message(inputs=[tensor()]), "got 0 elements, expected 2 for shape [2]"),
        (message(inputs=[tensor(fp64_contents=[1, 2])]), "got fp64_contents, expected fp32_contents for FP32"),
        (message(inputs=[tensor(datatype="FP16", fp32_contents=[1, 2])]), "FP16 has no contents of its own"),
        (message(inputs=[tensor(datatype="INT8", int_contents=[1, 200])]), "200 is out of the range of int8"),
        (message(inputs=[tensor(), OTHER], raw_input_contents=[FLOATS]), "got 1, expected 2, one for each input"),
        (message(inputs=[tensor()], raw_input_contents=[FLOATS] * 2), "got 2, expected 1, one for each input"),
        (message(inputs=[tensor(), tensor()], raw_input_contents=[FLOATS] * 2), "input 'x' comes twice"),
        (message(inputs=[tensor(fp32_contents=[1])], raw_input_contents=[FLOATS]), "has contents where raw_input_"),
        (message(inputs=[tensor()], raw_input_contents=[FLOATS + b"1"]), "got 9 bytes, expected 8"),
        (message(inputs=[tensor((-2,))], raw_input_contents=[FLOATS]), "expected whole numbers from 0"),
    ],
)
def test_no_such_message(asked: oip_pb2.ModelInferRequest, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(expected)):
        InferReader().read(asked.SerializeToString())


def test_raw_contents_before_what_they_are_of() -> None:
    """Fields may come in any order."""
    late = message(inputs=[tensor((1,))]).SerializeToString()
    early = oip_pb2.ModelInferRequest(raw_input_contents=[b"\x00\x00\x80?"]).SerializeToString()
    _, inputs = InferReader().read(early + late)
    assert inputs["x"].tolist() == [1.0]


def test_an_empty_tensor_has_no_contents() -> None:
    asked, inputs = InferReader().read(message(inputs=[tensor((0,))], raw_input_contents=[b""]).SerializeToString())
    assert inputs["x"].shape == (0,)
    answer = oip_pb2.ModelInferResponse.FromString(write(asked.plan, "m", 1, inputs))
    assert list(answer.raw_output_contents) == [b""]


def test_the_last_response_says_so_where_that_is_asked_for() -> None:
    data = message(inputs=[tensor()], raw_input_contents=[FLOATS])
    data.parameters["triton_enable_empty_final_response"].bool_param = True
    asked, inputs = InferReader().read(data.SerializeToString())
    assert asked.final
    answer = oip_pb2.ModelInferResponse.FromString(write(asked.plan, "m", 1, inputs, asked.final))
    assert answer.parameters["triton_final_response"].bool_param


WHOLE = message(
    id="a", inputs=[tensor()], outputs=[{"name": "y"}], raw_input_contents=[FLOATS], model_version="1"
).SerializeToString()


@given(st.data())
def test_bytes_that_have_been_tampered_with(data: Any) -> None:
    """They are read, or refused as they should be."""
    broken = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    with suppress(InvalidArgument, NotFound, Unimplemented):
        asked, inputs = InferReader().read(bytes(broken[:cut]))
        assert inputs
        assert asked.target.model


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id"]), inner
        ),
    ),
    max_leaves=12,
)


@given(JSON_VALUES, st.sampled_from(["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data"]))
def test_json_with_something_else_somewhere(value: Any, where: str) -> None:
    said: dict[str, Any] = {"inputs": [dict(DATA)], "outputs": [{"name": "y"}]}
    (said if where in ("inputs", "outputs", "parameters", "id") else said["inputs"][0])[where] = value
    with suppress(InvalidArgument, Unimplemented):
        plan, _ = headers.read(json.dumps(said).encode())
        assert plan.given or plan.raw


def test_a_model_without_outputs() -> None:
    asked, _ = InferReader().read(message(inputs=[tensor()], raw_input_contents=[FLOATS]).SerializeToString())
    answer = oip_pb2.ModelInferResponse.FromString(write(asked.plan, "m", 1, {}))
    assert (answer.model_name, list(answer.outputs), list(answer.raw_output_contents)) == ("m", [], [])
