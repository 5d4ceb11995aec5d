"""Commands that change a running pool: load, unload, drain, restart, shutdown."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.models import states, watching
from tfpool.cli.options import (
    ModelRef,
    admin_option,
    connect_option,
    json_option,
    listens,
    model_ref,
    open_client,
    timeout_option,
)
from tfpool.cli.output import counted, duration, print_json, size
from tfpool.cli.placement import following, under_way

if TYPE_CHECKING:
    from tfpool.client.sync import Client

_STOP_SECONDS = 12.0


def _changes(command: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = connect_option(admin_option(json_option(command)))
    return found


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]", type=model_ref)
@_changes
@timeout_option(600.0)
def load(model: ModelRef, connect: str | None, admin: str | None, as_json: bool, timeout: float) -> None:
    """Load a model, or one version of it.

    By default the newest on disk; returns when it serves. A version that serves already stays as it is; one that
    failed is tried again.

    \b
      tfpool load mnist
      tfpool load mnist:3
    """
    with open_client(connect, admin) as client, watching(lambda: states(client, model.name)):
        row = client.load(model.name, model.version, timeout=timeout)
    if as_json:
        print_json(row)
        return
    took, memory = duration(row["load_seconds"]), size(row["memory_bytes"])
    click.echo(f"{row['name']}:{row['version']} serves on {', '.join(row['workers'])} (load: {took}, {memory})")


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]", type=model_ref)
@_changes
def unload(model: ModelRef, connect: str | None, admin: str | None, as_json: bool) -> None:
    """Unload a model, or one version of it.

    Requests that wait for it are answered first, new ones are refused. It stays unloaded until it is loaded again:
    new versions on disk, or a restart of the pool with a state file, do not change that."""
    with open_client(connect, admin) as client:
        rows = client.unload(model.name, model.version)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']}:{row['version']} is unloaded")


@click.command()
@click.argument("worker")
@_changes
@timeout_option(600.0)
def drain(worker: str, connect: str | None, admin: str | None, as_json: bool, timeout: float) -> None:
    """Empty a worker: others take over.

    Returns when the others serve its models and it holds nothing."""
    with open_client(connect, admin) as client:
        row = client.drain(worker, timeout=timeout)
    print_json(row) if as_json else click.echo(f"{worker} holds no model any more")


@click.command()
@click.argument("worker", required=False)
@click.option("--all", "every", is_flag=True, help="Replace all workers, one after the other.")
@_changes
@timeout_option(600.0)
def restart(
    worker: str | None, every: bool, connect: str | None, admin: str | None, as_json: bool, timeout: float
) -> None:
    """Replace the process of a worker.

    Other workers take over meanwhile what they have room for; requests for the rest wait. Returns when it serves its
    models again.

    \b
      tfpool restart cpu0
      tfpool restart --all
    """
    if (worker is None) != every:
        raise click.UsageError("expected WORKER or --all" + (", got both" if every else ""))
    with open_client(connect, admin) as client:

        def replace() -> list[dict[str, Any]]:
            return client.restart_all(timeout=timeout) if worker is None else [client.restart(worker, timeout=timeout)]

        rows = replace() if as_json else following(replace, _Replacements(client))
    if as_json:
        print_json(rows if every else rows[0])
        return
    for row in rows:
        click.echo(f"{row['name']} is back with pid {row['pid']} and {counted(len(row['models']), 'model')}")


class _Replacements:
    """What becomes of the workers that are replaced, as lines."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stages: dict[str, str] = {}

    def __call__(self) -> Iterator[str]:
        for row in under_way(self._client)["replacing"]:
            name, stage, models = row["worker"], row["stage"], counted(row["moving"], "model")
            if self._stages.get(name) == stage:
                continue
            self._stages[name] = stage
            if stage == "restarting":
                yield f"{name}: restarting"
            elif stage == "moving away" and row["moving"]:
                yield f"{name}: moving {models} away"
            elif stage == "coming back" and row["moving"]:
                yield f"{name}: moving {models} back"


@click.command()
@_changes
def shutdown(connect: str | None, admin: str | None, as_json: bool) -> None:
    """Have the pool finish what waits, and end.

    Returns when it has ended, or after 12 seconds."""
    started = time.monotonic()
    with open_client(connect, admin) as client:
        client.shutdown()
        endpoint = client.endpoint
    stopped = False
    while not stopped and time.monotonic() < started + _STOP_SECONDS:
        time.sleep(0.05)
        stopped = _ended(endpoint)
    seconds = time.monotonic() - started
    if as_json:
        print_json({"stopping": True, "stopped": stopped, "seconds": round(seconds, 3)})
    else:
        click.echo(f"the pool has stopped after {duration(seconds)}" if stopped else "the pool is still stopping")


def _ended(endpoint: str) -> bool:
    """A pool removes the lock beside an ipc endpoint last of all."""
    if endpoint.startswith("ipc://"):
        return not os.path.exists(endpoint.removeprefix("ipc://") + ".lock")
    return not listens(endpoint)
