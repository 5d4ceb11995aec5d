"""A process that the supervisor starts, and starts again when it dies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tfpool.settings import WorkerSettings
from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor.policy import History
from tfpool.wire.messages import Control, pack


@dataclass(slots=True)
class Child:
    """``due`` is when it is to be started (monotonic seconds; None: it runs, or is given up). ``bell`` leads to it
    while it lives.

    Of a worker: ``halted`` when it is given up, ``orphaned`` when the zygote that forked it is dead, ``kills`` the
    kernel's kills for want of memory when it was started.
    """

    name: str
    settings: WorkerSettings | None = None
    pid: int = 0
    generation: int = 0
    due: float | None = 0.0
    bell: Doorbell | None = None
    halted: bool = False
    orphaned: bool = False
    kills: int = 0
    history: History = field(default_factory=History)

    def tell(self, verb: Control, *fields: Any, fds: tuple[int, ...] = ()) -> None:
        """A word to it. A dead one hears nothing; its end is being noticed."""
        if self.bell is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                self.bell.ring(pack([verb, *fields]), fds)
