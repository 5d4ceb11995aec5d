"""The ``[batching]`` and ``[[model]]`` tables of a configuration, from a file or sent to a pool that runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from tfpool.config_toml import (
    Document,
    Table,
    flag,
    increasing,
    nearest,
    number,
    one_of,
    path_from,
    show,
    texts,
    whole,
)
from tfpool.errors import InvalidArgument
from tfpool.settings import (
    BatchingSettings,
    Form,
    Loading,
    ModelSettings,
    Split,
    Transition,
    check_model_name,
    check_shadow,
    check_split,
    check_version_policy,
)

MAX_BATCH = 1 << 16
MAX_ROWS = 1 << 24


def names(kind: type[Any]) -> tuple[str, ...]:
    """The keys of a table: the fields of its settings."""
    return tuple(field.name for field in fields(kind))


def each(document: Document, name: str, known: Collection[str]) -> list[Table]:
    """The tables ``[[name]]``. Raises InvalidArgument."""
    values = document.tables.get(name, [])
    if not isinstance(values, list):
        document.fail((name,), "", f"got {show(values)}, expected [[{name}]]")
    return [Table(document, (name, i), value, known) for i, value in enumerate(values)]


def read_batching(document: Document, defaults: BatchingSettings, path: tuple[str | int, ...] = ()) -> BatchingSettings:
    """``defaults`` under the ``batching`` table at ``path``; inherited batch sizes give way to those of the table."""
    values: Any = document.tables
    for step in path:
        values = values[step]
    table = Table(document, (*path, "batching"), values.get("batching", {}), names(BatchingSettings))
    allowed = table.read("allowed_batch_sizes", increasing(1, MAX_BATCH), defaults.allowed_batch_sizes)
    largest = table.read("max_batch_size", whole(1, MAX_BATCH), defaults.max_batch_size)
    if "max_batch_size" not in table.values:
        largest = allowed[-1] if allowed else largest
    elif "allowed_batch_sizes" not in table.values and allowed:
        allowed = (*(size for size in allowed if size < largest), largest)
    elif allowed and allowed[-1] != largest:
        table.fail("allowed_batch_sizes", f"got {list(allowed)}, expected the last to be max_batch_size ({largest})")
    queue_rows = table.read("max_queue_rows", whole(1, MAX_ROWS), defaults.max_queue_rows)
    if queue_rows < largest:
        table.fail("max_queue_rows", f"got {queue_rows}, expected at least max_batch_size ({largest})")
    return BatchingSettings(
        largest,
        table.read("max_wait_ms", number(0, 60_000), defaults.max_wait_ms),
        allowed,
        queue_rows,
        table.read("max_queue_ms", number(0, 86_400_000), defaults.max_queue_ms),
        table.read("pad", flag, defaults.pad),
        table.read("fair_clients", flag, defaults.fair_clients),
    )


def read_models(
    document: Document, directory: str | None, defaults: BatchingSettings, workers: Sequence[str] | None
) -> tuple[ModelSettings, ...]:
    """The models of a document; relative base paths start at ``directory``, or are refused where it is None.

    ``workers`` are the names that ``pin`` may use; None leaves them unchecked. Raises InvalidArgument.
    """
    models: dict[str, ModelSettings] = {}
    for table in each(document, "model", names(ModelSettings)):
        model = _model(table, directory, defaults, workers)
        if model.name in models:
            table.fail("name", f"got {model.name!r} twice, expected names that differ")
        models[model.name] = model
    return tuple(models.values())


def _model(
    table: Table, directory: str | None, defaults: BatchingSettings, workers: Sequence[str] | None
) -> ModelSettings:
    def pin(value: Any) -> tuple[str, ...]:
        pinned = texts(value)
        for name in pinned:
            if workers is not None and name not in workers:
                raise InvalidArgument(f"got {name!r}, expected some of {', '.join(workers)}{nearest(name, workers)}")
        return pinned

    return ModelSettings(
        name=table.need("name", check_model_name),
        base_path=table.need("base_path", path_from(directory)),
        version_policy=table.read("version_policy", check_version_policy, "latest"),
        labels=table.read("labels", _labels, ()),
        shadow=table.read("shadow", check_shadow, None),
        preload=table.read("preload", _preload, Loading.PRELOAD),
        transition=Transition(table.read("transition", one_of(*(t.value for t in Transition)), "availability")),
        replicas=table.read("replicas", _replicas, (1, None)),
        batching=read_batching(table.document, defaults, table.path),
        slo_ms=table.read("slo_ms", number(0.001, 86_400_000), None),
        priority=table.read("priority", whole(-100, 100), 0),
        weight=table.read("weight", number(0.001, 1e6), 1.0),
        stateful=table.read("stateful", texts, ()),
        pin=table.read("pin", pin, ()),
        form=table.read("form", _form, None),
    )


def _labels(value: Any) -> tuple[tuple[str, Split], ...]:
    if not isinstance(value, dict) or not all(isinstance(label, str) and label for label in value):
        raise InvalidArgument(f"got {show(value)}, expected a table of label = version")
    return tuple((label, check_split(versions)) for label, versions in value.items())


def _preload(value: Any) -> Loading:
    if type(value) is bool:
        return Loading.PRELOAD if value else Loading.LAZY
    if value != Loading.EXPLICIT.value:
        raise InvalidArgument(f"got {show(value)}, expected true, false or 'explicit'")
    return Loading.EXPLICIT


def _form(value: Any) -> Form | None:
    chosen = one_of("auto", *(form.value for form in Form))(value)
    return None if chosen == "auto" else Form(chosen)


def _replicas(value: Any) -> tuple[int, int]:
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(n) is int for n in pair) or not 0 <= pair[0] <= pair[1] <= 1024 or not pair[1]:
        raise InvalidArgument(f"got {show(value)}, expected a whole number from 1, or [least, most]")
    return pair[0], pair[1]
