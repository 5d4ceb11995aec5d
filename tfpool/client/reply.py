"""The future of one request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from typing import Any, Protocol

from tfpool.errors import TfpoolError
from tfpool.shm.layout import Lease

_making = threading.Lock()
_RESOLVED, _CANCELLED = object(), object()


class Waits(Protocol):
    """Who is told that somebody waits for a reply, or has cancelled it."""

    wait: Callable[[Any, float | None], None]


class Reply(Future[Any]):
    """A concurrent.futures.Future that costs next to nothing until somebody waits for it.

    The condition and waiters of a Future are made when they are first touched, and the first callback needs neither.
    No lock is taken on the way: ``dict.setdefault`` decides between resolving and cancelling, and whoever resolves
    sets the state first and looks for callbacks and waiters afterwards, while whoever adds one adds it first and looks
    at the state afterwards.

    ``timing`` is (microseconds queued, microseconds run, rows in the batch) once an answer is there.
    """

    timing: tuple[int, int, int] | None = None
    leases: tuple[Lease, ...] = ()
    regions: Any = None
    priority = 0
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
        self._state = FINISHED
        callback = made.pop("_callback", None)
        if callback is not None:
            self._run(callback)
        if "_condition" in made:
            self._announce()
        return True

    def cancel(self) -> bool:
        """Withdraw the request; False when its outcome is there already."""
        made = self.__dict__
        if made.setdefault("_outcome", _CANCELLED) is not _CANCELLED:
            return False
        if self._state == PENDING:
            self._state = CANCELLED_AND_NOTIFIED
            callback = made.pop("_callback", None)
            if callback is not None:
                self._run(callback)
            self._announce()
            self.core.wait(self, None)
        return True

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn`` with this future when it is done, or now."""
        made = self.__dict__
        if made.setdefault("_callback", fn) is not fn or "_condition" in made:
            if made.get("_callback") is fn:
                del made["_callback"]
            super().add_done_callback(fn)
        elif self._state != PENDING:
            mine = made.pop("_callback", None)
            if mine is not None:
                self._run(mine)

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

    def _announce(self) -> None:
        with self._condition:
            for waiter in self._waiters:
                if self._state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
            callbacks, self.__dict__["_done_callbacks"] = self._done_callbacks, []
        for callback in callbacks:
            self._run(callback)
