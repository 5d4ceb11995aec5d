"""The gateway's HTTP without a process: requests go through the application to the pool's own registry and resolver,
models are numpy functions that run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfpool.broker import rows
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.broker.resolve import Resolver, Split
from tfpool.client.core import Core
from tfpool.client.reply import Reply
from tfpool.errors import TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.http import HttpError, Request, Route
from tfpool.gateway.serving import Gateway
from tfpool.repository.states import State
from tfpool.settings import GatewaySettings, ModelSettings, PoolSettings, ServerSettings, Settings
from tfpool.testing.fronts import Answer
from tfpool.worker.loader import Signature

Models = Mapping[str, Mapping[int, Sequence[Signature]]]
Rooms = Callable[[Gateway], Iterable[Route]]
_LARGE = 1 << 40


@dataclass
class ScriptedClient:
    """The AsyncClient that a gateway has, with the pool behind it. ``asked`` counts the verbs."""

    registry: Registry = field(default_factory=Registry)
    served: dict[int, Sequence[Signature]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._resolver = Resolver(self.registry)

    def submit(
        self, model: str, inputs: Any, *, timeout: float | None = None, patient: bool = False, **options: Any
    ) -> Reply:
        core = Core(lambda *_: None, _LARGE, lambda: None)
        reply = core.submit(model, inputs, np.inf, soft=timeout is None, **options)
        reply.inputs = inputs
        return reply

    async def result(self, reply: Reply) -> Any:
        self.asked.append("predict")
        try:
            found = self._resolver.resolve(reply.entry.packed, reply.entry.key)
            if isinstance(found, Split):
                found = next(iter(found.parts.values()))
            signature = self.served[found.version.handle][found.spec.signature]
            names = [spec.name for spec in signature.spec.inputs]
            answers = signature.call(*(reply.inputs[name] for name in names))
            reply.version, reply.timing = found.version.key.version, (1, 2, max(1, reply.rows))
            outputs = {spec.name: np.asarray(a) for spec, a in zip(signature.spec.outputs, answers, strict=True)}
            reply.resolve(outputs)
        except TfpoolError as error:
            reply.resolve(None, error)
        return reply.result()

    async def metadata(self, model: str, *, version: int = 0, label: str = "") -> dict[str, Any]:
        self.asked.append("metadata")
        found = self.registry.route(model, version, label)[0][0]
        return {"name": model, "version": found.key.version, "signatures": rows.signatures(found.signatures)}

    async def status(self, model: str) -> list[dict[str, Any]]:
        self.asked.append("status")
        return rows.detailed_rows(self.registry.model(model), {}, None)

    async def models(self) -> list[dict[str, Any]]:
        self.asked.append("models")
        return [row for model in self.registry.models.values() for row in rows.model_rows(model)]

    async def progress(self) -> dict[str, Any]:
        return {"settled": True, "workers_ready": 1}

    async def call(self, method: str, **arguments: Any) -> Any:
        """A reading verb, as far as it is one of the methods above."""
        arguments.pop("timeout", None)
        return await getattr(self, method)(**arguments)


class Desk:
    """Serves ``models``, by name and version, on the routes of some rooms.

    ``labels`` are those of each model, with their versions.
    """

    def __init__(
        self,
        models: Models,
        rooms: Rooms,
        labels: Mapping[str, Mapping[str, int]] | None = None,
        settings: GatewaySettings | None = None,
    ) -> None:
        self.client = ScriptedClient()
        for name, versions in models.items():
            split = tuple((label, ((number, 1),)) for label, number in (labels or {}).get(name, {}).items())
            self.client.registry.add_model(ModelSettings(name, f"/models/{name}", labels=split)).sighted = True
            for number, signatures in versions.items():
                self.serve(name, number, signatures)
        chosen = settings or GatewaySettings()
        whole = Settings(
            ServerSettings(("ipc:///nowhere",), "ipc:///nowhere.admin"), PoolSettings(1), (), gateway=chosen
        )
        self.gateway = Gateway(whole, self.client)  # type: ignore[arg-type]
        self._app = App(chosen, Keeper(chosen), rooms(self.gateway))

    def serve(self, model: str, number: int, signatures: Sequence[Signature]) -> Version:
        """Have a version served, in place of another of its number."""
        registry = self.client.registry
        version = registry.add_version(registry.model(model), number, f"/models/{model}/{number}")
        version.signatures = tuple(signature.spec for signature in signatures)
        version.goal, version.proven, version.on["w"] = Goal.SERVE, True, State.AVAILABLE
        self.client.served[version.handle] = signatures
        return version

    def ask(self, method: str, path: str, body: bytes | str = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One request: status, headers, body."""
        return asyncio.run(self._ask(method, path, body if isinstance(body, bytes) else body.encode(), headers or {}))

    async def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        where, _, query = path.encode("latin-1").partition(b"?")
        sent = tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
        try:
            found = self._app.admit(method, where, sent)
        except (TfpoolError, HttpError) as error:
            response = self._app.refused(error, sent)
        else:
            request = Request(method, where.decode("latin-1"), query, sent, body, found[2])
            response = await self._app.respond(request, found, request.header(b"content-encoding"))
        written = response.body if isinstance(response.body, bytes) else b"".join([p async for p in response.body])
        return Answer(response.status, {k.decode(): v.decode() for k, v in response.headers}, written)
