"""Threads for what a dead disk may hold up."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Crew:
    """Runs jobs one after another; where all threads are stuck for ``patience`` seconds, there is one more of them.

    There are at most ``most``. They are daemons: what hangs does not keep the process from ending.
    """

    def __init__(self, name: str, patience: float, most: int) -> None:
        self._name, self._patience, self._most = name, patience, most
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._since: dict[threading.Thread, float | None] = {}
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have ``job``, which raises nothing, run."""
        with self._changed:
            self._waiting.append(job)
            if not self._since:
                self._hire()
            self._changed.notify()

    def tend(self) -> bool:
        """Whether jobs are waiting. To be called now and then while they are: it replaces threads that are stuck."""
        with self._changed:
            late = time.monotonic() - self._patience
            if self._waiting and all(since is not None and since <= late for since in self._since.values()):
                self._hire()
            return bool(self._waiting)

    def close(self, deadline: float) -> None:
        """Jobs that wait are dropped; those that run are waited for until ``deadline`` (of time.monotonic)."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            threads = list(self._since)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _hire(self) -> None:
        if len(self._since) < self._most and not self._closed:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._since[thread] = None
            thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._since[me] = None
                idle = sum(since is None for since in self._since.values())
                if idle > 1 and not self._waiting:
                    del self._since[me]
                    return
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                job = self._waiting.popleft()
                self._since[me] = time.monotonic()
            job()
