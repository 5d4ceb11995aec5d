"""The peers: what there is, their environments, and which batches suit them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from bench import systems
from bench.commands.run import Bar
from bench.errors import BenchError, PeerAbsent
from bench.inprocess import make_models
from bench.peers import environments
from bench.peers.peer import Batching, Peer
from bench.peers.registry import PEERS
from bench.peers.serving import serving
from bench.points import Point
from bench.scenario import WINDOW_SECONDS, Settings
from bench.workspace import workspace

ALL = "all"
_AS_GOOD = 0.9  # of the best rate: then the latency of one request at a time decides
_WIDTH = 130
_SAID_COLUMNS = 80
_MODELS = sorted({model for peer in PEERS.values() for model in peer.tuned})
_NAMES = click.argument("names", metavar="NAME...", nargs=-1, required=True, type=click.Choice([*PEERS, ALL]))


@dataclass(frozen=True)
class Trial:
    """What a peer did with many requests in flight, and with one."""

    many: Point
    one: Point


@click.group("peers")
def command() -> None:
    """Other servers of the same models, each in an environment of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every block is left in order


@command.command("list")
def show() -> None:
    """The peers that there are, and which are installed."""
    table = Table("name", "versions", "asked in", "on disk", "", box=SIMPLE_HEAD)
    for peer in PEERS.values():
        try:
            environments.find(peer)
            state = "installed"
        except PeerAbsent as error:
            state = str(error).partition("\n")[0].partition(" (")[0]
        size = environments.nbytes(peer)
        table.add_row(
            peer.name,
            escape(", ".join([*peer.requirements, *peer.bare_requirements])),
            peer.speaks,
            decimal(size) if size else "",
            escape(state),
        )
    _console().print(table)


@command.command()
@_NAMES
def install(names: Sequence[str]) -> None:
    """Install peers, anew where they are; "all" is every one. Exit status 1: some could not be."""
    _each(names, "installed", lambda peer, say: environments.install(peer, say))


@command.command()
@_NAMES
def remove(names: Sequence[str]) -> None:
    """Take the environments of peers away; "all" is every one."""
    _each(names, "removed", environments.remove)


@command.command()
@click.argument("name", type=click.Choice([*PEERS]))
@click.argument("model", type=click.Choice(_MODELS))
@click.option("--in-flight", type=click.IntRange(2, 4096), default=64, show_default=True, help="Beside one at a time.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That run TensorFlow.")
@click.option(
    "--seconds", type=click.FloatRange(1, 60), default=WINDOW_SECONDS, show_default=True, help="A load's length."
)
def tune(name: str, model: str, in_flight: int, processes: int, seconds: float) -> None:
    """Try a peer with batches of different sizes and waits on a model; the best is what PEER.tuned should say."""
    peer, bar = PEERS[name], Bar(Console(stderr=True, highlight=False))
    tried: dict[Batching, Trial] = {}
    failed: dict[Batching, str] = {}
    with workspace() as directory:
        settings = Settings(make_models(directory, [model]), directory, bar, seconds)
        with bar.of(f"{name}, {model}", len(peer.batchings)):
            for batching in peer.batchings:
                try:
                    tried[batching] = _trial(settings, peer, model, batching, in_flight, processes)
                except BenchError as error:
                    failed[batching] = str(error)
                bar.step()
    _print_trials(peer.batchings, in_flight, tried, failed)
    if not tried:
        raise click.ClickException(f"{name} answered with none of them; the last: {next(reversed(failed.values()))}")


def best(tried: Mapping[Batching, Trial]) -> Batching | None:
    """The one that answers the most with many in flight; of those about as good, the quickest with one."""
    most = max((trial.many.rate for trial in tried.values()), default=0.0)
    good = [batching for batching, trial in tried.items() if trial.many.rate >= _AS_GOOD * most]
    return min(good, key=lambda batching: tried[batching].one.at_us(0.5), default=None)


def _trial(settings: Settings, peer: Peer, model: str, batching: Batching, in_flight: int, processes: int) -> Trial:
    rows, answers = systems.samples(settings, model)
    task = replace(systems.task(settings, peer, model, processes), batching=batching)
    settings.progress.say(f"starting with {batching.max_rows} rows, {batching.wait_ms:g} ms")
    with serving(peer, task, rows, answers) as served:
        system = systems.theirs(settings, served)
        return Trial(system.closed(settings, in_flight), system.closed(settings, 1))


def _print_trials(
    batchings: Sequence[Batching], in_flight: int, tried: Mapping[Batching, Trial], failed: Mapping[Batching, str]
) -> None:
    heads = [text for level in (in_flight, 1) for text in (f"req/s at {level}", f"p50 at {level}, ms")]
    table, chosen = Table("rows at most", "wait, ms", *heads, "", box=SIMPLE_HEAD), best(tried)
    for batching in batchings:
        trial = tried.get(batching)
        told = (*_texts(trial.many), *_texts(trial.one)) if trial else ("",) * len(heads)
        note = "best" if batching == chosen else failed.get(batching, "").partition("\n")[0]
        table.add_row(str(batching.max_rows), f"{batching.wait_ms:g}", *told, escape(note))
    _console().print(table)


def _texts(point: Point) -> tuple[str, str]:
    return f"{point.rate:,.0f}", f"{point.at_us(0.5) / 1e3:.2f}"


def _each(names: Sequence[str], done: str, act: Callable[[Peer, environments.Say], object]) -> None:
    """One after the other, whatever becomes of them; exits with 1 where one failed."""
    chosen = list(PEERS) if ALL in names else list(dict.fromkeys(names))
    console, failed = Console(stderr=True, highlight=False), dict[str, str]()
    for name in chosen:
        with console.status(name) as status:

            def say(text: str, name: str = name, status: Status = status) -> None:
                status.update(escape(f"{name}: {text[:_SAID_COLUMNS]}"))

            try:
                act(PEERS[name], say)
                console.print(f"{name}: {done}")
            except PeerAbsent as error:
                failed[name] = str(error)
                console.print(f"{name}: failed", style="red")
    for name, why in failed.items():
        console.print(f"\n{name} was not {done}: {why}", style="red", markup=False)
    sys.exit(1 if failed else 0)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console
