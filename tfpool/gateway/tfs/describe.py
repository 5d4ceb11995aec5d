"""What TensorFlow Serving tells of servables, made of the pool's rows: the status of versions, and metadata. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from tfpool.errors import InvalidArgument, NotFound
from tfpool.gateway.catalog import Servable, Signature
from tfpool.types import TensorSpec

_ON_DEMAND = "on demand"


class ServableState(IntEnum):
    """TensorFlow Serving's states of a version, numbered as it numbers them."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


_STATES = {
    "NEW": ServableState.START,
    "LOADING": ServableState.LOADING,
    "WARMING": ServableState.LOADING,
    "AVAILABLE": ServableState.AVAILABLE,
    "DRAINING": ServableState.UNLOADING,
    "UNLOADED": ServableState.END,
    "FAILED": ServableState.END,
}


class VersionStatus(NamedTuple):
    """A version of a model; ``error`` is why it does not serve, empty where nothing went wrong, ``code`` its code."""

    version: int
    state: ServableState
    code: str
    error: str


def versions(
    rows: Iterable[Mapping[str, Any]], model: str, version: int | None = None, label: str = ""
) -> list[VersionStatus]:
    """The versions of a model, newest first, or the one that is asked for, or those that a label means.

    ``rows`` are those of the pool's ``status``. A version that a request would load is at its START, not at its END.

    Raises NotFound for no such version, InvalidArgument for no such label.
    """
    found = {row["version"]: row for row in rows if row["version"]}  # of two of a number the later counts
    if label:
        found = {number: row for number, row in found.items() if label in row["labels"]}
        if not found:
            raise InvalidArgument(f"Unrecognized servable version label: {label}")
    elif version is not None:
        if version not in found:
            raise NotFound(f"Could not find version {version} of model {model}")
        found = {version: found[version]}
    elif not found:
        raise NotFound(f"Could not find any versions of model {model}")
    return [_status(number, found[number]) for number in sorted(found, reverse=True)]


def _status(version: int, row: Mapping[str, Any]) -> VersionStatus:
    return VersionStatus(version, _state(row), row["error_code"] or "OK", row["error"] or "")


def status(found: Iterable[VersionStatus]) -> dict[str, Any]:
    """The body of an answer about versions."""
    return {
        "model_version_status": [
            {
                "version": str(one.version),
                "state": one.state.name,
                "status": {"error_code": one.code, "error_message": one.error},
            }
            for one in found
        ]
    }


def metadata(servable: Servable) -> dict[str, Any]:
    """The body of an answer about signatures."""
    signatures = {name: _signature(signature) for name, signature in servable.signatures.items()}
    return {
        "model_spec": {"name": servable.name, "signature_name": "", "version": str(servable.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _state(row: Mapping[str, Any]) -> ServableState:
    if row["state"] == "UNLOADED" and row.get("loaded") == _ON_DEMAND:
        return ServableState.START
    return _STATES[row["state"]]


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {name: _tensor(spec) for name, spec in signature.inputs.items()},
        "outputs": {name: _tensor(spec) for name, spec in signature.outputs.items()},
        "method_name": signature.method,
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.shape or ()]
    return {
        "dtype": f"DT_{spec.dtype.name}",
        "tensor_shape": {"dim": dims, "unknown_rank": spec.shape is None},
        "name": spec.name,
    }
