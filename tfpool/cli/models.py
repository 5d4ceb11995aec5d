"""Commands that change which models there are, and how requests reach their versions."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import admin_option, connect_option, json_option, named_path, open_client, timeout_option
from tfpool.cli.output import counted, duration, print_json, size
from tfpool.errors import TfpoolError

if TYPE_CHECKING:
    from tfpool.client.sync import Client

_LOOK_SECONDS = 0.3
_CHANGE_SECONDS = 600.0


def _changes(command: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = connect_option(admin_option(json_option(command)))
    return found


def _labelling(text: str) -> tuple[str, str]:
    label, equals, versions = text.partition("=")
    if not (label and equals and versions):
        raise click.BadParameter(f"got {text!r}, expected LABEL=VERSION, or LABEL=VERSION:WEIGHT,VERSION:WEIGHT")
    return label, versions


@click.command()
@click.argument("model", metavar="NAME=DIR", type=named_path)
@click.option("--lazy", is_flag=True, help="Load it at its first request.")
@_changes
@timeout_option(_CHANGE_SECONDS)
def add(
    model: tuple[str, str], lazy: bool, connect: str | None, admin: str | None, as_json: bool, timeout: float
) -> None:
    """Serve another model.

    Returns when it serves. One that cannot be loaded is not added.

    \b
      tfpool add mnist=models/mnist
    """
    name, path = model
    table: dict[str, Any] = {"name": name, "base_path": os.path.abspath(os.path.expanduser(path))}
    if lazy:
        table["preload"] = False
    with open_client(connect, admin) as client, watching(lambda: _progress(client)):
        changed = client.add(table, timeout=timeout)
    print_json(changed["models"]) if as_json else _say_models(changed["models"])


@click.command()
@click.argument("name")
@_changes
@timeout_option(_CHANGE_SECONDS)
def remove(name: str, connect: str | None, admin: str | None, as_json: bool, timeout: float) -> None:
    """Serve a model no more.

    Requests that wait for it are answered first. Returns when its memory has been given back; its files stay.
    """
    with open_client(connect, admin) as client:
        changed = client.remove(name, timeout=timeout)
    print_json(changed) if as_json else click.echo(f"{name} is removed")


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--batching-parameters-file", "batching", type=click.Path(), metavar="FILE", help="TensorFlow Serving's batching."
)
@_changes
@timeout_option(_CHANGE_SECONDS)
def reload(
    file: str, batching: str | None, connect: str | None, admin: str | None, as_json: bool, timeout: float
) -> None:
    """Serve what a configuration says.

    FILE is a tfpool configuration, or TensorFlow Serving's model config file. Everything that is new is loaded
    first; then models, labels and settings change at once. If anything cannot be loaded, nothing changes, and the
    reason is told. Only models are taken from FILE: server, pool and workers stay as they are.
    """
    from tfpool import config

    tables = config.model_tables(file, batching)
    with open_client(connect, admin) as client, watching(lambda: _progress(client)):
        changed = client.reload(tables, timeout=timeout)
    if as_json:
        print_json(changed)
        return
    words = [f"{counted(len(changed[key]), 'model')} {key}" for key in ("added", "removed") if changed[key]]
    names = {row["name"] for row in changed["models"]}
    click.echo(f"reloaded: {counted(len(names), 'model')}" + "".join(f", {word}" for word in words))


@click.command()
@click.argument("model")
@click.argument("labels", nargs=-1, type=_labelling, metavar="LABEL=VERSION...")
@click.option("--remove", "gone", multiple=True, metavar="LABEL", help="Take a label away.  [repeatable]")
@_changes
def label(
    model: str,
    labels: tuple[tuple[str, str], ...],
    gone: tuple[str, ...],
    connect: str | None,
    admin: str | None,
    as_json: bool,
) -> None:
    """Point labels of a model to versions.

    All labels named change at once. Weights split a label's requests over versions. Without LABEL=VERSION the
    labels are shown.

    \b
      tfpool label mnist stable=3 canary=4
      tfpool label mnist prod=3:90,4:10
      tfpool label mnist --remove canary
    """
    wanted: dict[str, str | None] = {**dict(labels), **dict.fromkeys(gone)}
    with open_client(connect, admin) as client:
        found = client.label(model, wanted)["labels"] if wanted else client.status(model)[0]["label_splits"]
    if as_json:
        print_json({"name": model, "labels": found})
        return
    for name, versions in found.items():
        click.echo(f"{name} = {versions}")
    if not found:
        click.echo(f"{model} has no label")


@click.command()
@click.argument("model")
@click.argument("rule", metavar="VERSION:PERCENT", required=False)
@click.option("--off", is_flag=True, help="End it.")
@_changes
def shadow(model: str, rule: str | None, off: bool, connect: str | None, admin: str | None, as_json: bool) -> None:
    """Compare a version with those that answer.

    PERCENT of a model's requests are also sent to VERSION; its answers are compared, counted and dropped. Without
    an argument, shows what the comparison has found.

    \b
      tfpool shadow mnist 4:10
      tfpool shadow mnist
      tfpool shadow mnist --off
    """
    if rule is not None and off:
        raise click.UsageError("expected VERSION:PERCENT or --off, got both")
    with open_client(connect, admin) as client:
        looks = rule is None and not off
        found = client.status(model)[0]["shadow"] if looks else client.shadow(model, rule)["shadow"]
    if as_json:
        print_json({"name": model, "shadow": found})
    else:
        click.echo(f"{model} {shadow_line(found)}" if found else f"{model} has no shadow")


def shadow_line(found: dict[str, Any]) -> str:
    """What a shadow has shown so far, in one line."""
    words = f"sends {found['share']:.6g} of its requests to version {found['version']} too: "
    words += f"{found['compared']:,} compared, greatest difference {found['max_abs_difference']:.3g}"
    if found["argmax_rows"]:
        words += f", argmax differs in {found['argmax_disagreements']:,} of {found['argmax_rows']:,} rows"
    counts = (f"{found[key]:,} {key}" for key in ("mismatched", "failed", "skipped") if found[key])
    return ", ".join([words, *counts])


def states(client: Client, model: str) -> str:
    """What the versions of a model are at the moment."""
    return ", ".join(f"{model}:{row['version']} is {row['state']}" for row in client.status(model) if row["version"])


def _progress(client: Client) -> str:
    found = client.call("progress")["reload"]
    return f"{found['ready']} of {found['versions']} versions are ready" if found else "looking at the files"


@contextmanager
def watching(describe: Callable[[], str]) -> Iterator[None]:
    """Show, on a terminal, how far it is: what ``describe`` gives, time and again."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    over = threading.Event()
    with Console(stderr=True).status("waiting") as line:

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                with suppress(TfpoolError):
                    line.update(describe())

        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        try:
            yield
        finally:
            over.set()
            looker.join()


def _say_models(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        name, where = f"{row['name']}:{row['version']}", ", ".join(row["workers"])
        if row["load_seconds"] is None:
            click.echo(f"{name} is there, and {row['state']}")
        else:
            took, memory = duration(row["load_seconds"]), size(row["memory_bytes"])
            click.echo(f"{name} serves on {where} (load: {took}, {memory})")
