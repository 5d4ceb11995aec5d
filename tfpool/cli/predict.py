"""The predict command: one request, its inputs from files or JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from base64 import b64decode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from tfpool.cli.options import ModelRef, connect_option, json_option, model_ref, named_path, open_client, timeout_option
from tfpool.cli.output import counted, duration, plain, print_json
from tfpool.errors import InvalidArgument

_SHOWN = 1000


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]", type=model_ref)
@click.option("--version", type=click.IntRange(1), metavar="N", help="The version to ask.  [default: the newest]")
@click.option("--label", metavar="L", help="The label of the version to ask.")
@click.option(
    "--signature", default="", metavar="S", show_default=False, help="The signature to run.  [default: serving_default]"
)
@click.option(
    *("-i", "--input", "files"),
    type=named_path,
    multiple=True,
    metavar="NAME=FILE.npy",
    help="An input, from a file of numpy's.  [repeatable]",
)
@click.option(
    *("-j", "--json-input", "text"),
    metavar="JSON|@FILE",
    help="Inputs by name, or the bare value of the only input; @FILE reads a file, @- standard input.",
)
@click.option(
    "-o", "--output", "directory", type=click.Path(), metavar="DIR", help="Write each output to DIR/NAME.npy."
)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, metavar="P", help="Higher ones go first.")
@connect_option
@timeout_option(None, "30, and the model's own deadline")
@json_option
def predict(
    model: ModelRef,
    version: int | None,
    label: str | None,
    signature: str,
    files: tuple[tuple[str, str], ...],
    text: str | None,
    directory: str | None,
    priority: int,
    connect: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run a model on one request.

    \b
      tfpool predict half_plus_two -j '[1, 2, 5]'
      tfpool predict add -j '{"a": [[1, 2, 3]], "b": [[4]]}' --json
      tfpool predict mnist -i image=batch.npy -o answers
      tfpool predict mnist --label canary --signature classify -j @request.json

    The first dimension of every input is rows. In JSON, bytes are {"b64": "..."}; numbers of outputs that are not
    finite are the strings "NaN", "Infinity" and "-Infinity". Types of number that numpy lacks (bfloat16, float8) are
    written to files as float32, which holds them exactly, and strings as DIR/NAME.json.
    """
    if version is not None and model.version not in (None, version):
        raise click.UsageError(f"got version {model.version} in MODEL and {version} in --version, expected one")
    wanted = version or model.version or 0
    if wanted and label:
        raise click.UsageError("got a version and --label, expected one")
    if bool(files) == (text is not None):
        raise click.UsageError("expected the inputs: either -i NAME=FILE.npy (once an input), or -j JSON")
    inputs = _from_files(files) if files else _from_json(text or "")
    with open_client(connect) as client:
        started = time.monotonic()
        target: Any = {"version": wanted, "label": label or "", "signature": signature}
        reply = client.submit(model.name, inputs, **target, priority=priority, timeout=timeout)
        outputs = reply.result()
        seconds = time.monotonic() - started
    waited, ran, rows = reply.timing or (0, 0, 0)
    paths = {name: _write(directory, name, array) for name, array in outputs.items()} if directory else {}
    if as_json:
        _print_document(model.name, outputs, paths, (seconds, waited / 1e6, ran / 1e6), rows)
        return
    for name, array in outputs.items():
        click.echo(f"{name}: {_dtype(array)} {list(array.shape)}" + (f" -> {paths[name]}" if paths else ""))
        if not paths:
            click.echo(_readable(array))
    parts = f"waited {duration(waited / 1e6)}, ran {duration(ran / 1e6)} in a batch of {counted(rows, 'row')}"
    click.echo(f"answered in {duration(seconds)}: {parts}", err=True)


# -- inputs --------------------------------------------------------------------------------------------------------


def _from_files(files: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    import numpy as np

    inputs: dict[str, Any] = {}
    for name, path in files:
        if name in inputs:
            raise click.UsageError(f"got input {name!r} twice, expected names that differ")
        try:
            with open(path, "rb") as file:
                inputs[name] = np.lib.format.read_array(file, allow_pickle=False)
        except OSError as error:
            raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, EOFError, SyntaxError) as error:
            raise InvalidArgument(f"{path}: got no .npy file of plain values: {error}") from None
    return inputs


def _from_json(text: str) -> Any:
    source = "-j"
    if text.startswith("@"):
        source = text[1:]
        try:
            if source == "-":
                text = sys.stdin.read()
            else:
                with open(source, encoding="utf-8") as file:
                    text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{source}: cannot be read: {error}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{source}: got no JSON: {error}") from None
    binary = '"b64"' in text
    if isinstance(value, dict):
        return {name: _bytes(item, binary) for name, item in value.items()}
    return _bytes(value, binary)


def _bytes(value: Any, binary: bool) -> Any:
    """``value`` with ``{"b64": ...}`` decoded; where there is such, text is bytes too, for numpy mixes them badly."""
    if isinstance(value, list):
        return [_bytes(item, binary) for item in value]
    if isinstance(value, str):
        return value.encode() if binary else value
    if isinstance(value, dict):
        if set(value) != {"b64"} or not isinstance(value["b64"], str):
            raise InvalidArgument(f'got an object with {", ".join(value)[:80]} in an input, expected {{"b64": "..."}}')
        try:
            return b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise InvalidArgument(f"b64: {error}") from None
    return value


# -- outputs -------------------------------------------------------------------------------------------------------


def _write(directory: str, name: str, array: Any) -> str:
    import numpy as np

    path = os.path.join(directory, quote(name, safe=" ()[]:,+=@"))
    try:
        os.makedirs(directory, exist_ok=True)
        if array.dtype == object:
            path += ".json"
            with open(path, "w", encoding="utf-8") as file:
                json.dump(plain(array), file)
        else:
            path += ".npy"
            kept = array.astype(np.float32) if array.dtype.kind == "V" else array
            np.save(path, kept, allow_pickle=False)
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _print_document(
    model: str, outputs: Mapping[str, Any], paths: Mapping[str, str], times: tuple[float, float, float], rows: int
) -> None:
    names = ("seconds", "queue_seconds", "run_seconds")
    document: dict[str, Any] = {"model": model, **{n: round(t, 6) for n, t in zip(names, times, strict=True)}}
    document["batch_rows"] = rows
    document["dtypes"] = {name: _dtype(array) for name, array in outputs.items()}
    document["shapes"] = {name: list(array.shape) for name, array in outputs.items()}
    if paths:
        document["files"] = paths
    else:
        document["outputs"] = outputs
    print_json(document, indent=None)


def _dtype(array: Any) -> str:
    return "string" if array.dtype == object else str(array.dtype.name)


def _readable(array: Any) -> str:
    """The values; a terminal gets the ends of long arrays, a pipe or a file all."""
    import numpy as np

    if array.dtype == object:
        texts = [plain(item) for item in array.ravel()]
        array = np.array([t if isinstance(t, str) else str(t) for t in texts], object).reshape(array.shape)
    threshold = _SHOWN if sys.stdout.isatty() else sys.maxsize
    return np.array2string(np.asarray(array), threshold=threshold, max_line_width=80)
