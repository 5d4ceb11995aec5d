"""What the gateway knows of servables: their signatures, asked for once and kept for a moment."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tfpool.client.aio import AsyncClient
from tfpool.client.examples import Target
from tfpool.errors import DeadlineExceeded, InvalidArgument, TfpoolError
from tfpool.types import DType, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
FRESH_SECONDS = 1.0
STALE_SECONDS = 3.0
_KEPT = 4096
Where = tuple[str, int, str]
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
        """One of them; for an empty name the only one, or the default. Raises InvalidArgument."""
        if not name and len(self.signatures) == 1:
            (only,) = self.signatures.values()
            return only
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            have = ", ".join(self.signatures) or "none"
            raise InvalidArgument(f"model {self.name!r} has no signature {name or DEFAULT_SIGNATURE!r}; it has {have}")
        return found


class Catalog:
    """Servables by model, version (0: the newest) and label. Many may want one at once: it is asked for once, and what
    was known serves meanwhile."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._known: dict[Where, Servable] = {}
        self._asking: dict[Where, asyncio.Task[Servable]] = {}

    async def servable(self, target: Target, timeout: float | None = None) -> Servable:
        """What a request for ``target`` reaches. Raises NotFound, and DeadlineExceeded after ``timeout`` seconds."""
        where = target[:3]
        found, now = self._known.get(where), time.monotonic()
        if found is not None and now < found.until:
            return found
        asking = self._asking.get(where)
        if asking is None:
            asking = self._asking[where] = asyncio.create_task(self._ask(where))
            asking.add_done_callback(_seen)
        if found is not None and now < found.until + STALE_SECONDS:
            return found
        try:
            return await asyncio.wait_for(asyncio.shield(asking), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"model {target.model!r}: what it is like was not known in {timeout:g} s") from None

    def forget(self, target: Target) -> None:
        """Ask again: what was known of it may be out of date."""
        self._known.pop(target[:3], None)

    async def _ask(self, where: Where) -> Servable:
        model, version, label = where
        try:
            made = await self._client.metadata(model, version=version, label=label)
        except TfpoolError:
            self._known.pop(where, None)
            raise
        finally:
            del self._asking[where]
        if len(self._known) >= _KEPT:
            self._known.clear()
        found = self._known[where] = _servable(made, time.monotonic() + FRESH_SECONDS)
        return found


def _seen(asked: asyncio.Task[Servable]) -> None:
    """Its error is for those that wait for it, if any."""
    if not asked.cancelled():
        asked.exception()


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
