"""PredictRequest: bytes to arrays that view them. Pure.

What clients usually send (tensors whose elements lie as one piece, each field once) is read here; all else is left to
protobuf, which also has the last word on what is malformed.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from google.protobuf.message import DecodeError

from tfpool.errors import InvalidArgument
from tfpool.gateway.rpc.asked import Spec, asked_spec
from tfpool.gateway.rpc.fields import Malformed, fields
from tfpool.gateway.rpc.layout import Layout, Layouts, Slot, layout_of
from tfpool.protos import inference_pb2
from tfpool.types import DType, Shape, numpy_dtype
from tfpool.wire.tensor_proto import to_array
from tfpool.wire.tensors import Array

_SPEC, _INPUT, _FILTER = 0x0A, 0x12, 0x1A
_NAME, _VERSION, _SIGNATURE, _LABEL = 0x0A, 0x12, 0x1A, 0x22
_KEY, _VALUE = 0x0A, 0x12
_DTYPE, _SHAPE, _CONTENT = 0x08, 0x12, 0x22
_DIM, _SIZE, _NUMBER = 0x12, 0x08, 0x08
_SIGN, _WRAP = 1 << 63, 1 << 64
_MAX_RANK = 32
_RAW_LISTS = {
    DType.FLOAT: 0x2A,
    DType.DOUBLE: 0x32,
    DType.COMPLEX64: 0x4A,
    DType.COMPLEX128: 0x62,
    DType.FLOAT8_E5M2: 0x92,
    DType.FLOAT8_E4M3FN: 0x92,
}
"""The tag of the list that holds elements as they lie in memory, for the dtypes that have one."""


class Asked(NamedTuple):
    """What a PredictRequest says beside its tensors."""

    spec: Spec
    outputs: tuple[str, ...]


class PredictReader:
    """Knows the forms of the requests it has read."""

    def __init__(self) -> None:
        self._known: Layouts[Asked] = Layouts()

    def read(self, data: bytes) -> tuple[Asked, dict[str, Array]]:
        """What a serialized PredictRequest asks, and its inputs by name, read-only.

        Raises InvalidArgument for bytes that are none, and for a tensor that is not as its dtype and shape say.
        """
        layout = self._known.find(data)
        if layout is None:
            layout = scan(data)
            if layout is None:
                return parse(data)
            self._known.keep(layout)
        return layout.meaning, layout.arrays(data)


def parse(data: bytes) -> tuple[Asked, dict[str, Array]]:
    """The same by protobuf, whatever the form."""
    try:
        message = inference_pb2.PredictRequest.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the request is no PredictRequest: {error}") from None
    spec = asked_spec(message)
    inputs = {name: to_array(tensor, name) for name, tensor in message.inputs.items()}
    return Asked(spec, tuple(message.output_filter)), inputs


def scan(data: bytes) -> Layout[Asked] | None:
    """The layout of a request of the usual form; None for all others."""
    spec: Spec | None = None
    outputs: list[str] = []
    slots: dict[str, Slot] = {}
    try:
        for tag, at, end in fields(data, 0, len(data)):
            if tag == _INPUT:
                slot = _input(data, at, end)
                if slot.name in slots:
                    return None
                slots[slot.name] = slot
            elif tag == _SPEC and spec is None:
                spec = _spec(data, at, end)
            elif tag == _FILTER:
                outputs.append(data[at:end].decode())
            else:
                return None
    except (Malformed, UnicodeDecodeError):
        return None
    return None if spec is None else layout_of(data, slots.values(), Asked(spec, tuple(outputs)))


def _spec(data: bytes, at: int, end: int) -> Spec:
    texts: dict[int, str] = {}
    version: int | None = None
    for tag, begin, stop in fields(data, at, end):
        if tag == _VERSION and version is None:
            version = _version(data, begin, stop)
        elif tag in (_NAME, _SIGNATURE, _LABEL) and tag not in texts:
            texts[tag] = data[begin:stop].decode()
        else:
            raise Malformed("an unusual ModelSpec")
    if version is not None and _LABEL in texts:
        raise Malformed("a version and a label: the later one counts")
    return Spec(texts.get(_NAME, ""), version, texts.get(_LABEL, ""), texts.get(_SIGNATURE, ""))


def _version(data: bytes, at: int, end: int) -> int:
    value = 0
    for tag, number, _ in fields(data, at, end):
        if tag != _NUMBER:
            raise Malformed("an unusual number")
        value = number
    return value - _WRAP if value >= _SIGN else value


def _input(data: bytes, at: int, end: int) -> Slot:
    name: str | None = None
    tensor: tuple[DType, Shape, int] | None = None
    for tag, begin, stop in fields(data, at, end):
        if tag == _KEY and name is None:
            name = data[begin:stop].decode()
        elif tag == _VALUE and tensor is None:
            tensor = _tensor(data, begin, stop)
        else:
            raise Malformed("an unusual input")
    if name is None or tensor is None:
        raise Malformed("an input without a name or a tensor")
    dtype, shape, where = tensor
    return Slot(name, numpy_dtype(dtype), shape, where)


def _tensor(data: bytes, at: int, end: int) -> tuple[DType, Shape, int]:
    """Dtype, shape, and where the elements begin."""
    dtype: DType | None = None
    shape: Shape | None = None
    content: tuple[int, int, int] | None = None
    for tag, begin, stop in fields(data, at, end):
        if tag == _DTYPE and dtype is None:
            try:
                dtype = DType(begin)
            except ValueError:
                raise Malformed("an unknown dtype") from None
        elif tag == _SHAPE and shape is None:
            shape = _shape(data, begin, stop)
        elif content is None:
            content = (tag, begin, stop)
        else:
            raise Malformed("an unusual tensor")
    if dtype is None or content is None or dtype is DType.STRING:
        raise Malformed("a tensor without elements, or of strings")
    tag, begin, stop = content
    shape = shape or ()
    nbytes = prod(shape) * numpy_dtype(dtype).itemsize
    if tag not in (_CONTENT, _RAW_LISTS.get(dtype)) or stop - begin != nbytes or nbytes == 0:
        raise Malformed("elements that do not lie as they are in memory")
    return dtype, shape, begin


def _shape(data: bytes, at: int, end: int) -> Shape:
    sizes: list[int] = []
    for tag, begin, stop in fields(data, at, end):
        if tag != _DIM or len(sizes) == _MAX_RANK:
            raise Malformed("an unusual shape")
        size = 0
        for inner, value, _ in fields(data, begin, stop):
            if inner != _SIZE or value >= _SIGN:
                raise Malformed("an unusual dimension")
            size = value
        sizes.append(size)
    return tuple(sizes)
