"""Every kind of model is compiled and gives the same as its SavedModel, in both forms; or is refused for a reason."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.compiler.main import Outcome, Result, compile_model
from tfpool.compiler.prove import TOLERANCES, compare
from tfpool.compiler.reach import reached
from tfpool.errors import FailedPrecondition
from tfpool.settings import Form
from tfpool.store.shelf import Shelf
from tfpool.types import numpy_dtype
from tfpool.worker import compiled, inputs, loader, warmup

BUDGET = 1 << 30
COMPILED = (
    *("shared_weights", "ends", "sizes", "dtypes", "control_flow", "old_control_flow", "old_start", "text"),
    *("mutable_table", "quantized", "jitted", "effects", "fixed", "exported"),
)
REFUSED = {
    "counting_table": "changes variables",
    "random": "answers the same input differently",
    "dense_table": "state that cannot be carried over",
}
WORDS = np.array([b"word3", b"word39", b"nobody", b"word0 word7"], object)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("zoo")
    script = Path(__file__).with_name("compiler_zoo.py")
    done = subprocess.run([sys.executable, str(script), str(directory)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module", autouse=True)
def quick(zoo: Path) -> Iterator[None]:
    """Curves and gains are not what is tested here, and the collector need not go through what was imported."""
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfpool.compiler.gauge.CURVES_AS_IF_LOADED", 0.1)
        patch.setattr("tfpool.compiler.gauge._SECONDS", 0.0)
        yield
    gc.unfreeze()


def make(shelf: Shelf, path: str) -> Result:
    return compile_model(path, shelf, 1, BUDGET, say=lambda stage: None)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_models_give_the_same(zoo: Path, shelf: Shelf, name: str) -> None:
    path = str(zoo / name / "1")
    result = make(shelf, path)
    assert (result.outcome, result.reason) == (Outcome.COMPILED, "")
    entry = shelf.find(path)
    assert entry is not None
    config = loader.session_config(1, None)
    original = loader.load(path, config)
    warmup.warm(original, ())
    for form in (Form.MAPPED, Form.INLINED):
        opened = compiled.open_entry(shelf, entry, form, config)
        assert [s.spec for s in opened.signatures] == [s.spec for s in original.signatures]
        for ours, theirs in zip(opened.signatures, original.signatures, strict=True):
            for feeds in asked(theirs):
                for spec, a, b in zip(ours.spec.outputs, answers(theirs, feeds), answers(ours, feeds), strict=True):
                    why = compare(a, b, TOLERANCES.get(numpy_dtype(spec.dtype).name, 0.0))[1]
                    assert not why, f"{ours.spec.name}: {spec.name}: {why}"
        opened.close()
    original.close()


def asked(signature: loader.Signature) -> Iterator[list[Any]]:
    by_rows = bool(signature.spec.inputs) and all(t.shape and t.shape[0] == -1 for t in signature.spec.inputs)
    for rows, seed in ((1, 11), (5, 12)) if by_rows else ((1, 11),):
        yield inputs.make(signature, rows, inputs.find_inner(signature, by_rows), by_rows, seed)
    if [t.name for t in signature.spec.inputs] == ["text"]:
        yield [WORDS]


def answers(signature: loader.Signature, feeds: list[Any]) -> list[Any]:
    results = signature.call(*feeds)
    return [np.array(results[at]) for at in signature.fetch_of]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_frozen_is_refused_and_that_is_known(zoo: Path, shelf: Shelf, name: str) -> None:
    path = str(zoo / name / "1")
    for _ in range(2):
        result = make(shelf, path)
        assert result.outcome is Outcome.REFUSED
        assert REFUSED[name] in result.reason
    entry = shelf.find(path)
    assert entry is not None
    assert entry.manifest.refusal == result.reason
    assert os.listdir(entry.path) == ["manifest.json"]


def test_tables_are_filled_from_the_entry_alone(zoo: Path, shelf: Shelf, tmp_path: Path) -> None:
    """The words of a file, with the file gone; a variable that the start changed has what it had after it."""
    path = str(zoo / "old_start" / "1")
    make(shelf, path)
    entry = shelf.find(path)
    assert entry is not None
    opened = compiled.open_entry(shelf, entry, Form.MAPPED, loader.session_config(1, None))
    original = loader.load(path, loader.session_config(1, None))
    known, unknown = (np.array([word], object) for word in (b"word5", b"nobody"))
    for text in (known, unknown):
        assert np.array_equal(opened.signatures[0].call(text)[0], original.signatures[0].call(text)[0])
    assert not np.array_equal(*(opened.signatures[0].call(text)[0] for text in (known, unknown)))
    opened.close()
    original.close()


def test_one_weight_is_kept_once_however_many_signatures_have_it(zoo: Path, shelf: Shelf) -> None:
    path = str(zoo / "shared_weights" / "1")
    make(shelf, path)
    entry = shelf.find(path)
    assert entry is not None
    assert [weight.nbytes for weight in entry.manifest.weights] == [64 * 64 * 4]


def test_what_gives_something_else_is_refused(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof sees a weight that is off by a thousandth of its scale."""
    from tfpool.compiler.weigh import Weigher

    put = Weigher._put

    def spoil(self: Weigher, value: Any, dtype: int) -> int:
        return put(self, value * 1.001 if value.dtype.kind == "f" else value, dtype)

    monkeypatch.setattr(Weigher, "_put", spoil)
    result = make(Shelf(str(tmp_path)), str(zoo / "shared_weights" / "1"))
    assert result.outcome is Outcome.REFUSED
    assert "gives something else compiled: output" in result.reason


def test_an_entry_that_was_tampered_with_is_not_opened(zoo: Path, tmp_path: Path) -> None:
    shelf, path = Shelf(str(tmp_path)), str(zoo / "shared_weights" / "1")
    make(shelf, path)
    entry = shelf.find(path)
    assert entry is not None
    with open(entry.weights, "r+b") as file:
        file.write(b"\1\2\3")
    with pytest.raises(FailedPrecondition, match=r"weights\.bin: corrupt"):
        compiled.open_entry(shelf, entry, Form.MAPPED, loader.session_config(1, None))
    assert make(shelf, path).outcome is Outcome.COMPILED


def test_mapped_weights_are_the_pages_of_the_file(zoo: Path, shelf: Shelf) -> None:
    """In memory there is the file, mapped, and nothing of it has been copied by a run."""
    path = str(zoo / "shared_weights" / "1")
    make(shelf, path)
    entry = shelf.find(path)
    assert entry is not None
    opened = compiled.open_entry(shelf, entry, Form.MAPPED, loader.session_config(1, None))
    for signature in opened.signatures:
        signature.call(*inputs.make(signature, 3, 1))
    fields = mapping_of(entry.weights)
    assert fields["Rss"] > 0
    assert fields["Private_Dirty"] == fields["Anonymous"] == 0
    opened.close()


def mapping_of(path: str) -> dict[str, int]:
    """What the kernel tells of a mapped file, in KiB."""
    fields: dict[str, int] = {}
    inside = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            words = line.split()
            if "-" in words[0]:
                inside = line.rstrip().endswith(path)
            elif inside and words[-1] == "kB":
                fields[words[0].rstrip(":")] = fields.get(words[0].rstrip(":"), 0) + int(words[1])
    return fields


def test_reached_through_functions_and_control_inputs() -> None:
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef()
    for name, op, sources in (
        ("a", "Const", ()),
        ("b", "Identity", ("a:0",)),
        ("c", "PartitionedCall", ("^b",)),
        ("d", "Const", ()),
    ):
        graph.node.add(name=name, op=op, input=sources)
    graph.node[2].attr["f"].func.name = "first"
    for name, op, calls in (("first", "If", "second"), ("second", "Assign", "first"), ("third", "Random", "")):
        function = graph.library.function.add()
        function.signature.name = name
        node = function.node_def.add(name="inner", op=op)
        if calls:
            node.attr["branches"].list.func.add(name=calls)
    assert {node.op for node in reached(graph, ["c:0"])} == {"PartitionedCall", "Identity", "Const", "If", "Assign"}
    assert [node.name for node in reached(graph, ["c:0"])].count("d") == 0
