"""Open loops with deadlines: requests that leave at moments given beforehand, whatever becomes of those before them.

Deadlines and latencies count from when a request was due. How late it really left is noted, so that a generator that
cannot keep up is seen.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

import tfpool
from bench.children import Channel, Child
from bench.errors import WrongAnswer
from bench.fleet import sleep_until
from bench.loads import wrong
from bench.points import quantile
from tfpool.errors import Code, TfpoolError
from tfpool.wire.tensors import Array

START_SECONDS = 0.05
_CHECKED = 16  # one answer in so many is compared
_DISTINCT = 4
_GRACE_SECONDS = 5.0
_LEAST_TIMEOUT = 0.001
_STEP_SECONDS = 0.01
_SWITCH_SECONDS = 0.0002  # or who sends would wait for who receives
_SAFE_SECONDS = 30.0


@dataclass(frozen=True)
class Traffic:
    """What was asked in ``window`` seconds. Of each request: when it was due (from the beginning), how late it left,
    and the seconds from when it was due to the answer, infinite without one. ``errors`` counts those by code, and
    ``cpu`` is the CPU time that asking took."""

    window: float
    due: Array
    lateness: Array
    seconds: Array
    errors: dict[str, int]
    cpu: float = 0.0

    def on_time(self, allowed: float) -> int:
        """Requests that were answered within so many seconds."""
        return int(np.sum(self.seconds <= allowed))

    def share(self, allowed: float) -> float:
        """Percent that were answered within so many seconds."""
        return 100 * self.on_time(allowed) / len(self.seconds)

    def ms(self, q: float) -> float:
        """Milliseconds that a share ``q`` of the answers does not exceed."""
        return float(quantile(np.sort(self.seconds[np.isfinite(self.seconds)]).tolist(), q)) * 1e3

    def told(self) -> dict[str, Any]:
        """For a figure's detail."""
        late = np.sort(self.lateness).tolist()
        return {
            "requests": len(self.due),
            "answered": int(np.isfinite(self.seconds).sum()),
            "errors": self.errors,
            "p50_ms": self.ms(0.5),
            "p99_ms": self.ms(0.99),
            "left_late_p99_ms": quantile(late, 0.99) * 1e3,
            "left_late_most_ms": quantile(late, 1.0) * 1e3,
            "client_cpu_us": 1e6 * self.cpu / len(self.due),
        }


class Stream:
    """A child with one client, which asks ``model`` with so many rows a request. ``samples`` is an .npz of rows x and
    answers y."""

    def __init__(self, pool: tfpool.Pool, model: str, samples: str, rows: int = 1) -> None:
        self._window = 0.0
        self._child = Child(ask, pool.endpoint, model, samples, rows)
        try:
            self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def begin(self, moments: Array, window: float, timeout: float | None) -> None:
        """Send at these moments (seconds from now) of ``window`` seconds; the pool knows of the deadlines, unless
        ``timeout`` is None. :meth:`collect` must follow."""
        self._window = window
        begin = time.monotonic() + START_SECONDS
        self._child.tell({"begin": begin, "moments": moments.tolist(), "timeout": timeout or _SAFE_SECONDS})

    def collect(self) -> Traffic:
        """What became of it, when all is answered. Raises WrongAnswer and ChildFailed."""
        told = self._child.hear()
        if told["wrong"]:
            raise WrongAnswer(f"{told['wrong']} of {told['checked']} answers are wrong")
        due, lateness, seconds = (np.array(told[name], float) for name in ("due", "lateness", "seconds"))
        return Traffic(self._window, due, lateness, seconds, told["errors"], told["cpu"])

    def send(self, moments: Array, window: float, timeout: float | None) -> Traffic:
        """Begin, and collect."""
        self.begin(moments, window, timeout)
        return self.collect()

    def capacity(self, in_flight: int, seconds: float) -> float:
        """Requests a second that are answered while so many are kept under way."""
        told = self._child.ask({"in_flight": in_flight, "seconds": seconds})
        return float(told["answered"] / told["seconds"])

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()


# -- the child's side ----------------------------------------------------------------------------------------------


def ask(channel: Channel, endpoint: str, model: str, samples: str, rows: int) -> None:
    """The child: says when it is connected; told of moments or of a closed loop, runs that and says what came of it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with np.load(samples) as file:
        x, y = (as_requests(file[name], rows) for name in "xy")
    with tfpool.Client(endpoint) as client:
        client.predict(model, x[0])
        channel.say("connected")
        while (order := channel.hear()) is not None:
            if "in_flight" in order:
                channel.say(_closed(client, model, x, order["in_flight"], order["seconds"]))
            else:
                channel.say(Sending(client, model, x, y).run(order["begin"], order["moments"], order["timeout"]))


class Sending:
    """One open loop: one thread sends, the client's notes what became of it; each thing is noted in one step."""

    def __init__(self, client: tfpool.Client, model: str, rows: Sequence[Array], answers: Sequence[Array]) -> None:
        self._client = client
        self._model = model
        self._rows = rows
        self._answers = answers
        self._ended: list[float] = []
        self._codes: dict[int, str] = {}
        self._pending: set[int] = set()
        self._kept: list[tuple[int, Array]] = []

    def run(self, begin: float, moments: Sequence[float], timeout: float) -> dict[str, Any]:
        """Send it all, wait for the end of it, and tell."""
        lateness = []
        cpu = time.process_time()
        self._ended = [float("inf")] * len(moments)
        self._pending = set(range(len(moments)))
        for number, moment in enumerate(moments):
            due = begin + moment
            sleep_until(due)
            now = time.monotonic()
            lateness.append(now - due)
            self._send(number, max(_LEAST_TIMEOUT, due + timeout - now))
        give_up = time.monotonic() + timeout + _GRACE_SECONDS
        while self._pending:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{len(self._pending)} of {len(moments)} requests have no outcome")
            time.sleep(_STEP_SECONDS)
        seconds = [ended - begin - moment for ended, moment in zip(self._ended, moments, strict=True)]
        checked = [wrong([(0, got)], self._answers[number][None]) for number, got in self._kept]
        return {
            "due": moments,
            "lateness": lateness,
            "seconds": seconds,
            "errors": dict(Counter(self._codes.values())),
            "cpu": time.process_time() - cpu,
            "checked": len(checked),
            "wrong": sum(checked),
        }

    def _send(self, number: int, timeout: float) -> None:
        future = self._client.submit(self._model, self._rows[number % len(self._rows)], timeout=timeout)
        future.add_done_callback(partial(self._done, number))

    def _done(self, number: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._ended[number] = time.monotonic()
            if number % _CHECKED == 0:
                (output,) = future.result().values()
                self._kept.append((number % len(self._rows), output.copy()[None]))
        else:
            self._codes[number] = Code(error.code).name if isinstance(error, TfpoolError) else type(error).__name__
        self._pending.discard(number)


def as_requests(rows: Array, each: int) -> list[Array]:
    """Different requests of so many rows."""
    return [np.resize(np.roll(rows, shift, 0), (each, *rows.shape[1:])) for shift in range(_DISTINCT)]


def _closed(
    client: tfpool.Client, model: str, rows: Sequence[Array], in_flight: int, seconds: float
) -> dict[str, float]:
    """Keep so many requests under way; the first third of the time is not counted."""
    answered: list[None] = []
    ended: list[None] = []
    running = True

    def done(future: Future[Any]) -> None:
        future.result()
        answered.append(None)
        if running:
            client.submit(model, rows[0]).add_done_callback(done)
        else:
            ended.append(None)

    for _ in range(in_flight):
        client.submit(model, rows[0]).add_done_callback(done)
    time.sleep(seconds / 3)
    begun, before = time.monotonic(), len(answered)
    time.sleep(2 * seconds / 3)
    found = {"answered": len(answered) - before, "seconds": time.monotonic() - begun}
    running = False
    while len(ended) < in_flight:
        time.sleep(_STEP_SECONDS)
    return found
