"""The ``tfpool`` command: exit status 0 good, 1 failed, 2 bad usage."""

from __future__ import annotations

import click

from tfpool import __version__
from tfpool.cli.admin import drain, load, restart, shutdown, unload
from tfpool.cli.check import check
from tfpool.cli.keygen import keygen
from tfpool.cli.models import add, label, reload, remove, shadow
from tfpool.cli.output import duration
from tfpool.cli.placement import migrate, plan
from tfpool.cli.predict import predict
from tfpool.cli.reading import models, queues, wait, workers
from tfpool.cli.record import record
from tfpool.cli.replay import replay
from tfpool.cli.serve import serve
from tfpool.cli.status import status
from tfpool.cli.store import store
from tfpool.cli.top import top
from tfpool.errors import TfpoolError


class Commands(click.Group):
    """The group of all commands, listed as they were added; a TfpoolError ends in one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TfpoolError as error:
            later = "" if error.retry_after is None else f" (retry after {duration(error.retry_after)})"
            click.echo(f"error: {error.code.name}: {error.message}{later}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tfpool")
def main() -> None:
    """Serve many TensorFlow SavedModels from a pool of worker processes.

    \b
    Start a pool, ask it something, and look at it:
      tfpool serve --model mnist=models/mnist --workers 2
      tfpool predict mnist -j '[[0.0, 0.5, 1.0]]'
      tfpool models
      tfpool top

    Commands reach the pool at --connect (environment: TFPOOL_ENDPOINT; default: this user's own pool). Those that
    change it use its admin endpoint: --admin (TFPOOL_ADMIN; default: the one beside an ipc endpoint).
    """


for command in (
    *(serve, check, wait, predict),
    *(models, status, workers, queues, top),
    *(load, unload, add, remove, reload, label, shadow, record),
    *(plan, replay, migrate, drain, restart, shutdown),
    *(store, keygen),
):
    main.add_command(command)
