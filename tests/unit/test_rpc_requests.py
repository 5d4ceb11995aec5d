"""PredictRequests: read alike with and without protobuf, whatever is done to their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.gateway.rpc.asked import Spec
from tfpool.gateway.rpc.fields import pack_bytes
from tfpool.gateway.rpc.requests import Asked, PredictReader, parse, scan
from tfpool.protos import inference_pb2
from tfpool.types import DType, numpy_dtype
from tfpool.wire.tensor_proto import set_tensor

DENSE = [dtype for dtype in DType if dtype is not DType.STRING]


def message(inputs: dict[str, Any], **spec: Any) -> inference_pb2.PredictRequest:
    made = inference_pb2.PredictRequest(model_spec=inference_pb2.ModelSpec(**spec))
    for name, value in inputs.items():
        set_tensor(made.inputs[name], np.asarray(value))
    return made


def alike(data: bytes) -> bool:
    """Whether ``data`` is read without protobuf; if so, as protobuf reads it."""
    layout = scan(data)
    if layout is None:
        return False
    asked, inputs = parse(data)
    assert layout.meaning == asked
    found = layout.arrays(data)
    assert found.keys() == inputs.keys()
    for name, array in inputs.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    return True


X = {"x": np.float32([[1, -2]])}
USUAL = [
    message(X, name="m"),
    message(X, name="m", signature_name="s", version_label="l"),
    message({**X, "y": np.arange(6).reshape(3, 2, 1)}, name="m", version={"value": 3}),
    message({"x": np.float64(2.5)}, name="a name \N{SNOWMAN}", version={"value": -1}),
    message(X, name="m", version={}),
    message({}, name="m"),
]


@pytest.mark.parametrize("made", USUAL, ids=range(len(USUAL)))
def test_the_usual_forms(made: inference_pb2.PredictRequest) -> None:
    made.output_filter.extend(["y", "z"])
    assert alike(made.SerializeToString())


@pytest.mark.parametrize("dtype", DENSE)
def test_every_dtype(dtype: DType) -> None:
    kind = numpy_dtype(dtype)
    data = bytes(range(2 * kind.itemsize)) if dtype is not DType.BOOL else b"\1\0"
    assert alike(message({"x": np.frombuffer(data, kind)}, name="m").SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        (DType.FLOAT, "float_val", [1, 2]),
        (DType.DOUBLE, "double_val", [1, 2]),
        (DType.COMPLEX64, "scomplex_val", [1, 2, 3, 4]),
        (DType.COMPLEX128, "dcomplex_val", [1, 2, 3, 4]),
        (DType.FLOAT8_E5M2, "float8_val", b"ab"),
    ],
)
def test_lists_that_lie_as_memory_does(dtype: DType, field: str, values: Any) -> None:
    made = message({}, name="m")
    tensor = made.inputs["x"]
    tensor.MergeFrom(type(tensor)(dtype=int(dtype), **{field: values}))
    tensor.tensor_shape.dim.add(size=2)
    assert alike(made.SerializeToString())


UNUSUAL = {
    "strings": message({"x": np.array([b"a"], object)}, name="m").SerializeToString(),
    "no elements": message({"x": np.zeros((0, 2))}, name="m").SerializeToString(),
    "a short list": bytes.fromhex(
        "0a 03  0a 01 6d"  # model_spec
        "12 13  0a 01 78  12 0e  08 01  12 04 12 02 08 02  2a 04 0000803f"  # inputs: one number for two
    ),
    "an unknown field": USUAL[0].SerializeToString() + pack_bytes(6, b"client"),
    "two specs": USUAL[0].SerializeToString() + pack_bytes(1, pack_bytes(1, b"n")),
    "two inputs of a name": USUAL[0].SerializeToString() + message(X).SerializeToString(),
    "a label after a version": pack_bytes(1, pack_bytes(1, b"m"), pack_bytes(2, b"\x08\x02"), pack_bytes(4, b"l")),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_unusual_is_left_to_protobuf(name: str) -> None:
    data = UNUSUAL[name]
    assert not alike(data)
    asked, inputs = PredictReader().read(data)
    expected = inference_pb2.PredictRequest.FromString(data)
    assert asked.spec.name == expected.model_spec.name
    assert asked.spec.label == expected.model_spec.version_label
    assert inputs.keys() == expected.inputs.keys()


@given(st.sampled_from(USUAL), st.data())
def test_damaged_bytes_are_read_as_protobuf_reads_them(made: inference_pb2.PredictRequest, draw: st.DataObject) -> None:
    data = bytearray(made.SerializeToString())
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        how = draw.draw(st.sampled_from(["set", "cut", "drop", "add"]))
        if how == "set":
            data[at] = draw.draw(st.integers(0, 255))
        elif how == "add":
            data[at:at] = draw.draw(st.binary(min_size=1, max_size=4))
        elif len(data) > 1:
            del data[at : at + 1 if how == "drop" else len(data)]
            data = data or bytearray(b"\0")
    try:
        expected = parse(bytes(data))
    except InvalidArgument:
        with pytest.raises(InvalidArgument):
            PredictReader().read(bytes(data))
        return
    alike(bytes(data))
    assert PredictReader().read(bytes(data))[0] == expected[0]


@given(st.binary(max_size=64))
def test_any_bytes(data: bytes) -> None:
    try:
        parse(data)
    except InvalidArgument:
        assert scan(data) is None
    else:
        alike(data)


def test_what_is_known_is_compared_as_a_whole() -> None:
    reader = PredictReader()
    first = message({"x": np.float32([1, 2]), "y": np.float32([3])}, name="m").SerializeToString()
    seen = reader.read(first)
    assert seen[0] == Asked(Spec("m"), ())
    second = message({"x": np.float32([5, 6]), "y": np.float32([7])}, name="m").SerializeToString()
    assert {name: array.tolist() for name, array in reader.read(second)[1].items()} == {"x": [5, 6], "y": [7]}
    other = message({"x": np.float32([5, 6]), "z": np.float32([7])}, name="n").SerializeToString()
    assert len(other) == len(first)
    asked, inputs = reader.read(other)
    assert (asked.spec.name, sorted(inputs)) == ("n", ["x", "z"])


def test_inputs_are_views() -> None:
    data = message(X, name="m").SerializeToString()
    array = PredictReader().read(data)[1]["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_many_forms_are_not_kept() -> None:
    reader = PredictReader()
    for size in range(1, 40):
        for name in ("a", "b", "c"):
            data = message({name: np.zeros(size, np.float32)}, name="m" * size).SerializeToString()
            for _ in range(2):
                assert reader.read(data)[1][name].shape == (size,)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "the request is no PredictRequest"),
        (b"", "Missing ModelSpec"),
        (message(X).SerializeToString()[2:], "Missing ModelSpec"),
    ],
)
def test_refusals(data: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        PredictReader().read(data)


def test_a_wrong_size_of_content() -> None:
    made = message(X, name="m")
    made.inputs["x"].tensor_content += b"1"
    with pytest.raises(InvalidArgument, match="tensor 'x': got 9 bytes of content, expected 8"):
        PredictReader().read(made.SerializeToString())


def test_a_huge_claim() -> None:
    made = message(X, name="m")
    for size in (1 << 40, 1 << 40):
        made.inputs["x"].tensor_shape.dim.add(size=size)
    with pytest.raises(InvalidArgument, match="tensor 'x': got shape"):
        PredictReader().read(made.SerializeToString())
