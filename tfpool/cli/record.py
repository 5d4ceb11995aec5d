"""The record command: live requests into a warm-up file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from tfpool.cli.options import (
    ModelRef,
    admin_option,
    connect_option,
    json_option,
    model_ref,
    open_client,
    seconds,
)
from tfpool.cli.output import counted, print_json
from tfpool.errors import FailedPrecondition

if TYPE_CHECKING:
    from tfpool.repository.warmup_file import Sample

_MAX_RECORDS = 1000


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]", type=model_ref)
@click.option(
    "--count", type=click.IntRange(1, _MAX_RECORDS), default=100, show_default=True, metavar="N", help="Requests."
)
@click.option(
    "--seconds", "limit", type=seconds, default=60.0, show_default=True, metavar="S", help="Stop after this long."
)
@click.option(
    *("-o", "--output", "path"),
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where to write.  [default: assets.extra/tf_serving_warmup_requests of the version]",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@connect_option
@admin_option
@json_option
def record(
    model: ModelRef,
    count: int,
    limit: float,
    path: str | None,
    force: bool,
    connect: str | None,
    admin: str | None,
    as_json: bool,
) -> None:
    """Record requests, to warm a model up.

    The requests that a version answers from now on are copied; the file is run, request by request, before the
    version serves the next time. TensorFlow Serving reads it too.

    \b
      tfpool record mnist --count 20
      tfpool record mnist:3 -o requests.tfrecord
    """
    if path is not None:
        _check_free(path, force)
    with open_client(connect, admin) as client:
        found = client.record(model.name, count, limit, model.version)
    from tfpool.repository import warmup_file

    target = path or warmup_file.path_in(found["path"])
    samples = [_sample(fields) for fields in found["samples"]]
    if not samples:
        raise FailedPrecondition(f"{model.name}:{found['version']} answered no request in {limit:g} s: nothing written")
    _check_free(target, force)
    written = warmup_file.write(target, model.name, found["version"], samples)
    if as_json:
        print_json({"model": model.name, "version": found["version"], "file": target, "records": written})
    else:
        click.echo(f"wrote {counted(written, 'request')} of {model.name}:{found['version']} to {target}")


def _check_free(path: str, force: bool) -> None:
    if os.path.exists(path) and not force:
        raise FailedPrecondition(f"{path} is there already; write over it with --force")


def _sample(fields: dict[str, Any]) -> Sample:
    from tfpool.repository.warmup_file import Sample
    from tfpool.wire.tensors import take_array

    inputs = {}
    for name, dtype, shape, buffer, payload in fields["inputs"]:
        buffers = [buffer] if payload is None else [buffer, payload]
        inputs[name] = take_array(dtype, tuple(shape), buffers)
    return Sample(fields["signature"], inputs)
