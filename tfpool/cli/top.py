"""The top command: a table of models and workers that renews itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import connect_option, open_client, seconds
from tfpool.cli.output import console, duration, micros, rate, show, table
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
    start. Where stdout is no terminal each refresh prints its tables below the last.
    """
    from rich.live import Live

    to = console()
    with open_client(connect) as client:
        try:
            before = client.stats()
            with Live(console=to, auto_refresh=False, transient=False) as live:
                for number in count(1):
                    time.sleep(interval)
                    now = client.stats()
                    parts = _tables(before, now)
                    if to.is_terminal:
                        live.update(_stacked(parts), refresh=True)
                    else:
                        show(*parts)
                        click.echo()
                    if number == refreshes:
                        return
                    before = now
        except KeyboardInterrupt:
            click.echo()


def _stacked(parts: list[RenderableType]) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _tables(before: Stats, now: Stats) -> list[RenderableType]:
    span = max(now["uptime_seconds"] - before["uptime_seconds"], 1e-3)
    restarted = now["uptime_seconds"] < before["uptime_seconds"]
    earlier = {} if restarted else before["models"]
    if restarted:
        span = max(now["uptime_seconds"], 1e-3)
    columns = ("~MODEL", ">REQ/S", ">ROWS/S", ">ERR/S", ">BATCH", ">QUEUE P50", ">QUEUE P99", ">RUN P50")
    lines = [_line(name, meter, earlier.get(name), span) for name, meter in now["models"].items()]
    head = f"up {duration(now['uptime_seconds'])}, {now['waiting_rows']:,} rows waiting"
    head += f", {rate((now['messages'] - (0 if restarted else before['messages'])) / span)} messages/s"
    return [head + "\n", table(columns, lines), "", workers_table(now["workers"])]


def _line(name: str, meter: Mapping[str, Any], earlier: Mapping[str, Any] | None, span: float) -> list[object]:
    def grown(key: str) -> int:
        return int(meter[key] - (earlier[key] if earlier else 0))

    errors = sum(meter["errors"].values()) - (sum(earlier["errors"].values()) if earlier else 0)
    batches = grown("batches")
    return [
        name,
        rate(grown("requests") / span),
        rate(grown("rows") / span),
        rate(errors / span),
        rate(grown("rows") / batches) if batches else None,
        micros(meter["queue_us"]["p50"]),
        micros(meter["queue_us"]["p99"]),
        micros(meter["run_us"]["p50"]),
    ]
