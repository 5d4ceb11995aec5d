"""What a test must not leave behind: processes, descriptors, threads, names in /dev/shm.

Others may run tests beside it: their processes are not looked at.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

GRACE_SECONDS = 5.0
MARK = "TFPOOL_STARTED_BY"
"""The variable by which processes are known that have outlived their parents."""
_STEP_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Traces:
    """What this process holds at one moment. Descriptors are (number, what they lead to)."""

    children: frozenset[int]
    orphans: frozenset[int]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    shared: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        return cls(children(), orphans(), descriptors(), frozenset(threading.enumerate()), shared())

    def since(self, before: Traces) -> list[str]:
        """A line for each thing that was not there ``before``."""
        return [
            *(f"child process {pid}: {command(pid)}" for pid in sorted(self.children - before.children)),
            *(f"orphaned process {pid}: {command(pid)}" for pid in sorted(self.orphans - before.orphans)),
            *(f"descriptor {fd}: {what}" for fd, what in sorted(self.descriptors - before.descriptors)),
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"/dev/shm/{name}" for name in sorted(self.shared - before.shared)),
        ]


def left_behind(
    before: Traces, grace: float = GRACE_SECONDS, counts: Callable[[str], bool] = lambda line: True
) -> list[str]:
    """What was not there ``before``, ``counts``, and does not go away by itself within ``grace`` seconds."""

    def look() -> list[str]:
        return [line for line in Traces.now().since(before) if counts(line)]

    found = look()
    deadline = time.monotonic() + grace
    while found and time.monotonic() < deadline:
        gc.collect()  # views of an arena are freed with the last array
        time.sleep(_STEP_SECONDS)
        found = look()
    return found


def mark() -> None:
    """Have :func:`orphans` know what is started from now on."""
    os.environ[MARK] = str(os.getpid())


def children() -> frozenset[int]:
    """Processes that this one started and has not reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()
    me = os.getpid()
    return frozenset(pid for pid, parent in _parents().items() if parent == me)


def orphans() -> frozenset[int]:
    """Processes that bear the mark of this one, and have no living ancestor that it started."""
    marked = f"{MARK}={os.getpid()}".encode()
    parents = _parents()
    return frozenset(pid for pid in parents if not _descends(pid, parents) and _bears(pid, marked))


def _parents() -> dict[int, int]:
    """The parent of each process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    return found


def _descends(pid: int, parents: dict[int, int]) -> bool:
    """Whether a process is this one, or comes from it."""
    me = os.getpid()
    while pid not in (0, me):
        pid = parents.get(pid, 0)
    return pid == me


def _bears(pid: int, mark: bytes) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return mark in file.read().split(b"\0")
    return False


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
