"""What a test must not leave behind: child processes, descriptors, threads, names in /dev/shm."""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

GRACE_SECONDS = 2.0
_STEP_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Traces:
    """What this process holds at one moment. Descriptors are (number, what they lead to)."""

    children: frozenset[int]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    shared: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        return cls(children(), descriptors(), frozenset(threading.enumerate()), shared())

    def since(self, before: Traces) -> list[str]:
        """A line for each thing that was not there ``before``."""
        return [
            *(f"child process {pid}: {command(pid)}" for pid in sorted(self.children - before.children)),
            *(f"descriptor {fd}: {what}" for fd, what in sorted(self.descriptors - before.descriptors)),
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"/dev/shm/{name}" for name in sorted(self.shared - before.shared)),
        ]


def left_behind(before: Traces, grace: float = GRACE_SECONDS) -> list[str]:
    """What was not there ``before`` and does not go away by itself within ``grace`` seconds."""
    found = Traces.now().since(before)
    deadline = time.monotonic() + grace
    while found and time.monotonic() < deadline:
        gc.collect()  # views of an arena are freed with the last array
        time.sleep(_STEP_SECONDS)
        found = Traces.now().since(before)
    return found


def children() -> frozenset[int]:
    """Processes that this one started and has not reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()
    me, found = os.getpid(), set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == me:
                    found.add(int(name))
    return frozenset(found)


def descriptors() -> frozenset[tuple[int, str]]:
    """Open descriptors, but for those of plain files of the system (a library that is imported opens some)."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{name}")
            if not what.startswith(("/usr", "/lib", "/proc", "/dev", "/sys", "/etc")):
                found.add((int(name), what))
    return frozenset(found)


def shared() -> frozenset[str]:
    """Names of ours in /dev/shm: there should be none, ever."""
    try:
        return frozenset(name for name in os.listdir("/dev/shm") if "tfpool" in name)
    except OSError:
        return frozenset()


def command(pid: int) -> str:
    """What a process runs, as far as it can be told."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        return words[:120] or "ended, not reaped"
    except OSError:
        return "gone"
