"""TensorFlow Serving's model config and batching parameters files, read as they are. Pure.

Both are protobuf text. They become the tables of our own configuration, with the lines they were written at, so that
they pass the same checks. ``logging_config`` is accepted and does nothing yet. Of the batching parameters,
``num_batch_threads``, ``thread_pool_name`` and ``enable_large_batch_splitting`` are accepted and change nothing: the
workers are the threads. Protobuf is imported when such a file is read, not before.
"""

from __future__ import annotations

import re
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from tfpool.config_model import MAX_BATCH, MAX_ROWS
from tfpool.config_toml import Document, Path, Table, increasing, nearest, one_of, path_from, show, whole
from tfpool.errors import InvalidArgument, Unimplemented
from tfpool.settings import check_model_name, check_version_policy

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tfpool.protos.model_config_pb2 import ModelServerConfig

_START = re.compile(r"(?:\s|#[^\n]*(?:\n|$))*([A-Za-z_]\w*)\s*[:{<]")
_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|([A-Za-z_]\w*)(?=\s*[:{<])|[{}<>\n]""")
_UNKNOWN = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')

_MAX_BATCH_SIZE = 1000
_MAX_ENQUEUED_BATCHES = 10
_MAX_WAIT_MICROS = 60_000_000


def is_tfs(text: str) -> bool:
    """Whether a text begins as protobuf text does, with a field; TOML begins with a table or a key and ``=``."""
    return _START.match(text) is not None


def parse(text: str, filename: str) -> Document:
    """A file of either kind, told apart by its first field: see :func:`parse_models` and :func:`parse_batching`."""
    from tfpool.protos.batching_config_pb2 import BatchingParameters
    from tfpool.protos.model_config_pb2 import ModelServerConfig

    first = _START.match(text)
    if first is None or first[1] in ModelServerConfig.DESCRIPTOR.fields_by_name:
        return parse_models(text, filename)
    if first[1] in BatchingParameters.DESCRIPTOR.fields_by_name:
        return parse_batching(text, filename)
    known = [*ModelServerConfig.DESCRIPTOR.fields_by_name, *BatchingParameters.DESCRIPTOR.fields_by_name]
    line = text.count("\n", 0, first.start(1)) + 1
    raise _unknown(f"{filename}:{line}", first[1], known)


def parse_models(text: str, filename: str) -> Document:
    """A model config file (ModelServerConfig) as ``[[model]]`` tables.

    Raises InvalidArgument with file, line and field for what it may not say, Unimplemented for a custom config.
    """
    from tfpool.protos.model_config_pb2 import ModelServerConfig

    source = Document({}, _places(text, filename), f"{filename}:1")
    if ("custom_model_config",) in source.places:
        place = source.place(("custom_model_config",))
        raise Unimplemented(f"{place}: custom_model_config: is not supported, expected model_config_list")
    return _models(_parse(text, filename, ModelServerConfig()), source)


def read_models(written: ModelServerConfig, source: str) -> Document:
    """The same of a message, which has no lines: ``source`` is named in errors. A custom config is left out."""
    return _models(written, Document({}, {}, source))


def parse_batching(text: str, filename: str) -> Document:
    """A batching parameters file (BatchingParameters) as a ``[batching]`` table.

    What it leaves out is as in TensorFlow Serving, but ``max_batch_size`` is the last of ``allowed_batch_sizes``
    rather than an error. Raises InvalidArgument with file, line and field, Unimplemented for
    ``pad_variable_length_inputs``.
    """
    from tfpool.protos.batching_config_pb2 import BatchingParameters

    source = Document({}, _places(text, filename), f"{filename}:1")
    written = _parse(text, filename, BatchingParameters())
    table = _table(source, (), written)
    if written.pad_variable_length_inputs:
        place = source.place(("pad_variable_length_inputs",))
        raise Unimplemented(f"{place}: pad_variable_length_inputs: got true, expected false: nothing is padded within")
    allowed = table.read("allowed_batch_sizes", increasing(1, MAX_BATCH), ())
    size = table.read("max_batch_size", whole(1, MAX_BATCH), allowed[-1] if allowed else _MAX_BATCH_SIZE)
    largest = table.read("max_execution_batch_size", whole(1, size), size)
    if allowed and allowed[-1] != largest:
        key = "max_batch_size" if largest == size else "max_execution_batch_size"
        table.fail("allowed_batch_sizes", f"got {list(allowed)}, expected the last to be {key} ({largest})")
    batches = table.read("max_enqueued_batches", whole(1, MAX_ROWS), _MAX_ENQUEUED_BATCHES)
    values = {
        "max_batch_size": largest,
        "max_wait_ms": table.read("batch_timeout_micros", whole(0, _MAX_WAIT_MICROS), 0) / 1000,
        "allowed_batch_sizes": list(allowed),
        "max_queue_rows": min(batches * size, MAX_ROWS),
    }
    return Document({"batching": values}, {}, f"{filename}:1")


def _models(written: ModelServerConfig, source: Document) -> Document:
    models: list[dict[str, Any]] = []
    places: dict[Path, str] = {}
    for i, config in enumerate(written.model_config_list.config):
        path = ("model_config_list", 0, "config", i)
        models.append(_model(_table(source, path, config)))
        places[("model", i)] = source.place(path)
        places[("model", i, "name")] = source.place((*path, "name"))
    return Document({"model": models}, places, source.source)


def _model(table: Table) -> dict[str, Any]:
    table.read("model_platform", one_of("tensorflow"), "")
    table.read("model_type", _model_type, None)
    return {
        "name": table.need("name", check_model_name),
        "base_path": table.need("base_path", path_from(None)),
        "version_policy": table.read("model_version_policy", _version_policy, "latest"),
        "labels": _labels(table),
    }


def _model_type(value: Any) -> None:
    if value != 1:
        raise InvalidArgument("got OTHER, expected TENSORFLOW")


def _version_policy(policy: Any) -> Any:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return "all"
    if choice == "specific":
        versions = list(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise InvalidArgument(f"got specific versions {show(versions)}, expected some, from 1")
        return versions
    return check_version_policy(f"latest:{max(1, policy.latest.num_versions)}")


def _labels(table: Table) -> dict[str, int]:
    labels: dict[str, int] = {}
    for i, label in enumerate(table.values.get("version_labels", ())):
        path = (*table.path, "version_labels", i)
        if not label.key or label.key in labels:
            again = " twice" if label.key else ""
            table.document.fail(path, "key", f"got {show(label.key)}{again}, expected labels that differ")
        if label.value < 1:
            table.document.fail(path, "value", f"got {label.value} for {show(label.key)}, expected a version from 1")
        labels[label.key] = label.value
    return labels


def _parse(text: str, filename: str, message: Any) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        place = f"{filename}:{error.GetLine() or 1}"
        problem = re.sub(r"^\d+:\d+ : ", "", str(error))
        unknown = _UNKNOWN.search(problem)
        if unknown:
            known = message.DESCRIPTOR.file.pool.FindMessageTypeByName(unknown[1]).fields_by_name
            raise _unknown(place, unknown[2], list(known)) from None
        raise InvalidArgument(f"{place}: not protobuf text of a {message.DESCRIPTOR.name}: {problem}") from None


def _unknown(place: str, field: str, known: list[str]) -> InvalidArgument:
    return InvalidArgument(
        f"{place}: {field}: got an unknown field, expected one of {', '.join(known)}{nearest(field, known)}"
    )


def _table(source: Document, path: Path, message: Message) -> Table:
    """The fields that ``message`` sets, a wrapped number by its value, a repeated one as a list."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        wrapped = field.message_type is not None and field.message_type.full_name.startswith("google.protobuf.")
        values[field.name] = value.value if wrapped else list(value) if isinstance(value, MutableSequence) else value
    return Table(source, path, values, values)


def _places(text: str, filename: str) -> dict[Path, str]:
    """Where the fields of a protobuf text begin; each is numbered among those of its name, the first also bare."""
    places: dict[Path, str] = {}
    stack: list[tuple[Path, dict[str, int]]] = [((), {})]
    line, name, named = 1, "", False

    def note() -> Path:
        outer, counts = stack[-1]
        counts[name] = counts.get(name, -1) + 1
        places.setdefault((*outer, name), f"{filename}:{line}")
        places[(*outer, name, counts[name])] = f"{filename}:{line}"
        return (*outer, name, counts[name])

    path: Path = ()
    for found in _TOKEN.finditer(text):
        token = found[0]
        if found[1]:
            name, named = found[1], True
            path = note()
        elif token in "{<":
            path = path if named else note()  # the next of a list of messages
            stack.append((path, {}))
            named = False
        elif token in "}>" and len(stack) > 1:
            path = stack.pop()[0]
            name, named = str(path[-2]), False
        elif token == "\n":
            line += 1
    return places
