"""One client that asks many models, each with answers of its own: one after the other, or at moments given beforehand.

Every answer is compared with TensorFlow's, when the load is over. Latencies count from when a request was due.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

import tfpool
from bench.children import Channel, Child
from bench.errors import WrongAnswer
from bench.fleet import sleep_until
from bench.steady import Notes
from bench.variants import ROWS, Variant, answers_of, rows_of
from tfpool.errors import TfpoolError
from tfpool.wire.tensors import Array

RTOL, ATOL = 1e-3, 1e-6
TIMEOUT_SECONDS = 120.0
START_SECONDS = 0.05
_KEPT_ERRORS = 5
_STEP_SECONDS = 0.01
_SWITCH_SECONDS = 0.0002  # or who sends would wait for who receives


class Asker:
    """A child with one client of a pool, which serves ``variants`` under their names."""

    def __init__(self, served: tfpool.Pool, variants: Sequence[Variant]) -> None:
        self._child = Child(ask, served.endpoint, [(v.kind, v.number, v.base) for v in variants])
        try:
            self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def in_turn(self, picks: Sequence[int]) -> None:
        """Ask these (numbers of variants), one after the other; :meth:`collect` must follow."""
        self._child.tell({"picks": list(picks)})

    def roam(self, moments: Array, picks: Sequence[int]) -> None:
        """Ask each of these at its moment (seconds from now); :meth:`collect` must follow."""
        begin = time.monotonic() + START_SECONDS
        self._child.tell({"begin": begin, "moments": moments.tolist(), "picks": list(picks)})

    def over(self, seconds: float) -> bool:
        """Whether all is answered; waits for that, no longer than ``seconds``."""
        return self._child.spoke(seconds)

    def collect(self) -> Notes:
        """What was noted, when all is answered; numbers are of the requests. Raises WrongAnswer and ChildFailed."""
        told = self._child.hear(TIMEOUT_SECONDS)
        if told["wrong"]:
            raise WrongAnswer(f"answers are wrong: {told['wrong']} of {told['checked']}; of models {told['of']}")
        numbers, due, seconds = (np.array(told[name]) for name in ("numbers", "due", "seconds"))
        return Notes(numbers, due, seconds, told["failed"], told["errors"], told["checked"])

    def __enter__(self) -> Asker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()


def agree(got: Array, wanted: Array) -> bool:
    """Whether an answer is what it should be, as closely as a compiled model has to keep to its original."""
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, RTOL, ATOL))


def twins(answers: Sequence[Array]) -> list[tuple[int, int]]:
    """Models whose answers could be taken for each other's."""
    flat = np.stack([answer.ravel() for answer in answers])
    found = []
    for number, one in enumerate(flat[:-1]):
        close = np.isclose(flat[number + 1 :], one, RTOL, ATOL).all(1)
        found += [(number, number + 1 + int(other)) for other in np.flatnonzero(close)]
    return found


# -- the child's side ----------------------------------------------------------------------------------------------


def ask(channel: Channel, endpoint: str, variants: list[tuple[str, int, str]]) -> None:
    """The child: says when it is connected; told what to ask, does, and says what came of it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    asked = [Variant(*told) for told in variants]
    rows = {kind: rows_of(kind) for kind in {variant.kind for variant in asked}}
    with tfpool.Client(endpoint) as client:
        client.models()
        channel.say("connected")
        while (order := channel.hear()) is not None:
            asking = Asking(client, asked, rows, order["picks"])
            if "moments" in order:
                asking.at(order["begin"], order["moments"])
            else:
                asking.in_turn()
            channel.say(asking.told())


class Asking:
    """One load. One thread sends, the client's notes what became of it."""

    def __init__(
        self, client: tfpool.Client, variants: Sequence[Variant], rows: Mapping[str, Array], picks: Sequence[int]
    ) -> None:
        self._client = client
        self._asked = [variants[pick] for pick in picks]
        self._rows = rows
        self._answered: list[tuple[int, float, float, Array]] = []
        self._errors: list[str] = []

    def in_turn(self) -> None:
        """Each request follows the answer to the one before."""
        for number in range(len(self._asked)):
            begun = time.monotonic()
            try:
                outputs = self._client.predict(*self._request(number), timeout=TIMEOUT_SECONDS)
            except TfpoolError as error:
                self._fails(error)
            else:
                self._answers(number, begun, outputs)

    def at(self, begin: float, moments: Sequence[float]) -> None:
        """Each at its moment after ``begin`` (monotonic seconds)."""
        for number, moment in enumerate(moments):
            sleep_until(begin + moment)
            future = self._client.submit(*self._request(number), timeout=TIMEOUT_SECONDS)
            future.add_done_callback(partial(self._done, number, begin + moment))
        while len(self._answered) + len(self._errors) < len(self._asked):
            time.sleep(_STEP_SECONDS)

    def _request(self, number: int) -> tuple[str, Array]:
        variant, row = self._asked[number], number % ROWS
        return variant.name, self._rows[variant.kind][row : row + 1]

    def _done(self, number: int, due: float, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._answers(number, due, future.result())
        else:
            self._fails(error)

    def _answers(self, number: int, due: float, outputs: Mapping[str, Array]) -> None:
        seconds = time.monotonic() - due
        (output,) = outputs.values()
        self._answered.append((number, due, seconds, output.copy()))

    def _fails(self, error: BaseException) -> None:
        self._errors.append(f"{type(error).__name__}: {error}")

    def told(self) -> dict[str, Any]:
        """For the bench, when all is over."""
        known = {variant.base: answers_of(variant) for variant in set(self._asked)}
        wrong: Counter[str] = Counter()
        for number, _, _, got in self._answered:
            variant, row = self._asked[number], number % ROWS
            wrong[variant.name] += not agree(got, known[variant.base][row : row + 1])
        numbers, due, seconds, _ = zip(*self._answered, strict=True) if self._answered else ((), (), (), ())
        return {
            "numbers": numbers,
            "due": due,
            "seconds": seconds,
            "failed": len(self._errors),
            "errors": self._errors[:_KEPT_ERRORS],
            "checked": len(self._answered),
            "wrong": wrong.total(),
            "of": sorted(+wrong)[:_KEPT_ERRORS],
        }
