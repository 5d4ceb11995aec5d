"""The check command: is this configuration good?"""

from __future__ import annotations

from typing import Any

import click

from tfpool.cli.options import json_option
from tfpool.cli.output import print_json, ranges, show, size, table
from tfpool.errors import NotFound, TfpoolError


@click.command()
@click.argument("path", metavar="CONFIG", type=click.Path())
@json_option
@click.pass_context
def check(ctx: click.Context, path: str, as_json: bool) -> None:
    """Validate a configuration.

    Shows what it means on this machine. An error names file, line and key; the exit status is 1. A model without a
    version on disk is a warning: the pool starts without it.
    """
    from tfpool import config

    try:
        settings = config.load(path)
    except TfpoolError as error:
        if as_json:
            print_json({"valid": False, "error": {"code": error.code.name, "message": error.message}})
        click.echo(f"error: {error.code.name}: {error.message}", err=True)
        ctx.exit(1)
    models = [_model(model.name, model.base_path) for model in settings.models]
    if as_json:
        server, workers = settings.server, settings.workers
        print_json(
            {
                "valid": True,
                "file": path,
                "listen": server.listen,
                "admin_listen": server.admin_listen,
                "workers": [{"name": w.name, "device": w.device, "cpus": w.cpus, "memory": w.memory} for w in workers],
                "models": models,
            }
        )
        return
    click.echo(f"{path}: good; {', '.join(settings.server.listen)}, admin {settings.server.admin_listen}")
    rows = ((w.name, w.device, ranges(w.cpus), w.threads, size(w.memory)) for w in settings.workers)
    show(table(("WORKER", "DEVICE", "CPUS", ">THREADS", ">MEMORY"), rows))
    if models:
        cells = ((m["name"], ", ".join(map(str, m["versions"])), m["base_path"]) for m in models)
        show(table(("~MODEL", "~VERSIONS", "~BASE PATH"), cells))
    for model in models:
        if model["error"]:
            click.echo(f"warning: {model['name']}: {model['error']}", err=True)
    if not models:
        click.echo("warning: there is no model in it", err=True)


def _model(name: str, base_path: str) -> dict[str, Any]:
    from tfpool.repository.scan import scan

    row: dict[str, Any] = {"name": name, "base_path": base_path, "versions": [], "error": None}
    try:
        row["versions"] = list(scan(base_path))
    except NotFound as error:
        row["error"] = error.message
    return row
