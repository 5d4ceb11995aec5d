"""Who is ready: true readiness, of the pool and of each model, as the broker knows it at this moment.

A model is ready when a live worker holds the version that a request would reach, and serves it. A model whose worker
has just died is not, until another has loaded it. Neither is a lazy model that nobody has asked for, nor one that was
evicted: a request would load it, so it is *servable*, but who is told "ready" expects an answer at once, and that load
may take long or fail. The pool as a whole does not wait for such models: it is ready without them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tfpool.errors import NotFound, TfpoolError

if TYPE_CHECKING:
    from tfpool.gateway.serving import Gateway

T = TypeVar("T")
Row = Mapping[str, Any]

FRESH_SECONDS = 0.2
PATIENCE_SECONDS = 2.0
"""How long the broker may take; it answers within milliseconds."""
_AVAILABLE, _DRAINING, _FAILED, _UNLOADED = "AVAILABLE", "DRAINING", "FAILED", "UNLOADED"
_SERVE, _OFF = "serve", "off"


@dataclass(frozen=True, slots=True)
class Report:
    """How the pool is. ``reason`` says why it is not ready; ``missing`` are the models that shall serve and do not,
    each with its state, ``failed`` those that could not be loaded, each with its error."""

    reason: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return not self.reason


class Kept(Generic[T]):
    """An answer that is kept for a moment; however many want it, it is asked for once."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float = FRESH_SECONDS) -> None:
        self._ask = ask
        self._seconds = seconds
        self._until = 0.0
        self._asking: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """Raises what asking raises."""
        asking = self._asking
        if asking is None or (asking.done() and time.monotonic() >= self._until):
            asking = self._asking = asyncio.ensure_future(self._asked())
        return await asyncio.shield(asking)

    def forget(self) -> None:
        """Ask again: what was answered may be out of date."""
        self._asking = None

    async def _asked(self) -> T:
        try:
            return await self._ask()
        finally:
            self._until = time.monotonic() + self._seconds


class Readiness:
    """Asks the broker, at most once in :data:`FRESH_SECONDS` for any number of probes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        client = gateway.client
        self._rows: Kept[list[dict[str, Any]]] = Kept(lambda: client.call("models", timeout=PATIENCE_SECONDS))
        self._progress: Kept[dict[str, Any]] = Kept(lambda: client.call("progress", timeout=PATIENCE_SECONDS))
        self._started = False

    def forget(self) -> None:
        """Ask again: something has been changed."""
        self._rows.forget()
        self._progress.forget()

    async def pool(self) -> bool:
        """Whether every model that shall serve does or has failed, and the pool takes requests."""
        return (await self.report()).ready

    async def report(self) -> Report:
        """How the pool is, and why."""
        if self._gateway.draining:
            return Report("the pool is about to end")
        try:
            progress, rows = await self._progress.get(), await self._rows.get()
        except TfpoolError as error:
            return Report(f"the broker does not answer: {error.message}")
        self._started = self._started or bool(progress["settled"])
        if not progress["workers_ready"]:
            return _report("no worker is ready", rows)
        return _report("" if self._started else "the pool is starting", rows)

    async def model(self, name: str, version: int = 0, label: str = "") -> bool:
        """Whether a request would be answered at once: see :meth:`why_not`. False for a model that is not there."""
        try:
            return not await self.why_not(name, version, label)
        except TfpoolError:
            return False

    async def why_not(self, name: str, version: int = 0, label: str = "") -> str:
        """Why no live worker serves what a request for this would reach; empty where one does.

        Raises NotFound for a model, version or label that is not there, and DeadlineExceeded or Unavailable when the
        broker does not answer.
        """
        if self._gateway.draining:
            return "the pool is about to end"
        found = [row for row in await self._rows.get() if row["name"] == name]
        if not found:
            raise NotFound(f"no model {name!r}")
        if label:
            return _labelled(found, name, label)
        if version:
            found = [row for row in found if row["version"] == version]
            if not found:
                raise NotFound(f"model {name!r} has no version {version}")
        return _lacks(reached(found))


def reached(rows: Iterable[Row]) -> Row:
    """Of the rows of one model, that of the version a request reaches: the newest that has served, else the newest."""
    newest = sorted(rows, key=lambda row: int(row["version"]), reverse=True)
    able = [row for row in newest if row["state"] != _FAILED and row.get("loaded") != _OFF]
    proven = [row for row in able if row["load_seconds"] is not None or row["state"] in (_AVAILABLE, _DRAINING)]
    return (proven or able or newest)[0]


def _report(reason: str, rows: Iterable[Row]) -> Report:
    missing, failed = {}, {}
    for name, found in groupby(rows, key=lambda row: str(row["name"])):
        row = reached(found)
        if row["state"] == _FAILED:
            failed[name] = str(row["error"])
        elif row["state"] not in (_AVAILABLE, _UNLOADED) and row.get("loaded", _SERVE) == _SERVE:
            missing[name] = str(row["state"])
    if missing and not reason:
        reason = f"these do not serve: {', '.join(missing)}"
    return Report(reason, missing, failed)


def _labelled(rows: list[dict[str, Any]], name: str, label: str) -> str:
    """A label may be split over versions: those that failed are passed over, every other one may be reached."""
    found = [row for row in rows if label in row["labels"]]
    if not found:
        raise NotFound(f"model {name!r} has no label {label!r}")
    able = [row for row in found if row["state"] != _FAILED]
    return next(filter(None, map(_lacks, able or found)), "")


def _lacks(row: Row) -> str:
    if row["state"] == _AVAILABLE:
        return ""
    why = f": {row['error']}" if row["error"] else ""
    return f"{row['name']}:{row['version']} is {row['state']}{why}"
