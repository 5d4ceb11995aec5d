"""Open loops on a pool, by its client, with deadlines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

import tfpool
from bench.arrivals import Schedule
from bench.children import Channel
from bench.fleet import sleep_until
from bench.loads import wrong
from bench.senders import START_SECONDS, Sender, Traffic, orders, to_check
from tfpool.errors import Code, TfpoolError
from tfpool.wire.tensors import Array

_DISTINCT = 4
_GRACE_SECONDS = 5.0
_LEAST_TIMEOUT = 0.001
_STEP_SECONDS = 0.01
_SWITCH_SECONDS = 0.0002  # or who sends would wait for who receives


class Stream(Sender):
    """A client of a pool, which asks ``model``, or the models that the schedule picks, with so many rows a request.
    ``samples`` is an .npz of rows x and answers y."""

    def __init__(self, pool: tfpool.Pool, model: str | Sequence[str], samples: str, rows: int = 1) -> None:
        models = [model] if isinstance(model, str) else list(model)
        super().__init__(ask, pool.endpoint, models, samples, rows)

    def begin(self, moments: Array, window: float, timeout: float | None) -> None:
        """Send at these moments (seconds from now) of ``window`` seconds; the pool knows of the deadlines, unless
        ``timeout`` is None. :meth:`collect` must follow."""
        self.load(Schedule.of_one(moments, window), timeout)
        self.go(time.monotonic() + START_SECONDS)

    def send(self, moments: Array, window: float, timeout: float | None) -> Traffic:
        """Begin, and collect."""
        self.begin(moments, window, timeout)
        return self.collect()

    def capacity(self, in_flight: int, seconds: float) -> float:
        """Requests a second that are answered while so many are kept under way."""
        return capacity([self], in_flight, seconds)

    def lanes(self, in_flight: int, seconds: float, picks: Sequence[int]) -> None:
        """Keep so many under way, over and over to these models. :meth:`answered` must follow."""
        self._child.tell({"in_flight": in_flight, "seconds": seconds, "picks": list(picks)})

    def answered(self) -> float:
        """Requests a second that were. Raises ChildFailed."""
        told = self._child.hear()
        return float(told["answered"] / told["seconds"])


def capacity(streams: Sequence[Stream], in_flight: int, seconds: float, picks: Sequence[int] = (0,)) -> float:
    """Requests a second that are answered while each keeps so many under way."""
    for stream in streams:
        stream.lanes(in_flight, seconds, picks)
    return sum([stream.answered() for stream in streams])


# -- the child's side ----------------------------------------------------------------------------------------------


def ask(channel: Channel, endpoint: str, models: list[str], samples: str, rows: int) -> None:
    """The child: says when it is connected; told of moments or of a closed loop, runs that and says what came of it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with np.load(samples) as file:
        x, y = (as_requests(file[name], rows) for name in "xy")
    with tfpool.Client(endpoint) as client:
        for model in models:
            client.predict(model, x[0])
        channel.say("connected")
        for order in orders(channel):
            picks = [models[number] for number in order["picks"]]
            if "in_flight" in order:
                channel.say(_closed(client, picks, x, order["in_flight"], order["seconds"]))
            else:
                channel.say(Roaming(client, picks, x, y).run(order["begin"], order["moments"], order["timeout"]))


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
            if to_check(number):
                (output,) = future.result().values()
                self._kept.append((number % len(self._rows), output.copy()[None]))
        else:
            self._codes[number] = Code(error.code).name if isinstance(error, TfpoolError) else type(error).__name__
        self._pending.discard(number)


class Roaming(Sending):
    """An open loop that asks another model each time."""

    def __init__(self, client: tfpool.Client, picks: Sequence[str], rows: Sequence[Array], answers: Sequence[Array]):
        super().__init__(client, "", rows, answers)
        self._picks = picks

    def _send(self, number: int, timeout: float) -> None:
        self._model = self._picks[number]
        super()._send(number, timeout)


def as_requests(rows: Array, each: int) -> list[Array]:
    """Different requests of so many rows."""
    return [np.resize(np.roll(rows, shift, 0), (each, *rows.shape[1:])) for shift in range(_DISTINCT)]


def _closed(
    client: tfpool.Client, picks: Sequence[str], rows: Sequence[Array], in_flight: int, seconds: float
) -> dict[str, float]:
    """Keep so many requests under way, to these models over and over; the first third of the time is not counted."""
    models = cycle(picks)
    answered: list[None] = []
    ended: list[None] = []
    running = True

    def done(future: Future[Any]) -> None:
        future.result()
        answered.append(None)
        if running:
            client.submit(next(models), rows[0]).add_done_callback(done)
        else:
            ended.append(None)

    for _ in range(in_flight):
        client.submit(next(models), rows[0]).add_done_callback(done)
    time.sleep(seconds / 3)
    begun, before = time.monotonic(), len(answered)
    time.sleep(2 * seconds / 3)
    found = {"answered": len(answered) - before, "seconds": time.monotonic() - begun}
    running = False
    while len(ended) < in_flight:
        time.sleep(_STEP_SECONDS)
    return found
