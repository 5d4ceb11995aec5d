"""The serve command: starts a pool in this process and its children."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import named_path
from tfpool.cli.output import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from tfpool.settings import Settings


def _workers(text: str) -> int | str:
    if text != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII):
        raise click.BadParameter(f"got {text!r}, expected a whole number from 1, or 'auto'")
    return text if text == "auto" else int(text)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"got {text!r}, expected KEY=JSON: {error}") from None


@click.command()
@click.option("-c", "--config", "path", type=click.Path(), metavar="CONFIG.toml", help="A configuration; options win.")
@click.option(
    "--model",
    "models",
    type=named_path,
    metavar="NAME=DIR",
    multiple=True,
    help="A model: DIR holds version directories (1, 2, ...), or is itself a SavedModel.  [repeatable]",
)
@click.option(
    "--models-root",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Every directory in DIR that holds a model, under its own name, also those that come later.",
)
@click.option(
    "--model-config-file", type=click.Path(), metavar="FILE", help="Models of a TensorFlow Serving model config file."
)
@click.option(
    "--batching-parameters-file",
    type=click.Path(),
    metavar="FILE",
    help="TensorFlow Serving's, in place of [batching].",
)
@click.option(
    "--state-file", type=click.Path(), metavar="FILE", help="Keeps what is changed at run time over restarts."
)
@click.option("--listen", multiple=True, metavar="ENDPOINT", help="ipc://PATH or tcp://HOST:PORT.  [repeatable]")
@click.option("--admin-listen", metavar="ENDPOINT", help="Where admin commands are taken.")
@click.option("--http", metavar="HOST:PORT", help="REST of TensorFlow Serving, Open Inference Protocol, /console.")
@click.option("--grpc", metavar="HOST:PORT", help="gRPC of both.")
@click.option("--gateways", type=click.IntRange(1), metavar="N", help="Processes for them.  [default: by the CPUs]")
@click.option("--tokens", type=click.Path(), metavar="FILE", help="Who may call them: lines of ROLE TOKEN.")
@click.option("--tls-cert", type=click.Path(), metavar="FILE", help="They speak TLS, with this certificate,")
@click.option("--tls-key", type=click.Path(), metavar="FILE", help="and its key;")
@click.option("--tls-client-ca", type=click.Path(), metavar="FILE", help="to clients that this authority knows.")
@click.option("--workers", type=_workers, metavar="N|auto", help="Worker processes.  [default: auto: by the CPUs]")
@click.option("--threads-per-worker", type=click.IntRange(1), metavar="N", help="[default: a worker's CPUs]")
@click.option("--memory-budget", metavar="SIZE", help="Memory of all workers together, such as 8GiB.")
@click.option("--shm-budget", metavar="SIZE", help="Shared memory for batches.  [default: 128MiB]")
@click.option(
    "--store", metavar="DIR|off", help="Compiled models.  [env: TFPOOL_STORE; default: tfpool/store in your cache]"
)
@click.option("--curve-key", type=click.Path(), metavar="FILE", help="The server's key, of 'tfpool keygen': for tcp.")
@click.option("--authorized-keys", type=click.Path(), metavar="FILE", help="The clients that get in over tcp.")
@click.option("--insecure", is_flag=True, help="Allow tcp endpoints that other hosts can reach, without keys.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="[default: info; on a terminal warning]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@click.option("--owner-fd", type=int, hidden=True)
@click.option("--set", "settings", type=_setting, multiple=True, hidden=True)
@click.pass_context
def serve(
    ctx: click.Context,
    path: str | None,
    models: tuple[tuple[str, str], ...],
    models_root: str | None,
    model_config_file: str | None,
    batching_parameters_file: str | None,
    state_file: str | None,
    listen: tuple[str, ...],
    admin_listen: str | None,
    http: str | None,
    grpc: str | None,
    gateways: int | None,
    tokens: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    workers: int | str | None,
    threads_per_worker: int | None,
    memory_budget: str | None,
    shm_budget: str | None,
    store: str | None,
    curve_key: str | None,
    authorized_keys: str | None,
    insecure: bool,
    log_level: str | None,
    log_format: str | None,
    owner_fd: int | None,
    settings: tuple[tuple[str, Any], ...],
) -> None:
    """Start a pool, and serve models.

    \b
      tfpool serve --model mnist=models/mnist --model half=models/half_plus_two
      tfpool serve --models-root models --http 127.0.0.1:8501 --grpc 127.0.0.1:8500
      tfpool serve --models-root models --workers 4 --memory-budget 8GiB
      tfpool serve -c pool.toml --log-format json
      tfpool serve --model-config-file models.config --batching-parameters-file batching.config

    It ends at SIGTERM, Ctrl-C or 'tfpool shutdown'. Without --listen it is this user's own pool, which every
    command finds by itself. A model that cannot be loaded keeps no other from serving. Once every model serves or
    has failed, one line on stdout says so; the log goes to stderr. A pool that is told to end finishes what waits,
    within 8 seconds; told twice, it ends at once.
    """
    if not (path or models or models_root or model_config_file or state_file):
        raise click.UsageError(
            "expected models: --model NAME=DIR, --models-root DIR, --config CONFIG.toml or --model-config-file FILE"
        )
    chosen = _different(models)
    watched = sys.stderr.isatty() and owner_fd is None
    if watched and log_level is None and path is None:
        log_level = "warning"
    # numpy's linear algebra would keep threads of its own in a process that forks and computes nothing
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tfpool import config
    from tfpool.supervisor import main as supervisor

    overrides: dict[str, Any] = {
        "models_root": models_root,
        "state_file": state_file,
        "admin_listen": admin_listen,
        "http": http,
        "grpc": grpc,
        "processes": gateways,
        "tokens": tokens,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "workers": workers,
        "threads_per_worker": threads_per_worker,
        "memory_budget": memory_budget,
        "shm_budget": shm_budget,
        "curve_key": curve_key,
        "authorized_keys": authorized_keys,
        "insecure": True if insecure else None,
        "log_level": log_level,
        "log_format": log_format,
        "store": store,
        **dict(settings),
    }
    made = config.build(
        chosen,
        file=path,
        model_config_file=model_config_file,
        batching_file=batching_parameters_file,
        listen=listen,
        **overrides,
    )
    status = supervisor.serve(made, _Starting(made, watched), owner_fd)
    if owner_fd is not None:
        _tidy(made)
    ctx.exit(status)


def _different(named: tuple[tuple[str, str], ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, directory in named:
        if name in given:
            raise click.UsageError(f"got --model {name} twice, expected names that differ")
        given[name] = directory
    return given


def _tidy(settings: Settings) -> None:
    """Remove the private directories of an embedded pool, whose owner may have died."""
    for endpoint in settings.server.listen:
        if endpoint.startswith("ipc://"):
            with suppress(OSError):  # not empty: they are not that private
                os.rmdir(os.path.dirname(endpoint.removeprefix("ipc://")))


class _Starting:
    """Shows how far start-up is. Threads are out: the supervisor forks."""

    def __init__(self, settings: Settings, watched: bool) -> None:
        self._endpoint = settings.server.listen[0]
        self._root = settings.server.models_root
        self._watched = watched
        self._bar: Progress | None = None
        self._ready = False

    def __call__(self, state: dict[str, Any]) -> None:
        if self._ready:
            return
        settled = state["available"] + state["failed"] + state["unloaded"]
        up = state["workers_ready"] >= state["workers"] and state["gateways_ready"] >= state["gateways"]
        self._ready = bool(state["settled"]) and up
        if self._watched:
            self._draw(settled, state)
        if self._ready:
            notes = [f"{state['unloaded']} not loaded"] if state["unloaded"] else []
            notes += [f"{state['failed']} failed: see tfpool models"] if state["failed"] else []
            note = f" ({', '.join(notes)})" if notes else ""
            if self._root and not state["models"]:
                note = f" (no model in {self._root} yet)"
            serving, workers = counted(state["available"], "model"), counted(state["workers"], "worker")
            ports = "".join(f", {kind} {state[kind]}" for kind in ("http", "grpc") if state[kind])
            with suppress(OSError):  # a pool outlives whoever read its stdout
                click.echo(f"serving {serving} on {self._endpoint}{ports} with {workers}{note}")

    def _draw(self, settled: int, state: dict[str, Any]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from tfpool.cli.output import console

        if self._bar is None:
            columns = (TextColumn("loading models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console(stderr=True), auto_refresh=False, transient=True)
            self._bar.add_task("loading", total=None)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], total=state["models"], completed=settled)
        if self._ready:
            self._bar.stop()
            return
        self._bar.refresh()
        self._bar.console.file.write("\r")  # so that a line of the log covers the bar, rather than following it
        self._bar.console.file.flush()
