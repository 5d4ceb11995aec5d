"""The asyncio client: the same connection, its replies handed to the event loop many at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from types import TracebackType
from typing import Any

from tfpool.client.casting import all_arrays
from tfpool.client.reply import Reply
from tfpool.client.sync import DEFAULT_TIMEOUT, Client, Inputs, Outputs


class AsyncClient:
    """Like :class:`tfpool.Client`, for ``async with`` and ``await``. One instance belongs to one event loop."""

    def __init__(
        self, endpoint: str | None = None, *, admin: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self._client = Client(endpoint, admin=admin, timeout=timeout)
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

    async def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb; see :class:`tfpool.Client` for them."""
        return await asyncio.to_thread(self._client.call, method, timeout=timeout, **arguments)

    async def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb."""
        return await asyncio.to_thread(self._client.admin, method, timeout=timeout, **arguments)

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
