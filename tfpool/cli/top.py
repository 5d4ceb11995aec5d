"""The top command: a table of models and workers that renews itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import connect_option, open_client, seconds
from tfpool.cli.output import console, duration, micros, rate, show, table
from tfpool.cli.placement import OVER, migrations, moves_table
from tfpool.cli.reading import workers_table

if TYPE_CHECKING:
    from rich.console import RenderableType

Stats = Mapping[str, Any]


@click.command()
@connect_option
@click.option(
    "--interval", type=seconds, default=1.0, show_default=True, metavar="S", help="Seconds between refreshes."
)
@click.option("--count", "refreshes", type=click.IntRange(1), metavar="N", help="End after N refreshes.")
def top(connect: str | None, interval: float, refreshes: int | None) -> None:
    """Show models and workers live.

    Ctrl-C ends it. Rates and the mean batch are those of the last interval, QUEUE and RUN times quantiles since the
    start. Models that move, or have moved within the interval, are shown below. Where stdout is no terminal each
    refresh prints its tables below the last.
    """
    from rich.live import Live

    to = console()
    with open_client(connect) as client:
        try:
            before = client.stats()
            told = _over(migrations(client))
            with Live(console=to, auto_refresh=False, transient=False) as live:
                for number in count(1):
                    time.sleep(interval)
                    now, moves = client.stats(), migrations(client)
                    parts = _tables(before, now, [move for move in moves if move["id"] not in told])
                    if to.is_terminal:
                        live.update(_stacked(parts), refresh=True)
                    else:
                        show(*parts)
                        click.echo()
                    if number == refreshes:
                        return
                    before, told = now, _over(moves)
        except KeyboardInterrupt:
            click.echo()


def _stacked(parts: list[RenderableType]) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _over(moves: Iterable[Mapping[str, Any]]) -> set[int]:
    return {move["id"] for move in moves if move["phase"] in OVER}


def _tables(before: Stats, now: Stats, moves: list[Mapping[str, Any]]) -> list[RenderableType]:
    span = max(now["uptime_seconds"] - before["uptime_seconds"], 1e-3)
    restarted = now["uptime_seconds"] < before["uptime_seconds"]
    earlier = {} if restarted else before["models"]
    if restarted:
        span = max(now["uptime_seconds"], 1e-3)
    columns = ("~MODEL", "~ON", ">REQ/S", ">ROWS/S", ">ERR/S", ">BATCH", ">QUEUE P50", ">QUEUE P99", ">RUN P50")
    where = _where(now["workers"])
    lines = [
        [name, ", ".join(where.get(name, [])), *_figures(meter, earlier.get(name), span)]
        for name, meter in now["models"].items()
    ]
    head = f"up {duration(now['uptime_seconds'])}, {now['waiting_rows']:,} rows waiting"
    head += f", {rate((now['messages'] - (0 if restarted else before['messages'])) / span)} messages/s"
    parts: list[RenderableType] = [head + "\n", table(columns, lines), "", workers_table(now["workers"])]
    return [*parts, "", moves_table(moves)] if moves else parts


def _where(workers: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The workers that hold versions of a model, by its name."""
    found: dict[str, list[str]] = {}
    for worker in workers:
        for name in sorted({key.rpartition(":")[0] for key in worker["models"]}):
            found.setdefault(name, []).append(worker["name"])
    return found


def _figures(meter: Mapping[str, Any], earlier: Mapping[str, Any] | None, span: float) -> list[object]:
    def grown(key: str) -> int:
        return int(meter[key] - (earlier[key] if earlier else 0))

    errors = sum(meter["errors"].values()) - (sum(earlier["errors"].values()) if earlier else 0)
    batches = grown("batches")
    return [
        rate(grown("requests") / span),
        rate(grown("rows") / span),
        rate(errors / span),
        rate(grown("rows") / batches) if batches else None,
        micros(meter["queue_us"]["p50"]),
        micros(meter["queue_us"]["p99"]),
        micros(meter["run_us"]["p50"]),
    ]
