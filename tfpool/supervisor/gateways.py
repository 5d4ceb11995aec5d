"""The gateways as the supervisor knows them: processes that share two ports, each replaced when it dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from tfpool.cpus import gateway_processes, usable_cpus
from tfpool.settings import Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor import policy
from tfpool.supervisor.child import Child
from tfpool.telemetry import log
from tfpool.wire.messages import Control, unpack

if TYPE_CHECKING:
    from tfpool.gateway.board import Board

LOOK_SECONDS = 1.0
SILENCE_SECONDS = 3.0
"""A gateway posts once a second."""


class Gateways:
    """``up`` are those that listen. ``start`` forks one, ``hear`` listens to its doorbell, ``hang_up`` closes that."""

    def __init__(
        self,
        settings: Settings,
        start: Callable[[Child, Callable[[], None]], None],
        hang_up: Callable[[Doorbell], None],
        changed: Callable[[], None],
    ) -> None:
        wanted = settings.server.http is not None or settings.server.grpc is not None
        count = gateway_processes(settings.gateway, usable_cpus()) if wanted else 0
        self.children = [Child(f"gateway{i}") for i in range(count)]
        self._board = _board(count)
        self._start, self._hang_up, self._changed = start, hang_up, changed
        self._stopping = self._proven = False
        self._hang_s = max(settings.pool.hang_s, SILENCE_SECONDS)
        self._posts: dict[int, tuple[int, float]] = {}
        self._looked = 0.0
        self._log = log.get("supervisor")

    @property
    def up(self) -> int:
        return sum(child.history.ready for child in self.children if child.pid)

    @property
    def gone(self) -> bool:
        """Whether none is left, after :meth:`drain`."""
        return not any(child.pid for child in self.children)

    def start_due(self, now: float) -> None:
        for child in self.children:
            if child.due is not None and child.due <= now:
                self._start(child, lambda child=child: self._hear(child))  # type: ignore[misc]

    def look(self, now: float) -> None:
        """Kill those that hang: they have not posted anything for too long."""
        if self._board is None or self._stopping or now < self._looked + LOOK_SECONDS:
            return
        if now > self._looked + 2 * LOOK_SECONDS:
            self._posts.clear()  # this process has been asleep itself
        self._looked = now
        for slot, child in enumerate(self.children):
            written = self._board.written(slot)
            if not child.pid or not child.history.ready or self._posts.get(slot, (-1, now))[0] != written:
                self._posts[slot] = (written, now)
            elif now > self._posts[slot][1] + self._hang_s:
                self._log.error("gateway.hung", gateway=child.name, pid=child.pid)
                self._posts[slot] = (written, now)
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)

    def become(self, child: Child, sock: socket.socket, settings: Settings) -> None:
        """The child's side of the fork: be a gateway until told to end."""
        from tfpool.gateway import main

        assert self._board is not None
        main.run(sock, settings, self._board, self.children.index(child))

    def dues(self) -> list[float]:
        due = [child.due for child in self.children if child.due is not None]
        return due if self._board is None else [*due, self._looked + LOOK_SECONDS]

    def drain(self) -> None:
        """Have them answer what they have, and end."""
        self._stopping = True
        for child in self.children:
            child.due = None
            child.tell(Control.DRAIN)

    def reap(self) -> str:
        """Notice those that ended; why the pool has to end too, if it has."""
        fatal = ""
        for child in self.children:
            if not child.pid:
                continue
            with suppress(ChildProcessError):
                pid, raw = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid = 0
                    fatal = self._ended(child, os.waitstatus_to_exitcode(raw)) or fatal
        return fatal

    def close(self) -> None:
        """Hang up on those that are left."""
        for child in self.children:
            self._part_from(child)
        if self._board is not None:
            self._board.close()

    def _hear(self, child: Child) -> None:
        try:
            while child.bell is not None and (heard := child.bell.hear()) is not None:
                if unpack(heard[0])[0] == Control.UP:
                    child.history.became_ready()
                    self._proven = True
                    self._changed()
        except EOFError:
            self._part_from(child)

    def _ended(self, child: Child, status: int) -> str:
        self._part_from(child)
        if self._stopping:
            return ""
        was_ready = child.history.ready
        self._log.error("gateway.ended", gateway=child.name, status=policy.describe(status))
        decision = child.history.ended(status, time.monotonic())
        if not self._proven and (isinstance(decision, policy.Halt) or (status > 0 and not was_ready)):
            return "the gateway cannot run"
        # what has run once will again: perhaps somebody is just replacing the files of tokens and keys
        delay = policy.LONGEST_DELAY if isinstance(decision, policy.Halt) else decision.delay
        child.due = time.monotonic() + delay
        return ""

    def _part_from(self, child: Child) -> None:
        if child.bell is not None:
            self._hang_up(child.bell)
            child.bell = None


def _board(count: int) -> Board | None:
    """Where the gateways post what they count; none where there are none, whose packages may be missing."""
    if not count:
        return None
    from tfpool.gateway.board import Board

    return Board.create(count)
