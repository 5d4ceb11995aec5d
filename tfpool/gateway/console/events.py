"""The pool as it changes, for as many pages as look: one poll a second while somebody does, and none otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from tfpool.errors import TfpoolError
from tfpool.gateway.console.digest import Digest, Polled
from tfpool.gateway.console.frames import Frames
from tfpool.gateway.serving import Gateway
from tfpool.telemetry import log

POLL_SECONDS = 1.0
LARGEST_SHARE = 0.05
"""A large pool takes long to tell everything: no more of the time than this is spent on it."""
LONGEST_SECONDS = 5.0
WATCH_SECONDS = 300.0
"""A stream ends after that, so that who watches shows its token again."""
_PATIENCE = 3.0
_LOOK_UP = 0.25


class Hub:
    """Polls the pool for its viewers. Each is sent what is new to it when it has read what came before."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._digest = Digest()
        self._frames = Frames()
        self._viewers = 0
        self._poller: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._log = log.get("gateway")

    async def watch(self) -> AsyncIterator[bytes]:
        """Server-sent events, first everything, then what changes; until the pool ends, the viewer goes, or its time is
        up."""
        self._viewers += 1
        poller = self._start()
        try:
            seen, until = 0, time.monotonic() + WATCH_SECONDS
            while not self._gateway.draining and not poller.done() and time.monotonic() < until:
                if self._frames.revision != seen:
                    frame, seen = self._frames.since(seen), self._frames.revision
                    yield b"data: " + frame + b"\n\n"
                    continue
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LOOK_UP)
        finally:
            self._viewers -= 1
            if not self._viewers:
                poller.cancel()

    def _start(self) -> asyncio.Task[None]:
        """The task that polls; what was known when nobody looked is out of date."""
        if self._poller is None or self._poller.done() or self._viewers == 1:
            self._frames = Frames()
            self._poller = asyncio.create_task(self._poll())
        return self._poller

    async def _poll(self) -> None:
        try:
            while True:
                began = time.monotonic()
                await self._look()
                took = time.monotonic() - began
                await asyncio.sleep(max(POLL_SECONDS, min(took / LARGEST_SHARE, LONGEST_SECONDS)) - took)
        except Exception as error:
            self._log.error("console.failed", error=error)

    async def _look(self) -> None:
        """Make a frame of the pool as it is, or of why nobody knows."""
        client = self._gateway.client
        try:
            stats, models, queues, progress = await asyncio.gather(
                *(client.call(verb, timeout=_PATIENCE) for verb in ("stats", "models", "queues", "progress"))
            )
        except TfpoolError as error:
            self._frames.put({**self._digest.head, "trouble": error.message}, story=tuple(self._digest.story))
        else:
            self._digest.add(Polled(time.time(), stats, models, queues, progress))
            head = {**self._digest.head, "trouble": None}
            self._frames.put(head, self._digest.sections, tuple(self._digest.story))
        news, self._news = self._news, asyncio.Event()
        news.set()
