"""PredictResponses: protobuf reads the arrays that went in, in the lists that TensorFlow Serving uses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.gateway.rpc.responses import PredictWriter, packed
from tfpool.protos import inference_pb2, tensor_pb2
from tfpool.types import DType, numpy_dtype
from tfpool.wire.tensor_proto import to_array
from tfpool.wire.tensors import Array


def written(writer: PredictWriter, outputs: dict[str, Array], *wanted: str) -> dict[str, Array]:
    answer = inference_pb2.PredictResponse.FromString(writer.write(outputs, wanted, "m", 3, ""))
    return {name: to_array(tensor, name) for name, tensor in answer.outputs.items()}


@given(st.sampled_from(list(DType)), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 1 << 32))
def test_there_and_back(dtype: DType, shape: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype is DType.STRING:
        array = np.empty(count, object)
        array[:] = [random.bytes(int(random.integers(0, 5))) for _ in range(count)]
    else:
        kind = numpy_dtype(dtype)
        data = random.bytes(count * kind.itemsize)
        array = np.frombuffer(bytes(b & 1 for b in data) if dtype is DType.BOOL else data, kind)
    array = array.reshape(shape)
    writer = PredictWriter()
    for _ in range(2):  # the second time its beginning is known
        found = written(writer, {"y": array})["y"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes() if dtype is not DType.STRING else found.tolist() == array.tolist()


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=20), st.integers(0, 63))
def test_whole_numbers_as_protobuf_packs_them(values: list[int], shift: int) -> None:
    array = np.array(values, np.int64) >> shift
    tensor = tensor_pb2.Tensor.FromString(tensor_pb2.Tensor(int64_val=array.tolist()).SerializeToString())
    field = tensor.SerializeToString()
    assert field.endswith(packed(array))
    assert len(field) - len(packed(array)) < 5


def test_many_whole_numbers() -> None:
    array = np.arange(200_000)
    assert written(PredictWriter(), {"y": array})["y"].tolist() == array.tolist()


@pytest.mark.parametrize(
    ("array", "field"),
    [
        (np.float32([1.5]), "float_val"),
        (np.float64([1.5]), "double_val"),
        (np.int32([-1]), "int_val"),
        (np.uint8([200]), "int_val"),
        (np.int64([-1]), "int64_val"),
        (np.uint32([7]), "uint32_val"),
        (np.uint64([7]), "uint64_val"),
        (np.array([True]), "bool_val"),
        (np.float16([1.5]), "half_val"),
        (np.complex64([1j]), "scomplex_val"),
        (np.complex128([1j]), "dcomplex_val"),
        (np.array([b"a"], object), "string_val"),
    ],
)
def test_the_list_of_each_dtype(array: Array, field: str) -> None:
    """Clients read these fields by name."""
    answer = inference_pb2.PredictResponse.FromString(PredictWriter().write({"y": array}, (), "m", 1, ""))
    assert {one.name for one, _ in answer.outputs["y"].ListFields()} == {"dtype", "tensor_shape", field}


def test_arrays_that_are_not_contiguous() -> None:
    writer = PredictWriter()
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (whole[:, :2].copy(), whole[:, :2], whole[:, 2:], whole.T[:3, :2]):
        assert written(writer, {"y": array})["y"].tolist() == array.tolist()


def test_the_spec() -> None:
    writer = PredictWriter()
    for version, signature in ((1, ""), (1, "other"), (1 << 40, ""), (1, "")):
        answer = inference_pb2.PredictResponse.FromString(writer.write({}, (), "m", version, signature))
        spec = answer.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", version, signature or "serving_default")


def test_only_the_outputs_that_are_wanted() -> None:
    writer = PredictWriter()
    outputs = {"a": np.float32([1]), "b": np.float32([2])}
    assert written(writer, outputs).keys() == {"a", "b"}
    assert written(writer, outputs, "b", "b")["b"].tolist() == [2]
    assert written(writer, outputs, "b").keys() == {"b"}
    with pytest.raises(InvalidArgument, match="output tensor alias not found in signature: c; it has a, b"):
        written(writer, outputs, "a", "c")
