"""What the bench counts of faults and overload."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.open import Sending, Traffic, as_requests
from bench.processes import session
from bench.scenarios.faults import silences
from bench.steady import Notes, Tap
from tfpool.errors import ResourceExhausted, Unavailable
from tfpool.wire import messages
from tfpool.wire.messages import Answer, Piece, Verb

ROW = np.ones(1, np.float32)

# -- silences ------------------------------------------------------------------------------------------------------


def test_a_silence_belongs_to_the_moment_it_follows() -> None:
    due = np.array([0.9, 1.0, 1.4, 2.0, 2.1, 2.9])
    notes = Notes(np.arange(6), due, np.full(6, 0.1))
    assert silences(notes, [1.2, 2.15]) == pytest.approx([0.6, 0.8])
    assert silences(notes, [1.2, 2.25]) == pytest.approx([0.6, 0.8]), "that of the second begins a little before it"
    assert silences(notes, [1.2]) == pytest.approx([0.8])
    assert silences(notes, [9.0]) == [0.0]


# -- answers too many ----------------------------------------------------------------------------------------------


class Core:
    """A client's core that takes anything in."""

    def __init__(self, given_out: int) -> None:
        self._next_id = given_out
        self.heard = 0

    def receive(self, frames: list[bytes]) -> None:
        self.heard += 1


def tapped(given_out: int) -> tuple[Core, Tap]:
    core: Any = Core(given_out)
    client: Any = SimpleNamespace(_connection=SimpleNamespace(core=core))
    return core, Tap(client)


def failed(*pieces: tuple[int, int]) -> list[bytes]:
    return [messages.encode_error(list(pieces), Unavailable("x"))]


def answered(*pieces: tuple[int, int, int]) -> list[bytes]:
    return [messages.encode(Verb.ANSWER, Answer(b"", [Piece(*piece) for piece in pieces], (0, 0, 0), None, 1))]


def test_the_first_answer_to_each_request_is_no_surprise() -> None:
    core, tap = tapped(100)
    core.receive(failed((0, 50), (60, 40)))
    core.receive(answered((50, 10, 3)))
    assert (tap.twice, core.heard) == (0, 2)


def test_second_answers_and_answers_to_nothing_are_counted() -> None:
    core, tap = tapped(100)
    core.receive(failed((0, 50)))
    core.receive(answered((40, 15, 1), (55, 5, 2)))
    assert tap.twice == 10
    core.receive(failed((98, 5)))
    assert tap.twice == 13
    core.receive(failed((98, 1)))
    assert tap.twice == 14


# -- open loops ----------------------------------------------------------------------------------------------------


def test_what_was_not_answered_is_not_in_time() -> None:
    seconds = np.array([0.1, 0.3, np.inf, 0.2])
    traffic = Traffic(2.0, np.arange(4.0), np.zeros(4), seconds, {"UNAVAILABLE": 1})
    assert (traffic.on_time(0.2), traffic.share(0.2), traffic.share(9.0)) == (2, 50.0, 75.0)
    assert traffic.ms(1.0) == pytest.approx(300.0)
    assert traffic.told()["answered"] == 3


class Echo:
    """A client whose answers are there at once; a first row of 13 is refused."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def submit(self, model: str, rows: Any, timeout: float) -> Future[Any]:
        self.timeouts.append(timeout)
        future: Future[Any] = Future()
        if rows[0] == 13:
            future.set_exception(ResourceExhausted("a row of 13"))
        else:
            future.set_result({"y": rows})
        return future


def test_an_open_loop_tells_of_every_request() -> None:
    rows = [np.float32([n, n]) for n in (1, 2, 13, 4)]
    client: Any = Echo()
    told = Sending(client, "m", rows, rows).run(time.monotonic(), [0.0, 0.001, 0.002, 0.003] * 10, 5.0)
    assert len(told["due"]) == len(told["lateness"]) == len(told["seconds"]) == 40
    assert [np.isfinite(seconds) for seconds in told["seconds"]] == [True, True, False, True] * 10
    assert told["errors"] == {"RESOURCE_EXHAUSTED": 10}
    assert (told["checked"], told["wrong"]) == (2, 0)
    assert all(late >= 0 for late in told["lateness"])


def test_an_open_loop_finds_wrong_answers() -> None:
    rows = [np.float32([n, n]) for n in (1, 2, 3, 4)]
    client: Any = Echo()
    told = Sending(client, "m", rows, [rows[0] + 1, *rows[1:]]).run(time.monotonic(), [0.0] * 40, 5.0)
    assert (told["checked"], told["wrong"]) == (3, 1)


def test_a_deadline_counts_from_when_a_request_was_due() -> None:
    client: Any = Echo()
    Sending(client, "m", [ROW], [ROW]).run(time.monotonic() - 2.0, [0.0, 0.5], 2.2)
    first, second = client.timeouts
    assert first <= 0.2
    assert first < second <= 0.7


def test_requests_are_of_as_many_rows_as_asked() -> None:
    made = as_requests(np.arange(6).reshape(3, 2), 4)
    assert [rows.tolist() for rows in made[:2]] == [[[0, 1], [2, 3], [4, 5], [0, 1]], [[4, 5], [0, 1], [2, 3], [4, 5]]]


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_session_has_orphans_too() -> None:
    """A shell starts a child and ends: the child is nobody's, and still of the session."""
    script = "import os, sys, time; child = os.fork(); print(child, flush=True) if child else time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    process.wait()
    process.stdout.close()
    try:
        assert set(session(process.pid)) == {orphan}
    finally:
        os.kill(orphan, 9)
