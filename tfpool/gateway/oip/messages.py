"""ModelInferRequest and ModelInferResponse: bytes to arrays and back. Pure.

Tensors come raw (``raw_input_contents``, one for each input), or as lists (``contents``); they leave raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from tfpool.client.examples import Target
from tfpool.errors import InvalidArgument
from tfpool.gateway.oip.classes import top
from tfpool.gateway.oip.plan import Plan, options, plan, refuse_shared_memory, target, wanted
from tfpool.gateway.oip.tensors import Slot, datatype_of, from_bytes, from_list, raw, slot, take
from tfpool.gateway.rpc import layout
from tfpool.gateway.rpc.fields import LENGTH, Malformed, fields, pack_bytes, pack_varint
from tfpool.gateway.rpc.layout import Layouts, layout_of
from tfpool.protos import oip_pb2
from tfpool.types import DType, dtype_of
from tfpool.wire.tensors import Array

_RAW_INPUT, _RAW_OUTPUT = 7 << 3 | LENGTH, 6 << 3 | LENGTH
_LISTS = {
    DType.BOOL: "bool_contents",
    **dict.fromkeys((DType.INT8, DType.INT16, DType.INT32), "int_contents"),
    DType.INT64: "int64_contents",
    **dict.fromkeys((DType.UINT8, DType.UINT16, DType.UINT32), "uint_contents"),
    DType.UINT64: "uint64_contents",
    DType.FLOAT: "fp32_contents",
    DType.DOUBLE: "fp64_contents",
    DType.STRING: "bytes_contents",
}


class Asked(NamedTuple):
    """What a ModelInferRequest says beside its tensors. ``final``: its caller wants to be told which response is the
    last one to it."""

    plan: Plan
    target: Target
    final: bool


class InferReader:
    """Knows the forms of the requests it has read."""

    def __init__(self) -> None:
        self._known: Layouts[Asked] = Layouts()

    def read(self, data: bytes) -> tuple[Asked, dict[str, Array]]:
        """What a serialized ModelInferRequest asks, and its inputs by name; those of numbers are read-only.

        Raises InvalidArgument for bytes that are none, and for a tensor that is not as its datatype and shape say;
        NotFound for a version that can never be; Unimplemented for shared memory.
        """
        known = self._known.find(data)
        if known is not None:
            return known.meaning, known.arrays(data)
        message, places = _opened(data)
        asked = _asked(message, bool(places))
        plan = asked.plan
        if len(plan.raw) != len(places):
            raise InvalidArgument(
                f"raw_input_contents: got {len(places)}, expected {len(plan.raw)}, one for each input"
            )
        inputs = {into.name: take(data, at, end - at, into) for into, (at, end) in zip(plan.raw, places, strict=True)}
        if plan.lasting and all(into.size > 0 and into.dtype.kind != "b" for into in plan.raw):
            slots = [
                layout.Slot(into.name, into.dtype, into.shape, at)
                for into, (at, _) in zip(plan.raw, places, strict=True)
            ]
            self._known.keep(layout_of(data, slots, asked))
        return asked, {**plan.given, **inputs}


def write(plan: Plan, model: str, version: int, outputs: Mapping[str, Array], final: bool = False) -> bytes:
    """A serialized ModelInferResponse with the outputs as ``plan`` wants them; ``final`` says that it is the last one.

    Raises InvalidArgument for an output that is not there, and Unimplemented for one that the protocol has no datatype
    for.
    """
    look, arrays = plan.look(version, outputs)
    known = plan.answers.get(look)
    if known is not None and not final:
        begin, heads = known
        return _joined(begin, heads, arrays)
    chosen = [(one.name, top(array, one.top, one.name) if one.top else array) for one, array in plan.chosen(outputs)]
    contents = [raw(array) for _, array in chosen]
    response = oip_pb2.ModelInferResponse(
        model_name=model,
        model_version=str(version),
        id=plan.id,
        outputs=[
            oip_pb2.ModelInferResponse.InferOutputTensor(
                name=name, datatype=datatype_of(dtype_of(array.dtype)), shape=array.shape
            )
            for name, array in chosen
        ],
    )
    if final:
        response.parameters["triton_final_response"].bool_param = True
    begin, heads = response.SerializeToString(), [_head(content) for content in contents]
    dense = all(array is content for (_, array), content in zip(chosen, contents, strict=True))
    if plan.lasting and dense and not final:
        plan.keep(look, (begin, heads))
    return _joined(begin, heads, contents)


def stream_answer(response: bytes) -> bytes:
    """A serialized ModelStreamInferResponse with a serialized ModelInferResponse."""
    return pack_bytes(2, response)


def stream_error(message: str, id: str) -> bytes:
    """A serialized ModelStreamInferResponse that says why the request ``id`` failed."""
    failed = oip_pb2.ModelInferResponse(id=id)
    return oip_pb2.ModelStreamInferResponse(error_message=message, infer_response=failed).SerializeToString()


def _head(content: bytes | Array) -> bytes:
    """What comes before raw contents."""
    size = len(content) if isinstance(content, bytes) else content.nbytes
    return pack_varint(_RAW_OUTPUT) + pack_varint(size)


def _joined(begin: bytes, heads: Iterable[bytes], contents: Iterable[Any]) -> bytes:
    return b"".join((begin, *chain.from_iterable(zip(heads, contents, strict=True))))


def _opened(data: bytes) -> tuple[oip_pb2.ModelInferRequest, list[tuple[int, int]]]:
    """The message without its raw contents, and where these lie: they are not copied."""
    places: list[tuple[int, int]] = []
    said: list[bytes] = []
    begin = 0
    try:
        for tag, at, end in fields(data, 0, len(data)):
            if tag == _RAW_INPUT:
                places.append((at, end))
            else:
                said.append(data[begin:end])
            begin = end
        return oip_pb2.ModelInferRequest.FromString(b"".join(said)), places
    except (Malformed, DecodeError) as error:
        raise InvalidArgument(f"the request is no ModelInferRequest: {error}") from None


def _asked(message: oip_pb2.ModelInferRequest, is_raw: bool) -> Asked:
    if not message.model_name:
        raise InvalidArgument("model_name: got none")
    parameters = _parameters(message.parameters)
    slots: list[Slot] = []
    given: dict[str, Array] = {}
    for one in message.inputs:
        into = slot(one.name, one.datatype, one.shape)
        refuse_shared_memory(f"input {into.name!r}", _parameters(one.parameters))
        if not is_raw and (into.count or one.HasField("contents")):
            if into.name in given:
                raise InvalidArgument(f"input {into.name!r} comes twice")
            given[into.name] = _listed(one.contents, into)
        elif one.HasField("contents"):
            raise InvalidArgument(f"input {into.name!r} has contents where raw_input_contents has those of all inputs")
        else:
            slots.append(into)
    chosen = options(parameters)
    outputs = [wanted(one.name, _parameters(one.parameters), True) for one in message.outputs]
    final = parameters.get("triton_enable_empty_final_response") is True
    made = plan(chosen, slots, given, outputs, message.id)
    return Asked(made, target(message.model_name, message.model_version, chosen.signature), final)


def _listed(contents: oip_pb2.InferTensorContents, into: Slot) -> Array:
    dtype = dtype_of(into.dtype)
    name = _LISTS.get(dtype)
    if name is None:
        raise InvalidArgument(f"input {into.name!r}: {datatype_of(dtype)} has no contents of its own, send it raw")
    other = [field.name for field, _ in contents.ListFields() if field.name != name]
    if other:
        raise InvalidArgument(f"input {into.name!r}: got {other[0]}, expected {name} for {datatype_of(dtype)}")
    items = list(getattr(contents, name))
    if dtype is DType.STRING:
        return from_bytes(items, into)
    return from_list(items, into)


def _parameters(said: Mapping[str, Any]) -> dict[str, object]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in said.items()}
    return {name: getattr(said[name], choice) for name, choice in chosen.items() if choice is not None}
