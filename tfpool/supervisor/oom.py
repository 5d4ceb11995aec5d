"""Whether the kernel killed a process for want of memory: it counts such kills by control group."""

from __future__ import annotations

import signal
from contextlib import suppress

_V2_ROOT, _V1_ROOT = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


def counters(cgroups: str) -> list[str]:
    """Files that may hold the count, the most likely first; ``cgroups`` is what /proc/self/cgroup says. Pure.

    A container may see the path that its group has on the host: then the root is its own.
    """
    found = []
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = "" if path == "/" else path
        if number == "0" and not controllers:
            found += [f"{_V2_ROOT}{inner}/memory.events", f"{_V2_ROOT}/memory.events"]
        elif "memory" in controllers.split(","):
            found += [f"{_V1_ROOT}{inner}/memory.oom_control", f"{_V1_ROOT}/memory.oom_control"]
    return list(dict.fromkeys(found))


def kills(text: str) -> int | None:
    """The count in memory.events (version 2) or memory.oom_control (version 1); None where there is none. Pure."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdecimal():
            return int(value)
    return None


class Killer:
    """The kernel's kills in this process's control group, each of which is blamed for one death at most."""

    def __init__(self) -> None:
        self._blamed = 0
        self._file = ""
        with suppress(OSError), open("/proc/self/cgroup") as file:
            self._file = next((path for path in counters(file.read()) if _read(path) is not None), "")

    def count(self) -> int:
        """Kills so far; 0 where the kernel does not tell."""
        return _read(self._file) or 0

    def took(self, status: int, before: int) -> bool:
        """Whether a child that ended with ``status`` was killed for want of memory; ``before`` was the count when it
        was started."""
        known = max(before, self._blamed)
        if status != -signal.SIGKILL or self.count() <= known:
            return False
        self._blamed = known + 1
        return True


def _read(path: str) -> int | None:
    with suppress(OSError), open(path) as file:
        return kills(file.read())
    return None
