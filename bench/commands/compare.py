"""What moved from one run to another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from bench.report import reading, tables
from bench.report.compare import CONFIDENCE, Change, Comparison, Verdict, compare
from bench.report.reading import BadRun

_WIDTH = 130  # where there is no terminal
_STYLES = {Verdict.WORSE: "bold red", Verdict.BETTER: "bold green", Verdict.NOISY: "yellow", Verdict.SAME: "bold"}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("compare")
@click.argument("before", metavar="A.json", type=_FILE)
@click.argument("after", metavar="B.json", type=_FILE)
@click.option("--all", "everything", is_flag=True, help="Show figures that stayed the same, too.")
def command(before: Path, after: Path, everything: bool) -> None:
    """Say what moved from A to B, and what is too noisy to tell. Exit status: 0 whatever moved, 2 for a bad file."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH
    try:
        found = compare(reading.read(before), reading.read(after))
    except (BadRun, OSError) as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    for warning in found.warnings:
        console.print(warning, style="yellow")
    for line in found.alone:
        console.print(line, style="dim")
    for verdict in Verdict:
        changes = found.of(verdict)
        if changes and (everything or verdict is not Verdict.SAME):
            console.print(f"\n{verdict.value}", style=_STYLES[verdict])
            console.print(tables.drawn(tables.Grid(_COLUMNS, [_row(change) for change in changes])))
    for line in _summary(found):
        console.print(line)


_COLUMNS = ("figure", "A", "B", "change", "interval", "seen from", "target")


def _row(change: Change) -> list[str]:
    unit = "x" if change.relative else change.figure.unit
    was, now = change.judged
    return [
        f"{change.scenario}: {change.figure.name}" + (f", {unit}" if unit else ""),
        tables.number(change.before.median),
        tables.number(change.after.median),
        _percent(change.factor) if change.factor else "",
        " .. ".join(map(_percent, change.interval)) if change.interval and change.repeated else "",
        _percent(change.seen).lstrip("+") if change.seen else "",
        now if was == now else f"{now or 'none'} (was {was or 'none'})",
    ]


def _percent(factor: float) -> str:
    """``+12 %``, ``-3.1 %``, ``2.4x``, ``0.3x``."""
    if not 0.5 < factor < 2.0:
        return f"{tables.number(factor)}x"
    percent = 100 * (factor - 1)
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"


def _summary(found: Comparison) -> Iterator[str]:
    counts = ", ".join(f"{len(found.of(verdict))} {verdict.value}" for verdict in Verdict)
    yield f"\n{len(found.changes)} figures: {counts}"
    if repeated := sum(change.repeated for change in found.changes):
        chance = (1 - CONFIDENCE) * repeated
        yield (
            f"intervals are at {100 * CONFIDENCE:g} %: by chance alone about {chance:.1f} of the {repeated} with "
            "repeats would be called worse or better"
        )
    if noisy := [change.seen for change in found.of(Verdict.NOISY) if change.seen]:
        yield f"of those too noisy to tell, changes from {_percent(min(noisy))} to {_percent(max(noisy))} could hide"
