"""The asyncio client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import update_wrapper
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from tfpool.client.casting import all_arrays, cast
from tfpool.client.endpoints import Endpoints, positive
from tfpool.client.examples import CLASSIFY, INPUT, REGRESS, Classes, Example, Method, Target, encode
from tfpool.client.looped import LoopConnection
from tfpool.client.reply import Reply
from tfpool.client.sync import CHECKED_KEPT, Inputs, Outputs
from tfpool.client.verbs import DEFAULT_TIMEOUT, Verbs
from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.wire.tensors import Array

P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    method: Callable[Concatenate[Verbs, P], R],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """A verb whose answer is awaited."""

    async def run(self: AsyncClient, /, *arguments: P.args, **named: P.kwargs) -> R:
        answer: Any = method(self._verbs, *arguments, **named)
        found: R = await answer
        return found

    return update_wrapper(run, method)


class _Verbs(Verbs):
    """The verbs, each of which gives what its answer is awaited with."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        return self._client.call(method, timeout=timeout, **arguments)

    def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        return self._client.admin(method, timeout=timeout, **arguments)


class AsyncClient:
    """Like :class:`tfpool.Client`, for ``async with`` and ``await``. One instance belongs to one event loop: the one
    that runs when it is first used."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        admin: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._endpoints = Endpoints(endpoint, admin, keys)
        self._timeout = positive(timeout)
        self._made: LoopConnection | None = None
        self._admin: LoopConnection | None = None
        self._closed = False
        self._checked: set[tuple[Method, Target]] = set()
        self._verbs = _Verbs(self)

    @property
    def endpoint(self) -> str:
        return self._endpoints.pool

    # -- inference ---------------------------------------------------------------------------------------------

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int = 0,
        label: str = "",
        signature: str = "",
        rows: bool = True,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Outputs:
        """See :meth:`tfpool.Client.predict`. Cancelling the task cancels the request."""
        if type(inputs) is not np.ndarray:
            described: dict[str, Any] = {}
            if not all_arrays(inputs):
                described = await self.metadata(model, version=version, label=label)
            inputs = cast(inputs, rows, lambda: described, signature)
        reply = self.submit(
            model,
            inputs,
            version=version,
            label=label,
            signature=signature,
            rows=rows,
            priority=priority,
            timeout=timeout,
        )
        outputs: Outputs = await self.result(reply)
        return outputs

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int = 0,
        label: str = "",
        signature: str = "",
        rows: bool = True,
        priority: int = 0,
        timeout: float | None = None,
        patient: bool = False,
    ) -> Reply:
        """Queue a request at once, with the options of :meth:`predict`, whose ``inputs`` are arrays; they are copied.

        :meth:`result` awaits it; ``cancel()`` withdraws it. One that is ``patient`` waits up to a millisecond for
        others to leave with, where the pool has work and this loop is busy: more gets through, a little later.
        """
        connection = self._connection()
        seconds = self._timeout if timeout is None else positive(timeout)
        reply = connection.core.submit(
            model, inputs, time.monotonic() + seconds, version, label, signature, rows, priority, timeout is None
        )
        connection.push(patient)
        return reply

    async def result(self, reply: Reply) -> Any:
        """What was submitted brings: the outputs by name, or its error. Cancelling the task cancels the request."""
        return await self._connection().result(reply)

    async def classify(
        self,
        model: str,
        examples: Iterable[Example],
        *,
        context: Example | None = None,
        version: int = 0,
        label: str = "",
        signature: str = "",
        timeout: float | None = None,
    ) -> Classes:
        """See :meth:`tfpool.Client.classify`."""
        target = Target(model, version, label, signature)
        found: Classes = await self._on_examples(CLASSIFY, target, encode(examples, context), timeout)
        return found

    async def regress(
        self,
        model: str,
        examples: Iterable[Example],
        *,
        context: Example | None = None,
        version: int = 0,
        label: str = "",
        signature: str = "",
        timeout: float | None = None,
    ) -> Array:
        """See :meth:`tfpool.Client.regress`."""
        target = Target(model, version, label, signature)
        found: Array = await self._on_examples(REGRESS, target, encode(examples, context), timeout)
        return found

    async def _on_examples(self, method: Method, target: Target, array: Array, timeout: float | None) -> Any:
        try:
            if (method, target) not in self._checked:
                model, version, label, _ = target
                method.check(await self.call("metadata", model=model, version=version, label=label), target)
                if len(self._checked) >= CHECKED_KEPT:
                    self._checked.clear()
                self._checked.add((method, target))
            outputs = await self.predict(inputs={INPUT: array}, timeout=timeout, **target._asdict())
            return method.read(outputs, len(array))
        except TfpoolError:
            self._checked.discard((method, target))  # a new version may differ
            raise

    # -- control -----------------------------------------------------------------------------------------------

    async def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb."""
        return await self._call(self._connection(), method, arguments, timeout)

    async def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb, on the admin endpoint."""
        self._connection()
        if self._admin is None:
            endpoint = self._endpoints.admin()
            self._admin = LoopConnection(endpoint, self._endpoints.keys_for(endpoint), again=False)
        return await self._call(self._admin, method, arguments, timeout)

    async def _call(
        self, connection: LoopConnection, method: str, arguments: dict[str, Any], timeout: float | None
    ) -> Any:
        seconds = self._timeout if timeout is None else positive(timeout)
        reply = connection.core.call(method, arguments, time.monotonic() + seconds)
        connection.push()
        return await connection.result(reply)

    models = _awaited(Verbs.models)
    status = _awaited(Verbs.status)
    metadata = _awaited(Verbs.metadata)
    workers = _awaited(Verbs.workers)
    queues = _awaited(Verbs.queues)
    stats = _awaited(Verbs.stats)
    plan = _awaited(Verbs.plan)
    wait_ready = _awaited(Verbs.wait_ready)
    load = _awaited(Verbs.load)
    unload = _awaited(Verbs.unload)
    add = _awaited(Verbs.add)
    remove = _awaited(Verbs.remove)
    reload = _awaited(Verbs.reload)
    label = _awaited(Verbs.label)
    shadow = _awaited(Verbs.shadow)
    record = _awaited(Verbs.record)
    migrate = _awaited(Verbs.migrate)
    apply = _awaited(Verbs.apply)
    drain = _awaited(Verbs.drain)
    restart = _awaited(Verbs.restart)
    restart_all = _awaited(Verbs.restart_all)
    shutdown = _awaited(Verbs.shutdown)

    # -- begin and end -----------------------------------------------------------------------------------------

    def _connection(self) -> LoopConnection:
        made = self._made
        if made is None:
            if self._closed:
                raise FailedPrecondition("this client is closed")
            made = self._made = LoopConnection(self.endpoint, self._endpoints.keys_for(self.endpoint))
        made.check()
        return made

    async def close(self) -> None:
        """Cancel what is in flight and disconnect. Arrays that were returned stay valid."""
        self._closed = True
        for connection in (self._made, self._admin):
            if connection is not None:
                await connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
