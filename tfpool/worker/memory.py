"""What this process holds in memory, measured, and giving freed memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import time


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


def trim() -> None:
    """Collect garbage and return the allocator's free pages to the kernel."""
    gc.collect()
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim_heap is not None:
        trim_heap(0)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self._begin, 6)
