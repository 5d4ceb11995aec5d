"""Run scenarios, one after the other; a missed target is a result, not a failure."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.errors import BenchError, OutOfTime
from bench.inprocess import make_models
from bench.report import document, tables
from bench.report.document import Result
from bench.scenario import WINDOW_SECONDS, Form, Models, Scenario, Settings
from bench.scenarios import SCENARIOS
from bench.workspace import workspace
from tfpool.errors import TfpoolError

ALL, PUBLISHED = "all", "published"
LIMIT_SECONDS: Mapping[Form, float] = {Form.QUICK: 180.0, Form.NORMAL: 7200.0, Form.FULL: 14400.0}
_TABLE_WIDTH = 130
_NAMES = click.Choice([*SCENARIOS, PUBLISHED, ALL])
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


class Bar:
    """The progress bar of one scenario; silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.fields[scenario]}"), BarColumn(24), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", scenario="")

    @contextmanager
    def of(self, name: str, repeats: int) -> Iterator[None]:
        """Show it while ``name`` runs."""
        self._progress.reset(self._task, total=repeats, scenario=name, description="")
        with self._progress:
            yield

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def step(self) -> None:
        self._progress.advance(self._task)

    def more(self, steps: int) -> None:
        """So many steps come on top."""
        (task,) = self._progress.tasks
        self._progress.update(self._task, total=(task.total or 0) + steps)


@click.command("run")
@click.argument("names", metavar="SCENARIO...", nargs=-1, required=True, type=_NAMES)
@click.option("--quick", "form", flag_value=Form.QUICK.value, help="Only see that it works: under a minute each.")
@click.option("--full", "form", flag_value=Form.FULL.value, help="To be published: every size, more repeats.")
@click.option("--seconds", type=click.FloatRange(0.05, 3600), help=f"A measurement's length ({WINDOW_SECONDS:g}).")
@click.option("--repeat", type=click.IntRange(1, 100), help="How often to measure (most: 3; quick: 1; full: 5).")
@click.option("--json", "file", type=_FILE, help="Write this file.")
def command(
    names: Sequence[str], form: str | None, seconds: float | None, repeat: int | None, file: Path | None
) -> None:
    """Run scenarios, in the order given; "published" runs those of the eight experiments, "all" every one."""
    if file is not None and not os.access(file.parent, os.W_OK):
        raise click.BadParameter(f"{file.parent} cannot be written", param_hint="--json")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that every block is left in order
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    messages = Console(stderr=True, highlight=False)
    bar, scenarios, preamble = Bar(messages), chosen(names), document.preamble()
    results: list[Result] = []
    with workspace() as directory:
        needed = sorted({model for scenario in scenarios for model in scenario.models})
        if needed:
            messages.print(f"making {', '.join(needed)} with TensorFlow ...")
        try:
            models = make_models(directory, needed) if needed else Models({}, {})
        except BenchError as error:
            raise click.ClickException(f"the models could not be made: {error}") from None
        for scenario in scenarios:
            thorough = Form(form or Form.NORMAL.value)
            settings = Settings(models, directory, bar, seconds, repeat or scenario.repeats[thorough], thorough)
            with bar.of(scenario.name, settings.repeat):
                results.append(measured(scenario, settings))
            _print(results[-1])
            if file is not None:
                _write(file, document.document(preamble, thorough, results))
    sys.exit(1 if any(result.error for result in results) else 0)


def _write(file: Path, whole: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(whole, indent=2, default=lambda number: number.item()) + "\n")  # numpy's
    new.replace(file)


def chosen(names: Sequence[str]) -> list[Scenario]:
    """The scenarios that names stand for, each once, in the order in which they first come."""
    published = sorted((one.experiment, name) for name, one in SCENARIOS.items() if one.experiment)
    groups = {ALL: list(SCENARIOS), PUBLISHED: [name for _, name in published]}
    return [SCENARIOS[name] for name in dict.fromkeys(one for name in names for one in groups.get(name, [name]))]


def measured(scenario: Scenario, settings: Settings) -> Result:
    """What became of it; an error of it is a result too."""
    begun = time.monotonic()
    try:
        with _limit(LIMIT_SECONDS[settings.form]):
            outcome = scenario.measure(settings)
    except Exception as error:  # whatever it is, the other scenarios are measured
        expected = isinstance(error, TfpoolError | BenchError | OSError)
        told = f"{type(error).__name__}: {error}" if expected else traceback.format_exc()
        return Result(scenario, time.monotonic() - begun, error=told)
    return Result(scenario, time.monotonic() - begun, outcome)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block that takes longer."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _print(result: Result) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    console.print(f"\n[bold]{result.scenario.name}[/]: {result.scenario.description} ({result.seconds:.0f} s)")
    if result.error:
        console.print(f"failed: {result.error}", style="red", markup=False)
        return
    console.print(tables.figures(result))
    if result.outcome.points:
        console.print(tables.points(result.outcome.points))
    for system, why in result.outcome.absent.items():
        console.print(f"{system} was not measured: {why}", style="yellow", markup=False)
