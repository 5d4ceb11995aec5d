"""What the kernel tells of a process: its threads' CPU time, memory, descriptors, descendants and session."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes (``unique`` is what only this process has) and the number of open descriptors."""

    rss: int
    pss: int
    unique: int
    fds: int


def footprint(pid: int) -> Footprint:
    """Of a process of this user. Raises OSError where it is gone."""
    sizes: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file.readlines()[1:]:
            key, value, _ = line.split()
            sizes[key] = int(value) << 10
    unique = sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return Footprint(sizes["Rss:"], sizes["Pss:"], unique, len(os.listdir(f"/proc/{pid}/fd")))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds by the name of the thread; threads of one name are added up."""
    found: dict[str, float] = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):  # it has ended meanwhile
            place = f"/proc/{pid}/task/{task}"
            with open(f"{place}/comm") as comm, open(f"{place}/schedstat") as stat:
                name = comm.read().strip()
                found[name] = found.get(name, 0.0) + int(stat.read().split()[0]) / 1e9
    return found


def cpu_seconds(*pids: int) -> float:
    """CPU seconds of all threads that live, of processes together."""
    return sum(sum(thread_seconds(pid).values()) for pid in pids)


def family(pid: int) -> dict[int, str]:
    """A process and its descendants, with their names."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(OSError), open(f"/proc/{process.pid}/comm") as file:
                found[process.pid] = file.read().strip()
    return found


def session(leader: int) -> dict[int, str]:
    """The processes of a session, with their names, whoever their parents are now; not those that have ended."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:
                before, _, after = file.read().rpartition(")")
                state, _, _, of = after.split()[:4]
                if int(of) == leader and state not in "ZX":
                    found[int(name)] = before.partition("(")[2]
    return found
