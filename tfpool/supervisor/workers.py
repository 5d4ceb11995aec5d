"""The workers as the supervisor knows them: forked by the zygote, introduced to each new broker, replaced if they die.

Each has a line to the supervisor besides its doorbell to the broker. A worker outlives its broker: over the line it is
handed a doorbell to the next one. The line's end of file tells of a worker's death where no zygote is left to reap it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from time import monotonic

from tfpool.settings import Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor import oom, policy
from tfpool.supervisor.child import Child
from tfpool.telemetry import log
from tfpool.wire.messages import Control
from tfpool.worker.boot import Boot

Watch = Callable[[Doorbell, Callable[[], None]], None]
HangUp = Callable[[Doorbell], None]


class Workers:
    """All workers of a pool. ``watch`` has a function called when a doorbell can be heard, ``hang_up`` closes it."""

    def __init__(self, settings: Settings, broker: Child, zygote: Child, watch: Watch, hang_up: HangUp) -> None:
        self._settings = settings
        self._broker = broker
        self._zygote = zygote
        self._watch = watch
        self._hang_up = hang_up
        self._children = {worker.name: Child(worker.name, worker) for worker in settings.workers}
        self._killer = oom.Killer()
        self._log = log.get("supervisor")
        self.stopping = False

    def alive(self) -> list[Child]:
        """Those that have been started, and have not been seen to end."""
        return [child for child in self._children.values() if child.bell is not None]

    def dues(self) -> list[float]:
        """When each of those that are not running is to be started (monotonic seconds)."""
        return [child.due for child in self._children.values() if child.due is not None]

    # -- starting ----------------------------------------------------------------------------------------------

    def start_due(self, now: float) -> None:
        """Have the zygote start those that are due; there must be a broker for them."""
        for child in self._children.values():
            if child.due is not None and child.due <= now:
                self._start(child)

    def _start(self, child: Child) -> None:
        settings, server = child.settings, self._settings.server
        assert settings is not None
        boot = Boot(
            settings.name,
            settings.device,
            settings.cpus,
            settings.threads,
            settings.memory,
            self._settings.pool.load_concurrency,
            self._settings.store.directory if self._settings.store.enabled else "",
            server.log_level,
            server.log_format,
        )
        mine, line = Doorbell.pair()
        child.generation += 1
        child.due, child.orphaned, child.kills = None, False, self._killer.count()
        child.bell = Doorbell(mine, blocking=False)
        self._watch(child.bell, lambda: self._line_heard(child))
        with line, self._introduce(child) as doorbell:
            ends = doorbell.fileno(), line.fileno()
            self._zygote.tell(Control.FORK, child.name, child.generation, boot.to_fields(), fds=ends)

    def meet_broker(self) -> None:
        """There is a new broker: those that live get a doorbell to it, and it is told of those that are given up."""
        for child in self._children.values():
            if child.halted:
                self._broker.tell(Control.HALTED, child.name)
        for child in self.alive():
            with self._introduce(child) as doorbell:
                child.tell(Control.WORKER, fds=(doorbell.fileno(),))

    def _introduce(self, child: Child) -> socket.socket:
        """Give the broker a doorbell to a worker; the worker's end of it."""
        brokers, workers = Doorbell.pair()
        with brokers:
            self._broker.tell(Control.WORKER, child.name, child.generation, fds=(brokers.fileno(),))
        return workers

    # -- what others say of them -------------------------------------------------------------------------------

    def forked(self, name: str, generation: int, pid: int) -> None:
        """The zygote has started a worker."""
        child = self._children[name]
        if child.generation == generation:
            child.pid = pid

    def ready(self, name: str, generation: int) -> None:
        """The broker has heard that a worker is ready."""
        child = self._children[name]
        if child.generation == generation and child.bell is not None:
            child.history.became_ready()

    def kill(self, name: str, generation: int, why: str) -> None:
        """The broker wants a worker dead."""
        child = self._children[name]
        if child.generation == generation and child.bell is not None:
            self._log.warning("worker.kill", worker=name, pid=child.pid, why=why)
            self._zygote.tell(Control.KILL, name, generation)

    def exited(self, name: str, generation: int, status: int) -> None:
        """The zygote has reaped a worker."""
        child = self._children[name]
        if child.generation == generation:
            self._ended(child, status, status)

    def zygote_ended(self) -> None:
        """Those that it had forked are killed with it; each one's line tells when that is done."""
        for child in self._children.values():
            child.pid = 0
            if child.due is None and not child.halted:
                child.orphaned = True
                if child.bell is None:
                    self._ended(child, -signal.SIGKILL, 0)

    def _line_heard(self, child: Child) -> None:
        try:
            while child.bell is not None and child.bell.hear() is not None:
                pass
        except EOFError:
            self._close(child)
            if child.orphaned:
                self._ended(child, -signal.SIGKILL, 0)  # through no fault of its own

    def _close(self, child: Child) -> None:
        if child.bell is not None:
            self._hang_up(child.bell)
            child.bell = None

    def _ended(self, child: Child, status: int, blamed: int) -> None:
        """A worker is gone: nothing of it is left. The policy judges it by ``blamed``."""
        self._close(child)
        oom_killed = self._killer.took(status, child.kills)
        why = "out of memory" if oom_killed else policy.describe(status)
        self._log.warning("worker.ended", worker=child.name, pid=child.pid, status=why)
        child.pid = 0
        self._broker.tell(Control.REAPED, child.name, child.generation, status, oom_killed)
        if self.stopping:
            return
        now = monotonic()
        decision = child.history.ended(blamed, now)
        if isinstance(decision, policy.Halt):
            child.halted = True
            self._log.error("worker.halted", worker=child.name, why=decision.why)
            self._broker.tell(Control.HALTED, child.name)
        else:
            child.due = now + decision.delay

    def close(self) -> None:
        """Close all lines: who waits at one for a broker leaves."""
        for child in self._children.values():
            self._close(child)
