"""A peer at work: started on a model, ready when its answers are right, gone with the block that uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil

from bench.errors import PeerAbsent, WrongAnswer
from bench.loads import ATOL, RTOL
from bench.peers import environments
from bench.peers.peer import Array, Peer, Task
from bench.warden import Guarded

READY_SECONDS = 120.0
_STEP_SECONDS = 0.1
_ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


class Served:
    """A peer that runs."""

    def __init__(self, peer: Peer, task: Task, guarded: Guarded) -> None:
        self.peer = peer
        self.task = task
        self._guarded = guarded
        self._spent: dict[int, float] = {}

    def pids(self) -> dict[int, str]:
        """Its processes now, with their names."""
        return self._guarded.pids()

    def cpu_seconds(self) -> float:
        """What its processes have taken until now, with those that this has seen before they ended."""
        for pid in self.pids():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()  # with those of threads that have ended
                self._spent[pid] = times.user + times.system
        return sum(self._spent.values())

    def ask(self, row: Array) -> bytes:
        """Raises OSError where nobody listens, and WrongAnswer for another status than 200."""
        return self.peer.post(self.task, row).once()

    def compare(self, content: bytes, answer: Array) -> None:
        """Raises WrongAnswer."""
        try:
            got = self.peer.answer(self.task, content)
        except ValueError as error:
            raise WrongAnswer(f"{self.peer.title}: got {content[:100]!r}, expected a row: {error}") from None
        if got.shape != answer.shape or not np.allclose(got, answer, RTOL, ATOL):
            raise WrongAnswer(f"{self.peer.title}: an answer is not TensorFlow's")


@contextmanager
def serving(peer: Peer, task: Task, rows: Array, answers: Array) -> Iterator[Served]:
    """Start ``peer`` and wait until it answers; each of ``rows`` is then asked for by itself.

    Raises PeerAbsent where it is not installed or does not come up, WrongAnswer where it answers other than TensorFlow.
    """
    environment = environments.find(peer)
    command = peer.command(task, environment)
    with Guarded(command.words, {**_ALONE, **command.environ}, task.directory, command.leaves) as guarded:
        served = Served(peer, task, guarded)
        served.compare(_first(served, guarded, rows[:1]), answers[:1])
        for number in range(1, len(rows)):
            served.compare(served.ask(rows[number : number + 1]), answers[number : number + 1])
        yield served


def _first(served: Served, guarded: Guarded, row: Array) -> bytes:
    """The first answer, as soon as there is one."""
    give_up = time.monotonic() + READY_SECONDS
    said = ""
    while time.monotonic() < give_up:
        if (status := guarded.status(_STEP_SECONDS)) is not None:
            raise PeerAbsent(f"it ended with status {status}{_wrote(guarded)}")
        try:
            return served.ask(row)
        except (OSError, WrongAnswer) as error:  # some listen before they can answer
            said = str(error)
    raise PeerAbsent(f"no answer within {READY_SECONDS:g} s: {said}{_wrote(guarded)}")


def _wrote(guarded: Guarded) -> str:
    return f"; it wrote:\n{written}" if (written := guarded.written()) else "; it wrote nothing"
