"""The status command: the pool as a whole, or one model in detail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import click

from tfpool.cli.options import ModelRef, connect_option, json_option, model_ref, open_client
from tfpool.cli.output import console, counted, duration, micros, print_json, rate, show, size, table
from tfpool.cli.placement import bounds
from tfpool.errors import NotFound

_QUANTILES = ("p50", "p90", "p99", "p999", "max")


@click.command()
@click.argument("model", metavar="[MODEL[:VERSION]]", type=model_ref, required=False)
@connect_option
@json_option
def status(model: ModelRef | None, connect: str | None, as_json: bool) -> None:
    """Show the pool, or one model in detail.

    \b
      tfpool status
      tfpool status mnist
      tfpool status mnist --json | jq '.[0].signatures'
    """
    with open_client(connect) as client:
        if model is None:
            stats = client.stats()
            rows = [] if as_json else client.models()
        else:
            rows = client.status(model.name)
    if model is None:
        print_json(stats) if as_json else _show_pool(stats, rows)
        return
    if model.version is not None:
        have = ", ".join(str(row["version"]) for row in rows)
        rows = [row for row in rows if row["version"] == model.version]
        if not rows:
            raise NotFound(f"model {model.name!r} has no version {model.version} loaded; it has {have}")
    print_json(rows) if as_json else _show_model(rows)


def _show_pool(stats: Mapping[str, Any], models: list[dict[str, Any]]) -> None:
    shm, workers = stats["shm"], stats["workers"]
    states = Counter(row["state"] for row in models)
    ready = sum(worker["state"] == "READY" for worker in workers)
    used, budget = size(shm["leased"]), size(shm["budget"])
    quarantined = f", {size(shm['quarantined'])} in quarantine" if shm["quarantined"] else ""
    lines = {
        "up": duration(stats["uptime_seconds"]),
        "models": ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none",
        "workers": f"{ready} of {len(workers)} READY",
        "waiting": counted(stats["waiting_rows"], "row"),
        "messages": f"{stats['messages']:,} ({stats['malformed']:,} malformed)",
        "shared memory": f"{used} of {budget} in use{quarantined}; {counted(shm['client_arenas'], 'arena')} of clients",
        "broker": f"{duration(stats['broker_cpu_seconds'])} of CPU",
    }
    for name, value in lines.items():
        click.echo(f"{name:14} {value}")
    meters = stats["models"]
    if meters:
        columns = ("~MODEL", ">REQUESTS", ">ERRORS", ">ROWS", ">BATCH", ">QUEUE P50", ">QUEUE P99", ">RUN P50")
        click.echo()
        show(table(columns, (_meter_line(name, meter) for name, meter in meters.items())))


def _meter_line(name: str, meter: Mapping[str, Any]) -> list[object]:
    queue, run = meter["queue_us"], meter["run_us"]
    line: list[object] = [name, f"{meter['requests']:,}", f"{sum(meter['errors'].values()):,}", f"{meter['rows']:,}"]
    line += [rate(meter["batch_rows"]["mean"]) if meter["batches"] else None]
    return [*line, micros(queue["p50"]), micros(queue["p99"]), micros(run["p50"])]


def _show_model(rows: list[dict[str, Any]]) -> None:
    to = console()
    for row in rows:
        click.echo("\n".join(_version_lines(row)))
        if row["signatures"]:
            click.echo()
            show(table(("~SIGNATURE", "", "~TENSOR", "DTYPE", "SHAPE", "~BATCHED"), _tensor_lines(row)), to=to)
        if any(curve["points"] for curve in row["curves"]):
            click.echo()
            show(table(("~SIGNATURE", "WORKER", ">BEST BATCH", "~ROWS: RUN"), _curve_lines(row)), to=to)
        for name, why in row["skipped_signatures"].items():
            click.echo(f"signature {name} is not served: {why}")
        click.echo()
    click.echo(f"batching: {_batching(rows[0]['batching'])}")
    meter = rows[0]["meters"]
    errors = ", ".join(f"{count:,} {code}" for code, count in meter["errors"].items()) or "no errors"
    counts = f"{meter['requests']:,} requests, {meter['rows']:,} rows in {meter['batches']:,} batches"
    click.echo(f"since the start: {counts}, {errors}")
    if meter["batches"]:
        click.echo()
        lines: list[list[object]] = [
            [name, micros(meter[key]["mean"]), *(micros(meter[key][q]) for q in _QUANTILES)]
            for name, key in (("in the queue", "queue_us"), ("running", "run_us"))
        ]
        batch = meter["batch_rows"]
        lines.append(["rows in a batch", rate(batch["mean"]), *(f"{batch[q]:.0f}" for q in _QUANTILES)])
        show(table(("", ">MEAN", *(f">{'p99.9' if q == 'p999' else q}".upper() for q in _QUANTILES)), lines), to=to)


def _version_lines(row: Mapping[str, Any]) -> Iterator[str]:
    where = f" on {', '.join(row['workers'])}" if row["workers"] else ""
    labels = f", labelled {', '.join(row['labels'])}" if row["labels"] else ""
    name = f"{row['name']}:{row['version']}" if row["version"] else row["name"]
    yield f"{name} is {row['state']}{where}{labels}"
    if row["load_seconds"] is not None:
        yield f"  loaded in {duration(row['load_seconds'])}, {size(row['memory_bytes'])} of memory"
    yield from _form_lines(row)
    if row.get("rate"):
        yield f"  {_demand(row)}"
        yield f"  replicas: {len(row['workers'])}, may be {bounds(row['replicas'])}"
    if row.get("row_seconds"):
        yield f"  a row takes {', '.join(f'{duration(s)} on {name}' for name, s in row['row_seconds'].items())}"
    if row.get("crashes"):
        alone = ", and has one to itself" if row["isolated"] else ""
        yield f"  crashed {counted(row['crashes'], 'worker')} of late{alone}"
    yield f"  from {row['base_path']}"
    if row["error"]:
        yield f"  error: {row['error']}"


def _form_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """In which forms a version is held, and what the store has of it."""
    by_form: dict[str, list[str]] = {}
    for worker, form in row.get("forms", {}).items():
        by_form.setdefault(form, []).append(worker)
    if by_form:
        yield "  " + "; ".join(f"{form} on {', '.join(sorted(on))}" for form, on in sorted(by_form.items()))
    store = row.get("store", {"state": "off"})
    if store["state"] == "compiled":
        gain = f"; inlined it runs {store['gain']:.2f} times the rows" if store["gain"] > 1 else ""
        yield f"  compiled; mapped replicas share {size(store['shared_bytes'])}{gain}"
    elif store["state"] == "refused":
        yield f"  served from its SavedModel: {store['reason']}"
    elif store["state"] == "compiling":
        yield f"  being compiled: {store['reason']}"
    elif store["state"] == "failed":
        yield f"  could not be compiled: {store['reason']}"
    elif store["state"] == "waiting":
        yield f"  not compiled yet{': ' + store['reason'] if store['reason'] else ''}"


def _demand(row: Mapping[str, Any]) -> str:
    asked, idle = row["rate"], row["idle_seconds"]
    if not any(asked.values()):
        return f"idle for {duration(idle)}" if idle else "not asked for yet"
    now, slow = (f"{rate(asked[f'asks{of}'])} req/s, {rate(asked[f'rows{of}'])} rows/s" for of in ("", "_slow"))
    return f"asked for: {now}; slower average: {slow}"


def _tensor_lines(row: Mapping[str, Any]) -> Iterator[list[object]]:
    """A line for each tensor; the first of a signature also says its name and whether it is batched."""
    from tfpool.types import format_shape

    for signature in row["signatures"]:
        batched = "yes" if signature["batched"] else f"no: {signature['reason']}"
        name = signature["name"] + (" (stateful)" if signature["stateful"] else "")
        for side, tensors in (("in", signature["inputs"]), ("out", signature["outputs"])):
            for tensor in tensors:
                yield [
                    name or " ",
                    side,
                    tensor["name"],
                    tensor["dtype"],
                    format_shape(tensor["shape"]),
                    batched or " ",
                ]
                name = batched = ""


def _curve_lines(row: Mapping[str, Any]) -> Iterator[list[object]]:
    """How long runs take, by rows; a line for each signature and worker."""
    for curve in row["curves"]:
        if curve["points"]:
            points = ", ".join(f"{rows:g}: {duration(ms / 1000)}" for rows, ms in curve["points"])
            yield [curve["signature"], curve["worker"], curve["best_rows"], points]


def _batching(settings: Mapping[str, Any]) -> str:
    words = [f"at most {settings['max_batch_size']} rows"]
    if settings["allowed_batch_sizes"]:
        sizes = ", ".join(map(str, settings["allowed_batch_sizes"]))
        words.append(f"in sizes of {sizes}" + (", padded" if settings["pad"] else ""))
    wait = settings["max_wait_ms"]
    words.append(f"waiting at most {duration(wait / 1000)} while workers are busy" if wait else "no waiting")
    words.append(f"a queue of {settings['max_queue_rows']:,} rows")
    return "; ".join(words)
