"""A stream of requests and one of their answers: many at work at a time, each answered when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

AT_WORK = 256
"""Requests of one stream that are at work, or whose answers its caller has not taken yet."""


async def answered(
    requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]], at_work: int = AT_WORK
) -> AsyncGenerator[bytes, None]:
    """The answers, in the order in which they are there. Ends with the last, or with what ``answer``
    raises; closing it cancels what is at work."""
    done: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    room = asyncio.Semaphore(at_work)
    working: set[asyncio.Task[None]] = set()

    async def work(request: bytes) -> None:
        try:
            done.put_nowait(await answer(request))
        except Exception as error:
            done.put_nowait(error)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.create_task(work(request))
                working.add(task)
                task.add_done_callback(working.discard)
            await asyncio.gather(*working)
        finally:
            done.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (found := await done.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
            room.release()
        await reader
    finally:
        for task in (reader, *working):
            task.cancel()
