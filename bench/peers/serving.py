"""A peer at work: started on a model, ready when its answers are right, gone with the block that uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from bench.children import ROOT
from bench.errors import PeerAbsent, WrongAnswer
from bench.peers import environments
from bench.peers.peer import Peer, Task
from bench.processes import family

READY_SECONDS = 120.0
_STEP_SECONDS = 0.1
_STOP_SECONDS = 15.0
_TAIL_BYTES = 2000
RTOL, ATOL = 1e-4, 1e-5


class Served:
    """A peer that runs; ``pids`` are its processes now, by their names."""

    def __init__(self, peer: Peer, task: Task, warden: subprocess.Popen[bytes]) -> None:
        self.peer = peer
        self.task = task
        self._warden = warden

    def pids(self) -> dict[int, str]:
        found = family(self._warden.pid)
        found.pop(self._warden.pid, None)
        return found

    def check(self, rows: np.ndarray, answers: np.ndarray) -> None:
        """Ask for every row by itself. Raises WrongAnswer, and OSError where nobody listens."""
        for number in range(len(rows)):
            content = self.peer.post(self.task, rows[number : number + 1]).once()
            self.compare(content, answers[number : number + 1])

    def compare(self, content: bytes, answer: np.ndarray) -> None:
        """Raises WrongAnswer."""
        try:
            got = self.peer.answer(self.task, content)
        except ValueError as error:
            raise WrongAnswer(f"{self.peer.title}: got {content[:100]!r}, expected a row: {error}") from None
        if got.shape != answer.shape or not np.allclose(got, answer, RTOL, ATOL):
            raise WrongAnswer(f"{self.peer.title}: an answer is not TensorFlow's")


@contextmanager
def serving(peer: Peer, task: Task, rows: np.ndarray, answers: np.ndarray) -> Iterator[Served]:
    """Start ``peer`` and wait until it answers ``rows`` as TensorFlow does.

    Raises PeerAbsent where it is not installed or does not come up, WrongAnswer where it answers something else.
    """
    environment = environments.find(peer)
    command = peer.command(task, environment)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    # The warden needs the bench's path, the peer its own: the words after env(1) are the peer's.
    words = ["env", "-u", "PYTHONPATH", *(f"{name}={value}" for name, value in command.environ.items()), *command.words]
    with tempfile.TemporaryFile() as log:
        warden = subprocess.Popen(
            [sys.executable, "-m", "bench.warden", *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=task.directory,
            env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"},
        )
        try:
            served = Served(peer, task, warden)
            _await(served, rows, answers, warden, log.fileno())
            yield served
        finally:
            _end(warden)


def _await(served: Served, rows: np.ndarray, answers: np.ndarray, warden: subprocess.Popen[bytes], log: int) -> None:
    give_up = time.monotonic() + READY_SECONDS
    said = "nobody listened"
    while time.monotonic() < give_up:
        if warden.poll() is not None:
            raise PeerAbsent(f"it ended with status {warden.returncode}; {_written(log)}")
        try:
            served.check(rows[:1], answers[:1])
        except OSError:
            time.sleep(_STEP_SECONDS)
        except WrongAnswer as error:  # some listen before they can answer
            said = str(error)
            time.sleep(_STEP_SECONDS)
        else:
            served.check(rows, answers)
            return
    raise PeerAbsent(f"no right answer within {READY_SECONDS:g} s ({said}); {_written(log)}")


def _written(log: int) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()
    return f"it wrote:\n{text}" if text else "it wrote nothing"


def _end(warden: subprocess.Popen[bytes]) -> None:
    assert warden.stdin is not None
    with suppress(BrokenPipeError):
        warden.stdin.close()
    try:
        warden.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        warden.kill()
        warden.wait()
