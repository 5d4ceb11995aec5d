"""The future of one request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER
from concurrent.futures._base import PENDING as PENDING
from typing import Any, Protocol

from tfpool.errors import TfpoolError
from tfpool.shm.layout import Lease
from tfpool.wire.messages import Flag

_making = threading.Lock()
_RESOLVED, _TOUCHED = object(), object()


class Waits(Protocol):
    """Who is told that somebody waits for a reply, or has cancelled it."""

    wait: Callable[[Any, float | None], None]


class Reply(Future[Any]):
    """A concurrent.futures.Future that costs next to nothing until somebody waits for it.

    The condition and waiters of a Future are made when they are first touched, and the first callback needs neither.
    No lock is taken on the way. ``dict.setdefault`` decides between resolving and cancelling, and between the outcome
    and the first touch: whoever touches second finds the outcome set, and an outcome that comes second is set and
    announced under the condition, like any Future's, so that nobody is told of what he has seen himself.

    ``timing`` is (microseconds queued, microseconds run, rows in the batch) once an answer is there, and ``version``
    whose it is. ``losses`` counts the connections that were lost before it was.
    """

    timing: tuple[int, int, int] | None = None
    version = 0
    leases: tuple[Lease, ...] = ()
    regions: Any = None
    store: Any = None
    priority = 0
    flags = int(Flag.SOFT)
    losses = 0
    squeeze = False
    id = -1
    _state = PENDING
    _result = None
    _exception = None

    def __init__(self, core: Waits, entry: Any, rows: int, deadline: float, buffers: Any) -> None:
        self.core = core
        self.entry = entry
        self.rows = rows
        self.deadline = deadline
        self.buffers = buffers

    def __getattr__(self, name: str) -> Any:
        if name not in ("_condition", "_waiters", "_done_callbacks"):
            raise AttributeError(name)
        made = self.__dict__
        with _making:
            if "_condition" not in made:
                if made.setdefault("_first", _TOUCHED) is not _TOUCHED:
                    while self._state == PENDING:  # the other thread is between two statements
                        time.sleep(0)
                made["_waiters"] = []
                made["_done_callbacks"] = []
                made["_condition"] = threading.Condition()
        return made[name]

    @property
    def pending(self) -> bool:
        return self._state == PENDING

    def resolve(self, value: Any, error: TfpoolError | None = None) -> bool:
        """Set the outcome, unless there is one; False then."""
        made = self.__dict__
        if made.setdefault("_outcome", _RESOLVED) is not _RESOLVED or self._state != PENDING:
            return False
        self._result, self._exception = value, error
        if made.setdefault("_first", _RESOLVED) is not _TOUCHED:
            self._state = FINISHED
        else:
            self._announce(FINISHED)
        callback = made.pop("_callback", None)
        if callback is not None:
            self._run(callback[0])
        if "_condition" in made:
            self._run_others()
        return True

    def cancel(self) -> bool:
        """Withdraw the request; False when its outcome is there already."""
        made, mine = self.__dict__, object()
        found = made.setdefault("_outcome", mine)
        if found is not mine:
            return found is not _RESOLVED
        made.setdefault("_first", _TOUCHED)
        self._announce(CANCELLED_AND_NOTIFIED)
        callback = made.pop("_callback", None)
        if callback is not None:
            self._run(callback[0])
        self._run_others()
        self.core.wait(self, None)
        return True

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn`` with this future when it is done, or now."""
        made, mine = self.__dict__, [fn]
        if made.setdefault("_callback", mine) is not mine:
            super().add_done_callback(fn)
        elif self._state != PENDING:
            found = made.pop("_callback", None)  # perhaps another thread's, which then finds this one
            if found is not None:
                self._run(found[0])

    @property
    def withdrawn(self) -> bool:
        """Whether it was cancelled; without the lock that ``cancelled`` takes."""
        return self._state == CANCELLED_AND_NOTIFIED

    def outcome(self) -> tuple[Any, BaseException | None]:
        """The outputs, or the error, of one that is resolved."""
        return self._result, self._exception

    def result(self, timeout: float | None = None) -> Any:
        """The outputs by name. Raises the request's error, or TimeoutError after ``timeout`` seconds."""
        if self._state == PENDING:
            self.core.wait(self, timeout)
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self._state == PENDING:
            self.core.wait(self, timeout)
        return super().exception(0)

    def _run(self, callback: Callable[[Future[Any]], object]) -> None:
        try:
            callback(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    def _announce(self, state: str) -> None:
        with self._condition:
            self._state = state
            for waiter in self._waiters:
                if state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()

    def _run_others(self) -> None:
        callbacks, self.__dict__["_done_callbacks"] = self._done_callbacks, []
        for callback in callbacks:
            self._run(callback)
