"""The future of one request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any

from tfpool.errors import TfpoolError
from tfpool.shm.layout import Lease

_making = threading.Lock()


class Reply(Future[Any]):
    """A concurrent.futures.Future that costs next to nothing until somebody waits for it.

    The condition, waiters and callbacks of a Future are made when they are first touched. Whoever resolves sets the
    state first and looks for them afterwards; whoever waits makes them first and looks at the state afterwards.

    ``timing`` is (microseconds queued, microseconds run, rows in the batch) once an answer is there.
    """

    timing: tuple[int, int, int] | None = None
    leases: tuple[Lease, ...] = ()
    reply_lease: Lease | None = None

    def __init__(
        self, entry: Any, rows: int, deadline: float, priority: int, buffers: Any, squeeze: bool, wait: Any
    ) -> None:
        self.entry = entry
        self.rows = rows
        self.deadline = deadline
        self.priority = priority
        self.buffers = buffers
        self.squeeze = squeeze
        self.wait: Callable[[Reply, float | None], None] = wait
        self.regions: Any = None
        self.id = -1
        self._state = PENDING
        self._result = None
        self._exception = None

    def __getattr__(self, name: str) -> Any:
        if name not in ("_condition", "_waiters", "_done_callbacks"):
            raise AttributeError(name)
        with _making:
            made = self.__dict__
            if "_condition" not in made:
                made["_waiters"] = []
                made["_done_callbacks"] = []
                made["_condition"] = threading.Condition()
        return made[name]

    def resolve(self, value: Any, error: TfpoolError | None = None) -> bool:
        """Set the outcome, unless there is one; False then."""
        if self._state != PENDING:
            return False
        if "_condition" in self.__dict__:
            with self._condition:
                if self._state != PENDING:
                    return False
                self._result, self._exception, self._state = value, error, FINISHED
        else:
            self._result, self._exception = value, error
            self._state = FINISHED
        if "_condition" in self.__dict__:
            self._announce()
        return True

    def cancel(self) -> bool:
        """Withdraw the request; False when its outcome is there already."""
        with self._condition:
            if self._state != PENDING:
                return self._state == CANCELLED_AND_NOTIFIED
            self._state = CANCELLED_AND_NOTIFIED
        self._announce()
        self.wait(self, None)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The outputs by name. Raises the request's error, or TimeoutError after ``timeout`` seconds."""
        if self._state == PENDING:
            self.wait(self, timeout)
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self._state == PENDING:
            self.wait(self, timeout)
        return super().exception(0)

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
        self._invoke_callbacks()  # type: ignore[attr-defined]
