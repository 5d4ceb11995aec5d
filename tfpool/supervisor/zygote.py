"""The zygote: imports TensorFlow once, then forks a worker whenever it is told to, and reaps those that end.

A forked worker shares the imported pages and serves a tenth of a second later. With ``spawn`` in place of ``fork`` the
zygote imports nothing and starts each worker as a program of its own: slower, and for platforms where a fork of
a process that has imported TensorFlow does not work.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Control, pack, unpack
from tfpool.worker.boot import Boot, die_with_parent, name_process, pin, quiet_stderr

_WORKER, _COMPILER = "worker", "compiler"


def run(sock: socket.socket, method: str, log_level: str, log_format: str) -> None:
    """Serve the supervisor until it closes ``sock``."""
    log.configure("zygote", log_level, log_format)
    name_process("tfpool-zygote")
    if method == "fork":
        import_tensorflow()
    Zygote(Doorbell(sock, blocking=False), method).serve()


def import_tensorflow() -> None:
    """Import what every worker needs, quietly, and make no session: that would start threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with quiet_stderr():
        import tensorflow as tf

    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    tf.get_logger().setLevel("ERROR")


class Zygote:
    """The loop of the zygote process."""

    def __init__(self, bell: Doorbell, method: str) -> None:
        self._bell = bell
        self._method = method
        self._children: dict[int, tuple[str, int]] = {}
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._bell.fileno(), selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        self._say(Control.UP)
        with suppress(EOFError):
            while True:
                selector.select()
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._reap()
                while (heard := self._bell.hear()) is not None:
                    verb, name, generation, *fields = unpack(heard[0])
                    if verb == Control.FORK:
                        self._start(Boot.from_fields(*fields), generation, heard[1])
                    elif verb == Control.COMPILE:
                        self._start_compiler(fields[0], heard[1])
                    elif verb == Control.KILL:
                        self._kill((name, generation))
        self._end()

    def _start(self, boot: Boot, generation: int, fds: list[int]) -> None:
        """``fds`` are the worker's doorbell to the broker and its line to the supervisor."""
        if self._method == "fork":
            pid = self._fork(partial(_be_worker, boot, *fds))
        else:
            pid = self._spawn(_WORKER, boot.to_fields(), fds)
        for fd in fds:
            os.close(fd)
        self._children[pid] = boot.name, generation
        self._say(Control.FORKED, boot.name, generation, pid)

    def _start_compiler(self, job: dict[str, Any], fds: list[int]) -> None:
        """``fds`` is its doorbell to the broker. Nobody but the broker is told of its end, by the doorbell's."""
        if self._method == "fork":
            pid = self._fork(partial(run_compiler, job, *fds))
        else:
            pid = self._spawn(_COMPILER, job, fds)
        for fd in fds:
            os.close(fd)
        self._children[pid] = _COMPILER, 0

    def _fork(self, become: Callable[[], None]) -> int:
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow's import leaves an idle thread behind
            pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(parent)
            self._bell.close()
            become()
        finally:
            os._exit(1)

    def _spawn(self, what: str, order: dict[str, Any], fds: list[int]) -> int:
        command = [sys.executable, "-m", "tfpool.supervisor.zygote", str(os.getpid()), what, json.dumps(order)]
        for fd in fds:
            os.set_inheritable(fd, True)
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return os.posix_spawn(sys.executable, [*command, *map(str, fds)], os.environ, file_actions=[nothing])

    def _kill(self, life: tuple[str, int]) -> None:
        """Kill a worker; one that has not been reaped keeps its process id."""
        for pid, child in self._children.items():
            if child == life:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                name, generation = self._children.pop(ended[0])
                if not generation:  # a compiler
                    continue
                self._say(Control.EXITED, name, generation, os.waitstatus_to_exitcode(ended[1]))

    def _end(self) -> None:
        """The pool ends: what has not left by itself is killed, and reaped."""
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _say(self, verb: Control, *fields: Any) -> None:
        try:
            self._bell.ring(pack([verb, *fields]))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError("the supervisor is gone") from None


def _be_worker(boot: Boot, doorbell: int, line: int) -> None:
    pin(boot)
    run_worker(boot, doorbell, line)


def run_worker(boot: Boot, doorbell: int, line: int) -> None:
    """Be a worker until it is told to stop; then leave at once, whatever TensorFlow's threads are doing.

    This process is pinned already.
    """
    from tfpool.worker import main

    main.run(socket.socket(fileno=doorbell), socket.socket(fileno=line), boot)
    os._exit(0)


def run_compiler(job: dict[str, Any], doorbell: int) -> None:
    """Compile a model, tell the broker, and leave."""
    from tfpool.compiler import serve

    serve.run(socket.socket(fileno=doorbell), job)
    os._exit(0)


def _spawned(parent: str, what: str, order: str, *fds: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(int(parent))
    fields, ends = json.loads(order), map(int, fds)
    if what == _COMPILER:
        import_tensorflow()
        run_compiler(fields, *ends)
    boot = Boot.from_fields(fields)
    pin(boot)
    import_tensorflow()
    run_worker(boot, *ends)


if __name__ == "__main__":
    _spawned(*sys.argv[1:])
