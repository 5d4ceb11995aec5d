"""The supervisor's story: start zygote, broker and workers; replace who dies; drain and end them all.

It is small, runs one loop, and imports neither TensorFlow nor ZeroMQ. Signals only enqueue. Its children ask the
kernel to be killed with it, so that nothing outlives it. Of the workers it knows through
:class:`~tfpool.supervisor.workers.Workers`.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tfpool.settings import Settings
from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor import policy
from tfpool.supervisor.child import Child
from tfpool.supervisor.gateways import Gateways
from tfpool.supervisor.ground import Claim
from tfpool.supervisor.ports import Ports
from tfpool.supervisor.workers import Workers
from tfpool.telemetry import log
from tfpool.wire.messages import Control, unpack
from tfpool.worker.boot import die_with_parent, name_process

DRAIN_SECONDS = 8.0
KILL_SECONDS = 1.0
BOOT_FAILED = 3

Watch = Callable[[dict[str, Any]], None]


def serve(settings: Settings, watch: Watch | None = None, owner: int | None = None) -> int:
    """Run a pool until a signal, a shutdown call or the end of file on ``owner``; the exit status.

    ``watch`` is told of start-up progress. Raises a TfpoolError when the pool cannot start.
    """
    log.configure("supervisor", settings.server.log_level, settings.server.log_format)
    ports = Ports()
    settings = ports.claim(settings)
    try:
        claim = Claim(settings.server)
    except BaseException:
        ports.release()
        raise
    try:
        if settings.server.state_file is None:
            settings = replace(settings, server=replace(settings.server, state_file=claim.scratch()))
        return Supervisor(settings, watch, owner).run()
    finally:
        claim.release()
        ports.release()


class Supervisor:
    """One pool's processes."""

    def __init__(self, settings: Settings, watch: Watch | None, owner: int | None) -> None:
        self._settings = settings
        self._watch = watch
        self._owner = owner
        self._log = log.get("supervisor")
        self._broker = Child("broker")
        self._zygote = Child("zygote")
        self._selector = selectors.DefaultSelector()
        self._workers = Workers(settings, self._broker, self._zygote, self._watch_bell, self._hang_up)
        self._gateways = Gateways(settings, self._fork, self._hang_up, self._gateway_is_up)
        self._progress: dict[str, Any] | None = None
        self._wake, self._waker = socket.socketpair()
        self._stopping: float | None = None
        self._status = 0
        self._drained = self._draining = False

    def run(self) -> int:
        self._catch_signals()
        try:
            while not self._done():
                self._start_due()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._reap()
        finally:
            self._end()
        return self._status

    # -- starting ----------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        if self._stopping is not None:
            return
        now = time.monotonic()
        for child in (self._zygote, self._broker):
            if child.due is not None and child.due <= now:
                self._fork(child, self._hear_broker if child is self._broker else self._hear_zygote)
        if self._broker.history.ready:
            self._gateways.start_due(now)
            self._gateways.look(now)
        if self._zygote.bell is not None and self._zygote.history.ready and self._broker.bell is not None:
            self._workers.start_due(now)

    def _fork(self, child: Child, hear: Callable[[], None]) -> None:
        """Start zygote, broker or a gateway."""
        mine, theirs = Doorbell.pair()
        outliving = [worker.name for worker in self._workers.alive()]
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(child, parent, mine, theirs, outliving)
        theirs.close()
        child.pid, child.due = pid, None
        child.bell = Doorbell(mine, blocking=False)
        self._watch_bell(child.bell, hear)
        if child is self._broker:
            self._workers.meet_broker()

    def _become(
        self, child: Child, parent: int, mine: socket.socket, theirs: socket.socket, outliving: list[str]
    ) -> None:
        """The child's side of the fork; does not return. ``outliving`` are workers of the broker before."""
        status = BOOT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the supervisor decides when to stop
            die_with_parent(parent)
            self._selector.close()
            bells = (
                other.bell for other in (self._broker, self._zygote, *self._gateways.children, *self._workers.alive())
            )
            for end in (mine, self._wake, self._waker, *bells):
                if end is not None:
                    end.close()
            if self._owner is not None:
                os.close(self._owner)
            server = self._settings.server
            if child is self._broker:
                name_process("tfpool-broker")
                from tfpool.broker import main as broker

                broker.run(theirs, self._settings, outliving)
            elif child is not self._zygote:
                name_process("tfpool-gateway")
                self._gateways.become(child, theirs, self._settings)
            else:
                from tfpool.supervisor import zygote

                zygote.run(theirs, self._settings.pool.start_method, server.log_level, server.log_format)
            status = 0
        except BaseException as error:
            self._log.error(f"{child.name}.failed", error=error)
            if self._settings.server.log_level == "debug":
                import traceback

                traceback.print_exc()
        finally:
            os._exit(status)

    # -- hearing -----------------------------------------------------------------------------------------------

    def _hear_broker(self) -> None:
        try:
            while self._broker.bell is not None and (heard := self._broker.bell.hear()) is not None:
                verb, *fields = unpack(heard[0])
                if verb == Control.UP:
                    self._broker.history.became_ready()
                elif verb == Control.PROGRESS:
                    self._progress = fields[0]
                    self._tell_progress()
                elif verb == Control.READY:
                    self._workers.ready(*fields)
                elif verb == Control.KILL:
                    self._workers.kill(*fields)
                elif verb == Control.SHUTDOWN:
                    self._stop("asked to shut down")
                elif verb == Control.DRAINED:
                    self._drained = True
                elif verb == Control.ORDER:
                    self._compile(fields[0], heard[1])
                elif verb == Control.RECYCLE:
                    self._log.info("worker.recycle", worker=fields[0])
        except EOFError:
            self._part_from(self._broker)

    def _gateway_is_up(self) -> None:
        server = self._settings.server
        self._log.info("gateway.up", http=server.http, grpc=server.grpc)
        self._tell_progress()

    def _tell_progress(self) -> None:
        if self._watch is not None and self._progress is not None:
            gateways = {"gateways": len(self._gateways.children), "gateways_ready": self._gateways.up}
            addresses = {"http": self._settings.server.http, "grpc": self._settings.server.grpc}
            self._watch({**self._progress, **gateways, **addresses})

    def _compile(self, job: dict[str, Any], fds: list[int]) -> None:
        """Have the zygote start a compiler. Without a zygote its doorbell closes, and the broker asks again."""
        self._zygote.tell(Control.COMPILE, "", 0, job, fds=tuple(fds))
        for fd in fds:
            os.close(fd)

    def _hear_zygote(self) -> None:
        try:
            while self._zygote.bell is not None and (heard := self._zygote.bell.hear()) is not None:
                verb, *fields = unpack(heard[0])
                if verb == Control.UP:
                    self._zygote.history.became_ready()
                elif verb == Control.FORKED:
                    self._workers.forked(*fields)
                elif verb == Control.EXITED:
                    self._workers.exited(*fields)
        except EOFError:
            self._part_from(self._zygote)

    def _watch_bell(self, bell: Doorbell, hear: Callable[[], None]) -> None:
        self._selector.register(bell.fileno(), selectors.EVENT_READ, hear)

    def _hang_up(self, bell: Doorbell) -> None:
        self._selector.unregister(bell.fileno())
        bell.close()

    def _part_from(self, child: Child) -> None:
        if child.bell is not None:
            self._hang_up(child.bell)
            child.bell = None

    def _reap(self) -> None:
        """Notice the ends of zygote and broker; the zygote reaps the workers."""
        for child in (self._zygote, self._broker):
            if not child.pid:
                continue
            with suppress(ChildProcessError):
                pid, raw = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid = 0
                    self._core_ended(child, os.waitstatus_to_exitcode(raw))
        why = self._gateways.reap()
        if why and self._stopping is None:
            self._status = 1
            self._stop(why)
        if self._stopping is not None and self._gateways.gone and not self._draining:
            self._drain()

    def _core_ended(self, child: Child, status: int) -> None:
        if child is self._zygote:
            self._hear_zygote()
            self._workers.zygote_ended()
        else:
            self._hear_broker()
        self._part_from(child)
        if self._stopping is not None:
            return
        self._log.error(f"{child.name}.ended", status=policy.describe(status))
        decision = child.history.ended(status, time.monotonic())
        if isinstance(decision, policy.Halt) or status == BOOT_FAILED:
            self._status = 1
            self._stop(f"the {child.name} cannot run")
            return
        child.due = time.monotonic() + decision.delay

    # -- stopping ----------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        for end in (self._wake, self._waker):
            end.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._hear_signals)
        if self._owner is not None:
            self._selector.register(self._owner, selectors.EVENT_READ, self._owner_gone)

    def _hear_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in self._wake.recv(4096):
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._stop(f"signal {signal.Signals(number).name}")

    def _owner_gone(self) -> None:
        assert self._owner is not None
        self._selector.unregister(self._owner)
        self._stop("its owner is gone")

    def _stop(self, why: str) -> None:
        """Begin to drain; asked a second time, end at once."""
        if self._stopping is not None:
            self._drained = True
            return
        self._log.info("pool.stopping", why=why)
        self._stopping = time.monotonic()
        self._workers.stopping = True
        self._gateways.drain()
        if self._gateways.gone:
            self._drain()

    def _drain(self) -> None:
        """The gateways have let their callers go: now the broker."""
        self._draining = True
        self._broker.tell(Control.DRAIN)

    def _done(self) -> bool:
        if self._stopping is None:
            return False
        late = time.monotonic() - self._stopping >= DRAIN_SECONDS
        return late or self._drained or self._broker.bell is None

    def _patience(self) -> float | None:
        now = time.monotonic()
        if self._stopping is not None:
            return max(0.0, self._stopping + DRAIN_SECONDS - now)
        dues = [child.due for child in (self._zygote, self._broker) if child.due is not None] + self._workers.dues()
        if self._broker.history.ready:
            dues += self._gateways.dues()
        if not dues:
            return None
        nearest = min(dues) - now
        return max(nearest, 0.0) if nearest > 0 else 0.2  # overdue: it waits for the zygote, which will wake us

    def _end(self) -> None:
        """Hang up on everybody; kill who has not left within a second."""
        self._part_from(self._broker)
        self._part_from(self._zygote)
        self._gateways.close()
        self._workers.close()
        deadline = time.monotonic() + KILL_SECONDS
        for child in (self._broker, self._zygote, *self._gateways.children):
            while child.pid and time.monotonic() < deadline:
                self._wait_for(child, os.WNOHANG)
                if child.pid:
                    time.sleep(0.005)
            if child.pid:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                self._wait_for(child, 0)
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._waker.close()
        self._selector.close()
        self._log.info("pool.stopped")

    @staticmethod
    def _wait_for(child: Child, options: int) -> None:
        try:
            pid, _ = os.waitpid(child.pid, options)
        except ChildProcessError:
            pid = child.pid
        if pid:
            child.pid = 0
