"""What the protocol's clients may know of the server and its models, and ask of the repository: the same plain values
over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from tfpool.errors import NotFound, Unimplemented
from tfpool.gateway.catalog import Servable, Signature
from tfpool.gateway.oip.plan import target
from tfpool.gateway.oip.tensors import NAMES
from tfpool.gateway.readiness import reached
from tfpool.gateway.serving import Gateway
from tfpool.types import DType, Shape, TensorSpec
from tfpool.version import __version__

EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository"),
    *("parameters", "schedule_policy", "statistics"),
)
PLATFORM, BACKEND = "tensorflow_savedmodel", "tensorflow"
_AVAILABLE = "AVAILABLE"
_STATES = {
    _AVAILABLE: "READY",
    "LOADING": "LOADING",
    "WARMING": "LOADING",
    "DRAINING": "UNLOADING",
}
Row = Mapping[str, Any]


def server() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "tfpool", "version": __version__, "extensions": list(EXTENSIONS)}


class Facts:
    """Asks the pool. ``version`` is a number, a label, or empty for what a request without one reaches."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._client = gateway.client
        self._readiness = gateway.readiness

    async def why_not(self, model: str, version: str | None) -> str:
        """Why no worker serves a model now; empty where one does. Raises NotFound."""
        _, number, label, _ = target(model, version)
        return await self._readiness.why_not(model, number, label)

    async def metadata(self, model: str, version: str | None, signature: str = "") -> dict[str, Any]:
        """Versions, inputs and outputs of a model. Raises NotFound, and InvalidArgument for the signature."""
        servable, found = await self._signature(model, version, signature)
        rows = await self._client.models()
        served = {row["version"] for row in rows if row["name"] == model and row["state"] == _AVAILABLE}
        return {
            "name": model,
            "versions": [str(number) for number in sorted(served | {servable.version})],
            "platform": PLATFORM,
            "inputs": [_tensor(spec) for spec in found.inputs.values()],
            "outputs": [_tensor(spec) for spec in found.outputs.values()],
        }

    async def config(self, model: str, version: str | None, signature: str = "") -> dict[str, Any]:
        """The configuration that Triton would have for a model: dimensions are without the rows where requests share
        batches. Raises NotFound, and InvalidArgument for the signature."""
        servable, found = await self._signature(model, version, signature)
        rows = await self._client.status(model)
        batching = next((row for row in rows if row["version"] == servable.version), rows[0])["batching"]
        inner = 1 if found.batched else 0
        told: dict[str, Any] = {
            "name": model,
            "platform": PLATFORM,
            "backend": BACKEND,
            "max_batch_size": batching["max_batch_size"] if found.batched else 0,
            "input": [_dims(spec, inner) for spec in found.inputs.values()],
            "output": [_dims(spec, inner) for spec in found.outputs.values()],
        }
        if found.batched:
            told["dynamic_batching"] = {
                "preferred_batch_size": list(batching["allowed_batch_sizes"]),
                "max_queue_delay_microseconds": round(batching["max_wait_ms"] * 1000),
            }
        return told

    async def statistics(self, model: str = "", version: str | None = None) -> dict[str, Any]:
        """What was counted, for one model or all, since the pool began. It counts a model as a whole: the numbers stand
        beside the version that was asked for, or that a request reaches. Raises NotFound."""
        rows = [row for row in await self._client.models() if not model or row["name"] == model]
        if model and not rows:
            raise NotFound(f"no model {model!r}")
        counted = (await self._client.stats())["models"]
        told = []
        for name, group in groupby(rows, key=lambda row: str(row["name"])):
            told.append(_counts(_meant(list(group), name, version), counted.get(name)))
        return {"model_stats": told}

    async def index(self, ready: bool) -> list[dict[str, str]]:
        """A row for each version of each model, perhaps only of those that are ``ready``."""
        rows = map(_indexed, await self._client.models())
        return [row for row in rows if not ready or row["state"] == _STATES[_AVAILABLE]]

    async def load(self, model: str, parameters: Iterable[str]) -> None:
        """Load the newest version, and return when it serves. Raises Unimplemented for a configuration or files that
        come with the request, and the load's error."""
        for name in parameters:
            if name == "config" or name.startswith("file:"):
                raise Unimplemented(
                    f"parameter {name[:80]!r}: models are loaded as they are configured, from their files"
                )
        await self._client.load(model)
        self._readiness.forget()  # who has loaded a model finds it ready, whatever was known before

    async def unload(self, model: str) -> None:
        """Unload all versions, once what waits for them is answered. Raises NotFound."""
        await self._client.unload(model)
        self._readiness.forget()

    async def _signature(self, model: str, version: str | None, signature: str) -> tuple[Servable, Signature]:
        servable = await self._gateway.catalog.servable(target(model, version))
        return servable, servable.signature(signature)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = NAMES.get(spec.dtype, spec.dtype.label.upper())  # one that the protocol lacks can be read about at least
    return {"name": spec.name, "datatype": datatype, "shape": _open(spec.shape)}


def _dims(spec: TensorSpec, inner: int) -> dict[str, Any]:
    name = "STRING" if spec.dtype is DType.STRING else NAMES.get(spec.dtype, "INVALID")
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": _open(spec.shape)[inner:]}


def _open(shape: Shape | None) -> list[int]:
    """The protocol has no open rank: one open dimension stands for it."""
    return [-1] if shape is None else list(shape)


def _meant(rows: list[Row], name: str, version: str | None) -> Row:
    where = target(name, version)
    if where.label:
        rows = [row for row in rows if where.label in row["labels"]]
    elif where.version:
        rows = [row for row in rows if row["version"] == where.version]
    if not rows:
        raise NotFound(f"model {name!r} has no version {version!r}")
    return reached(rows)


def _counts(row: Row, counted: Mapping[str, Any] | None) -> dict[str, Any]:
    """``counted`` is None for a model that nobody has asked anything."""
    queue, run = _spent(counted, "queue_us"), _spent(counted, "run_us")
    requests = counted["requests"] if counted else 0
    running = round(requests * counted["run_us"]["mean"] * 1000) if counted else 0
    none = {"count": 0, "ns": 0}
    return {
        "name": row["name"],
        "version": _number(row),
        "last_inference": 0,
        "inference_count": counted["rows"] if counted else 0,
        "execution_count": counted["batches"] if counted else 0,
        "inference_stats": {
            "success": {"count": requests, "ns": queue["ns"] + running},
            "fail": {"count": sum(counted["errors"].values()) if counted else 0, "ns": 0},
            "queue": queue,
            "compute_input": none,
            "compute_infer": run,
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": row["memory_bytes"] or 0}],
    }


def _spent(counted: Mapping[str, Any] | None, name: str) -> dict[str, int]:
    found: Row = counted[name] if counted else {"count": 0, "mean": 0.0}
    return {"count": found["count"], "ns": round(found["count"] * found["mean"] * 1000)}


def _indexed(row: Row) -> dict[str, str]:
    state = str(row["state"])
    reason = "" if state == _AVAILABLE else str(row["error"] or state.lower())
    return {
        "name": row["name"],
        "version": _number(row),
        "state": _STATES.get(state, "UNAVAILABLE"),
        "reason": reason,
    }


def _number(row: Row) -> str:
    """Of a model that has no version there is a row with version 0."""
    return str(row["version"]) if row["version"] else ""
