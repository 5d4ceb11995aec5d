"""What this process holds in memory, measured, and giving freed memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from tfpool.wire.messages import Gauge

_FIELDS = {"Rss": "rss", "Pss": "pss", "Private_Dirty": "unique"}


def host() -> Gauge:
    """What this process holds of the host's memory, as the kernel counts it in one walk: 4 ms a GiB of small pages.

    ``unique`` leaves out clean pages of files: others may map them too, and the kernel can drop them.
    A kernel that does not tell leaves resident bytes, and 0 for the rest.
    """
    found = dict.fromkeys(_FIELDS.values(), 0)
    try:
        with open("/proc/self/smaps_rollup") as file:
            for line in file:
                name = _FIELDS.get(line.partition(":")[0])
                if name is not None:
                    found[name] += int(line.split()[1]) * 1024
    except OSError:
        found["rss"] = _resident()
    return Gauge(**found)


def unique() -> int:
    """Bytes that only this process has (0 where the kernel does not tell)."""
    return host().unique


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


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _nowhere() -> None:
    return None


class Meter:
    """What loads take of this process: seconds, bytes that stay, and the most there were on the way.

    The kernel keeps one high-water mark a process; it is set back when a load begins and no other is under way. What
    runs at the same time is charged too, so that a peak may be too high and is never too low. ``on_gpu`` tells the
    bytes that this process holds on its GPU; nothing has a mark there, and TensorFlow gives nothing back.
    """

    def __init__(self, on_gpu: Callable[[], int | None] = _nowhere) -> None:
        self._on_gpu = on_gpu
        self._lock = threading.Lock()
        self._under_way = 0

    def gauge(self) -> Gauge:
        """What this process holds now."""
        return host()._replace(gpu=self._on_gpu())

    def begin(self) -> Measure:
        with self._lock:
            if self._under_way == 0:
                with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                    file.write("5")
            self._under_way += 1
        now = self.gauge()
        return Measure(time.monotonic(), now.unique, now.rss, now.gpu)

    def end(self, begun: Measure, shared: int = 0) -> Measure:
        """The differences to ``begun``, none below 0; the peak is no less than what stays. ``shared`` are bytes of
        files that were mapped, and are not this process's own."""
        with self._lock:
            self._under_way -= 1
        gpu = self._on_gpu()
        on_gpu = None if gpu is None or begun.gpu is None else max(0, gpu - begun.gpu)
        stays = max(0, unique() - begun.unique)
        peak = max(stays, high_water() - begun.resident - shared)
        return Measure(round(time.monotonic() - begun.seconds, 6), stays, peak, on_gpu)


class Measure(NamedTuple):
    """Seconds and bytes, of a moment or between two: ``resident`` of a difference is the peak. ``gpu`` is None where
    there is none, or it does not tell."""

    seconds: float
    unique: int
    resident: int
    gpu: int | None = None

    @property
    def stays(self) -> int:
        """Of a difference, the bytes that count against the worker's budget: the GPU's, where it has one."""
        return self.unique if self.gpu is None else self.gpu

    @property
    def peak(self) -> int:
        """Of a difference, the most that it took on the way, of the same memory."""
        return self.resident if self.gpu is None else self.gpu
