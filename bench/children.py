"""Processes of the bench: each runs one function and is spoken to in lines of JSON.

The bench process itself stays free of load and of TensorFlow. A child dies with the bench, whatever ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Concatenate, ParamSpec

from bench.errors import ChildFailed
from tfpool.worker.boot import die_with_parent

ROOT = Path(__file__).parents[1]
ANSWER_SECONDS = 90.0
_STOP_SECONDS = 2.0
_TAIL_BYTES = 4000
_ALONE = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",  # no threads when numpy is imported: fleets fork
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

P = ParamSpec("P")


class Channel:
    """The child's side."""

    def __init__(self, read: IO[str], write: IO[str]) -> None:
        self._read = read
        self._write = write

    def say(self, value: object) -> None:
        self._write.write(json.dumps(value) + "\n")
        self._write.flush()

    def hear(self) -> Any | None:
        """The next word of the bench; None when it has hung up."""
        line = self._read.readline()
        return json.loads(line) if line else None


class Child:
    """A process that runs ``function(channel, *args, **kwargs)``; the arguments travel as JSON."""

    def __init__(self, function: Callable[Concatenate[Channel, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        words = [str(os.getpid()), function.__module__, function.__qualname__, json.dumps([args, kwargs])]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.children", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **_ALONE, "PYTHONPATH": _path()},
            )
        except BaseException:
            self._errors.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, value: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"{self.name} has ended; {self._written()}") from None

    def hear(self, timeout: float = ANSWER_SECONDS) -> Any:
        """The child's next word. Raises ChildFailed."""
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ChildFailed(f"{self.name} did not answer within {timeout:g} s; {self._written()}")
            data = os.read(fd, 1 << 16)
            if not data:
                raise ChildFailed(f"{self.name} has ended; {self._written()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def spoke(self, seconds: float) -> bool:
        """Whether the child has said something, or ended; waits for that, no longer than ``seconds``."""
        assert self._process.stdout is not None
        return b"\n" in self._buffer or bool(select.select([self._process.stdout], [], [], seconds)[0])

    def ask(self, value: object, timeout: float = ANSWER_SECONDS) -> Any:
        """Tell, and hear."""
        self.tell(value)
        return self.hear(timeout)

    def close(self) -> None:
        """End the process, and with it those it has forked."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _written(self) -> str:
        self._errors.seek(0)
        text = self._errors.read()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return f"it wrote:\n{text}" if text else "it wrote nothing"


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def main() -> None:
    """The child: take the pipes, leave standard output to libraries, run."""
    parent, module, name, arguments = sys.argv[1:]
    die_with_parent(int(parent))
    write = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    args, kwargs = json.loads(arguments)
    getattr(importlib.import_module(module), name)(Channel(sys.stdin, write), *args, **kwargs)


if __name__ == "__main__":
    main()
