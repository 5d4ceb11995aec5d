"""The planner's journal on disk, written by a thread of its own: a decision never waits for a disk.

A file that has grown too large is set aside as PATH.1, in place of the one before.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time

from tfpool.placement.journal import Entry, to_fields
from tfpool.placement.snapshot import Rules, Snapshot, Step
from tfpool.telemetry import log

EVERY_SECONDS = 10.0
MAX_BYTES = 64 << 20
_WAITING = 64
_FLUSH_SECONDS = 2.0


class Logbook:
    """Appends to the file at ``path`` (None: nothing is kept). What cannot be written is logged once, and lost."""

    def __init__(self, path: str | None, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._log = log.get("placement")
        self._entries: queue.Queue[Entry | None] = queue.Queue(_WAITING)
        self._written = -EVERY_SECONDS
        self._failing = False
        self._writer: threading.Thread | None = None

    def write(self, snapshot: Snapshot, rules: Rules, step: Step | None, took: float, outcome: str) -> None:
        """Keep a decision; of those without a step one every ten seconds, so that demand can be read too."""
        if self._path is None or (step is None and snapshot.now < self._written + EVERY_SECONDS):
            return
        self._written = snapshot.now
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, args=(self._path,), name="journal", daemon=True)
            self._writer.start()
        try:
            self._entries.put_nowait(Entry(time.time(), snapshot, rules, step, took, outcome))
        except queue.Full:
            self._fails("the disk does not keep up")

    def close(self) -> None:
        """Write what waits; a disk that hangs is given up after 2 seconds."""
        if self._writer is not None:
            try:
                self._entries.put(None, timeout=_FLUSH_SECONDS)
            except queue.Full:
                return
            self._writer.join(_FLUSH_SECONDS)

    def _write_all(self, path: str) -> None:
        before: Entry | None = None
        while (entry := self._entries.get()) is not None:
            try:
                if os.path.exists(path) and os.path.getsize(path) > self._max_bytes:
                    os.replace(path, f"{path}.1")
                    before = None
                line = json.dumps(to_fields(entry, before), separators=(",", ":"))
                torn = before is None and _ends_within_a_line(path)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(f"\n{line}\n" if torn else f"{line}\n")
                before, self._failing = entry, False
            except (OSError, ValueError) as error:  # a path with a null byte is one of value
                before = None
                self._fails(str(error))

    def _fails(self, why: str) -> None:
        if not self._failing:
            self._log.error("journal.unwritten", path=self._path, error=why)
        self._failing = True


def _ends_within_a_line(path: str) -> bool:
    """Whether the process before died while it wrote, or the disk was full."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
