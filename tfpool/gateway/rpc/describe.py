"""The messages about models: their signatures and the states of their versions. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tfpool.errors import InvalidArgument
from tfpool.gateway.catalog import Servable
from tfpool.gateway.tfs.describe import VersionStatus
from tfpool.protos import saved_model_pb2, serving_pb2
from tfpool.types import TensorSpec

SIGNATURE_DEF = "signature_def"
_TYPE_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def check_fields(fields: Iterable[str]) -> None:
    """Raises InvalidArgument for anything but one metadata field or more, all of them ``signature_def``."""
    named = list(fields)
    if not named:
        raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
    for name in named:
        if name != SIGNATURE_DEF:
            raise InvalidArgument(f"Metadata field {name} is not supported; expected {SIGNATURE_DEF}")


def metadata(servable: Servable) -> serving_pb2.GetModelMetadataResponse:
    """The signatures of a servable."""
    signatures = serving_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        made = signatures.signature_def[name]
        made.method_name = signature.method
        for specs, infos in ((signature.inputs, made.inputs), (signature.outputs, made.outputs)):
            for tensor, spec in specs.items():
                _describe(spec, infos[tensor])
    answer = serving_pb2.GetModelMetadataResponse()
    answer.model_spec.name = servable.name
    answer.model_spec.version.value = servable.version
    answer.metadata[SIGNATURE_DEF].type_url = _TYPE_URL
    answer.metadata[SIGNATURE_DEF].value = signatures.SerializeToString(deterministic=True)
    return answer


def status(found: Iterable[VersionStatus]) -> serving_pb2.GetModelStatusResponse:
    """The states of versions."""
    answer = serving_pb2.GetModelStatusResponse()
    for one in found:
        said = serving_pb2.StatusProto(error_code=one.code, error_message=one.error)
        answer.model_version_status.add(version=one.version, state=int(one.state), status=said)
    return answer


def _describe(spec: TensorSpec, info: saved_model_pb2.TensorInfo) -> None:
    info.MergeFrom(saved_model_pb2.TensorInfo(name=spec.name, dtype=f"DT_{spec.dtype.name}"))
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
        return
    info.tensor_shape.SetInParent()  # rank 0 is a shape too
    for size in spec.shape:
        info.tensor_shape.dim.add(size=size)
