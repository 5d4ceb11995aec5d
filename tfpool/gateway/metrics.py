"""The metrics of the pool for Prometheus: ``/metrics``, and ``/monitoring/prometheus/metrics`` with the names that
TensorFlow Serving has.

Nothing is registered: a scrape asks the broker what there is, puts the counts of all gateways together, and writes
down that. So the series of a model that was removed, or of a version that was unloaded, are gone with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from tfpool.errors import TfpoolError
from tfpool.gateway import metrics_pool, metrics_tfs
from tfpool.gateway.board import Post
from tfpool.gateway.http import Access, Request, Response, Route, route
from tfpool.gateway.meters import Meters
from tfpool.gateway.metrics_pool import Seen
from tfpool.gateway.readiness import PATIENCE_SECONDS, Kept
from tfpool.gateway.serving import Gateway

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The handlers of both paths."""

    def __init__(self, gateway: Gateway, post: Post) -> None:
        self._client = gateway.client
        self._meters = gateway.meters
        self._post = post
        self._pool: Kept[dict[str, Any] | None] = Kept(self._ask)
        self._meters.know(model.name for model in gateway.settings.models)

    def routes(self) -> tuple[Route, ...]:
        return (
            route("GET", "/metrics", self.modern, Access.MONITOR),
            route("GET", "/monitoring/prometheus/metrics", self.serving, Access.MONITOR),
        )

    async def modern(self, request: Request) -> Response:
        """tfpool's own metrics, as text or, where the caller prefers it, as OpenMetrics."""
        seen = await self._look()
        accept = request.header(b"accept").decode("latin-1")
        return await asyncio.to_thread(_modern, seen, accept)

    async def serving(self, request: Request) -> Response:
        """Those that TensorFlow Serving has too, by its names."""
        seen = await self._look()
        return await asyncio.to_thread(_serving, seen)

    async def _look(self) -> Seen:
        pool = await self._pool.get()
        if pool is not None:
            self._meters.keep({row["name"] for row in pool["models"]})
        snapshots = self._post.all()
        total = Meters()
        for snapshot in snapshots.values():
            total.add(snapshot)
        if pool is not None:
            total.keep({row["name"] for row in pool["models"]})
        return Seen(pool, total, {slot: snapshot["gauges"] for slot, snapshot in snapshots.items()})

    async def _ask(self) -> dict[str, Any] | None:
        """What the broker tells; None where it does not answer."""
        verbs = ("stats", "models", "queues", "progress")
        try:
            found = await asyncio.gather(*(self._client.call(verb, timeout=PATIENCE_SECONDS) for verb in verbs))
        except TfpoolError:
            return None
        return dict(zip(verbs, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Page(Collector):
    """Stands in for a registry."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _modern(seen: Seen, accept: str) -> Response:
    try:
        encode, kind = choose_encoder(accept)
    except (ValueError, TypeError):  # of a version that is none
        encode, kind = generate_latest, PLAIN
    return _response(encode(_Page(metrics_pool.families(seen))), kind)


def _serving(seen: Seen) -> Response:
    """Counters are given as untyped, which keeps the client library from appending ``_total`` to their names."""
    body = generate_latest(_Page(metrics_tfs.families(seen)))
    return _response(body.replace(b" untyped\n", b" counter\n"), PLAIN)


def _response(body: bytes, kind: str) -> Response:
    return Response(body, headers=((b"content-type", kind.encode("ascii")),))
