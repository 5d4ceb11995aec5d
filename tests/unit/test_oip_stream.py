"""A stream of requests: answers as they come, a bound on what is at work, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tfpool.gateway.oip.stream import answered


class Pool:
    """Answers a request when it is told to."""

    def __init__(self) -> None:
        self.asked: dict[bytes, asyncio.Future[bytes]] = {}
        self.cancelled: list[bytes] = []

    async def answer(self, request: bytes) -> bytes:
        self.asked[request] = asyncio.get_running_loop().create_future()
        try:
            return await self.asked[request]
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise

    def finish(self, request: bytes) -> None:
        self.asked[request].set_result(b"done " + request)


async def requests(*given: bytes) -> AsyncIterator[bytes]:
    for one in given:
        yield one


async def settled() -> None:
    """Everything that can go on now has."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_in_the_order_in_which_they_are_there() -> None:
    async def run() -> None:
        pool = Pool()
        answers = answered(requests(b"1", b"2", b"3"), pool.answer)
        first = asyncio.ensure_future(anext(answers))
        await settled()
        pool.finish(b"2")
        assert await first == b"done 2"
        pool.finish(b"3")
        pool.finish(b"1")
        assert [one async for one in answers] == [b"done 3", b"done 1"]

    asyncio.run(run())


def test_no_more_at_work_than_it_may_be() -> None:
    async def run() -> None:
        pool = Pool()
        answers = answered(requests(b"1", b"2", b"3"), pool.answer, at_work=2)
        first = asyncio.ensure_future(anext(answers))
        await settled()
        assert sorted(pool.asked) == [b"1", b"2"]
        pool.finish(b"1")
        assert await first == b"done 1"
        await settled()
        assert sorted(pool.asked) == [b"1", b"2"]  # the answer has been handed out, and is not known to be taken
        second = asyncio.ensure_future(anext(answers))
        await settled()
        assert sorted(pool.asked) == [b"1", b"2", b"3"]
        pool.finish(b"2")
        pool.finish(b"3")
        assert await second == b"done 2"
        assert [one async for one in answers] == [b"done 3"]

    asyncio.run(run())


def test_who_leaves_cancels_what_is_at_work() -> None:
    async def run() -> None:
        pool = Pool()
        answers = answered(requests(b"1", b"2", b"3"), pool.answer)
        first = asyncio.ensure_future(anext(answers))
        await settled()
        pool.finish(b"1")
        await first
        await answers.aclose()
        await settled()
        assert sorted(pool.cancelled) == [b"2", b"3"]

    asyncio.run(run())


def test_what_nobody_foresaw_ends_the_stream() -> None:
    async def broken(request: bytes) -> bytes:
        raise KeyError("a bug")

    async def run() -> None:
        with pytest.raises(KeyError, match="a bug"):
            await anext(answered(requests(b"1", b"2"), broken))

    asyncio.run(run())


def test_requests_that_break_off_end_the_stream() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        raise ConnectionError("gone")
        yield b""

    async def answer(request: bytes) -> bytes:
        return request

    async def run() -> None:
        with pytest.raises(ConnectionError, match="gone"):
            await anext(answered(breaking(), answer))

    asyncio.run(run())
