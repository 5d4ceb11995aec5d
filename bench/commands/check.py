"""The guard: ratios of ours to rooflines, beside those of the baseline."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.commands.run import Bar
from bench.errors import BenchError
from bench.micro import suite
from bench.micro.baseline import BadBaseline, Baseline, Entry, differences, read
from bench.micro.null import by_the_clock
from bench.micro.suite import NULL, Found
from bench.micro.verdict import Row, Verdict, entry, judge, too_noisy
from bench.report import document
from bench.report.tables import number, with_spread
from bench.scenario import Models, Settings, Spread
from bench.workspace import workspace
from tfpool.errors import TfpoolError

BASELINE = Path(__file__).parents[1] / "baseline.json"
REPEATS = 5
TOLERANCE, NULL_TOLERANCE = 0.1, 0.25  # of entries that are new
BUSY_CORES = 0.2
_TABLE_WIDTH = 120
_STYLES = {Verdict.OK: "green", Verdict.BETTER: "bold green", Verdict.WORSE: "bold red"}
_FAR = (Verdict.WORSE, Verdict.UNSURE)
_TOLD = {
    Verdict.WORSE: "worse than the baseline by more than the tolerance",
    Verdict.BETTER: "better than the baseline; --update keeps it so",
    Verdict.UNSURE: "too noisy to tell; the machine should be quiet",
    Verdict.NEW: "not in the baseline; --update puts it there",
    Verdict.GONE: "in the baseline, but no longer measured; --update takes it out",
}
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("check")
@click.option("--update", is_flag=True, help="Make what is measured now the baseline; refused on a busy machine.")
@click.option("--baseline", "file", type=_FILE, default=BASELINE, help="Another file than the repository's.")
def command(update: bool, file: Path) -> None:
    """Measure parts of tfpool beside rooflines, and compare with the baseline.

    Exit status 1 where something is worse by more than its tolerance, 2 without a baseline.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every block is left in order
    messages = Console(stderr=True, highlight=False)
    taken, absent = document.preamble(), suite.absent()
    try:
        known = Baseline({}, {}) if update and not file.exists() else read(file)
    except BadBaseline as error:
        raise click.UsageError(str(error)) from None
    for group, why in absent.items():
        messages.print(f"{group} is not measured: {why}", style="yellow", markup=False)
    try:
        if update:
            made = Baseline(taken, _entries(messages, known, absent.keys()))
            made.write(file)
            click.echo(f"{file}: {len(made.entries)} entries")
            return
        for difference in differences(known.taken, taken):
            messages.print(f"not as in the baseline: {difference}", style="yellow", markup=False)
        rows = _judged(messages, known, absent.keys())
    except (BenchError, TfpoolError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None
    _print(rows)
    sys.exit(1 if any(row.verdict is Verdict.WORSE for row in rows) else 0)


@dataclass
class _Measured:
    """Ratios by entry, and the entries that say nothing, for others used the machine."""

    ratios: Found = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)


def _measure(messages: Console, groups: Collection[str]) -> _Measured:
    measured = _Measured()
    bar = Bar(messages)
    with workspace() as directory:
        settings = Settings(Models({}, {}), directory, bar, repeat=REPEATS)
        if micro := [group for group in suite.PAIRS if group in groups]:
            with bar.of("parts", REPEATS):
                measured.ratios = suite.pairs(settings, micro)
        if NULL in groups:
            with bar.of(NULL, REPEATS):
                found, others = suite.null_path(settings)
            measured.ratios |= found
            if others > BUSY_CORES:
                measured.doubtful = {name for name in found if by_the_clock(name)}
                messages.print(f"{NULL}: others kept {others:.1f} cores busy meanwhile: its times say nothing")
    return measured


def _judged(messages: Console, known: Baseline, absent: Collection[str]) -> list[Row]:
    """Measured once, and what is far from the baseline once more: the verdict is then on twice as many repeats."""
    lacking = [name for name in known.entries if suite.group_of(name) in absent]
    first = _measure(messages, [group for group in suite.GROUPS if group not in absent])
    rows = judge(known.entries, first.ratios, lacking, first.doubtful)
    far = [row for row in rows if row.verdict in _FAR and row.name not in first.doubtful]
    if not far:
        return rows
    groups = list(dict.fromkeys(suite.group_of(row.name) for row in far))
    messages.print(f"far from the baseline, and so measured again: {', '.join(groups)}", markup=False)
    again = _measure(messages, groups)
    ratios = {name: found + again.ratios.get(name, []) for name, found in first.ratios.items()}
    return judge(known.entries, ratios, lacking, first.doubtful | again.doubtful)


def _entries(messages: Console, known: Baseline, absent: Collection[str]) -> dict[str, Entry]:
    """A new baseline's, with the tolerances of the old one; those that cannot be measured here stay as they are.

    Raises BenchError where the repeats differ by too much, or others used the machine.
    """
    measured = _measure(messages, [group for group in suite.GROUPS if group not in absent])
    entries = {name: old for name, old in known.entries.items() if suite.group_of(name) in absent}
    moving = []
    for name, ratios in measured.ratios.items():
        new = NULL_TOLERANCE if suite.group_of(name) == NULL else TOLERANCE
        tolerance = known.entries[name].tolerance if name in known.entries else new
        entries[name] = entry(ratios, tolerance)
        if name in measured.doubtful or too_noisy(ratios, tolerance):
            moving.append(f"{name}, {with_spread(Spread(tuple(ratios)))}")
    if moving:
        raise BenchError(f"the machine is too busy, and nothing was written; these move: {'; '.join(moving)}")
    return entries


def _print(rows: Sequence[Row]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("time of ours, in times of the roofline", overflow="fold")
    for column in ("baseline", "now (min..max)", "change", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(
            row.name,
            number(row.before.ratio) if row.before else "",
            with_spread(row.now) if row.now else "",
            f"{100 * row.change:+.1f} %" if row.change is not None else "",
            f"{100 * row.before.tolerance:g} %" if row.before else "",
            Text(row.verdict.value, style=_STYLES.get(row.verdict, "yellow")),
        )
    console.print(table)
    for verdict, told in _TOLD.items():
        if names := [row.name for row in rows if row.verdict is verdict]:
            console.print(f"{told}: {', '.join(names)}", style=_STYLES.get(verdict, "yellow"), markup=False)
