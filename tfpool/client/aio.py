"""The asyncio client: the same connection, its replies handed to the event loop many at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial, update_wrapper
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from tfpool.client.casting import all_arrays
from tfpool.client.examples import CLASSIFY, INPUT, REGRESS, Classes, Example, Method, Target, encode
from tfpool.client.reply import Reply
from tfpool.client.sync import Client, Inputs, Outputs
from tfpool.client.verbs import DEFAULT_TIMEOUT
from tfpool.errors import TfpoolError
from tfpool.wire.tensors import Array

P = ParamSpec("P")
R = TypeVar("R")


def _in_thread(
    method: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """A blocking call of the client, so that it does not hold the loop up."""

    async def run(self: AsyncClient, /, *arguments: P.args, **named: P.kwargs) -> R:
        return await asyncio.to_thread(method, self._client, *arguments, **named)

    return update_wrapper(run, method)


class AsyncClient:
    """Like :class:`tfpool.Client`, for ``async with`` and ``await``. One instance belongs to one event loop."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        admin: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._client = Client(endpoint, admin=admin, keys=keys, timeout=timeout)
        self._done: deque[tuple[asyncio.Future[Any], Reply]] = deque()
        self._called = False

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
        submit = partial(
            self._client.submit,
            model,
            inputs,
            version=version,
            label=label,
            signature=signature,
            rows=rows,
            priority=priority,
            timeout=timeout,
        )
        # plain Python values may have to ask the pool for their dtypes, which must not hold the loop up
        reply = submit() if all_arrays(inputs) else await asyncio.to_thread(submit)
        outputs: Outputs = await self._result(reply)
        return outputs

    def submit(self, model: str, inputs: Inputs, **options: Any) -> Reply:
        """Queue a request at once, with the options of :meth:`predict`; see :meth:`result`. ``inputs`` are arrays."""
        return self._client.submit(model, inputs, **options)

    async def result(self, reply: Reply) -> Any:
        """The outputs of what was submitted. Cancelling the task cancels the request."""
        return await self._result(reply)

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
        client = self._client
        try:
            if (method, target) not in client._checked:
                await asyncio.to_thread(client._check, method, target, timeout)
            outputs = await self.predict(inputs={INPUT: array}, timeout=timeout, **target._asdict())
            return method.read(outputs, len(array))
        except TfpoolError:
            client._checked.discard((method, target))
            raise

    async def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb."""
        return await asyncio.to_thread(self._client.call, method, timeout=timeout, **arguments)

    async def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb."""
        return await asyncio.to_thread(self._client.admin, method, timeout=timeout, **arguments)

    models = _in_thread(Client.models)
    status = _in_thread(Client.status)
    metadata = _in_thread(Client.metadata)
    workers = _in_thread(Client.workers)
    queues = _in_thread(Client.queues)
    stats = _in_thread(Client.stats)
    plan = _in_thread(Client.plan)
    wait_ready = _in_thread(Client.wait_ready)
    load = _in_thread(Client.load)
    unload = _in_thread(Client.unload)
    add = _in_thread(Client.add)
    remove = _in_thread(Client.remove)
    reload = _in_thread(Client.reload)
    label = _in_thread(Client.label)
    shadow = _in_thread(Client.shadow)
    record = _in_thread(Client.record)
    migrate = _in_thread(Client.migrate)
    apply = _in_thread(Client.apply)
    drain = _in_thread(Client.drain)
    restart = _in_thread(Client.restart)
    restart_all = _in_thread(Client.restart_all)
    shutdown = _in_thread(Client.shutdown)

    async def _result(self, reply: Reply) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def done(_: Any) -> None:
            self._done.append((future, reply))
            if not self._called:
                self._called = True
                loop.call_soon_threadsafe(self._resolve)

        reply.add_done_callback(done)
        try:
            return await future
        except asyncio.CancelledError:
            reply.cancel()
            raise

    def _resolve(self) -> None:
        self._called = False
        while self._done:
            future, reply = self._done.popleft()
            if future.done():
                continue
            if reply.cancelled():
                future.cancel()
                continue
            error = reply.exception()
            if error is None:
                future.set_result(reply.result())
            else:
                future.set_exception(error)

    async def close(self) -> None:
        """Cancel what is in flight and disconnect."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
