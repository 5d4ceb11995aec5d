"""A load that goes on while things happen to the pool, and notes of every request when it was due and how long it took.

Closed: so many requests under way. Open: Poisson arrivals, and a latency counts from when its request was due. A
request that fails is counted and is no error: what the pool does to those who use it is the figure.
"""

from __future__ import annotations

import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any

import numpy as np

import tfpool
from bench.children import Channel, Child
from bench.errors import WrongAnswer
from bench.fleet import sleep_until
from bench.loads import ATOL, RTOL, wrong
from bench.points import quantile
from tfpool.wire.messages import MAX_ANSWER_BYTES, Verb, decode, decode_answer, decode_error
from tfpool.wire.tensors import Array

Span = tuple[float, float]

_CHECKED = 32
_COMPARED = 256  # answers at a time
_KEPT_ERRORS = 5
_STEP_SECONDS = 0.01
_SWITCH_SECONDS = 0.0002  # or who sends would wait for who receives


@dataclass(frozen=True)
class Notes:
    """Requests that were answered: their numbers, when they were due (monotonic seconds), seconds until the answer.

    ``failed`` counts the others, ``errors`` has what the first of them got. ``checked`` answers were compared, and
    ``twice`` came that nobody was waiting for any more, or ever: both of every answer, where the load was strict.
    """

    numbers: Array
    due: Array
    seconds: Array
    failed: int = 0
    errors: Sequence[str] = ()
    checked: int = 0
    twice: int = 0

    def within(self, *spans: Span) -> Array:
        """Seconds, increasing, of the requests that were due in one of these spans."""
        chosen = np.zeros(len(self.due), bool)
        for begin, end in spans:
            chosen |= (self.due >= begin) & (self.due < end)
        return np.sort(self.seconds[chosen])


def ms(ordered: Array, q: float) -> float:
    """Milliseconds that a share ``q`` of increasing seconds does not exceed."""
    return float(quantile(ordered.tolist(), q)) * 1e3


class Steady:
    """A child with one client of a pool. ``samples`` is an .npz of rows x and answers y, those of all ``models``.

    One answer in 32 is compared with these, or each with ``strict``.
    """

    def __init__(self, pool: tfpool.Pool, models: Sequence[str], samples: str, strict: bool = False) -> None:
        self._notes = f"{samples}.notes.npz"
        self._child = Child(load, pool.endpoint, list(models), samples, strict)
        try:
            self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def closed(self, in_flight: int) -> None:
        """Keep so many requests to the first model under way, until :meth:`stop`."""
        self._child.tell({"notes": self._notes, "in_flight": in_flight})

    def open(self, rate: float) -> None:
        """Send so many requests a second to the first model, at random moments, until :meth:`stop`."""
        self._child.tell({"notes": self._notes, "rate": rate})

    def pick(self, in_flight: int, picks: Sequence[int]) -> None:
        """Send one request to each of these models (numbers), in order; :meth:`over` says when all are answered."""
        self._child.tell({"notes": self._notes, "in_flight": in_flight, "picks": list(picks)})

    def over(self, seconds: float) -> bool:
        """Whether all picks are answered; waits for that, no longer than ``seconds``."""
        return self._child.spoke(seconds)

    def stop(self) -> Notes:
        """End the load. Raises WrongAnswer and ChildFailed."""
        self._child.tell("stop")
        return self.collect()

    def collect(self) -> Notes:
        """What was noted, of a load that is over. Raises WrongAnswer and ChildFailed."""
        told = self._child.hear()
        if told["wrong"] or not told["checked"]:
            raise WrongAnswer(f"{told['wrong']} of {told['checked']} answers are wrong; errors: {told['errors']}")
        with np.load(self._notes) as file:
            numbers, due, seconds = (file[name] for name in ("numbers", "due", "seconds"))
        return Notes(numbers, due, seconds, told["failed"], told["errors"], told["checked"], told["twice"])

    def __enter__(self) -> Steady:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()


# -- the child's side ----------------------------------------------------------------------------------------------


def load(channel: Channel, endpoint: str, models: list[str], samples: str, strict: bool) -> None:
    """The child: says when it is connected; told of a load, runs it until it hears more, and says what came of it."""
    with np.load(samples) as file:
        rows, answers = file["x"], file["y"]
    with tfpool.Client(endpoint) as client:
        tap = Tap(client) if strict else None
        client.models()
        channel.say("connected")
        while (order := channel.hear()) is not None:
            picks = order.get("picks")
            run = Run(client, [models[n] for n in picks or [0]], rows, answers, 1 if strict else _CHECKED)
            if "rate" in order:
                threading.Thread(target=run.arrivals, args=(order["rate"],), daemon=True).start()
            else:
                run.lanes(order["in_flight"], len(picks) if picks else None)
            if not picks:
                channel.hear()
                run.running = False
            while not run.ended:
                time.sleep(_STEP_SECONDS)
            np.savez(order["notes"], numbers=run.numbers, due=run.due, seconds=run.seconds)
            run.compare()
            told = {"failed": run.failed, "errors": run.errors, "twice": tap.twice if tap else 0}
            channel.say({**told, "checked": run.checked, "wrong": run.wrong})


class Run:
    """One load. One thread begins chains of requests, the one that receives ends them: no count has two owners.

    ``rows`` are sent by turns, one a request, and each ``every``-th answer is compared with ``answers``; what is sent
    between is the first row.
    """

    def __init__(
        self, client: tfpool.Client, models: Sequence[str], rows: Array, answers: Array, every: int = _CHECKED
    ) -> None:
        self._submit = client.submit
        self._models = models
        self._rows = [rows[i : i + 1] for i in range(len(rows))]
        self._answers = answers
        self._every = every
        self._numbers: Iterator[int] = count()
        self._again = False
        self._begun = self._over = 0
        self._sending = False
        self.running = True
        self.numbers, self.due, self.seconds = array("q"), array("d"), array("d")
        self.failed = 0
        self.errors: list[str] = []
        self.checked = self.wrong = 0
        self._kept: list[tuple[int, Array]] = []

    @property
    def ended(self) -> bool:
        return not self._sending and self._over == self._begun

    def lanes(self, in_flight: int, requests: int | None) -> None:
        """Begin chains in which each answer is followed by a request, of so many in all."""
        if requests is not None:
            self._numbers = iter(range(requests))
        self._again = True
        for _ in range(in_flight):
            self._begin(time.monotonic())

    def arrivals(self, rate: float) -> None:
        """Send single requests until the load is over."""
        random = np.random.default_rng(7)
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._sending = True
        due = time.monotonic()
        while self.running:
            due += random.exponential(1 / rate)
            sleep_until(due)
            self._begin(due)
        self._sending = False

    def _begin(self, due: float) -> None:
        self._begun += 1
        if not self._send(due):
            self._over += 1

    def _send(self, due: float) -> bool:
        number = next(self._numbers, None)
        if number is None:
            return False
        row = self._row_of(number)
        future = self._submit(self._models[number % len(self._models)], self._rows[row or 0])
        future.add_done_callback(partial(self._done, number, due))
        return True

    def _done(self, number: int, due: float, future: Future[Any]) -> None:
        now = time.monotonic()
        try:
            outputs = future.result()
        except Exception as error:
            self.failed += 1
            if len(self.errors) < _KEPT_ERRORS:
                self.errors.append(f"{type(error).__name__}: {error}")
        else:
            self.numbers.append(number)
            self.due.append(due)
            self.seconds.append(now - due)
            if (row := self._row_of(number)) is not None:
                (output,) = outputs.values()
                self._kept.append((row, output.copy()))
                if len(self._kept) >= _COMPARED:
                    self.compare()
        if not (self._again and self.running and self._send(now)):
            self._over += 1

    def _row_of(self, number: int) -> int | None:
        """The row that a request sends, if its answer is to be compared."""
        return None if number % self._every else number // self._every % len(self._rows)

    def compare(self) -> None:
        """Compare what was kept."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        wanted = self._answers[[row for row, _ in kept]]
        self.checked += len(kept)
        if any(got.shape != (1, *self._answers.shape[1:]) for _, got in kept) or not np.allclose(
            np.concatenate([got for _, got in kept]), wanted, RTOL, ATOL
        ):
            self.wrong += wrong(kept, self._answers)


class Tap:
    """Looks at what reaches a client: ``twice`` counts answers to requests that have one, or that never were."""

    def __init__(self, client: tfpool.Client) -> None:
        self._core = client._connection.core
        self._receive = self._core.receive
        self._answered = bytearray()
        self.twice = 0
        self._core.receive = self._received  # type: ignore[method-assign]

    def _received(self, frames: list[bytes]) -> bool | None:
        verb, body = decode(frames[0], MAX_ANSWER_BYTES)
        if verb == Verb.ANSWER:
            for first, count, _ in decode_answer(body).pieces:
                self._note(first, count)
        elif verb == Verb.ERROR:
            for first, count in decode_error(body).pieces:
                self._note(first, count)
        return self._receive(frames)

    def _note(self, first: int, count: int) -> None:
        end, answered = first + count, self._answered
        if end > len(answered):
            answered.extend(bytes(2 * end - len(answered)))
        self.twice += sum(answered[first:end]) + max(0, end - max(first, self._core._next_id))
        answered[first:end] = b"\x01" * count
