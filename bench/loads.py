"""Closed loops on a pool, through the client: what the processes of a fleet run.

One request under way is a thread that calls ``predict``; several are futures whose callbacks submit the next. The first
hundreds of requests, and then one in 31, have their latency taken and send other rows than the rest; hundreds of these
answers are kept and compared, when the window is over, with what TensorFlow gives in a process of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

import tfpool
from bench import fleet
from bench.children import Channel
from bench.fleet import Fleet, Loop, Tally, Window, sleep_until
from bench.processes import cpu_seconds
from bench.scenario import Settings
from tfpool.wire.tensors import Array

RTOL, ATOL = 1e-4, 1e-5
_SAMPLED = 31  # prime to the sizes of batches: or all samples would have the same place in theirs
_KEPT_ANSWERS = 512
_DRAIN_SECONDS = 30.0
_DISTINCT = 16


def on(settings: Settings, pool: tfpool.Pool, model: str, clients: int = 1) -> Fleet:
    """A fleet that sends one row a request to ``model``."""
    return Fleet(f"tfpool, {model}", meter(pool), closed, pool.endpoint, model, settings.models.samples[model], clients)


def meter(pool: tfpool.Pool) -> Callable[[], Mapping[str, float]]:
    """Reads the CPU seconds of a pool's broker and workers."""
    client = pool.client()
    pids = [row["pid"] for row in client.workers()]
    return lambda: {"worker": cpu_seconds(*pids), "broker": client.stats()["broker_cpu_seconds"]}


def closed(channel: Channel, endpoint: str, model: str, samples: str, clients: int) -> None:
    """A fleet's child: each client keeps single rows under way. ``samples`` is an .npz of rows x and answers y."""
    with np.load(samples) as file:
        rows, answers = file["x"], file["y"]

    @contextmanager
    def prepare(index: int) -> Iterator[Loop]:
        with tfpool.Client(endpoint) as client:
            loop = _Closed(client, model, np.roll(rows, index, 0), np.roll(answers, index, 0))
            client.predict(model, loop.rows[0])
            yield loop

    fleet.run(channel, clients, prepare)


def ordered(channel: Channel, endpoint: str, model: str) -> None:
    """A fleet's child: one client that sends large rows to an identity and takes the answers in order."""

    @contextmanager
    def prepare(index: int) -> Iterator[Loop]:
        with tfpool.Client(endpoint) as client:
            yield partial(_in_order, client, model)

    fleet.run(channel, 1, prepare)


class _Closed:
    """One client's closed loop."""

    def __init__(self, client: tfpool.Client, model: str, rows: Array, answers: Array) -> None:
        self.client = client
        self.model = model
        self.rows = [rows[i : i + 1] for i in range(len(rows))]
        self.answers = answers

    def __call__(self, window: Window) -> Tally:
        return self._one_by_one(window) if window.in_flight == 1 else self._by_callbacks(window)

    def _one_by_one(self, window: Window) -> Tally:
        predict, model = self.client.predict, self.model
        kept: list[tuple[int, Array]] = []
        latencies: list[float] = []
        numbers = cycle(range(len(self.rows)))
        begun = now = time.monotonic()
        cpu = time.process_time()
        while now < window.end:
            number = next(numbers)
            sent = now
            outputs = predict(model, self.rows[number])
            now = time.monotonic()
            if sent < window.begin:
                begun, cpu = now, time.process_time()
                continue
            latencies.append(now - sent)
            if len(latencies) % _SAMPLED == 1 and len(kept) < _KEPT_ANSWERS:
                kept.append((number, _only(outputs)))
        cpu = time.process_time() - cpu
        return Tally(len(latencies), now - begun, cpu, latencies, len(kept), wrong(kept, self.answers))

    def _by_callbacks(self, window: Window) -> Tally:
        submit, model, row = self.client.submit, self.model, self.rows[0]
        kept: deque[tuple[int, Array]] = deque(maxlen=_KEPT_ANSWERS)
        latencies: list[float] = []
        failures: list[Exception] = []
        numbers = cycle(range(len(self.rows)))
        drained = threading.Event()
        count, lanes, running = 0, window.in_flight, True

        def done(future: Future[Any]) -> None:
            nonlocal count, lanes
            try:
                future.result()
                count += 1
                if running:
                    if count > _KEPT_ANSWERS and count % _SAMPLED:
                        submit(model, row).add_done_callback(done)
                    else:
                        sample()
                    return
            except Exception as error:
                failures.append(error)
            lanes -= 1
            if lanes == 0:
                drained.set()

        def sample() -> None:
            number, sent = next(numbers), time.monotonic()
            submit(model, self.rows[number]).add_done_callback(partial(sampled, number, sent))

        def sampled(number: int, sent: float, future: Future[Any]) -> None:
            latencies.append(time.monotonic() - sent)
            if future.exception() is None:
                kept.append((number, _only(future.result()).copy()))
            done(future)

        for _ in range(window.in_flight):
            submit(model, row).add_done_callback(done)
        sleep_until(window.begin)
        begun, cpu, first, first_latency = time.monotonic(), time.process_time(), count, len(latencies)
        sleep_until(window.end)
        ended, cpu, last = time.monotonic(), time.process_time() - cpu, count
        last_latency = len(latencies)
        running = False
        if not drained.wait(_DRAIN_SECONDS):
            raise TimeoutError(f"{lanes} of {window.in_flight} requests were not answered in {_DRAIN_SECONDS:g} s")
        if failures:
            raise failures[0]
        measured = latencies[first_latency:last_latency]
        return Tally(last - first, ended - begun, cpu, measured, len(kept), wrong(list(kept), self.answers))


def wrong(kept: Sequence[tuple[int, Array]], answers: Array) -> int:
    """How many of ``kept``, answers to single rows by their number, are not what they should be."""
    return sum(
        got.shape != answers[n : n + 1].shape or not np.allclose(got, answers[n : n + 1], RTOL, ATOL) for n, got in kept
    )


def _in_order(client: tfpool.Client, model: str, window: Window) -> Tally:
    """Until the window opens every answer is compared, within it every 16th by its ends, the last ones in full."""
    random = np.random.default_rng(7)
    inputs = [random.random((1, window.nbytes // 4), np.float32) for _ in range(_DISTINCT)]
    under_way: deque[tuple[float, Array, Future[Any]]] = deque()
    latencies: list[float] = []
    sent = checked = bad = 0
    begun = now = time.monotonic()
    cpu = time.process_time()
    while now < window.end:
        while len(under_way) < window.in_flight:
            row = inputs[sent % _DISTINCT]
            under_way.append((time.monotonic(), row, client.submit(model, row)))
            sent += 1
        submitted, row, future = under_way.popleft()
        got = _only(future.result())
        now = time.monotonic()
        if now < window.begin:
            checked, bad = checked + 1, bad + (not np.array_equal(got, row))
            begun, cpu = time.monotonic(), time.process_time()
            continue
        latencies.append(now - submitted)
        if len(latencies) % 16 == 0:
            same = got.shape == row.shape and got[0, 0] == row[0, 0] and got[0, -1] == row[0, -1]
            checked, bad = checked + 1, bad + (not same)
    seconds, cpu = now - begun, time.process_time() - cpu
    for _, row, future in under_way:
        checked, bad = checked + 1, bad + (not np.array_equal(_only(future.result()), row))
    return Tally(len(latencies), seconds, cpu, latencies, checked, bad)


def _only(outputs: Mapping[str, Array]) -> Array:
    (output,) = outputs.values()
    return output
