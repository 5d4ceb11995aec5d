"""``python -m bench list`` and ``python -m bench run SCENARIO...``: exit status 0 measured, 1 failed, 2 bad usage.

A missed target is a result, not a failure.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report
from bench.children import ChildFailed
from bench.fleet import WrongAnswer
from bench.inprocess import make_models
from bench.report import Result
from bench.scenario import REPEATS, WINDOW_SECONDS, Models, Scenario, Settings
from bench.scenarios import SCENARIOS
from tfpool.errors import TfpoolError

_TABLE_WIDTH = 118


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure tfpool beside a reference."""


@main.command("list")
def show() -> None:
    """The scenarios, with their targets."""
    for scenario in SCENARIOS.values():
        click.echo(f"{scenario.name:10}{scenario.description}")
        for name, target in scenario.targets.items():
            on = "the ratio" if target.on == "ratio" else "our value"
            aim = f", aim {target.aim:g}" if target.aim is not None else ""
            click.echo(f"{'':12}{name}: {target.bound:g} on {on}{aim}")


@main.command()
@click.argument("names", metavar="SCENARIO...", nargs=-1, required=True, type=click.Choice([*SCENARIOS, "all"]))
@click.option("--seconds", type=click.FloatRange(0.05, 3600), help=f"A measurement's length ({WINDOW_SECONDS:g}).")
@click.option("--repeat", type=click.IntRange(1, 100), help=f"How often to measure ({REPEATS}; quick: 1).")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write this file.")
@click.option("--quick", is_flag=True, help="Only see that it works: short, once, fewer sizes.")
def run(names: Sequence[str], seconds: float | None, repeat: int | None, file: Path | None, quick: bool) -> None:
    """Run scenarios, in the order given; "all" runs every one."""
    chosen = list(SCENARIOS.values()) if "all" in names else [SCENARIOS[name] for name in dict.fromkeys(names)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every block is left in order
    messages = Console(stderr=True, highlight=False)
    bar = Bar(messages)
    preamble = report.preamble()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="tfpool-bench-") as directory:
        needed = sorted({model for scenario in chosen for model in scenario.models})
        if needed:
            messages.print(f"making {', '.join(needed)} with TensorFlow ...")
        models = make_models(directory, needed) if needed else Models({}, {})
        settings = Settings(models, directory, bar, seconds, repeat or (1 if quick else REPEATS), quick)
        for scenario in chosen:
            with bar.of(scenario.name, settings.repeat):
                results.append(_measured(scenario, settings))
            _print(results[-1])
            if file is not None:
                file.write_text(json.dumps(report.document(preamble, settings, results), indent=2) + "\n")
    sys.exit(1 if any(result.error for result in results) else 0)


def _measured(scenario: Scenario, settings: Settings) -> Result:
    begun = time.monotonic()
    try:
        figures = tuple(scenario.measure(settings))
    except (TfpoolError, ChildFailed, WrongAnswer, OSError) as error:
        return Result(scenario, time.monotonic() - begun, error=f"{type(error).__name__}: {error}")
    return Result(scenario, time.monotonic() - begun, figures)


def _print(result: Result) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    console.print(f"\n[bold]{result.scenario.name}[/]: {result.scenario.description} ({result.seconds:.0f} s)")
    if result.error:
        console.print(f"failed: {result.error}", style="red", markup=False)
    else:
        console.print(report.table(result))


if __name__ == "__main__":
    main()
