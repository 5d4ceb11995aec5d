"""The way from every protocol to the pool: one call, its deadline, its meters, its trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from tfpool.client.aio import AsyncClient
from tfpool.client.examples import Target
from tfpool.client.reply import Reply
from tfpool.errors import Cancelled, Code, TfpoolError
from tfpool.gateway.catalog import Catalog
from tfpool.gateway.meters import Meters
from tfpool.gateway.readiness import Readiness
from tfpool.settings import Settings

ONE_BY_ONE = frozenset(("GRPC", "V2_GRPC"))
"""The protocols whose server hands requests over one by one: a message each would cost the pool too much."""


class Call(NamedTuple):
    """One request for a model, and how it came in.

    ``api`` is what was asked for (predict, classify, regress, infer ...), ``entry`` the protocol (REST, GRPC, V2,
    V2_GRPC). ``timeout`` is what the caller allows, in seconds (None: it did not say); ``trace`` its ``traceparent``.
    """

    target: Target
    api: str
    entry: str
    timeout: float | None = None
    priority: int = 0
    trace: str = ""


class Traces(Protocol):
    """Who is told of every request that is over; see :mod:`tfpool.gateway.traces`."""

    def record(self, call: Call, began: float, code: Code, reply: Reply | None) -> None:
        """A request that ``began`` at a moment (monotonic seconds) is over; ``reply`` has its timing, if any."""


class Gateway:
    """What the protocols share. ``draining``: the pool is about to end, and nobody should send more."""

    def __init__(self, settings: Settings, client: AsyncClient, traces: Traces | None = None) -> None:
        self.settings = settings
        self.client = client
        self.catalog = Catalog(client)
        self.meters = Meters()
        self.traces = traces
        self.draining = False
        self.readiness = Readiness(self)

    async def predict(self, call: Call, inputs: Mapping[str, Any]) -> Reply:
        """Run a model: the reply is there, with ``result()`` (the outputs by name), ``version`` and ``timing``.

        Raises the errors of :mod:`tfpool.errors`. Cancelling the task cancels the request.
        """
        began = time.monotonic()
        reply: Reply | None = None
        code = Code.OK
        target = call.target
        self.meters.in_flight += 1
        try:
            reply = self.client.submit(
                target.model,
                inputs,
                version=target.version,
                label=target.label,
                signature=target.signature,
                priority=call.priority,
                timeout=call.timeout,
                patient=call.entry in ONE_BY_ONE,
            )
            await self.client.result(reply)
            return reply
        except TfpoolError as error:
            code = error.code
            raise
        except BaseException:
            code = Cancelled.code
            raise
        finally:
            self.meters.in_flight -= 1
            self.meters.served(call, code, time.monotonic() - began)
            if self.traces is not None:
                self.traces.record(call, began, code, reply)
