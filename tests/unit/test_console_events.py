"""Who watches the pool through a gateway: one poll for all, none for nobody."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import pytest

from tfpool.errors import Unavailable
from tfpool.gateway.console import events
from tfpool.gateway.console.events import Hub
from tfpool.gateway.serving import Gateway

STATS = {
    "uptime_seconds": 1.0,
    "waiting_rows": 0,
    "loads": 0,
    "evictions": 0,
    "broker_cpu_seconds": 0.0,
    "shm": {},
    "models": {},
    "workers": [],
}


class Pool:
    """A pool that counts its polls, and the gateway that asks it."""

    def __init__(self) -> None:
        self.client, self.draining = self, False
        self.asked: Counter[str] = Counter()
        self.error: Exception | None = None
        self.bell = asyncio.Event()

    async def call(self, verb: str, timeout: float) -> Any:
        self.asked[verb] += 1
        if self.error is not None:
            raise self.error
        if verb == "stats":
            return {**STATS, "waiting_rows": self.asked[verb]}
        return {"settled": True, "replacing": [], "reload": None, "migrations": []} if verb == "progress" else []

    def hub(self) -> Hub:
        return Hub(cast(Gateway, self))


def run(story: Callable[[Pool], Awaitable[None]]) -> None:
    async def told() -> None:
        await asyncio.wait_for(story(Pool()), 20.0)

    asyncio.run(told())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)


async def frame(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    event = await anext(stream)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    read: dict[str, Any] = json.loads(event[6:])
    return read


def test_many_viewers_cost_one_poll() -> None:
    async def story(pool: Pool) -> None:
        hub = pool.hub()
        viewers = [hub.watch() for _ in range(20)]
        seen = [await frame(viewer) for viewer in viewers]
        for _ in range(3):
            seen = [await frame(viewer) for viewer in viewers]
        assert pool.asked["stats"] <= max(one["revision"] for one in seen) + 1
        assert set(pool.asked) == {"stats", "models", "queues", "progress"}
        for viewer in viewers:
            await viewer.aclose()

    run(story)


def test_nobody_looks_nobody_asks() -> None:
    async def story(pool: Pool) -> None:
        hub = pool.hub()
        async with aclosing(hub.watch()) as viewer:
            await frame(viewer)
        asked = pool.asked["stats"]
        await asyncio.sleep(0.05)
        assert pool.asked["stats"] == asked
        async with aclosing(hub.watch()) as viewer:
            again = await frame(viewer)
        assert again["whole"]
        assert again["head"]["waiting"] == asked + 1

    run(story)


def test_a_slow_viewer_misses_frames_and_no_news() -> None:
    async def story(pool: Pool) -> None:
        hub = pool.hub()
        async with aclosing(hub.watch()) as slow, aclosing(hub.watch()) as eager:
            await frame(slow)
            while (await frame(eager))["revision"] < 8:
                pass
            late = await frame(slow)
        assert late["revision"] >= 8
        assert not late["whole"]

    run(story)


def test_a_pool_that_does_not_answer_is_said_to_be_so() -> None:
    async def story(pool: Pool) -> None:
        async with aclosing(pool.hub().watch()) as viewer:
            known = await frame(viewer)
            pool.error = Unavailable("gone for lunch")
            while (told := await frame(viewer))["head"]["trouble"] is None:
                pass
            assert told["head"]["trouble"] == "gone for lunch"
            assert told["head"]["uptime"] == known["head"]["uptime"]
            assert told["put"] == {"models": {}, "workers": {}, "queues": {}, "changes": {}}
            pool.error = None
            while (told := await frame(viewer))["head"]["trouble"] is not None:
                pass

    run(story)


def test_streams_end_when_the_pool_drains() -> None:
    async def story(pool: Pool) -> None:
        async with aclosing(pool.hub().watch()) as viewer:
            await frame(viewer)
            pool.draining = True
            assert [one async for one in viewer] == []

    run(story)


def test_streams_end_where_the_poll_fails_for_a_reason_of_our_own() -> None:
    async def story(pool: Pool) -> None:
        hub = pool.hub()
        async with aclosing(hub.watch()) as viewer:
            await frame(viewer)
            pool.error = KeyError("stats")
            assert [one async for one in viewer][1:] == []
        pool.error = None
        async with aclosing(hub.watch()) as viewer:
            assert (await frame(viewer))["whole"]

    run(story)


def test_a_stream_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WATCH_SECONDS", 0.05)

    async def story(pool: Pool) -> None:
        frames = [one async for one in pool.hub().watch()]
        assert len(frames) > 1

    run(story)
