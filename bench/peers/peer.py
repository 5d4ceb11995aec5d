"""What a peer is: another server of TensorFlow models, run as its users would, and put to the same load.

A peer's file is read twice: by the bench, and by the program that the peer runs in an environment of its own, where
neither tfpool nor what it needs is installed. So these files import only the standard library and numpy at the top.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.post import Post

ROOT = Path(__file__).parents[2]  # where the bench lies
_TASK = "TFPOOL_BENCH_TASK"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Batching:
    """What a peer is told of batches: rows at most, and how long (ms) the first of them waits for others."""

    max_rows: int
    wait_ms: float


@dataclass(frozen=True)
class Task:
    """What a peer shall serve, and how.

    ``saved_model`` is the directory of the version. The model has one input and one output, float32 of
    ``[?, *row_shape]`` and ``[?, *answer_shape]``, known in ``serving_default`` by ``input`` and ``output``.
    ``processes`` run TensorFlow, on one thread each. It listens at 127.0.0.1:``port`` (and at the next two, where it
    needs several), and may write below ``directory``.
    """

    model: str
    saved_model: str
    input: str
    output: str
    row_shape: Sequence[int]
    answer_shape: Sequence[int]
    batching: Batching
    processes: int
    port: int
    directory: str

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def given() -> Task:
    """The task of this program; :func:`own_program` has put it where it is found."""
    document = json.loads(os.environ[_TASK])
    return Task(**{**document, "batching": Batching(**document["batching"])})


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a peer in it."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next(self.path.glob("lib/python3*/site-packages"))


@dataclass(frozen=True)
class Command:
    """How a peer is started. ``environ`` comes on top of that of the bench.

    ``leaves`` are patterns of paths outside its task's directory that it may leave behind when it is killed.
    """

    words: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    leaves: Sequence[str] = ()


class Peer(ABC):
    """One peer. ``requirements`` are pinned, for pip; the bench's TensorFlow comes to them. ``bare_requirements`` are
    installed without what they need themselves.

    ``batchings`` are what ``bench peers tune`` tries; ``tuned`` is what it found best, by model. ``speaks`` says how
    it is asked.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    speaks: ClassVar[str]
    requirements: ClassVar[Sequence[str]]
    bare_requirements: ClassVar[Sequence[str]] = ()
    batchings: ClassVar[Sequence[Batching]]
    tuned: ClassVar[Mapping[str, Batching]]

    def prepare(self, environment: Environment) -> None:  # noqa: B027 - most need nothing
        """What is left to do after pip has installed it. Raises PeerAbsent where it cannot be done."""

    @abstractmethod
    def command(self, task: Task, environment: Environment) -> Command:
        """How to start it; called once a start, so that it may write files below the task's directory."""

    @abstractmethod
    def post(self, task: Task, row: Array) -> Post:
        """The request for one row, [1, ``*row_shape``]."""

    @abstractmethod
    def answer(self, task: Task, content: bytes) -> Array:
        """The row of an answer, [1, ``*answer_shape``]. Raises ValueError for what is none."""


def own_program(module: str, task: Task, environment: Environment) -> Command:
    """Runs a module of the bench in the peer's environment; it gets the task by :func:`given`."""
    return Command([str(environment.python), "-m", module], environ(task))


def environ(task: Task) -> dict[str, str]:
    """What a program of the bench needs in its environment."""
    return {"PYTHONPATH": str(ROOT), _TASK: json.dumps(asdict(task))}
