"""The synchronous client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from tfpool.client.casting import cast
from tfpool.client.connection import Connection
from tfpool.client.reply import Reply
from tfpool.errors import InvalidArgument
from tfpool.settings import admin_endpoint_for, default_endpoint, normalize_endpoint
from tfpool.wire.tensors import Array

DEFAULT_TIMEOUT = 30.0

Outputs = dict[str, Array]
Inputs = Mapping[str, Any] | Any


class Client:
    """Talks to a pool. Safe to use from several threads; after a fork it refuses, make a new one there.

    ``endpoint`` is the pool's (default: TFPOOL_ENDPOINT, or this user's default pool), ``admin`` its admin endpoint
    (default: TFPOOL_ADMIN, or the one beside ``endpoint``). ``timeout`` is the default deadline in seconds.
    """

    def __init__(
        self, endpoint: str | None = None, *, admin: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Raises InvalidArgument for what is no endpoint. The pool may come up later."""
        chosen = endpoint or os.environ.get("TFPOOL_ENDPOINT") or default_endpoint()
        self.endpoint = normalize_endpoint(chosen)
        self._admin_endpoint = admin or (os.environ.get("TFPOOL_ADMIN") if endpoint is None else None)
        self._timeout = _positive(timeout)
        self._connection = Connection(self.endpoint)
        self._admin: Connection | None = None
        self._admin_lock = threading.Lock()

    # -- inference ---------------------------------------------------------------------------------------------

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int = 0,
        label: str = "",
        signature: str = "",
        rows: bool = True,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Outputs:
        """Run a model; the outputs by name, rows first.

        ``inputs`` maps names to arrays whose first dimension is rows, or is one array where the signature has one
        input. With ``rows=False`` it is a single example without that dimension, and so are the outputs.
        ``version`` 0 is the newest that serves.

        Raises the errors of :mod:`tfpool.errors`; DeadlineExceeded after ``timeout`` seconds.
        """
        connection = self._connection
        connection.check()
        seconds = self._timeout if timeout is None else _positive(timeout)
        if type(inputs) is not np.ndarray:
            inputs = self._cast(model, inputs, version, label, signature, rows)
        reply = connection.core.submit(
            model, inputs, time.monotonic() + seconds, version, label, signature, rows, priority
        )
        connection.wait(reply)
        outputs: Outputs = reply.result()
        return outputs

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int = 0,
        label: str = "",
        signature: str = "",
        rows: bool = True,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Reply:
        """Like :meth:`predict`, at once: a concurrent.futures.Future of the outputs.

        The inputs are copied, the caller may change them. Cancelling the future cancels the request. Callbacks run on
        the thread that receives: they may submit, but must not wait.
        """
        connection = self._connection
        connection.check()
        seconds = self._timeout if timeout is None else _positive(timeout)
        if type(inputs) is not np.ndarray:
            inputs = self._cast(model, inputs, version, label, signature, rows)
        reply = connection.core.submit(
            model, inputs, time.monotonic() + seconds, version, label, signature, rows, priority
        )
        connection.push()
        return reply

    def _cast(self, model: str, inputs: Inputs, version: int, label: str, signature: str, rows: bool) -> Inputs:
        """Plain Python values as arrays of the dtypes that the signature wants."""
        return cast(inputs, rows, lambda: self.metadata(model, version=version, label=label), signature)

    # -- control -----------------------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """A row for each version of each model: name, version, state, workers, labels, memory_bytes, error ..."""
        found: list[dict[str, Any]] = self.call("models")
        return found

    def status(self, model: str) -> list[dict[str, Any]]:
        """The rows of one model, with its signatures, batching and meters. Raises NotFound."""
        found: list[dict[str, Any]] = self.call("status", model=model)
        return found

    def metadata(self, model: str, *, version: int = 0, label: str = "") -> dict[str, Any]:
        """Name, version and signatures (dtypes and shapes, -1: open) of what a request would reach."""
        found: dict[str, Any] = self.call("metadata", model=model, version=version, label=label)
        return found

    def workers(self) -> list[dict[str, Any]]:
        """A row for each worker: name, pid, state, device, cpus, memory (bytes), busy (0 to 1), models."""
        found: list[dict[str, Any]] = self.call("workers")
        return found

    def queues(self) -> list[dict[str, Any]]:
        """A row for each queue: model, version, signature, rows, oldest_ms, batch_rows_mean."""
        found: list[dict[str, Any]] = self.call("queues")
        return found

    def stats(self) -> dict[str, Any]:
        """Counters and histograms (microseconds) of the pool, its models and workers."""
        found: dict[str, Any] = self.call("stats")
        return found

    def wait_ready(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Return when every model that shall serve does, or has failed; ``failed`` has the rows of those.

        Raises DeadlineExceeded.
        """
        found: dict[str, Any] = self.call("ready", timeout=timeout)
        return found

    def load(self, model: str, version: int | None = None, *, timeout: float = 600.0) -> dict[str, Any]:
        """Load a version (the newest on disk); returns when it serves. Raises the load's error."""
        found: dict[str, Any] = self.admin("load", model=model, version=version, timeout=timeout)
        return found

    def unload(self, model: str, version: int | None = None) -> list[dict[str, Any]]:
        """Unload one version, or all; what waits for them is refused."""
        found: list[dict[str, Any]] = self.admin("unload", model=model, version=version)
        return found

    def drain(self, worker: str, *, timeout: float = 600.0) -> dict[str, Any]:
        """Have other workers take over what a worker serves; returns when it holds nothing."""
        found: dict[str, Any] = self.admin("drain", worker=worker, timeout=timeout)
        return found

    def restart(self, worker: str, *, timeout: float = 600.0) -> dict[str, Any]:
        """Replace a worker's process; returns when it serves again. Its requests wait meanwhile."""
        found: dict[str, Any] = self.admin("restart", worker=worker, timeout=timeout)
        return found

    def shutdown(self) -> dict[str, Any]:
        """Have the pool finish what waits, and end."""
        found: dict[str, Any] = self.admin("shutdown")
        return found

    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb."""
        return self._call(self._connection, method, arguments, timeout)

    def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb, on the admin endpoint."""
        self._connection.check()
        with self._admin_lock:
            if self._admin is None:
                endpoint = self._admin_endpoint or admin_endpoint_for(self.endpoint)
                self._admin = Connection(normalize_endpoint(endpoint))
        return self._call(self._admin, method, arguments, timeout)

    def _call(self, connection: Connection, method: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        connection.check()
        seconds = self._timeout if timeout is None else _positive(timeout)
        reply = connection.core.call(method, arguments, time.monotonic() + seconds)
        connection.wait(reply)
        return reply.result()

    # -- end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is in flight and disconnect. Arrays that were returned stay valid."""
        self._connection.close()
        if self._admin is not None:
            self._admin.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"tfpool.Client({self.endpoint!r})"


def _positive(timeout: float) -> float:
    if isinstance(timeout, (int, float)) and 0 < timeout < 86400:
        return timeout
    raise InvalidArgument(f"timeout: got {timeout!r}, expected seconds from 0 to 86400")
