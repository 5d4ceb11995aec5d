"""Children that import TensorFlow: they make the models of a run, and measure what TensorFlow does on its own.

The roofline is the cached callable that workers run too (:mod:`tfpool.worker.loader`), on aligned input, with no server
around it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bench.children import ANSWER_SECONDS, Channel, Child
from bench.models import MAKERS
from bench.points import quantile
from bench.scenario import Models, Settings
from tfpool.repository.describe import describe
from tfpool.types import SignatureSpec
from tfpool.wire.tensors import Array

MAKE_SECONDS = 180.0
BATCH_SIZES = (1, 8, 16, 32, 64, 128)
_SCAN_SECONDS = 0.2
_SAMPLE_ROWS = 16
_WARM_RUNS = 20
_ROW_SHAPES: Mapping[str, tuple[int, ...]] = {
    "half_plus_two": (),
    "mlp": (256,),
    "identity": (256,),
    "ballast_5mb": (),
    "ballast_100mb": (),
    "deep": (),
    "patches": (),
    "mobilenet_v2": (224, 224, 3),
}


def make_models(directory: str, names: Sequence[str]) -> Models:
    """The models of a run, below ``directory``, made in a child."""
    with Child(make, directory, list(names)) as child:
        paths, samples = child.hear(MAKE_SECONDS * len(names))
    return Models(paths, samples)


def make(channel: Channel, directory: str, names: list[str]) -> None:
    """A child that writes the models, and rows with TensorFlow's answers for those that will be asked; says where, by
    name."""
    from tfpool.supervisor.zygote import import_tensorflow
    from tfpool.testing.reference import Reference

    import_tensorflow()
    random = np.random.default_rng(7)
    paths, samples = {}, {}
    for name in names:
        paths[name] = MAKERS[name](directory)
        if name not in _ROW_SHAPES:
            continue
        samples[name] = str(Path(directory, f"{name}.npz"))
        rows = random.standard_normal((_SAMPLE_ROWS, *_ROW_SHAPES[name]), np.float32)
        with Reference(paths[name]) as reference:
            (taken,) = serving_default(reference.path).inputs
            (answers,) = reference.predict({taken.name: rows}).values()
        np.savez(samples[name], x=rows, y=answers)
    channel.say([paths, samples])


def serving_default(directory: str) -> SignatureSpec:
    """The signature that is asked, of a version directory."""
    return next(one for one in describe(directory).signatures if one.name == "serving_default")


class Roofline:
    """Children that have a model loaded and call it, on so many threads each; ``scan`` is rows a second by batch size
    of all of them together, ``best`` the best size."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        sizes: Sequence[int] = BATCH_SIZES,
        processes: int = 1,
        threads: int = 1,
    ) -> None:
        self._label = f"TensorFlow in process, {model}"
        settings.progress.say(self._label)
        self._stack = ExitStack()
        try:
            path, row = settings.models.paths[model], list(_ROW_SHAPES[model])
            self._children = [self._stack.enter_context(Child(call, path, row, threads)) for _ in range(processes)]
            for child in self._children:
                child.hear()
            self.scan = {size: self._rate(size, _SCAN_SECONDS) for size in sizes}
        except BaseException:
            self._stack.close()
            raise
        self.best = max(self.scan, key=lambda size: self.scan[size])

    def rate(self, settings: Settings) -> float:
        """Rows a second at the best batch size."""
        settings.progress.say(f"{self._label}, {self.best} rows")
        return self._rate(self.best, settings.window)

    def p50_us(self, settings: Settings) -> float:
        """Microseconds of a call on one row."""
        settings.progress.say(f"{self._label}, 1 row")
        return float(self._children[0].ask([1, settings.window], settings.window + ANSWER_SECONDS)["p50_us"])

    def _rate(self, size: int, seconds: float) -> float:
        for child in self._children:
            child.tell([size, seconds])
        return sum(float(child.hear(seconds + ANSWER_SECONDS)["rate"]) for child in self._children)

    def __enter__(self) -> Roofline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def call(channel: Channel, path: str, row_shape: list[int], threads: int) -> None:
    """The roofline's child: told a batch size and seconds, answers with the rate and the time of a call."""
    from tfpool.repository.scan import scan
    from tfpool.supervisor.zygote import import_tensorflow
    from tfpool.worker import loader

    import_tensorflow()
    loaded = loader.load(max(scan(path).items())[1], loader.session_config(threads, None))
    run = loaded.signatures[0].call
    channel.say("loaded")
    while (order := channel.hear()) is not None:
        size, seconds = order
        channel.say(_timed(run, aligned((size, *row_shape)), seconds))


def _timed(run: Any, rows: Array, seconds: float) -> dict[str, float]:
    for _ in range(_WARM_RUNS):
        run(rows)
    taken: list[float] = []
    begun = now = time.monotonic()
    while now < begun + seconds:
        last = now
        run(rows)
        now = time.monotonic()
        taken.append(now - last)
    rate = len(taken) * len(rows) / (now - begun)
    return {"rate": rate, "p50_us": quantile(sorted(taken), 0.5) * 1e6}


def aligned(shape: tuple[int, ...]) -> Array:
    """Random float32 whose first byte is 64-byte aligned: TensorFlow then takes it without a copy."""
    values = np.random.default_rng(7).standard_normal(shape, np.float32)
    raw = np.empty(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    placed = raw[start : start + values.nbytes].view(np.float32).reshape(shape)
    placed[...] = values
    return placed
