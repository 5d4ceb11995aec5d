"""The synchronous client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from tfpool.client.casting import cast
from tfpool.client.connection import Connection
from tfpool.client.endpoints import Endpoints, positive
from tfpool.client.examples import CLASSIFY, INPUT, REGRESS, Classes, Example, Method, Target, encode
from tfpool.client.reply import Reply
from tfpool.client.verbs import DEFAULT_TIMEOUT, Verbs
from tfpool.errors import TfpoolError
from tfpool.wire.tensors import Array

_LEAST_TIMEOUT = 0.001
CHECKED_KEPT = 1024

Outputs = dict[str, Array]
Inputs = Mapping[str, Any] | Any


class Client(Verbs):
    """Talks to a pool. Safe to use from several threads; after a fork it refuses, make a new one there.

    ``endpoint`` is the pool's (default: TFPOOL_ENDPOINT, or this user's default pool), ``admin`` its admin endpoint
    (default: TFPOOL_ADMIN, or the one beside ``endpoint``). ``keys`` is the key file for tcp endpoints that let in who
    has a key only (default: TFPOOL_KEYS). ``timeout`` is how long a call waits at most, in seconds, where it does not
    say; a model's own deadline (``slo_ms``) may be shorter.

    Where the connection is lost, what was in flight is sent again to whoever answers at the endpoint next: within its
    own deadline, and not where the signature changes state, nor for admin verbs. Unavailable is raised where that
    cannot be, or nobody has answered for 5 seconds.

    An error's ``retry_after`` is when another try may do better, in seconds; None where the pool does not say.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        admin: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Raises InvalidArgument for what is no endpoint, and the errors of a key file that is not as it should be.
        The pool may come up later."""
        self._endpoints = Endpoints(endpoint, admin, keys)
        self.endpoint = self._endpoints.pool
        self._timeout = positive(timeout)
        self._connection = Connection(self.endpoint, self._endpoints.keys_for(self.endpoint))
        self._admin: Connection | None = None
        self._admin_lock = threading.Lock()
        self._checked: set[tuple[Method, Target]] = set()

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

        Raises the errors of :mod:`tfpool.errors`; DeadlineExceeded after ``timeout`` seconds, which replace the
        model's own deadline.
        """
        connection = self._connection
        connection.check()
        seconds = self._timeout if timeout is None else positive(timeout)
        if type(inputs) is not np.ndarray:
            inputs = self._cast(model, inputs, version, label, signature, rows)
        reply = connection.core.submit(
            model, inputs, time.monotonic() + seconds, version, label, signature, rows, priority, timeout is None
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
        seconds = self._timeout if timeout is None else positive(timeout)
        if type(inputs) is not np.ndarray:
            inputs = self._cast(model, inputs, version, label, signature, rows)
        reply = connection.core.submit(
            model, inputs, time.monotonic() + seconds, version, label, signature, rows, priority, timeout is None
        )
        connection.push()
        return reply

    def classify(
        self,
        model: str,
        examples: Iterable[Example],
        *,
        context: Example | None = None,
        version: int = 0,
        label: str = "",
        signature: str = "",
        timeout: float | None = None,
    ) -> Classes:
        """Classes of tf.Examples: a list of (label, score) for each.

        An example maps features to a value or a list of values (text, bytes, floats, ints or bools), or is a
        serialized tf.Example; the features of ``context`` are added to every one.

        Raises the errors of :mod:`tfpool.errors`; InvalidArgument where the signature does not classify.
        """
        target = Target(model, version, label, signature)
        found: Classes = self._on_examples(CLASSIFY, target, encode(examples, context), timeout)
        return found

    def regress(
        self,
        model: str,
        examples: Iterable[Example],
        *,
        context: Example | None = None,
        version: int = 0,
        label: str = "",
        signature: str = "",
        timeout: float | None = None,
    ) -> Array:
        """A number for each tf.Example, float32 [n]; see :meth:`classify`."""
        target = Target(model, version, label, signature)
        found: Array = self._on_examples(REGRESS, target, encode(examples, context), timeout)
        return found

    def _on_examples(self, method: Method, target: Target, array: Array, timeout: float | None) -> Any:
        began = time.monotonic()
        seconds = self._timeout if timeout is None else positive(timeout)
        try:
            self._check(method, target, seconds)
            connection = self._connection
            deadline = max(began + seconds, time.monotonic() + _LEAST_TIMEOUT)
            model, version, label, signature = target
            reply = connection.core.submit(
                model, {INPUT: array}, deadline, version, label, signature, soft=timeout is None
            )
            connection.wait(reply)
            return method.read(reply.result(), len(array))
        except TfpoolError:
            self._checked.discard((method, target))  # a new version may differ
            raise

    def _check(self, method: Method, target: Target, timeout: float | None) -> None:
        """Ask the pool, once, what a signature is like. Raises InvalidArgument where it is of another kind."""
        if (method, target) in self._checked:
            return
        model, version, label, _ = target
        method.check(self.call("metadata", model=model, version=version, label=label, timeout=timeout), target)
        if len(self._checked) >= CHECKED_KEPT:
            self._checked.clear()
        self._checked.add((method, target))

    def _cast(self, model: str, inputs: Inputs, version: int, label: str, signature: str, rows: bool) -> Inputs:
        """Plain Python values as arrays of the dtypes that the signature wants."""
        return cast(inputs, rows, lambda: self.metadata(model, version=version, label=label), signature)

    # -- control -----------------------------------------------------------------------------------------------

    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb."""
        return self._call(self._connection, method, arguments, timeout)

    def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb, on the admin endpoint."""
        self._connection.check()
        with self._admin_lock:
            if self._admin is None:
                endpoint = self._endpoints.admin()
                self._admin = Connection(endpoint, self._endpoints.keys_for(endpoint), again=False)
        return self._call(self._admin, method, arguments, timeout)

    def _call(self, connection: Connection, method: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        connection.check()
        seconds = self._timeout if timeout is None else positive(timeout)
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
