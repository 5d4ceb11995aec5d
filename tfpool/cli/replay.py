"""The replay command: the demand of a recorded journal, played again to another pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import json_option
from tfpool.cli.output import console, counted, duration, print_json, show, size, table
from tfpool.errors import InvalidArgument, NotFound
from tfpool.settings import PlacementSettings, parse_size

if TYPE_CHECKING:
    from tfpool.placement.recording import Change, Recording
    from tfpool.placement.tally import Outcome
    from tfpool.placement.whatif import Policy

_RECORDED, _ASKED = "as recorded", "what if"
_LONG_BYTES, _LONG_TICKS = 8 << 20, 4000
_TICKS_A_STEP = 200


def _size(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except InvalidArgument as error:
        raise click.BadParameter(error.message) from None


@click.command()
@click.argument("log", metavar="LOG", type=click.Path(dir_okay=False))
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="What if there were N workers?")
@click.option(
    "--memory-budget", "memory", callback=_size, metavar="SIZE", help="What models may fill, on all workers together."
)
@click.option(
    "--policy", type=click.Choice(["auto", "static"]), default="auto", help="Do models move?", show_default=True
)
@click.option(
    "--horizon", type=click.FloatRange(1, 86400), metavar="S", help="Seconds for which the gain of a step counts."
)
@click.option(
    "--hysteresis", type=click.FloatRange(0, 1000), metavar="X", help="A step must gain X times what it costs."
)
@click.option(
    "--max-replicas", "most", type=click.IntRange(1, 1024), metavar="N", help="Replicas of one model, at most."
)
@json_option
def replay(
    log: str,
    workers: int | None,
    memory: int | None,
    policy: str,
    horizon: float | None,
    hysteresis: float | None,
    most: int | None,
    as_json: bool,
) -> None:
    """Play a recorded demand to another pool.

    LOG is the journal of the placement (the setting journal in [placement]). What it says was asked for is played to
    the pool as it was recorded, and to one that is otherwise, both with the planner of this version, in a simulation:
    trust the differences more than the figures.

    \b
      tfpool replay placement.jsonl --workers 3
      tfpool replay placement.jsonl --memory-budget 4GiB --policy static --json
    """
    from tfpool.placement.policies import Auto, Static
    from tfpool.placement.recording import Change

    recording, note = _read(log)
    rules = replace(
        recording.rules,
        horizon=recording.rules.horizon if horizon is None else horizon,
        hysteresis=recording.rules.hysteresis if hysteresis is None else hysteresis,
    )
    change = Change(workers, memory, most)
    found = {_RECORDED: _play(recording, Change(), Auto(recording.rules), _RECORDED)}
    if change != Change() or policy == "static" or rules != recording.rules:
        found[_ASKED] = _play(recording, change, Static() if policy == "static" else Auto(rules), _ASKED)
    if as_json:
        print_json(_document(recording, note, found))
        return
    if note:
        click.echo(f"note: {note}", err=True)
    looks = f"{counted(recording.looks, 'look')} at a pool in {duration(recording.seconds)}"
    click.echo(f"{looks}, {counted(recording.steps, 'step')} taken\n")
    show(_table(found))


def _read(path: str) -> tuple[Recording, str]:
    """The journal, and what is to be said about it: lines that are cut off, as by a crash, are passed over where a
    whole line follows, or nothing. Raises NotFound, or InvalidArgument with the line."""
    from tfpool.placement.journal import CutOff, Reader
    from tfpool.placement.recording import Recording

    recording, reader, cut = Recording(), Reader(), []
    line, error = b"", None
    try:
        total = os.path.getsize(path)
        with open(path, "rb") as file, _progress("reading", total, total > _LONG_BYTES) as advance:
            for line in file:
                advance(len(line))
                try:
                    recording.add(reader.read(line.decode(errors="replace")))
                except CutOff as found:
                    error = found
                    cut.append(reader.lines)
                except InvalidArgument as found:
                    raise error or found from None
                else:
                    error = None
        if error is not None and line.endswith(b"\n"):
            raise error
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as failure:
        raise InvalidArgument(f"{path}: cannot be read: {failure.strerror}") from None
    except InvalidArgument as failure:
        raise InvalidArgument(f"{path}: {failure.message}") from None
    if not recording.looks:
        raise InvalidArgument(f"{path}: got no whole line, expected a journal of the placement")
    numbers = ", ".join(map(str, cut))
    return recording, f"left out, as they were not written to their end: line {numbers}" if cut else ""


def _play(recording: Recording, change: Change, policy: Policy, title: str) -> Outcome:
    from tfpool.placement.whatif import Game

    world = recording.world(change, PlacementSettings().interval_s)
    game = Game(world, policy)
    ticks = round(recording.seconds / world.tick)
    with _progress(title, ticks, ticks > _LONG_TICKS) as advance:
        for number, asked in enumerate(recording.ticks(), 1):
            game.tick(asked)
            if not number % _TICKS_A_STEP:
                advance(_TICKS_A_STEP)
    return game.outcome()


@contextmanager
def _progress(title: str, total: int, long: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for what takes long."""
    target = console(stderr=True)
    if not (long and target.is_terminal):
        yield lambda count: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def _table(found: dict[str, Outcome]) -> Any:
    """One line a figure, one column a pool; a worker that a pool lacks is a dash."""
    workers = dict.fromkeys(name for outcome in found.values() for name in outcome.busy)
    lines: list[tuple[str, Callable[[Outcome], object]]] = [
        ("requests", lambda o: f"{o.asked:,.0f}"),
        ("served", lambda o: f"{o.served_share:.1%}"),
        ("met a model not in memory", lambda o: f"{o.cold_share:.2%}"),
        ("waited for its load, mean", lambda o: duration(o.cold_seconds / o.cold if o.cold else None)),
        ("met an overloaded worker", lambda o: f"{o.crowded_share:.1%}"),
        ("waiting, mean", lambda o: duration(o.mean_wait)),
        ("waiting, 99 %", lambda o: duration(o.p99_wait)),
        ("loads on demand", lambda o: o.loads),
        ("evictions", lambda o: o.evictions),
        ("moves", lambda o: o.moves),
        ("moves reversed", lambda o: o.reversed),
        ("bytes moved", lambda o: size(o.moved_bytes)),
        ("changes of form", lambda o: o.reforms),
    ]
    rows = [(name, *(tell(outcome) for outcome in found.values())) for name, tell in lines]
    rows += [(f"{name} busy", *(_percent(outcome.busy.get(name)) for outcome in found.values())) for name in workers]
    return table(("", *(f">{name.upper()}" for name in found)), rows)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _document(recording: Recording, note: str, found: dict[str, Outcome]) -> dict[str, Any]:
    pools = {name.replace(" ", "_"): _figures(outcome) for name, outcome in found.items()}
    log = {"looks": recording.looks, "seconds": recording.seconds, "steps": recording.steps, "note": note}
    return {"log": log, **pools}


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "requests": outcome.asked,
        "served_share": outcome.served_share,
        "cold_rate": outcome.cold_share,
        "cold_seconds": outcome.cold_seconds,
        "overloaded_share": outcome.crowded_share,
        "mean_wait": outcome.mean_wait,
        "p99_wait": outcome.p99_wait,
        "loads": outcome.loads,
        "evictions": outcome.evictions,
        "moves": outcome.moves,
        "reversed_moves": outcome.reversed,
        "moved_bytes": outcome.moved_bytes,
        "form_changes": outcome.reforms,
        "busy": dict(outcome.busy),
    }
