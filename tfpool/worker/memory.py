"""What this process holds in memory, measured, and giving freed memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from contextlib import suppress
from typing import NamedTuple


def unique() -> int:
    """Bytes that only this process has, as the kernel counts them (0 where it does not tell)."""
    total = 0
    try:
        with open("/proc/self/smaps_rollup") as file:
            for line in file:
                if line.startswith(("Private_Clean:", "Private_Dirty:")):
                    total += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return total


def resident() -> int:
    """Resident bytes, shared ones included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def high_water() -> int:
    """The most bytes that were resident, since the kernel's mark was last set back (0 where it does not tell)."""
    with suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def trim() -> None:
    """Collect garbage and return the allocator's free pages to the kernel."""
    gc.collect()
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim_heap is not None:
        trim_heap(0)


class Meter:
    """What loads take of this process: seconds, bytes that stay, and the most there were on the way.

    The kernel keeps one high-water mark a process; it is set back when a load begins and no other is under way. What
    runs at the same time is charged too, so that a peak may be too high and is never too low.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0

    def begin(self) -> Measure:
        with self._lock:
            if self._under_way == 0:
                with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                    file.write("5")
            self._under_way += 1
        return Measure(time.monotonic(), unique(), resident())

    def end(self, begun: Measure) -> Measure:
        """The differences to ``begun``, none below 0; the peak is no less than what stays."""
        with self._lock:
            self._under_way -= 1
        stays = max(0, unique() - begun.unique)
        return Measure(round(time.monotonic() - begun.seconds, 6), stays, max(stays, high_water() - begun.resident))


class Measure(NamedTuple):
    """Seconds and bytes, of a moment or between two: ``resident`` of a difference is the peak."""

    seconds: float
    unique: int
    resident: int
