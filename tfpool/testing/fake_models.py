"""Numpy functions that fake workers serve as models, by kind."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfpool.errors import FailedPrecondition, InvalidArgument
from tfpool.types import DType, Shape, SignatureSpec, TensorSpec, numpy_dtype
from tfpool.worker.loader import Signature

CRASH_VALUE = 13.0
POISON_VALUE = 7.0
FULL_VALUE = 98.0
HANG_VALUE = 99.0
FAULT_VALUE = 100.0
EXIT_VALUE = 200.0
SPILL_FLOATS = 50_000
_STEP_SECONDS = 0.01

Function = Callable[..., Sequence[Any]]


class Memory:
    """What this worker says that its models hold of its memory, and of its GPU's."""

    def __init__(self) -> None:
        self.held = self.gpu_held = 0


memory = Memory()


def signature(
    call: Function,
    inputs: dict[str, tuple[DType, Shape | None]],
    outputs: dict[str, tuple[DType, Shape | None]],
    *,
    name: str = "serving_default",
    batchable: bool = True,
    mutates: bool = False,
) -> Signature:
    """A signature of a numpy function that takes its inputs, and gives its outputs, in the order of their names."""
    into, out = (tuple(TensorSpec(key, *tensors[key]) for key in sorted(tensors)) for tensors in (inputs, outputs))
    reason = "" if batchable else "it says so"
    spec = SignatureSpec(name, "predict", into, out, batchable and not mutates, mutates, reason)
    return Signature(spec, call, tuple(numpy_dtype(t.dtype) for t in into), tuple(range(len(out))))


def _double(path: str) -> list[Signature]:
    """y = 2 x, any row of floats."""
    return [signature(lambda x: (x * 2,), {"x": (DType.FLOAT, (-1, -1))}, {"y": (DType.FLOAT, (-1, -1))})]


def _echo(path: str) -> list[Signature]:
    """y = x; a signature a dtype, of any rank."""
    return [
        signature(lambda x: (x.copy(),), {"x": (dtype, None)}, {"y": (dtype, None)}, name=dtype.label)
        for dtype in DType
    ]


def _add(path: str) -> list[Signature]:
    """``sum`` = a + b and ``text``, the first byte of s repeated as often as a's first column says."""

    def call(a: Any, b: Any, s: Any) -> Sequence[Any]:
        text = [item[:1] * int(n) for item, n in zip(s.tolist(), a[:, 0], strict=True)]
        return a + b, np.array(text, object)

    return [
        signature(
            call,
            {"a": (DType.FLOAT, (-1, 3)), "b": (DType.FLOAT, (-1, 1)), "s": (DType.STRING, (-1,))},
            {"sum": (DType.FLOAT, (-1, 3)), "text": (DType.STRING, (-1,))},
        )
    ]


def _text(path: str) -> list[Signature]:
    """Strings [?, ?] -> their lengths."""

    def call(s: Any) -> Sequence[Any]:
        return (np.array([[len(item) for item in row] for row in s.tolist()], np.int32).reshape(s.shape),)

    return [signature(call, {"s": (DType.STRING, (-1, -1))}, {"length": (DType.INT32, (-1, -1))})]


def _matrix(path: str) -> list[Signature]:
    """x [3, 3], no dimension open -> its diagonal and its trace (0-d)."""
    return [
        signature(
            lambda x: (np.diag(x).copy(), np.float32(np.trace(x))),
            {"x": (DType.FLOAT, (3, 3))},
            {"diagonal": (DType.FLOAT, (3,)), "trace": (DType.FLOAT, ())},
            batchable=False,
        )
    ]


def _slow(path: str) -> list[Signature]:
    """y = x, after as many seconds as the largest x says. A row below 0 leaves the file ``begun``, and lasts as long as
    there is a file ``busy``."""
    busy, begun = Path(path) / "busy", Path(path) / "begun"

    def call(x: Any) -> Sequence[Any]:
        if x.min(initial=0.0) < 0:
            begun.touch()
            while busy.exists():
                time.sleep(_STEP_SECONDS)
        time.sleep(float(x.max(initial=0.0)))
        return (x.copy(),)

    return [signature(call, {"x": (DType.FLOAT, (-1,))}, {"y": (DType.FLOAT, (-1,))})]


def _crash(path: str) -> list[Signature]:
    """y = x, but a row of 13 kills the process; a negative row does so once, and leaves the file ``crashed``."""

    def call(x: Any) -> Sequence[Any]:
        flag = Path(path) / "crashed"
        if (x == CRASH_VALUE).any() or (x.min(initial=0.0) < 0 and not flag.exists()):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return (x.copy(),)

    return [signature(call, {"x": (DType.FLOAT, (-1,))}, {"y": (DType.FLOAT, (-1,))})]


def _fault(path: str) -> list[Signature]:
    """y = x, but a row of 99 never ends, one of 100 + n ends the process with signal n, one of 200 + n with exit status
    n, and one of 98 finds no room. While there is a file ``faulty``, every run ends with signal 11."""

    def call(x: Any) -> Sequence[Any]:
        worst = float(x.max(initial=0.0))
        while worst == HANG_VALUE:
            time.sleep(1.0)
        if worst == FULL_VALUE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if worst > EXIT_VALUE:
            os._exit(int(worst - EXIT_VALUE))
        if worst > FAULT_VALUE:
            os.kill(os.getpid(), int(worst - FAULT_VALUE))
        if (Path(path) / "faulty").exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        return (x.copy(),)

    return [signature(call, {"x": (DType.FLOAT, (-1,))}, {"y": (DType.FLOAT, (-1,))})]


def _poison(path: str) -> list[Signature]:
    """y = x, but a row of 7 fails the whole batch."""

    def call(x: Any) -> Sequence[Any]:
        if (x == POISON_VALUE).any():
            raise InvalidArgument("a row of 7")
        return (x.copy(),)

    return [signature(call, {"x": (DType.FLOAT, (-1,))}, {"y": (DType.FLOAT, (-1,))})]


def _wrong(path: str) -> list[Signature]:
    """Gives a row too many."""
    return [
        signature(lambda x: (np.concatenate([x, x[:1]]),), {"x": (DType.FLOAT, (-1,))}, {"y": (DType.FLOAT, (-1,))})
    ]


def _spill(path: str) -> list[Signature]:
    """A row of one number -> a row of 50,000 of it, which no lease had room for at first."""
    return [
        signature(
            lambda x: (np.repeat(x[:, None], SPILL_FLOATS, axis=1),),
            {"x": (DType.FLOAT, (-1,))},
            {"y": (DType.FLOAT, (-1, SPILL_FLOATS))},
        )
    ]


def _counter(path: str) -> list[Signature]:
    """The number of runs so far, in this process, once a row."""
    count = 0

    def call(x: Any) -> Sequence[Any]:
        nonlocal count
        count += 1
        return (np.full(x.shape, count, np.float32),)

    return [signature(call, {"x": (DType.FLOAT, (-1,))}, {"total": (DType.FLOAT, (-1,))}, mutates=True)]


def _numbered(path: str) -> list[Signature]:
    """``y`` = x times the version, and ``turned``, x shifted by the version. Version 2 fails a batch with a row of 7,
    version 3 has no ``turned``, version 4 has another signature before this one."""
    number = int(Path(path).name)

    def call(x: Any) -> Sequence[Any]:
        if number == 2 and (x == POISON_VALUE).any():
            raise InvalidArgument("a row of 7")
        return (x * number,) if number == 3 else (np.roll(x, number, axis=-1), x * number)

    rows: tuple[DType, Shape | None] = (DType.FLOAT, (-1, 4))
    outputs = {"y": rows} if number == 3 else {"turned": rows, "y": rows}
    found = [signature(call, {"x": rows}, outputs)]
    return [signature(call, {"x": rows}, outputs, name="other"), *found] if number == 4 else found


def _written(path: str) -> list[Signature]:
    return _written_in(Path(path) / "saved_model.pb")


def _written_in(graph: Path) -> list[Signature]:
    """``y`` = x times the number that was written in the graph when it was loaded. One below 0 is that number without
    its sign, and another signature before this one."""
    number = int(graph.read_text().split()[0])
    rows: tuple[DType, Shape | None] = (DType.FLOAT, (-1, 4))
    found = [signature(lambda x: (x * abs(number),), {"x": rows}, {"y": rows})]
    return found if number > 0 else [signature(lambda x: (-x,), {"x": rows}, {"y": rows}, name="other"), *found]


def _broken(path: str) -> list[Signature]:
    """Cannot be loaded."""
    raise FailedPrecondition(f"{path}: broken on purpose")


def _killer(path: str) -> list[Signature]:
    """Kills the worker that loads it."""
    signal.raise_signal(signal.SIGSEGV)
    raise AssertionError


KINDS: dict[str, Callable[[str], list[Signature]]] = {
    "double": _double,
    "echo": _echo,
    "add": _add,
    "text": _text,
    "matrix": _matrix,
    "slow": _slow,
    "crash": _crash,
    "fault": _fault,
    "poison": _poison,
    "wrong": _wrong,
    "spill": _spill,
    "counter": _counter,
    "numbered": _numbered,
    "written": _written,
    "broken": _broken,
    "killer": _killer,
}


def signatures_of(path: str, graph: Path | None = None) -> list[Signature]:
    """Those of the model in a version's directory, whose name, or its parent's, begins with its kind; ``graph`` is what
    it was compiled to."""
    names = (name.split("-")[0] for name in (Path(path).name, Path(path).parent.name))
    kind = next(name for name in names if name in KINDS)
    return _written_in(graph) if kind == "written" and graph is not None else KINDS[kind](path)
