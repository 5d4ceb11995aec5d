"""The handlers of ``/console``: the page and its files, what it shows, and what may be done from it."""

from __future__ import annotations

from tfpool.gateway.console.actions import Actions
from tfpool.gateway.console.events import Hub
from tfpool.gateway.console.pages import Pages
from tfpool.gateway.http import Access, Request, Response, Route, json_response, route
from tfpool.gateway.serving import Gateway

_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


class Console:
    """The page is for everybody and knows nothing; what it asks for needs a token, where there are tokens."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._hub = Hub(gateway)
        self._pages = Pages()
        self._actions = Actions(gateway.client)

    def routes(self) -> tuple[Route, ...]:
        return (
            route("GET", "/console", self._pages.page, Access.OPEN),
            route("GET", "/console/", self._pages.moved, Access.OPEN),
            route("GET", "/console/([a-z]+[.][a-z]+)", self._pages.file, Access.OPEN),
            route("GET", "/console/events", self.events, Access.MONITOR),
            route("GET", "/console/api/whoami", self.whoami, Access.MONITOR),
            route("GET", "/console/api/models/([^/]+)", self.model, Access.MONITOR),
            route("POST", "/console/api/([a-z]+)", self._actions.act, Access.ADMIN),
        )

    async def events(self, request: Request) -> Response:
        """What changes, as server-sent events; see :class:`Hub`."""
        return Response(self._hub.watch(), headers=_STREAM)

    async def whoami(self, request: Request) -> Response:
        """What the caller may do: ``{"access": "ADMIN", "tokens": true}``."""
        return json_response(
            {"access": request.access.name, "tokens": self._gateway.settings.gateway.tokens is not None}
        )

    async def model(self, request: Request, name: str) -> Response:
        """The rows of one model, with signatures and settings. Raises NotFound."""
        return json_response(await self._gateway.client.status(name))
