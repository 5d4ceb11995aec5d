"""Models without number: variants of one, each with weights of its own, and a store that has them compiled.

They are kept in the directory that the environment names, if it does; what is missing there is made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench import architectures, models
from bench.architectures import CACHE
from bench.children import ROOT, Channel, Child
from bench.errors import ChildFailed
from bench.scenario import Settings
from tfpool.errors import TfpoolError
from tfpool.store.shelf import Shelf
from tfpool.wire.tensors import Array

ROWS = 4  # that each variant has answers for
_MAKE_SECONDS = 180.0
_COMPILE_SECONDS = 600.0
_STEP_SECONDS = 0.1
_VERSION = "1"


@dataclass(frozen=True)
class Kind:
    """What variants are made of: a maker of the first model, and the shape of a row."""

    make: Callable[[str], str]
    row: tuple[int, ...]


KINDS: Mapping[str, Kind] = {
    "mobilenet_v2": Kind(partial(architectures.make_application, "mobilenet_v2"), (224, 224, 3)),
    "patches": Kind(models.make_patches, ()),
}


@dataclass(frozen=True)
class Variant:
    """One model. ``base`` has its version and ``answers.npy``: what TensorFlow makes of :func:`rows_of` its kind."""

    kind: str
    number: int
    base: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:03}"

    @property
    def path(self) -> str:
        return os.path.join(self.base, _VERSION)


def place(settings: Settings) -> str:
    """Where variants lie, and in ``store`` there the store."""
    return os.path.join(os.environ.get(CACHE) or settings.directory, "many")


def store_of(settings: Settings) -> str:
    return os.path.join(place(settings), "store")


def rows_of(kind: str) -> Array:
    """The rows that all variants of a kind are asked with."""
    return np.random.default_rng(7).random((ROWS, *KINDS[kind].row), np.float32)


def answers_of(variant: Variant) -> Array:
    """What TensorFlow gives for these."""
    answers: Array = np.load(os.path.join(variant.base, "answers.npy"))
    return answers


# -- making --------------------------------------------------------------------------------------------------------


def make(settings: Settings, kind: str, count: int) -> list[Variant]:
    """So many variants of a kind. Raises ChildFailed."""
    home = os.path.join(place(settings), kind)
    found = [Variant(kind, number, os.path.join(home, f"{number:03}")) for number in range(count)]
    missing = [variant.number for variant in found if not os.path.isdir(variant.base)]
    if missing:
        os.makedirs(home, exist_ok=True)
        with Child(write, settings.directory, home, kind, missing) as child:
            for done in range(len(missing)):
                settings.progress.say(f"making {kind}, {done} of {len(missing)}")
                child.hear(_MAKE_SECONDS)
    return found


def write(channel: Channel, directory: str, home: str, kind: str, numbers: list[int]) -> None:
    """A child that writes variants, and says the number of each."""
    from tfpool.supervisor.zygote import import_tensorflow
    from tfpool.worker import loader, restore

    import_tensorflow()
    first = os.path.join(KINDS[kind].make(directory), _VERSION)
    rows = rows_of(kind)
    loaded = loader.load(first, loader.session_config(1, None))
    saver = restore.read_meta_graph(first, loader.TAGS).saver_def
    (signature,) = loaded.signatures
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=home) as apart:
            path = os.path.join(apart, "made", _VERSION)
            shutil.copytree(first, path, ignore=shutil.ignore_patterns("variables"))
            prefix = os.path.join(path, "variables", "variables")
            os.makedirs(os.path.dirname(prefix))
            _shuffle(os.path.join(first, "variables", "variables"), prefix, number)
            loaded.session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})
            (answers,) = signature.call(rows)
            np.save(os.path.join(apart, "made", "answers.npy"), answers)
            os.rename(os.path.join(apart, "made"), os.path.join(home, f"{number:03}"))
        channel.say(number)


def _shuffle(source: str, target: str, seed: int) -> None:
    """A checkpoint with the values of another one, each variable's in an order of its own."""
    import tensorflow as tf

    random = np.random.default_rng(seed)
    reader = tf.train.load_checkpoint(source)
    names = sorted(reader.get_variable_to_shape_map())
    tensors: list[Any] = []
    for name in names:
        value = reader.get_tensor(name)
        shuffled = isinstance(value, np.ndarray) and value.dtype == np.float32
        tensors.append(random.permuted(value.ravel()).reshape(value.shape) if shuffled else value)
    tf.raw_ops.SaveV2(prefix=target, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)


# -- compiling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What compiling took: seconds of each process, and of all together."""

    each: Sequence[float]
    seconds: float


def build(settings: Settings, variants: Sequence[Variant], store: str) -> Built:
    """Have the store hold these; as many processes as there are CPUs compile what is missing. Raises ChildFailed."""
    shelf = Shelf(store)
    missing = [variant for variant in variants if not _usable(shelf, variant)]
    waiting, running = list(reversed(missing)), dict[str, tuple[subprocess.Popen[bytes], float]]()
    each: list[float] = []
    begun = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                path = waiting.pop().path
                running[path] = _compiler(store, path), time.monotonic()
            settings.progress.say(f"compiling, {len(each)} of {len(missing)}")
            time.sleep(_STEP_SECONDS)
            for path, (process, since) in list(running.items()):
                took = time.monotonic() - since
                if process.poll() is None:
                    if took < _COMPILE_SECONDS:
                        continue
                    process.kill()
                del running[path]
                said = _said(process)
                if process.returncode != 0:
                    raise ChildFailed(f"{path} was not compiled in {took:.0f} s: {said}")
                each.append(took)
    finally:
        for process, _ in running.values():
            process.kill()
            _said(process)
    return Built(each, time.monotonic() - begun)


def _usable(shelf: Shelf, variant: Variant) -> bool:
    try:
        entry = shelf.find(variant.path)
        if entry is not None:
            shelf.trust(entry)
    except TfpoolError:
        return False
    return entry is not None


def _compiler(store: str, path: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tfpool.compiler", "--store", store, path]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _said(process: subprocess.Popen[bytes]) -> str:
    """The last line that a process wrote; it has ended, or ends."""
    lines = process.communicate()[0].decode(errors="replace").splitlines()
    return lines[-1] if lines else "it wrote nothing"
