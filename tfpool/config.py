"""Configuration as people write it -> frozen :mod:`tfpool.settings`. Read once, at the edge.

The TOML tables are ``[server]``, ``[pool]``, ``[[worker]]``, ``[batching]`` and ``[[model]]``; their keys are the
fields of the settings classes. Every error reads ``FILE:LINE: [table] key: got X, expected Y``. What a command line
says is laid over the document before it is read, so that both pass the same checks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from tfpool.config_toml import Document, Table, flag, increasing, nearest, number, one_of, show, text, texts, whole
from tfpool.errors import InvalidArgument
from tfpool.settings import (
    BatchingSettings,
    ModelSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    WorkerSettings,
    admin_endpoint_for,
    available_cpus,
    check_exposure,
    check_model_name,
    check_version_policy,
    default_endpoint,
    normalize_endpoint,
    parse_size,
    resolve_workers,
    usable_cpus,
)


def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


_TABLES = ("server", "pool", "worker", "batching", "model")
_KEYS = {"server": _names(ServerSettings), "pool": _names(PoolSettings), "batching": _names(BatchingSettings)}
_MAX_BATCH = 1 << 16
_MAX_ROWS = 1 << 24
_HUGE = 1 << 31


def load(path: str) -> Settings:
    """The settings of a TOML file. Raises NotFound for a missing file, InvalidArgument for a bad one."""
    return _settings(Document.load(path), os.path.dirname(path), None)


def parse(text: str, filename: str, cpus: Sequence[int] | None = None) -> Settings:
    """The settings of a TOML text; ``cpus`` stands in for this machine's. Raises InvalidArgument."""
    return _settings(Document.parse(text, filename), os.path.dirname(filename), cpus)


def build(
    models: Mapping[str, str] | None = None,
    *,
    file: str | None = None,
    listen: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    **overrides: object,
) -> Settings:
    """Settings of a command line or an embedded pool: those of ``file``, if any, and over them what is given.

    ``models`` maps names to base paths. ``overrides`` are keys of ``[server]``, ``[pool]`` and ``[batching]`` with
    their TOML values (``admin_listen``, ``workers``, ``memory_budget`` ...); None leaves a key as it was.
    ``workers`` drops the workers written by hand. Raises InvalidArgument and NotFound.
    """
    document = Document({}, {}, "command line") if file is None else Document.load(file)
    if listen:
        overrides["listen"] = list(listen)
    for key, value in overrides.items():
        table = next((table for table, keys in _KEYS.items() if key in keys), None)
        if table is None:
            raise TypeError(f"build() got an unknown setting: {key}")
        if value is not None:
            document.override((table,), key, value)
            if key == "workers":
                document.tables.pop("worker", None)
    for name, base_path in (models or {}).items():
        _add_model(document, name, os.path.abspath(os.path.expanduser(base_path)))
    return _settings(document, os.path.dirname(file or ""), cpus)


def _add_model(document: Document, name: str, base_path: str) -> None:
    written = document.tables.setdefault("model", [])
    if not isinstance(written, list):
        return  # the reader says what is wrong with it
    index = next((i for i, table in enumerate(written) if isinstance(table, dict) and table.get("name") == name), -1)
    if index < 0:
        index = len(written)
        written.append({})
        document.override(("model", index), "name", name)
    document.override(("model", index), "base_path", base_path)


def _settings(document: Document, directory: str, cpus: Sequence[int] | None) -> Settings:
    for key in document.tables:
        if key not in _TABLES:
            document.fail(
                (key,), "", f"got an unknown table, expected one of {', '.join(_TABLES)}{nearest(key, _TABLES)}"
            )
    server = _server(Table(document, ("server",), document.tables.get("server", {}), _KEYS["server"]))
    pool_table = Table(document, ("pool",), document.tables.get("pool", {}), _KEYS["pool"])
    pool = _pool(pool_table)
    by_hand = _workers(document, cpus or available_cpus())
    try:
        workers = resolve_workers(pool, cpus or usable_cpus(), by_hand)
    except InvalidArgument as error:
        pool_table.fail("memory_budget", error.message)
    batching = Table(document, ("batching",), document.tables.get("batching", {}), _KEYS["batching"])
    defaults = _batching(batching, BatchingSettings())
    models = _models(document, directory, defaults, [worker.name for worker in workers])
    return Settings(server, pool, workers, defaults, models)


def _server(table: Table) -> ServerSettings:
    insecure = table.read("insecure", flag, False)

    def endpoint(value: Any) -> str:
        address = normalize_endpoint(text(value))
        check_exposure(address, insecure)
        return address

    def endpoints(value: Any) -> tuple[str, ...]:
        written = texts([value] if isinstance(value, str) else value)
        if not written:
            raise InvalidArgument("got [], expected at least one endpoint")
        return texts([endpoint(item) for item in written])

    listen = table.read("listen", endpoints, ()) or (default_endpoint(),)
    beside = next((address for address in listen if address.startswith("ipc://")), default_endpoint())
    admin_listen = table.read("admin_listen", endpoint, "") or admin_endpoint_for(beside)
    if admin_listen in listen:
        table.fail("admin_listen", f"got {admin_listen!r}, expected an endpoint that is not in listen")
    return ServerSettings(
        listen,
        admin_listen,
        insecure,
        table.read("log_level", one_of("debug", "info", "warning", "error"), "info"),
        table.read("log_format", one_of("text", "json"), "text"),
    )


def _pool(table: Table) -> PoolSettings:
    def workers(value: Any) -> int | None:
        if isinstance(value, str) and value == "auto":
            return None
        try:
            return whole(1, 1024)(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}, or 'auto'") from None

    defaults = PoolSettings()
    return PoolSettings(
        workers=table.read("workers", workers, None),
        threads_per_worker=table.read("threads_per_worker", whole(1, 1024), None),
        memory_budget=table.read("memory_budget", _budget, None),
        shm_budget=table.read("shm_budget", _budget, defaults.shm_budget),
        load_concurrency=table.read("load_concurrency", whole(1, 64), defaults.load_concurrency),
        start_method=table.read("start_method", one_of("fork", "spawn"), defaults.start_method),
    )


def _budget(value: Any) -> int:
    size = parse_size(value)
    if size < 1 << 20:
        raise InvalidArgument(f"got {show(value)}, expected at least 1MiB")
    return size


def _each(document: Document, name: str, known: Collection[str]) -> list[Table]:
    values = document.tables.get(name, [])
    if not isinstance(values, list):
        document.fail((name,), "", f"got {show(values)}, expected [[{name}]]")
    return [Table(document, (name, i), value, known) for i, value in enumerate(values)]


def _workers(document: Document, cpus: Sequence[int]) -> list[WorkerSettings]:
    def device(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"cpu|gpu:\d{1,3}", value, re.ASCII):
            raise InvalidArgument(f"got {show(value)}, expected 'cpu' or 'gpu:N'")
        return value

    def own_cpus(value: Any) -> tuple[int, ...]:
        chosen = increasing(0, _HUGE)(value)
        missing = set(chosen) - set(cpus)
        if missing or not chosen:
            raise InvalidArgument(f"got {show(value)}, expected some of the CPUs {', '.join(map(str, cpus))}")
        return chosen

    workers: list[WorkerSettings] = []
    for table in _each(document, "worker", _names(WorkerSettings)):
        worker = WorkerSettings(
            table.need("name", check_model_name),
            table.read("device", device, "cpu"),
            table.read("cpus", own_cpus, ()),
            table.read("threads", whole(1, 1024), 0),
            table.read("memory", _budget, None),
        )
        if any(other.name == worker.name for other in workers):
            table.fail("name", f"got {worker.name!r} twice, expected names that differ")
        workers.append(worker)
    return workers


def _batching(table: Table, defaults: BatchingSettings) -> BatchingSettings:
    """``defaults`` under what the table says; inherited batch sizes give way to those of the table."""
    allowed = table.read("allowed_batch_sizes", increasing(1, _MAX_BATCH), defaults.allowed_batch_sizes)
    largest = table.read("max_batch_size", whole(1, _MAX_BATCH), defaults.max_batch_size)
    if "max_batch_size" not in table.values:
        largest = allowed[-1] if allowed else largest
    elif "allowed_batch_sizes" not in table.values and allowed:
        allowed = (*(size for size in allowed if size < largest), largest)
    elif allowed and allowed[-1] != largest:
        table.fail("allowed_batch_sizes", f"got {list(allowed)}, expected the last to be max_batch_size ({largest})")
    queue_rows = table.read("max_queue_rows", whole(1, _MAX_ROWS), defaults.max_queue_rows)
    if queue_rows < largest:
        table.fail("max_queue_rows", f"got {queue_rows}, expected at least max_batch_size ({largest})")
    wait = table.read("max_wait_ms", number(0, 60_000), defaults.max_wait_ms)
    return BatchingSettings(largest, wait, allowed, queue_rows, table.read("pad", flag, defaults.pad))


def _models(
    document: Document, directory: str, defaults: BatchingSettings, workers: Sequence[str]
) -> tuple[ModelSettings, ...]:
    models: dict[str, ModelSettings] = {}
    for table in _each(document, "model", _names(ModelSettings)):
        model = _model(table, directory, defaults, workers)
        if model.name in models:
            table.fail("name", f"got {model.name!r} twice, expected names that differ")
        models[model.name] = model
    return tuple(models.values())


def _model(table: Table, directory: str, defaults: BatchingSettings, workers: Sequence[str]) -> ModelSettings:
    def path(value: Any) -> str:
        return os.path.abspath(os.path.join(directory, os.path.expanduser(text(value))))

    def labels(value: Any) -> tuple[tuple[str, int], ...]:
        if not isinstance(value, dict) or not all(value):
            raise InvalidArgument(f"got {show(value)}, expected a table of label = version")
        return tuple((label, whole(1, (1 << 63) - 1)(version)) for label, version in value.items())

    def replicas(value: Any) -> tuple[int, int]:
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or not all(type(n) is int for n in pair) or not 1 <= pair[0] <= pair[1] <= 1024:
            raise InvalidArgument(f"got {show(value)}, expected a whole number from 1, or [least, most]")
        return pair[0], pair[1]

    def pin(value: Any) -> tuple[str, ...]:
        names = texts(value)
        for name in names:
            if name not in workers:
                raise InvalidArgument(f"got {name!r}, expected some of {', '.join(workers)}{nearest(name, workers)}")
        return names

    inner = Table(table.document, (*table.path, "batching"), table.values.get("batching", {}), _KEYS["batching"])
    return replace(
        ModelSettings(table.need("name", check_model_name), table.need("base_path", path)),
        version_policy=table.read("version_policy", check_version_policy, "latest"),
        labels=table.read("labels", labels, ()),
        preload=table.read("preload", flag, True),
        replicas=table.read("replicas", replicas, (1, 1)),
        batching=_batching(inner, defaults),
        slo_ms=table.read("slo_ms", number(0.001, 86_400_000), None),
        priority=table.read("priority", whole(-100, 100), 0),
        weight=table.read("weight", number(0.001, 1e6), 1.0),
        stateful=table.read("stateful", texts, ()),
        pin=table.read("pin", pin, ()),
    )
