"""Configuration as people write it -> frozen :mod:`tfpool.settings`. Read once, at the edge.

The TOML tables are ``[server]``, ``[pool]``, ``[[worker]]``, ``[batching]``, ``[placement]``, ``[store]``,
``[gateway]`` and ``[[model]]``; their keys are the fields of the settings classes. TensorFlow Serving's files become
the same tables.
Every error reads ``FILE:LINE: [table] key: got X, expected Y``. What a command line says is laid over the document
before it is read, so that both pass the same checks; so does what is sent to a pool that runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfpool import config_gateway, config_model, config_tfs
from tfpool.addresses import (
    admin_endpoint_for,
    check_exposure,
    check_gateway,
    default_endpoint,
    normalize_address,
    normalize_endpoint,
)
from tfpool.config_model import each, names, read_batching
from tfpool.config_toml import (
    Document,
    Table,
    budget,
    flag,
    increasing,
    nearest,
    number,
    one_of,
    path_from,
    read_text,
    show,
    text,
    texts,
    whole,
)
from tfpool.cpus import available_cpus, resolve_workers, usable_cpus
from tfpool.errors import InvalidArgument
from tfpool.settings import (
    STORE_OFF,
    BatchingSettings,
    ModelSettings,
    PlacementPolicy,
    PlacementSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WorkerSettings,
    check_model_name,
    default_store,
    parse_size,
)

_TABLES = ("server", "pool", "worker", "batching", "placement", "store", "gateway", "model")
_KEYS = {
    "server": names(ServerSettings),
    "pool": names(PoolSettings),
    "batching": names(BatchingSettings),
    "placement": names(PlacementSettings),
    "gateway": config_gateway.KEYS,
}
_PATHS = ("curve_key", "authorized_keys", "models_root", "allowed_roots", "state_file", "journal")
_HUGE = 1 << 31
LEAST_MESSAGE = 64 << 20  # clients put small requests together up to this


def load(path: str) -> Settings:
    """The settings of a file: TOML, or one of TensorFlow Serving's.

    Raises NotFound for a missing file, InvalidArgument for a bad one, Unimplemented for what only TensorFlow Serving
    does.
    """
    return _settings(_read(path), os.path.dirname(path), None)


def parse(text: str, filename: str, cpus: Sequence[int] | None = None) -> Settings:
    """The settings of a TOML text; ``cpus`` stands in for this machine's. Raises InvalidArgument."""
    return _settings(Document.parse(text, filename), os.path.dirname(filename), cpus)


def build(
    models: Mapping[str, str] | None = None,
    *,
    file: str | None = None,
    model_config_file: str | None = None,
    batching_file: str | None = None,
    listen: Sequence[str] = (),
    store: str | None = None,
    cpus: Sequence[int] | None = None,
    **overrides: object,
) -> Settings:
    """Settings of a command line or an embedded pool: those of ``file``, if any, and over them what is given.

    ``model_config_file`` and ``batching_file`` are TensorFlow Serving's: the one adds models, the other is the
    ``[batching]`` table. ``store`` is the directory of compiled models, or ``off``. ``models`` maps names to base
    paths. ``overrides`` are keys of ``[server]``, ``[pool]``, ``[batching]``, ``[placement]`` and ``[gateway]`` with
    their TOML values (``admin_listen``, ``workers``, ``memory_budget`` ...); None leaves a key as it was. Paths start
    at the working directory. ``workers`` drops the workers written by hand. Raises as :func:`load` does.
    """
    document = Document({}, {}, "command line") if file is None else _read(file)
    if model_config_file is not None:
        _lay_over(document, config_tfs.parse_models(read_text(model_config_file), model_config_file))
    if batching_file is not None:
        _lay_over(document, config_tfs.parse_batching(read_text(batching_file), batching_file))
    if listen:
        overrides["listen"] = list(listen)
    if store is not None:
        document.override(("store",), "enabled", store != STORE_OFF)
        if store != STORE_OFF:
            document.override(("store",), "directory", _from_here(store))
    for key, value in overrides.items():
        table = next((table for table, keys in _KEYS.items() if key in keys), None)
        if table is None:
            raise TypeError(f"build() got an unknown setting: {key}")
        if value is not None:
            document.override((table,), key, _from_here(value) if key in (*_PATHS, *config_gateway.PATHS) else value)
            if key == "workers":
                document.tables.pop("worker", None)
    for name, base_path in (models or {}).items():
        _add_model(document, name, _from_here(base_path))
    return _settings(document, os.path.dirname(file or ""), cpus)


def model_tables(path: str, batching_file: str | None = None) -> dict[str, Any]:
    """The models of a file, checked, as :func:`read_models` takes them: ``{"model": [...], "batching": {...}}``.

    Base paths are absolute. ``batching_file`` is TensorFlow Serving's, and is the ``batching`` table. What the file
    says of server, pool and workers is checked and left out; the names in ``pin`` are the pool's to check. Raises as
    :func:`load` does.
    """
    document = _read(path)
    if "model" not in document.tables:
        raise InvalidArgument(f"{path}: got no models, expected [[model]] tables or a model_config_list")
    if batching_file is not None:
        _lay_over(document, config_tfs.parse_batching(read_text(batching_file), batching_file))
    settings = _settings(document, os.path.dirname(path), None, any_pin=True)
    written = document.tables["model"]
    models = [table | {"base_path": model.base_path} for table, model in zip(written, settings.models, strict=True)]
    return {"model": models, "batching": document.tables.get("batching", {})}


def read_models(
    tables: Mapping[str, Any], source: str, defaults: BatchingSettings, workers: Sequence[str]
) -> tuple[ModelSettings, ...]:
    """The settings of ``{"model": [{...}, ...], "batching": {...}}``, the batching over ``defaults``.

    Base paths must be absolute. ``workers`` are the names ``pin`` may use, ``source`` is named in errors. Raises
    InvalidArgument.
    """
    document = Document(dict(tables), {}, source)
    _check_tables(document, ("batching", "model"))
    for i, table in enumerate(each(document, "model", names(ModelSettings))):
        document.places[("model", i)] = f"{source}: {show(table.values.get('name'))}"
    return config_model.read_models(document, None, read_batching(document, defaults), workers)


def merge_batching(defaults: BatchingSettings, table: Mapping[str, Any], source: str) -> BatchingSettings:
    """``defaults`` under a ``[batching]`` table that ``source`` holds. Raises InvalidArgument."""
    return read_batching(Document({"batching": dict(table)}, {}, source), defaults)


def _read(path: str) -> Document:
    text = read_text(path)
    if not path.endswith(".toml") and config_tfs.is_tfs(text):
        return config_tfs.parse(text, path)
    return Document.parse(text, path)


def _lay_over(document: Document, other: Document) -> None:
    """Add the models of ``other``; its batching takes the place of what ``document`` says about the same keys."""
    written = document.tables.setdefault("model", [])
    if isinstance(written, list):  # else the reader says what is wrong with it
        before = len(written)
        written.extend(other.tables.get("model", ()))
        for (table, *inner), place in other.places.items():
            if table == "model" and inner:
                document.places[(table, before + int(inner[0]), *inner[1:])] = place
    for key, value in other.tables.get("batching", {}).items():
        document.override(("batching",), key, value, other.source)


def _from_here(path: Any) -> Any:
    if isinstance(path, list):
        return [_from_here(one) for one in path]
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) and path else path


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


def _settings(document: Document, directory: str, cpus: Sequence[int] | None, any_pin: bool = False) -> Settings:
    _check_tables(document, _TABLES)
    gateway = config_gateway.read(
        Table(document, ("gateway",), document.tables.get("gateway", {}), _KEYS["gateway"]), directory
    )
    written = Table(document, ("server",), document.tables.get("server", {}), _KEYS["server"])
    server = _server(written, directory, gateway.tokens is not None)
    pool_table = Table(document, ("pool",), document.tables.get("pool", {}), _KEYS["pool"])
    pool = _pool(pool_table)
    by_hand = _workers(document, cpus or available_cpus())
    try:
        workers = resolve_workers(pool, cpus or usable_cpus(), by_hand)
    except InvalidArgument as error:
        pool_table.fail("memory_budget", error.message)
    defaults = read_batching(document, BatchingSettings())
    pins = None if any_pin else [worker.name for worker in workers]
    models = config_model.read_models(document, directory, defaults, pins)
    written = Table(document, ("placement",), document.tables.get("placement", {}), _KEYS["placement"])
    placement = _placement(written, directory)
    store = _store(Table(document, ("store",), document.tables.get("store", {}), names(StoreSettings)), directory)
    return Settings(server, pool, workers, defaults, models, placement, store, gateway)


def _check_tables(document: Document, known: Sequence[str]) -> None:
    for key in document.tables:
        if key not in known:
            document.fail((key,), "", f"got an unknown table, expected one of {', '.join(known)}{nearest(key, known)}")


def _server(table: Table, directory: str, tokens: bool) -> ServerSettings:
    insecure = table.read("insecure", flag, False)
    curve_key = table.read("curve_key", path_from(directory), None)
    authorized_keys = table.read("authorized_keys", path_from(directory), None)
    for key, value, other in (
        ("curve_key", curve_key, authorized_keys),
        ("authorized_keys", authorized_keys, curve_key),
    ):
        if value is not None and other is None:
            table.fail(key, "got one without the other, expected curve_key and authorized_keys, or neither")

    def endpoint(value: Any) -> str:
        address = normalize_endpoint(text(value))
        check_exposure(address, insecure, curve_key is not None)
        return address

    def endpoints(value: Any) -> tuple[str, ...]:
        written = texts([value] if isinstance(value, str) else value)
        if not written:
            raise InvalidArgument("got [], expected at least one endpoint")
        return texts([endpoint(item) for item in written])

    def roots(value: Any) -> tuple[str, ...]:
        return tuple(map(path_from(directory), texts(value)))

    def address(value: Any) -> str:
        checked = normalize_address(str(value) if type(value) is int else text(value))
        check_gateway(checked, insecure, tokens)
        return checked

    listen = table.read("listen", endpoints, ()) or (default_endpoint(),)
    beside = next((address for address in listen if address.startswith("ipc://")), default_endpoint())
    admin_listen = table.read("admin_listen", endpoint, "") or admin_endpoint_for(beside)
    if admin_listen in listen:
        table.fail("admin_listen", f"got {admin_listen!r}, expected an endpoint that is not in listen")
    defaults = ServerSettings((), "")
    return ServerSettings(
        listen,
        admin_listen,
        insecure,
        curve_key,
        authorized_keys,
        table.read("http", address, None),
        table.read("grpc", address, None),
        table.read("max_message", _message, defaults.max_message),
        table.read("client_rows", whole(1, _HUGE), defaults.client_rows),
        table.read("client_bytes", budget, defaults.client_bytes),
        table.read("models_root", path_from(directory), None),
        table.read("allowed_roots", roots, ()),
        table.read("state_file", path_from(directory), None),
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

    def poll(value: Any) -> float | None:
        if isinstance(value, str) and value == "off":
            return None
        try:
            return number(0, 86_400)(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}, or 'off'") from None

    defaults = PoolSettings()
    return PoolSettings(
        workers=table.read("workers", workers, None),
        threads_per_worker=table.read("threads_per_worker", whole(1, 1024), None),
        memory_budget=table.read("memory_budget", budget, None),
        shm_budget=table.read("shm_budget", budget, defaults.shm_budget),
        queue_budget=table.read("queue_budget", budget, defaults.queue_budget),
        load_concurrency=table.read("load_concurrency", whole(1, 64), defaults.load_concurrency),
        poll_s=table.read("poll_s", poll, defaults.poll_s),
        load_retries=table.read("load_retries", whole(0, 1000), defaults.load_retries),
        residue_limit=table.read("residue_limit", parse_size, defaults.residue_limit),
        hang_s=table.read("hang_s", number(0.1, 86_400), defaults.hang_s),
        load_timeout_s=table.read("load_timeout_s", number(1, 86_400), defaults.load_timeout_s),
        start_method=table.read("start_method", one_of("fork", "spawn"), defaults.start_method),
    )


def _placement(table: Table, directory: str) -> PlacementSettings:
    defaults = PlacementSettings()
    policies = one_of(*(policy.value for policy in PlacementPolicy))
    return PlacementSettings(
        policy=PlacementPolicy(table.read("policy", policies, defaults.policy.value)),
        interval_s=table.read("interval_s", number(0.1, 3600), defaults.interval_s),
        horizon_s=table.read("horizon_s", number(1, 86_400), defaults.horizon_s),
        hysteresis=table.read("hysteresis", number(1, 1000), defaults.hysteresis),
        max_replicas=table.read("max_replicas", whole(1, 1024), None),
        moves_per_minute=table.read("moves_per_minute", whole(1, 100_000), defaults.moves_per_minute),
        bytes_per_minute=table.read("bytes_per_minute", budget, defaults.bytes_per_minute),
        idle_s=table.read("idle_s", number(0.1, 1e9), defaults.idle_s),
        journal=table.read("journal", path_from(directory), None),
    )


def _store(table: Table, directory: str) -> StoreSettings:
    place = table.read("directory", path_from(directory), "") or default_store()
    defaults = StoreSettings(place)
    return StoreSettings(
        place,
        table.read("enabled", flag, defaults.enabled) and place != STORE_OFF,
        table.read("budget", budget, defaults.budget),
        table.read("inline", flag, defaults.inline),
    )


def _message(value: Any) -> int:
    size = parse_size(value)
    if size < LEAST_MESSAGE:
        raise InvalidArgument(f"got {show(value)}, expected at least {LEAST_MESSAGE >> 20}MiB")
    return size


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
    for table in each(document, "worker", names(WorkerSettings)):
        worker = WorkerSettings(
            table.need("name", check_model_name),
            table.read("device", device, "cpu"),
            table.read("cpus", own_cpus, ()),
            table.read("threads", whole(1, 1024), 0),
            table.read("memory", budget, None),
        )
        if any(other.name == worker.name for other in workers):
            table.fail("name", f"got {worker.name!r} twice, expected names that differ")
        workers.append(worker)
    return workers
