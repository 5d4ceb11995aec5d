"""grpc.health.v1.Health: the pool as a whole by the empty name, a model by its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from grpc_health.v1 import health_pb2

from tfpool.errors import NotFound, TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.http import Access
from tfpool.gateway.rpc.methods import Method, credentials, read, stream, unary
from tfpool.gateway.serving import Gateway

SERVICE = "grpc.health.v1.Health"
WATCH_SECONDS = 0.5
"""How often what is watched is looked at."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """Its methods; ``services`` are the names that mean the pool too. What models there are, and how they are, is only
    for who may know."""

    def __init__(self, gateway: Gateway, keeper: Keeper, services: Collection[str]) -> None:
        self._gateway = gateway
        self._keeper = keeper
        self._readiness = gateway.readiness
        self._pool = frozenset(("", *services))

    def methods(self) -> tuple[Method, ...]:
        return (
            unary(f"/{SERVICE}/Check", self.check, Access.OPEN),
            stream(f"/{SERVICE}/Watch", self.watch, Access.OPEN),
        )

    async def check(self, request: bytes, context: Any) -> bytes:
        """HealthCheckRequest -> HealthCheckResponse. Raises NotFound for a name that nobody bears."""
        name = self._name(request, context)
        found = await self._status(name)
        if found == _Status.SERVICE_UNKNOWN:
            raise NotFound(f"got {name!r}, expected a model, a service, or nothing for the pool")
        return _said(found)

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """HealthCheckRequest -> a HealthCheckResponse now and whenever it changes, until the pool ends."""
        name = self._name(request, context)
        told = None
        while True:
            ending = self._gateway.draining
            found = await self._status(name)
            if found != told:
                told = found
                yield _said(found)
            if ending:
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _name(self, request: bytes, context: Any) -> str:
        """Raises InvalidArgument, and Unauthenticated where a model is asked for without a token."""
        name: str = read(health_pb2.HealthCheckRequest, request).service
        if name not in self._pool:
            self._keeper.check(credentials(context.invocation_metadata()), Access.MONITOR)
        return name

    async def _status(self, name: str) -> int:
        try:
            if name in self._pool:
                ready = await self._readiness.pool()
            else:
                ready = not await self._readiness.why_not(name)
        except NotFound:
            return int(_Status.SERVICE_UNKNOWN)
        except TfpoolError:
            ready = False
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)


def _said(status: int) -> bytes:
    data: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return data
