"""The store commands: what is compiled, whether it is sound, what may go, and compiling ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import F, json_option
from tfpool.cli.output import console, counted, duration, print_json, show, table
from tfpool.cpus import resolve_workers, usable_cpus
from tfpool.errors import InvalidArgument, NotFound, TfpoolError
from tfpool.settings import STORE_OFF, STORE_VARIABLE, Form, PoolSettings, StoreSettings, default_store, parse_size

if TYPE_CHECKING:
    from tfpool.store.shelf import Shelf

COMPILER = (sys.executable, "-m", "tfpool.compiler")
_MIB = 1 << 20
_SHORT_KEY = 12
_GOOD = ("compiled", "known")


@click.group()
def store() -> None:
    """Tend the store of compiled models.

    A pool compiles models by itself, and keeps here what came of it: see [store] in the configuration. All users have
    stores of their own.
    """


def _directory_option(command: F) -> F:
    return click.option(
        "--directory",
        metavar="DIR",
        help=f"The store.  [env: {STORE_VARIABLE}; default: tfpool/store in your cache]",
    )(command)


def _size(context: click.Context, option: click.Parameter, text: str) -> int:
    try:
        return parse_size(text)
    except InvalidArgument as error:
        raise click.BadParameter(error.message) from None


def _open(directory: str | None) -> Shelf:
    """Raises InvalidArgument where there is to be no store, and as :meth:`Shelf.check`."""
    from tfpool.store.shelf import Shelf

    place = directory or default_store()
    if place == STORE_OFF:
        raise InvalidArgument(f"got a store that is off ({STORE_VARIABLE}={STORE_OFF}), expected one; say --directory")
    shelf = Shelf(os.path.expanduser(place))
    shelf.check()
    return shelf


# -- ls --------------------------------------------------------------------------------------------------------------


@store.command("ls")
@_directory_option
@json_option
def list_entries(directory: str | None, as_json: bool) -> None:
    """List the entries, the one used last first.

    Nothing is read but manifests. An entry is compiled; or refused, with the reason why its model is served from the
    SavedModel; or stale: made for another TensorFlow, processor or version of the compiler; or corrupt. What is stale
    or corrupt is not used.
    """
    shelf = _open(directory)
    keys = shelf.keys()
    rows = sorted((_row(shelf, key) for key in keys), key=lambda row: -row["used"])
    if as_json:
        print_json({"directory": shelf.directory, "bytes": sum(row["bytes"] for row in rows), "entries": rows})
        return
    if rows:
        forms = (f">{form.value.upper()} ms" for form in Form)
        columns = ("KEY", "~MODEL", ">MiB", ">SHARED MiB", *forms, ">GAIN", "TF", "~STATE", ">USED")
        show(table(columns, map(_cells, rows)))
    total = _mib(sum(row["bytes"] for row in rows))
    click.echo(f"{_entries(len(rows))}, {total} MiB in {shelf.directory}")


def _row(shelf: Shelf, key: str) -> dict[str, Any]:
    from tfpool.store.machine import Toolchain, toolchain

    row: dict[str, Any] = {"key": key, "state": "compiled", "reason": "", "source": None, "tensorflow": None}
    row |= {"bytes": shelf.size(key), "shared_bytes": None, "load_seconds": {}, "gain": None, "difference": None}
    row |= {"created": None, "used": shelf.used(key)}
    try:
        entry = shelf.read(key)
        shelf.look(entry)
    except TfpoolError as error:
        return row | {"state": "corrupt", "reason": error.message}
    found = entry.manifest
    row |= {"source": found.source, "tensorflow": found.tensorflow, "created": found.created}
    others = _others(Toolchain(found.tensorflow, found.cpu, found.compiler), toolchain())
    if others:
        row |= {"state": "stale", "reason": f"made with another {others}"}
    elif found.refusal:
        row |= {"state": "refused", "reason": found.refusal}
    if found.refusal:
        return row
    seconds = {form.value: cost.load_seconds for form, cost in found.costs.items()}
    return row | {
        "shared_bytes": found.shared,
        "load_seconds": seconds,
        "gain": found.gain,
        "difference": found.difference,
    }


def _others(made: tuple[object, ...], here: tuple[object, ...]) -> str:
    names = ("TensorFlow", "processor", "compiler")
    return " and ".join(name for name, a, b in zip(names, made, here, strict=True) if a != b)


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    loads = (row["load_seconds"].get(form.value) for form in Form)
    return (
        row["key"][:_SHORT_KEY],
        row["source"] and os.fsencode(row["source"]).decode(errors="replace"),
        _mib(row["bytes"]),
        _mib(row["shared_bytes"]),
        *(None if seconds is None else f"{seconds * 1e3:.0f}" for seconds in loads),
        None if row["gain"] is None else f"{row['gain']:.2f}",
        row["tensorflow"],
        f"{row['state']}: {row['reason']}" if row["reason"] else row["state"],
        f"{duration(max(0.0, time.time() - row['used']))} ago" if row["used"] else None,
    )


def _mib(count: int | None) -> str | None:
    return None if count is None else f"{count / _MIB:.1f}"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


# -- verify ----------------------------------------------------------------------------------------------------------


@store.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--remove", is_flag=True, help="Remove what is corrupt.")
@_directory_option
@json_option
@click.pass_context
def verify(ctx: click.Context, keys: tuple[str, ...], remove: bool, directory: str | None, as_json: bool) -> None:
    """Check the checksums of all entries.

    With KEYs, or their beginnings, only of those. All files are read. The exit status is 1 where one is corrupt.
    """
    shelf = _open(directory)
    chosen = _chosen(shelf, keys)
    corrupt: dict[str, str] = {}
    with _progress(sum(map(shelf.size, chosen))) as advance:
        for key in chosen:
            nbytes = shelf.size(key)
            try:
                shelf.verify(shelf.read(key))
            except NotFound as error:
                if shelf.has(key):  # else it went meanwhile
                    corrupt[key] = error.message
            except TfpoolError as error:
                corrupt[key] = error.message
            advance(nbytes)
    removed = [key for key in corrupt if remove and shelf.remove(key)]
    if as_json:
        found = [{"key": key, "reason": reason, "removed": key in removed} for key, reason in corrupt.items()]
        print_json({"directory": shelf.directory, "checked": len(chosen), "corrupt": found})
    else:
        for key, reason in corrupt.items():
            click.echo(f"{key}: corrupt{', removed' if key in removed else ''}: {reason}")
        click.echo(f"{_entries(len(chosen))} checked, {len(corrupt)} corrupt")
    ctx.exit(1 if corrupt else 0)


def _chosen(shelf: Shelf, keys: tuple[str, ...]) -> list[str]:
    """Raises NotFound for what begins no key, InvalidArgument for what begins several."""
    there = shelf.keys()
    found: dict[str, None] = {}
    for begins in keys:
        matching = [key for key in there if key.startswith(begins)]
        if not matching:
            raise NotFound(f"no entry {begins!r} in {shelf.directory}")
        if len(matching) > 1:
            raise InvalidArgument(f"got {begins!r}, which begins {_entries(len(matching))}; expected more of the key")
        found[matching[0]] = None
    return list(found) if keys else there


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task("checking", total=total)
        yield lambda count: bar.advance(task, count)


# -- gc --------------------------------------------------------------------------------------------------------------


@store.command()
@click.option(
    "--budget",
    callback=_size,
    default=str(StoreSettings("").budget),
    show_default="20GiB",
    metavar="SIZE",
    help="What may stay.",
)
@click.option("--all", "everything", is_flag=True, help="Remove all entries.")
@_directory_option
@json_option
def gc(budget: int, everything: bool, directory: str | None, as_json: bool) -> None:
    """Remove what was used longest ago, and what was left behind.

    Models that are in use go on being served. A pool that runs keeps to its own budget, [store] budget.
    """
    from tfpool.store.sweep import sweep

    shelf = _open(directory)
    swept = sweep(shelf, -1 if everything else budget)
    if as_json:
        document = {"removed": swept.entries, "bytes": swept.nbytes, "drafts": swept.drafts, "kept_bytes": swept.kept}
        print_json({"directory": shelf.directory, **document})
        return
    for key in swept.entries:
        click.echo(key)
    gone = f"{_entries(len(swept.entries))} ({_mib(swept.nbytes)} MiB) and {counted(swept.drafts, 'draft')}"
    click.echo(f"removed {gone}; {_mib(swept.kept)} MiB left in {shelf.directory}")


# -- build -----------------------------------------------------------------------------------------------------------


@store.command()
@click.argument("models", metavar="MODEL_DIR...", nargs=-1, required=True, type=click.Path())
@click.option("--force", is_flag=True, help="Also what has been compiled, or refused, before.")
@_directory_option
@click.pass_context
def build(ctx: click.Context, models: tuple[str, ...], force: bool, directory: str | None) -> None:
    """Compile models ahead of their first load.

    MODEL_DIR is a SavedModel, or holds versions of one (1, 2, ...), which are all compiled, one after the other. That
    takes TensorFlow. The exit status is 1 where one cannot be compiled; it is then served from its SavedModel.

    \b
      tfpool store build models/*
    """
    from tfpool.repository.scan import scan

    shelf = _open(directory)
    shelf.prepare()
    paths = [path for model in models for path in scan(os.path.abspath(model)).values()]
    good = True
    for path in paths:
        result = _compile(path, shelf, force)
        outcome, reason, took = result["outcome"], result.get("reason"), duration(result.get("seconds"))
        known = f"{outcome}: {reason}" if reason else f"{outcome} in {took} ({str(result.get('key'))[:_SHORT_KEY]})"
        click.echo(f"{path}: {known}")
        good &= outcome in _GOOD
    ctx.exit(0 if good else 1)


def _compile(path: str, shelf: Shelf, force: bool) -> dict[str, Any]:
    """What a compiler in a process of its own says at last; its stages go to stderr."""
    threads = resolve_workers(PoolSettings(), usable_cpus())[0].threads  # as in a pool that is told nothing
    command = [*COMPILER, "--store", shelf.directory, "--threads", str(threads)]
    command += [*(["--force"] if force else []), path]
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        try:
            for line in child.stdout or ():
                told = _told(line)
                if "stage" in told:
                    click.echo(f"{path}: {told['stage']}", err=True)
                last = told if "outcome" in told else last
        except BaseException:
            child.kill()
            raise
        status = child.wait()
        if not last:
            errors.seek(0)
            words = errors.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
            last = {"outcome": "failed", "reason": f"the compiler ended with status {status}: {said[:500]}"}
    return last


def _told(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
