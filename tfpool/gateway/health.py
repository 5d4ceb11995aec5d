"""Whether the gateway lives, and whether the pool behind it serves."""

from __future__ import annotations

from tfpool.gateway.http import Access, Request, Response, Route, json_response, route
from tfpool.gateway.serving import Gateway


class Health:
    """The handlers of ``/healthz`` and ``/readyz``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> tuple[Route, ...]:
        return (
            route("GET", "/healthz", self.live, Access.OPEN),
            route("GET", "/readyz", self.ready, Access.OPEN),
        )

    async def live(self, request: Request) -> Response:
        """This process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every model that shall serve does, or has failed; not while the pool ends."""
        progress = await self._gateway.client.call("progress", timeout=2.0)
        ready = bool(progress["settled"]) and not self._gateway.draining
        return json_response({"ready": ready}, 200 if ready else 503)
