"""The Open Inference Protocol over HTTP: everything below ``/v2``."""

from __future__ import annotations

from urllib.parse import parse_qs

from tfpool.errors import InvalidArgument, NotFound, Unimplemented
from tfpool.gateway.http import Access, Request, Response, Route, json_response, route
from tfpool.gateway.oip import facts
from tfpool.gateway.oip.facts import Facts
from tfpool.gateway.oip.infer import Infer
from tfpool.gateway.serving import Gateway

_MODEL = r"/v2/models/([^/]+)(?:/versions/([^/]+))?"
_MEMORY = r"/v2/(system|cuda)sharedmemory"
_REPOSITORY = r"/v2/repository"


class OpenInference:
    """The handlers of ``/v2``."""

    def __init__(self, gateway: Gateway) -> None:
        self._infer = Infer(gateway)
        self._facts = Facts(gateway)
        self._readiness = gateway.readiness

    def routes(self) -> tuple[Route, ...]:
        seen, admin = Access.MONITOR, Access.ADMIN
        return (
            route("POST", f"{_MODEL}/infer", self._infer.infer, Access.PREDICT),
            route("GET", r"/v2/?", self.server, seen),
            route("GET", r"/v2/health/live", self.live, Access.OPEN),
            route("GET", r"/v2/health/ready", self.ready, Access.OPEN),
            route("GET", r"/v2/models/stats", self.all_statistics, seen),
            route("GET", _MODEL, self.model, seen),
            route("GET", f"{_MODEL}/ready", self.model_ready, seen),
            route("GET", f"{_MODEL}/config", self.config, seen),
            route("GET", f"{_MODEL}/stats", self.statistics, seen),
            route("POST", f"{_REPOSITORY}/index", self.index, seen),
            route("POST", f"{_REPOSITORY}/models/([^/]+)/load", self.load, admin),
            route("POST", f"{_REPOSITORY}/models/([^/]+)/unload", self.unload, admin),
            route("GET", f"{_MEMORY}(?:/region/([^/]+))?/status", self.memory_status, seen),
            route("POST", f"{_MEMORY}/region/[^/]+/register", self.memory_register, admin),
            route("POST", f"{_MEMORY}(?:/region/[^/]+)?/unregister", self.memory_unregister, admin),
            route("GET", r"/v2/(?:models/[^/]+/)?(trace/setting|logging)", self.unsupported, seen),
            route("POST", r"/v2/(?:models/[^/]+/)?(trace/setting|logging)", self.unsupported, admin),
        )

    # -- health and knowledge ----------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        """This process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every model that shall serve does, or has failed; 503 where not."""
        ready = await self._readiness.pool()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        return json_response(facts.server())

    async def model(self, request: Request, model: str, version: str | None) -> Response:
        return json_response(await self._facts.metadata(model, version, _signature(request)))

    async def model_ready(self, request: Request, model: str, version: str | None) -> Response:
        """A worker serves it now; 503 where not. Raises NotFound for a model that is not there."""
        why_not = await self._facts.why_not(model, version)
        told = {"name": model, "ready": not why_not}
        return json_response({**told, "error": why_not} if why_not else told, 503 if why_not else 200)

    async def config(self, request: Request, model: str, version: str | None) -> Response:
        return json_response(await self._facts.config(model, version, _signature(request)))

    async def statistics(self, request: Request, model: str, version: str | None) -> Response:
        return json_response(await self._facts.statistics(model, version))

    async def all_statistics(self, request: Request) -> Response:
        return json_response(await self._facts.statistics())

    # -- the repository ----------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """``{"ready": true}`` in the body asks for those that are ready only."""
        ready = _said(request).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidArgument(f"ready: got {str(ready)[:40]!r}, expected true or false")
        return json_response(await self._facts.index(ready))

    async def load(self, request: Request, model: str) -> Response:
        """The newest version, as it is configured; answers when it serves."""
        await self._facts.load(model, _parameters(request))
        return Response()

    async def unload(self, request: Request, model: str) -> Response:
        """All versions; answers when they are gone."""
        _parameters(request)
        await self._facts.unload(model)
        return Response()

    # -- what is not there -------------------------------------------------------------------------------------

    async def memory_status(self, request: Request, kind: str, region: str | None) -> Response:
        """No region is ever registered."""
        if region is not None:
            raise NotFound(f"there is no {kind} shared memory region {region!r}")
        return json_response([])

    async def memory_register(self, request: Request, kind: str) -> Response:
        raise Unimplemented(f"this server reads no {kind} shared memory of its clients; send tensors themselves")

    async def memory_unregister(self, request: Request, kind: str) -> Response:
        """Nothing is to be done."""
        return Response()

    async def unsupported(self, request: Request, what: str) -> Response:
        raise Unimplemented(f"{what} cannot be read or changed over this protocol; see the server's configuration")


def _signature(request: Request) -> str:
    """``?signature=NAME`` tells of another signature than the default."""
    if not request.query:
        return ""
    return parse_qs(request.query.decode("latin-1")).get("signature", [""])[-1]


def _said(request: Request) -> dict[str, object]:
    """The object in the body, which may be empty."""
    said = request.json() if request.body else {}
    if not isinstance(said, dict):
        raise InvalidArgument(f"the body: got {type(said).__name__}, expected an object")
    return said


def _parameters(request: Request) -> dict[str, object]:
    found = _said(request).get("parameters", {})
    if not isinstance(found, dict):
        raise InvalidArgument(f"parameters: got {type(found).__name__}, expected an object")
    return found
