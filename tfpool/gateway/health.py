"""Whether the gateway lives, and whether the pool behind it serves; see :mod:`tfpool.gateway.readiness`."""

from __future__ import annotations

from tfpool.gateway.http import Access, Request, Response, Route, json_response, route
from tfpool.gateway.serving import Gateway

_MODEL = r"/readyz/([^/]+)(?:/versions/([1-9]\d{0,17})|/labels/([^/]+))?"


class Health:
    """The handlers of ``/healthz``, ``/readyz`` and ``/readyz/MODEL[/versions/N|/labels/L]``.

    Probes need no token; names and errors of models are only for who may read states.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._readiness = gateway.readiness

    def routes(self) -> tuple[Route, ...]:
        return (
            route("GET", "/healthz", self.live, Access.OPEN),
            route("GET", "/readyz", self.ready, Access.OPEN),
            route("GET", _MODEL, self.model, Access.MONITOR),
        )

    async def live(self, request: Request) -> Response:
        """This process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """200 when every model that shall serve does, or has failed; 503 otherwise, and while the pool ends."""
        report = await self._readiness.report()
        said: dict[str, object] = {"ready": report.ready}
        if request.access >= Access.MONITOR:
            details = {"reason": report.reason, "missing": report.missing, "failed": report.failed}
            said |= {name: value for name, value in details.items() if value}
        return json_response(said, 200 if report.ready else 503)

    async def model(self, request: Request, name: str, version: str | None, label: str | None) -> Response:
        """200 when a live worker serves the model now, 503 otherwise, 404 for one that is not there."""
        reason = await self._readiness.why_not(name, int(version or 0), label or "")
        if reason:
            return json_response({"ready": False, "reason": reason}, 503)
        return json_response({"ready": True})
