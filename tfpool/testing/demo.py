"""The main job on a fresh machine: ``python -m tfpool.testing.demo [--quick]``.

Makes sample SavedModels, starts a pool with two workers, sends requests through the client, checks every answer
against TensorFlow in this process, and measures the throughput. The exit status is 1 if any answer differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tfpool.client.sync import Client
from tfpool.supervisor.embedded import Pool
from tfpool.wire.tensors import Array

RTOL, ATOL = 1e-4, 1e-5
REQUESTS = 24
IN_FLIGHT = (1, 64, 256)
_MEASURED = ("half_plus_two", "mlp")

Inputs = dict[str, Array]


@dataclass(slots=True)
class Sample:
    """A model of the demo: how to make inputs of some rows, and which signatures to ask."""

    inputs: Callable[[np.random.Generator, int], dict[str, Inputs]]
    most_rows: int = 7


def _floats(generator: np.random.Generator, *shape: int) -> Array:
    return generator.standard_normal(shape, np.float32)


def _words(generator: np.random.Generator, rows: int) -> Array:
    return np.array(["word ü".encode() * int(n) for n in generator.integers(0, 9, rows)], object)


SAMPLES = {
    "half_plus_two": Sample(lambda g, n: {"serving_default": {"x": _floats(g, n)}}),
    "mlp": Sample(lambda g, n: {"serving_default": {"x": _floats(g, n, 256)}}),
    "string_length": Sample(lambda g, n: {"serving_default": {"text": _words(g, n)}}),
    "two_signatures": Sample(
        lambda g, n: {"double": {"x": _floats(g, n, 4)}, "add": {"a": _floats(g, n, 3), "b": _floats(g, n, 1)}}
    ),
    "mobilenet_v2": Sample(lambda g, n: {"serving_default": {"image": _floats(g, n, 224, 224, 3)}}, most_rows=2),
}


@dataclass(slots=True)
class Verdict:
    """How the answers of one model compare with TensorFlow's own."""

    requests: int = 0
    rows: int = 0
    largest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def compare(self, got: Inputs, wanted: Inputs) -> None:
        if set(got) != set(wanted):
            self.wrong.append(f"got outputs {sorted(got)}, expected {sorted(wanted)}")
            return
        for name, right in wanted.items():
            answer = got[name]
            if answer.dtype != right.dtype or answer.shape != right.shape:
                self.wrong.append(f"{name}: got {answer.dtype} {answer.shape}, expected {right.dtype} {right.shape}")
            elif right.dtype.kind == "f":
                self.largest = max(self.largest, float(np.abs(answer - right).max(initial=0.0)))
                if not np.allclose(answer, right, RTOL, ATOL):
                    self.wrong.append(f"{name}: differs by {np.abs(answer - right).max():.3g}")
            elif not np.array_equal(answer, right):
                self.wrong.append(f"{name}: differs")


def make_models(names: Sequence[str], directory: str, say: Callable[[str], None]) -> dict[str, str]:
    """The sample models, below ``directory``; TensorFlow is imported here."""
    from tfpool.supervisor.zygote import import_tensorflow
    from tfpool.testing.models import MAKERS

    import_tensorflow()
    paths = {}
    for name in names:
        started = time.monotonic()
        paths[name] = MAKERS[name](directory)
        say(f"made {name} in {time.monotonic() - started:.1f} s")
    return paths


def check(client: Client, name: str, path: str) -> Verdict:
    """Many requests of different sizes at once, so that they share batches; each answer against TensorFlow's."""
    from tfpool.testing.reference import Reference

    sample, generator, verdict = SAMPLES[name], np.random.default_rng(7), Verdict()
    sent: list[tuple[str, Inputs, Future[Any]]] = []
    for _ in range(REQUESTS):
        for signature, inputs in sample.inputs(generator, int(generator.integers(1, sample.most_rows + 1))).items():
            sent.append((signature, inputs, client.submit(name, inputs, signature=signature, timeout=60)))
    with Reference(path) as reference:
        for signature, inputs, future in sent:
            verdict.compare(future.result(), reference.predict(inputs, signature))
            verdict.requests += 1
            verdict.rows += len(next(iter(inputs.values())))
    return verdict


def throughput(client: Client, name: str, in_flight: int, seconds: float) -> float:
    """Requests of one row a second, with so many under way at once."""
    (inputs,) = SAMPLES[name].inputs(np.random.default_rng(7), 1).values()
    waiting: deque[Future[Any]] = deque()
    done, started = 0, time.monotonic()
    deadline = started + seconds
    while time.monotonic() < deadline:
        while len(waiting) < in_flight:
            waiting.append(client.submit(name, inputs))
        for _ in range(max(1, in_flight // 4)):
            waiting.popleft().result()
            done += 1
    for future in waiting:
        future.result()
    return (done + len(waiting)) / (time.monotonic() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tfpool.testing.demo", description="Serve sample models.")
    parser.add_argument("--quick", action="store_true", help="leave the large model out, and measure for less long")
    chosen = parser.parse_args(arguments)
    names = [name for name in SAMPLES if not (chosen.quick and name == "mobilenet_v2")]
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of this process; workers have their own
    console = Console(highlight=False)
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - started:5.1f} s] {text}", markup=False)

    def show(table: Table) -> None:
        title, table.title = table.title, None  # a title would wrap at its table's width
        console.print("", f"[bold]{title}[/]", table, "", sep="\n")

    with tempfile.TemporaryDirectory(prefix="tfpool-demo-") as directory:
        say("making sample models with TensorFlow ...")
        paths = make_models(names, directory, say)
        say("starting a pool with 2 workers ...")
        with Pool(paths, workers=2, store="off") as pool:  # nothing is compiled beside what is measured
            client = pool.client()
            say("the pool is ready")
            show(_models_table(client.models()))
            say(f"checking answers, {REQUESTS} requests at once for each signature ...")
            verdicts = {name: check(client, name, path) for name, path in paths.items()}
            show(_answers_table(verdicts))
            say("measuring throughput ...")
            seconds = 1.0 if chosen.quick else 2.5
            rates = {name: [throughput(client, name, n, seconds) for n in IN_FLIGHT] for name in _MEASURED}
            show(_throughput_table(rates))
        say("the pool has stopped")
    wrong = [f"{name}: {text}" for name, verdict in verdicts.items() for text in verdict.wrong]
    for text in wrong[:10]:
        console.print(f"wrong answer: {text}", markup=False, style="red")
    say(
        f"{len(wrong)} answers differ"
        if wrong
        else f"all {sum(v.requests for v in verdicts.values())} answers are right"
    )
    return 1 if wrong else 0


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _models_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("Models loaded", "model", "state", "worker", ">load and warm-up", ">memory")
    for row in rows:
        memory = f"{row['memory_bytes'] / 1e6:.1f} MB"
        table.add_row(row["name"], row["state"], ", ".join(row["workers"]), f"{row['load_seconds']:.2f} s", memory)
    return table


def _answers_table(verdicts: dict[str, Verdict]) -> Table:
    title = f"Answers against TensorFlow's own (floats: rtol {RTOL:g}, atol {ATOL:g}; else equal)"
    table = _table(title, "model", ">requests", ">rows", ">largest difference", "answers")
    for name, verdict in verdicts.items():
        answers = f"[red]{len(verdict.wrong)} wrong[/]" if verdict.wrong else "[green]right[/]"
        table.add_row(name, str(verdict.requests), str(verdict.rows), f"{verdict.largest:.2g}", answers)
    return table


def _throughput_table(rates: dict[str, list[float]]) -> Table:
    columns = (f">{n} in flight" for n in IN_FLIGHT)
    table = _table("Requests of one row a second, from one client", "model", *columns)
    for name, row in rates.items():
        table.add_row(name, *(f"{rate:,.0f}" for rate in row))
    return table


if __name__ == "__main__":
    sys.exit(main())
