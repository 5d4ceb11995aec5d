"""One page and its plots from the JSON files of runs."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.show import TITLES
from bench.report import reading
from bench.report.reading import BadRun, Run

_DIRECTORY = click.Path(exists=True, file_okay=False, writable=True, path_type=Path)


@click.command("report")
@click.argument("directory", type=_DIRECTORY)
def command(directory: Path) -> None:
    """Write report.html and its plots from the *.json of runs in DIRECTORY; a later run of a scenario counts."""
    try:
        from bench.report import page, plots
    except ImportError as error:
        raise click.ClickException(f"{error}: pip install 'tfpool[bench]'") from None
    runs, skipped = _runs(directory)
    if not runs:
        raise click.ClickException("\n".join([f"no run in {directory}: write one with run --json", *skipped]))
    for reason in skipped:
        click.secho(f"skipped {reason}", fg="yellow", err=True)
    found = page.latest(runs)
    drawn = plots.of([measured for _, measured in found])
    for plot in (plot for some in drawn.values() for plot in some):
        (directory / f"{plot.name}.png").write_bytes(plot.png)
    made = directory / "report.html"
    made.write_bytes(page.html(found, drawn, TITLES))
    click.echo(f"{made}: {len(found)} scenarios of {len(runs)} runs, {sum(map(len, drawn.values()))} plots")


def _runs(directory: Path) -> tuple[list[Run], list[str]]:
    """Those that can be read, the oldest first; why each other file cannot be."""
    runs, skipped = [], []
    for path in sorted(directory.glob("*.json")):
        try:
            runs.append(reading.read(path))
        except BadRun as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{path.name}: {error.strerror}")
    return sorted(runs, key=lambda run: run.date), skipped
