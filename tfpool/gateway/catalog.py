"""What the gateway knows of servables: their signatures, asked for once and kept for a moment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tfpool.client.aio import AsyncClient
from tfpool.client.examples import Target
from tfpool.errors import InvalidArgument
from tfpool.types import DType, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
FRESH_SECONDS = 1.0
_KEPT = 4096
_DTYPES = {dtype.label: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of a servable; ``method`` is TensorFlow's name of its kind."""

    name: str
    method: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    batched: bool


@dataclass(frozen=True, slots=True)
class Servable:
    """The version that a request reaches. ``until`` is when to ask again (monotonic seconds)."""

    name: str
    version: int
    signatures: dict[str, Signature]
    until: float = field(compare=False)

    def signature(self, name: str) -> Signature:
        """One of them, the default for an empty name. Raises InvalidArgument."""
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            have = ", ".join(self.signatures) or "none"
            raise InvalidArgument(f"model {self.name!r} has no signature {name or DEFAULT_SIGNATURE!r}; it has {have}")
        return found


class Catalog:
    """Servables by model, version (0: the newest) and label."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._known: dict[tuple[str, int, str], Servable] = {}

    async def servable(self, target: Target, timeout: float | None = None) -> Servable:
        """What a request for ``target`` reaches. Raises NotFound, and DeadlineExceeded after ``timeout`` seconds."""
        where = target[:3]
        found = self._known.get(where)
        if found is None or found.until < time.monotonic():
            model, version, label = where
            made = await self._client.metadata(model, version=version, label=label)
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[where] = _servable(made, time.monotonic() + FRESH_SECONDS)
        return found

    def forget(self, target: Target) -> None:
        """Ask again: what was known of it may be out of date."""
        self._known.pop(target[:3], None)


def _servable(made: dict[str, Any], until: float) -> Servable:
    signatures = {
        one["name"]: Signature(
            one["name"], one["method"], _specs(one["inputs"]), _specs(one["outputs"]), bool(one["batched"])
        )
        for one in made["signatures"]
    }
    return Servable(made["name"], made["version"], signatures, until)


def _specs(tensors: list[dict[str, Any]]) -> dict[str, TensorSpec]:
    return {
        one["name"]: TensorSpec(
            one["name"], _DTYPES[one["dtype"]], None if one["shape"] is None else tuple(one["shape"])
        )
        for one in tensors
    }
