"""What a request for inference is for, by its ModelSpec, and what its errors read as to users of TensorFlow Serving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tfpool.client.examples import Target
from tfpool.errors import FailedPrecondition, InvalidArgument, TfpoolError
from tfpool.gateway.tfs.errors import missing, no_version_zero

if TYPE_CHECKING:
    from tfpool.protos import inference_pb2


class Spec(NamedTuple):
    """A ModelSpec as it was sent: ``version`` None where it says none."""

    name: str = ""
    version: int | None = None
    label: str = ""
    signature: str = ""

    def target(self) -> Target:
        """Raises InvalidArgument without a name, NotFound for a version that can never be."""
        name, version, label, signature = self
        if not name:
            raise InvalidArgument("ModelSpec has no name specified.")
        if version == 0:
            raise no_version_zero(name)
        target = Target(name, version or 0, label, signature)
        if target.version < 0:
            raise missing(target)
        return target


def spec_of(message: inference_pb2.ModelSpec) -> Spec:
    """The same, of a message that protobuf has read."""
    version = message.version.value if message.HasField("version") else None
    return Spec(message.name, version, message.version_label, message.signature_name)


def asked_spec(request: Any) -> Spec:
    """The ``model_spec`` of a request. Raises InvalidArgument without one."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    return spec_of(request.model_spec)


def missing_signature(error: TfpoolError) -> TfpoolError:
    """Predict, and only that, tells a signature that is not there from other invalid arguments."""
    if isinstance(error, InvalidArgument) and " has no signature " in error.message:
        return FailedPrecondition(error.message)
    return error
