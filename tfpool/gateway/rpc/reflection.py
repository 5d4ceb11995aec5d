"""Server reflection: what tools such as grpcurl read to speak with a server whose .proto files they do not have.

Our messages bear a package of our own, so that they can live beside TensorFlow's in one process. Here they are shown
by the names that everybody knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from types import ModuleType
from typing import Any

from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from tfpool.gateway.http import Access
from tfpool.gateway.rpc.methods import Method, read, streams
from tfpool.protos import (
    error_codes_pb2,
    example_pb2,
    inference_pb2,
    model_config_pb2,
    oip_config_pb2,
    oip_pb2,
    saved_model_pb2,
    serving_pb2,
    tensor_pb2,
)

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The same messages by two names; tools ask for the first, older ones for the second."""

_OURS: dict[ModuleType, str] = {
    tensor_pb2: "tensorflow",
    example_pb2: "tensorflow",
    saved_model_pb2: "tensorflow",
    error_codes_pb2: "tensorflow.error",
    inference_pb2: "tensorflow.serving",
    model_config_pb2: "tensorflow.serving",
    serving_pb2: "tensorflow.serving",
    oip_config_pb2: "inference",
    oip_pb2: "inference",
}
"""The package that the messages of each file have elsewhere; a file comes after those it imports."""
_THEIRS = (any_pb2, wrappers_pb2, health_pb2, reflection_pb2)
_RENAMED = {"Tensor": "TensorProto", "TensorShape": "TensorShapeProto", "NamedTensor": "NamedTensorProto"}
_ENUMS = {("TensorProto", "dtype"): ".tensorflow.DataType"}
"""Fields that hold a number here, and an enum elsewhere."""


class Reflection:
    """Tells about ``services``, by name."""

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer = ReflectionServicer((*services, *SERVICES), pool())

    def methods(self) -> tuple[Method, ...]:
        return tuple(streams(f"/{name}/ServerReflectionInfo", self.answer, Access.OPEN) for name in SERVICES)

    async def answer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ServerReflectionRequests -> as many ServerReflectionResponses."""

        async def decoded() -> AsyncIterator[Any]:
            async for request in requests:
                yield read(reflection_pb2.ServerReflectionRequest, request)

        async for response in self._servicer.ServerReflectionInfo(decoded(), context):
            yield response.SerializeToString()


def pool() -> DescriptorPool:
    """All messages and services by the names that everybody knows, apart from those of this process."""
    made = DescriptorPool()
    for theirs in _THEIRS:
        made.AddSerializedFile(theirs.DESCRIPTOR.serialized_pb)
    files = {module: FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in _OURS}
    names: dict[str, str] = {}
    for module, file in files.items():
        kinds = [kind.name for kind in file.message_type] + [kind.name for kind in file.enum_type]
        names |= {f".{file.package}.{kind}": f".{_OURS[module]}.{_RENAMED.get(kind, kind)}" for kind in kinds}
    for module, file in files.items():
        file.package = _OURS[module]
        for message in file.message_type:
            message.name = _RENAMED.get(message.name, message.name)
            _rename(message, names)
        for service in file.service:
            for method in service.method:
                method.input_type = _renamed(method.input_type, names)
                method.output_type = _renamed(method.output_type, names)
        made.AddSerializedFile(file.SerializeToString())
    return made


def _rename(message: DescriptorProto, names: Mapping[str, str]) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _renamed(field.type_name, names)
        enum = _ENUMS.get((message.name, field.name))
        if enum is not None:
            field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, enum
    for inner in message.nested_type:
        _rename(inner, names)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name of a message, or of one within it."""
    for ours, theirs in names.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name
