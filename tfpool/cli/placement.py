"""Commands that show and change where models are: plan, migrate."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as await_all
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tfpool.cli.models import watching
from tfpool.cli.options import (
    ModelRef,
    admin_option,
    connect_option,
    json_option,
    model_ref,
    open_client,
    timeout_option,
)
from tfpool.cli.output import console, counted, duration, print_json, show, size, table
from tfpool.errors import TfpoolError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tfpool.client.sync import Client

Row = Mapping[str, Any]
T = TypeVar("T")

OVER = ("DONE", "ABORTED")
_LOOK_SECONDS = 0.5
_BAR_CELLS = 10
_WORDS = {
    "load": "load {what} on {target}",
    "replicate": "replicate {what} on {target}",
    "migrate": "move {what} {source} -> {target}",
    "drop": "drop {what} from {source}",
    "evict": "evict {what} from {source}",
    "recycle": "recycle {source}{target}",
    "inline": "inline {what} on {target}",
    "map": "map {what} on {source}",
}
_BY_ITSELF = "the pool takes these steps by itself, one at a time"


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be moved, and why.  [default]")
@click.option("--apply", "applies", is_flag=True, help="Show it, and do it.")
@click.option("--history", is_flag=True, help="Show what has been moved of late instead.")
@connect_option
@admin_option
@json_option
@timeout_option(600.0)
def plan(
    dry_run: bool,
    applies: bool,
    history: bool,
    connect: str | None,
    admin: str | None,
    as_json: bool,
    timeout: float,
) -> None:
    """Show which models should move, and why.

    GAIN is the waiting that a step saves within the horizon, COST the waiting that it causes. With --apply the exit
    status is 1 if a step was aborted.

    \b
      tfpool plan
      tfpool plan --apply
      tfpool plan --history --json | jq '.[] | select(.phase == "ABORTED")'
    """
    if dry_run + applies + history > 1:
        raise click.UsageError("expected one of --dry-run, --apply and --history")
    with open_client(connect, admin if applies else None) as client:
        found = client.plan()
        if applies:
            _apply(client, found, as_json, timeout)
        elif history:
            _show_history(found["migrations"], as_json)
        else:
            print_json(found) if as_json else _show_plan(found, found["note"] or _BY_ITSELF)


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]", type=model_ref)
@click.option("--to", required=True, metavar="WORKER", help="Where it shall be.")
@click.option("--from", "source", metavar="WORKER", help="Which worker it leaves, where several hold it.")
@connect_option
@admin_option
@json_option
@timeout_option(600.0)
def migrate(
    model: ModelRef,
    to: str,
    source: str | None,
    connect: str | None,
    admin: str | None,
    as_json: bool,
    timeout: float,
) -> None:
    """Move a model to another worker.

    By default the newest version that serves. It is loaded there first, no request fails; returns when it serves
    there and has left the other worker.

    \b
      tfpool migrate mnist --to cpu1
      tfpool migrate mnist:3 --from cpu0 --to cpu1
    """
    with open_client(connect, admin) as client, watching(lambda: _going(migrations(client), model.name)):
        started = time.monotonic()
        row = client.migrate(model.name, to, model.version, source=source, timeout=timeout)
        took = time.monotonic() - started
    if as_json:
        print_json({**row, "seconds": round(took, 3)})
        return
    words = f"load: {duration(row['load_seconds'])}, {size(row['memory_bytes'])}; moved in {duration(took)}"
    click.echo(f"{row['name']}:{row['version']} serves on {', '.join(row['workers'])} ({words})")


def bounds(replicas: Sequence[int | None]) -> str:
    """``1 to 4``, ``2``, ``1 or more``: how many workers may hold a version."""
    least, most = replicas
    return f"{least} or more" if most is None else f"{least} to {most}" if least != most else f"{least}"


# -- what is under way ---------------------------------------------------------------------------------------------


def under_way(client: Client) -> Row:
    """``migrations``, those under way and the last; and ``replacing``, the workers that are to be replaced."""
    found: Row = client.call("progress")
    return found


def migrations(client: Client) -> list[dict[str, Any]]:
    """Those under way and the last, the oldest first."""
    return sorted(under_way(client)["migrations"], key=lambda row: int(row["id"]))


def following(work: Callable[[], T], news: Callable[[], Iterable[str]]) -> T:
    """Do ``work`` in a thread; meanwhile print, time and again, the lines that are ``news``. Raises work's error."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    over = False
    while not over:
        over = bool(await_all([done], _LOOK_SECONDS).done)
        with suppress(TfpoolError):
            for line in news():
                click.echo(line)
    return done.result()


def moves_table(rows: Iterable[Row]) -> Table:
    """Migrations: when they began, how far they are, who wanted them, what and why (or what went wrong)."""
    columns = (">AGO", "PHASE", ">BYTES", ">TOOK", "BY", "~MOVE")
    cells = [
        (
            duration(row["ago"]),
            row["phase"],
            size(row["bytes"]),
            duration(row["seconds"]) if row["phase"] in OVER else None,
            row["by"],
            _with_reason(_words(row), row["error"] or row["reason"]),
        )
        for row in rows
    ]
    return table(columns, cells)


def _going(rows: Iterable[Row], model: str) -> str:
    """What becomes of a model at the moment."""
    lines = [f"{_words(row)}: {row['phase']}" for row in rows if row["model"] == model and row["phase"] not in OVER]
    return ", ".join(lines) or "waiting"


def _words(row: Row) -> str:
    """``move mnist:3 cpu0 -> cpu1``, of a step or a migration."""
    what = f"{row['model']}:{row['version']}"
    return _WORDS[row["kind"]].format(what=what, source=row["source"], target=row["target"])


def _with_reason(words: str, reason: str) -> str:
    return f"{words}\n{reason}" if reason else words


def _show_history(rows: Sequence[Row], as_json: bool) -> None:
    ordered = sorted(rows, key=lambda row: row["id"])
    if as_json:
        print_json(ordered)
    else:
        show(moves_table(ordered)) if ordered else click.echo("nothing has been moved yet")


# -- plans ---------------------------------------------------------------------------------------------------------


def _show_plan(found: Row, head: str) -> None:
    to = console()
    steps = found["steps"]
    if steps:
        click.echo(f"{head}\n")
        show(_steps_table(steps), to=to)
        now, after = (f"{found['cost'][when]:.3g}" for when in ("now", "after"))
        click.echo(f"\nrequests that wait at a time, as far as can be foreseen: {now} -> {after}")
    else:
        click.echo("nothing to do" + (f": {found['note']}" if found["note"] else ""))
    click.echo()
    show(_workers_table(found["workers"], to), to=to)
    going = [row for row in found["migrations"] if row["phase"] not in OVER]
    if going:
        click.echo()
        show(moves_table(going), to=to)
    if found["replacing"]:
        click.echo()
    for one in found["replacing"]:
        click.echo(f"{one['worker']} is to be replaced: {one['stage']}")


def _steps_table(steps: Iterable[Row]) -> Table:
    columns = (">#", ">BYTES", ">LOAD", ">GAIN", ">COST", "~STEP")
    cells = [
        (
            number,
            size(step["bytes"] or None),
            *(duration(step[key] or None) for key in ("seconds", "gain", "cost")),
            _with_reason(_words(step), step["reason"]),
        )
        for number, step in enumerate(steps, 1)
    ]
    return table(columns, cells)


def _workers_table(workers: Iterable[Row], to: Console) -> Table:
    """Memory and load of every worker, now and after the plan."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("WORKER", overflow="fold")
    made.add_column("MEMORY", no_wrap=True)
    made.add_column("LOAD", no_wrap=True)
    for row in workers:
        made.add_row(row["name"], _memory(row, to), _change(row["load"], row["load_after"], to))
    return made


def _memory(row: Row, to: Console) -> Text:
    from rich.text import Text

    held, after, room = row["held"], row["held_after"], row["room"]
    if room:
        return _change(held / room, after / room, to) + Text(f" of {size(room)}")
    return Text(f"{size(held)} -> {size(after)}" if after != held else f"{size(held)}")


def _change(now: float, after: float, to: Console) -> Text:
    """``█████▒▒··· 61 % -> 48 %``: what stays, what goes or comes, and the figures."""
    from rich.text import Text

    stays, moves, free = "#=." if to.options.ascii_only else "█▒·"
    least, most = (min(_BAR_CELLS, round(share * _BAR_CELLS)) for share in sorted((now, after)))
    bar = Text(stays * least)
    bar.append(moves * (most - least), "green" if after < now else "yellow")
    bar.append(free * (_BAR_CELLS - most), "dim")
    figures = f"{now:.0%}" if f"{now:.0%}" == f"{after:.0%}" else f"{now:.0%} -> {after:.0%}"
    return bar.append(" " + figures.replace("%", " %"))


# -- carrying a plan out -------------------------------------------------------------------------------------------


class _Progress:
    """The steps of a plan that is carried out, as lines: when one is seen to begin, and when it is over."""

    def __init__(self, client: Client, before: Iterable[Row]) -> None:
        self._client = client
        self._known = {row["id"] for row in before}
        self._begun: set[int] = set()
        self.told: Counter[str] = Counter()

    def __call__(self) -> Iterator[str]:
        for row in migrations(self._client):
            number, phase = row["id"], row["phase"]
            if number in self._known or row["by"] != "plan":
                continue
            if phase in OVER:
                self._known.add(number)
                self.told[_words(row)] += 1
                yield _outcome(row, phase, row["seconds"])
            elif number not in self._begun:
                self._begun.add(number)
                yield f"{_words(row)}: {phase}"


def _outcome(row: Row, outcome: str, took: float) -> str:
    return f"{_words(row)}: {outcome} after {duration(took)}" + (f": {row['error']}" if row["error"] else "")


def _apply(client: Client, found: Row, as_json: bool, timeout: float) -> None:
    """Carry out a plan. Ends the command with status 1 if a step was aborted."""
    if as_json:
        steps = client.apply(timeout=timeout)["steps"]
        print_json({"steps": steps})
    else:
        _show_plan(found, "this is carried out now, as far as it still pays:")
        steps = _told(client, found, timeout) if found["steps"] else []
    if any(step["outcome"] != "DONE" for step in steps):
        click.get_current_context().exit(1)


def _told(client: Client, found: Row, timeout: float) -> list[dict[str, Any]]:
    click.echo()
    progress = _Progress(client, found["migrations"])
    steps: list[dict[str, Any]] = following(lambda: client.apply(timeout=timeout), progress)["steps"]
    for step in steps:  # those that move nothing, and those that were too quick to be seen
        if progress.told[_words(step)] > 0:
            progress.told[_words(step)] -= 1
        else:
            click.echo(_outcome(step, step["outcome"], step["took"]))
    aborted = sum(step["outcome"] != "DONE" for step in steps)
    click.echo(f"{counted(len(steps) - aborted, 'step')} done" + (f", {aborted} aborted" if aborted else ""))
    return steps
