"""Commands that look: wait, models, workers, queues."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from tfpool.cli.options import connect_option, json_option, open_client, timeout_option
from tfpool.cli.output import console, counted, duration, print_json, ranges, rate, show, size, table
from tfpool.cli.placement import bounds

Row = Mapping[str, Any]
_WIDE = 100


@click.command()
@connect_option
@timeout_option(30.0)
@json_option
def wait(connect: str | None, timeout: float, as_json: bool) -> None:
    """Return when the pool is ready.

    It is when every model serves, or has failed. The pool may be started later. Models that failed are shown, and
    do not change the exit status.

    \b
      tfpool serve -c pool.toml & tfpool wait --timeout 120 && ./send-requests
    """
    started = time.monotonic()
    with open_client(connect, probe=False) as client:
        ready = client.wait_ready(timeout)
    if as_json:
        print_json({"ready": True, "seconds": round(time.monotonic() - started, 3), **ready})
        return
    failed = ready["failed"]
    click.echo(f"ready: {counted(ready['models'], 'model')}" + (f", {len(failed)} failed" if failed else ""))
    show_errors(failed)


@click.command()
@connect_option
@json_option
def models(connect: str | None, as_json: bool) -> None:
    """List the models and their versions.

    \b
      tfpool models
      tfpool models --json | jq -r '.[] | select(.state == "FAILED") | .name'
    """
    with open_client(connect) as client:
        rows = client.models()
    if as_json:
        print_json(rows)
    else:
        show(models_table(rows))
        show_errors(rows)


@click.command()
@connect_option
@json_option
def workers(connect: str | None, as_json: bool) -> None:
    """List the workers and what they hold.

    BUSY is its load during the last second. OWN is memory that it shares with no other process, PSS its part of all
    that it uses, RESIDUE what models that have left did not give back. USED is the share of its budget: of GPU where
    that is known, else of OWN and its part of the compiled models' files that it maps.
    """
    with open_client(connect) as client:
        rows = client.workers()
    if as_json:
        print_json(rows)
    else:
        show(workers_table(rows))
        click.echo()
        for row in rows:
            click.echo(f"{row['name']}: {', '.join(row['models']) or 'no model'}")


@click.command()
@connect_option
@json_option
def queues(connect: str | None, as_json: bool) -> None:
    """List the queues of requests.

    There is one for each model, version, signature and shape that has been asked for."""
    with open_client(connect) as client:
        rows = client.queues()
    if as_json:
        print_json(rows)
        return
    columns = ("~MODEL", ">VERSION", "~SIGNATURE", "~SHAPES", ">ROWS", ">OLDEST", ">MEAN BATCH")
    cells = (
        (
            row["model"],
            row["version"],
            row["signature"],
            " ".join(str(shape) for shape in row["shapes"]),
            row["rows"],
            duration(row["oldest_ms"] / 1000) if row["rows"] else None,
            row["batch_rows_mean"],
        )
        for row in rows
    )
    show(table(columns, cells)) if rows else click.echo("no queue has been used yet")


def models_table(rows: Iterable[Row]) -> Any:
    """Versions of models, without their errors; REQ/S is what is asked of them, REPLICAS how many may hold them. A
    narrow terminal has no room for FORM."""
    lines: list[dict[str, object]] = [
        {
            "~MODEL": row["name"],
            ">VERSION": row["version"] or None,
            "STATE": row["state"],
            "~ON": ", ".join(row["workers"]),
            "~FORM": ", ".join(sorted(set(row.get("forms", {}).values()))),
            "REPLICAS": bounds(row["replicas"]) if row.get("replicas") else None,
            ">REQ/S": rate(row["rate"]["asks"]) if row.get("rate") else None,
            "~LABELS": ", ".join(row["labels"]),
            ">MEMORY": size(row["memory_bytes"]),
            ">LOAD": duration(row["load_seconds"]),
        }
        for row in rows
    ]
    columns = [column for column in lines[0] if column != "~FORM" or console().width >= _WIDE] if lines else []
    return table(columns, ([line[column] for column in columns] for line in lines))


def workers_table(rows: Iterable[Row]) -> Any:
    """Workers with their load and memory, and how many models each one holds. A column for GPUs is there where one of
    them has one. A narrow terminal has no room for CPUS, nor for PSS beside GPUs."""
    lines: list[dict[str, object]] = []
    for row in rows:
        memory = row["memory"]
        bounded = memory["unique"] if memory["gpu"] is None else memory["gpu"]
        lines.append(
            {
                "~WORKER": row["name"],
                ">PID": row["pid"] or None,
                "STATE": row["state"],
                "DEVICE": row["device"],
                "~CPUS": ranges(row["cpus"]),
                ">BUSY": f"{row['busy']:.0%}",
                ">OWN": size(memory["unique"]),
                ">PSS": size(memory["pss"]),
                ">RESIDUE": size(memory["residue"]),
                ">GPU": size(memory["gpu"]),
                ">USED": f"{(bounded + memory.get('mapped', 0)) / memory['budget']:.0%}" if memory["budget"] else None,
                ">MODELS": len(row["models"]),
            }
        )
    gpus = any(line["DEVICE"] != "cpu" for line in lines)
    left_out = {"~CPUS", ">PSS" if gpus else ">GPU"} if console().width < _WIDE else set() if gpus else {">GPU"}
    columns = [column for column in lines[0] if column not in left_out] if lines else []
    return table(columns, ([line[column] for column in columns] for line in lines))


def show_errors(rows: Iterable[Row]) -> None:
    """A line for each row that has an error."""
    failed = [row for row in rows if row["error"]]
    if failed:
        click.echo()
    for row in failed:
        name = f"{row['name']}:{row['version']}" if row["version"] else row["name"]
        click.echo(f"{name}: {row['error']}")
