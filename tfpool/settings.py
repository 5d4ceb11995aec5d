"""Frozen settings, and the small readings they need: sizes, versions, names.

Sizes are bytes, times are in the unit their name ends with. ``tfpool.config`` reads settings from TOML and from a
command line; everything below the supervisor is handed them and reads no file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from tfpool.errors import InvalidArgument

VersionPolicy = str | tuple[int, ...]
"""``latest``, ``latest:N``, ``all``, or the versions themselves."""

Split = tuple[tuple[int, int], ...]
"""Versions and their weights: how the requests of a label are shared out."""

STORE_VARIABLE, STORE_OFF = "TFPOOL_STORE", "off"
MAX_SIZE = 1 << 60
_UNITS = {"": 1, "b": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", 1)
    for name, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024))
}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([a-z]*)", re.ASCII)
_SPLIT = re.compile(r"[1-9]\d{0,18}(:\d{1,9})?(,[1-9]\d{0,18}(:\d{1,9})?)*", re.ASCII)
_SHADOW = re.compile(r"([1-9]\d{0,18}):(\d{1,3}(?:\.\d{1,6})?)%?", re.ASCII)
_MODEL_NAME = re.compile(r"[^\s:/=\x00-\x1f\x7f]{1,512}")


class Loading(Enum):
    """When a model is loaded: at once, at its first request, or when somebody asks for it."""

    PRELOAD = "preload"
    LAZY = "lazy"
    EXPLICIT = "explicit"


class Transition(Enum):
    """How one version follows another: the new one serves before the old one goes, or the old one goes first."""

    AVAILABILITY = "availability"
    RESOURCE = "resource"


class PlacementPolicy(Enum):
    """Whether models move: by themselves, only when somebody takes the pool's advice, or never."""

    AUTO = "auto"
    ADVISE = "advise"
    STATIC = "static"


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """How the requests of one model share batches.

    ``allowed_batch_sizes`` (increasing; empty: any) are the sizes that are run, ``pad`` fills a batch up to the next
    of them. A batch waits at most ``max_wait_ms`` for company, and only while every worker is busy. A queue has room
    for ``max_queue_rows``, and for what it is thought to get through in ``max_queue_ms`` (0: for whatever can still
    make its deadline). With ``fair_clients`` what a client has waiting beyond a few batches goes after the others'.
    """

    max_batch_size: int = 128
    max_wait_ms: float = 0.0
    allowed_batch_sizes: tuple[int, ...] = ()
    max_queue_rows: int = 16384
    max_queue_ms: float = 0.0
    pad: bool = True
    fair_clients: bool = True


class Form(Enum):
    """How a model is held. PLAIN: as loaded from its SavedModel. MAPPED: from its compiled graph, with weights that
    alias a mapped file, which all processes share. INLINED: the same graph with the weights as constants of its own."""

    PLAIN = "plain"
    MAPPED = "mapped"
    INLINED = "inlined"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model: where its versions lie and how they are served.

    ``replicas`` is (least, most) workers that hold it; without a most, ``max_replicas`` of the placement is. With a
    least of 0 it leaves memory when nobody asks for it. ``stateful`` names signatures that are never run twice;
    ``pin`` names the only workers that may hold the model (empty: any). ``slo_ms`` is the latency that a batch
    must keep, ``priority`` goes before ``weight``, which is the share of worker time among equals. ``shadow`` is
    (version, share): that share of the requests to other versions is also sent there, and the answers are compared.
    ``form`` is the form it is held in (None: the pool chooses; what cannot be compiled is PLAIN whatever it says).
    """

    name: str
    base_path: str
    version_policy: VersionPolicy = "latest"
    labels: tuple[tuple[str, Split], ...] = ()
    shadow: tuple[int, float] | None = None
    preload: Loading = Loading.PRELOAD
    transition: Transition = Transition.AVAILABILITY
    replicas: tuple[int, int | None] = (1, None)
    batching: BatchingSettings = BatchingSettings()
    slo_ms: float | None = None
    priority: int = 0
    weight: float = 1.0
    stateful: tuple[str, ...] = ()
    pin: tuple[str, ...] = ()
    form: Form | None = None


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker process: ``device`` is ``cpu`` or ``gpu:N``, ``cpus`` where it is pinned, ``memory`` its budget."""

    name: str
    device: str = "cpu"
    cpus: tuple[int, ...] = ()
    threads: int = 0
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the broker listens, what it may read, what it remembers, and the log.

    ``http`` and ``grpc`` are the HOST:PORT of the gateways (None: there are none); see :class:`GatewaySettings`.
    ``models_root`` holds a directory for each model, beside those named; new ones are found as they appear. Base paths
    given at run time must lie in one of ``allowed_roots`` (empty: anywhere). ``state_file`` keeps what was changed
    at run time, and measured sizes, over restarts.

    With ``curve_key`` (a file of ``tfpool keygen``) tcp is encrypted, and only keys in ``authorized_keys`` get in.
    A message has at most ``max_message`` bytes; a client has at most ``client_rows`` rows and ``client_bytes`` bytes
    of requests with the pool at a time.
    """

    listen: tuple[str, ...]
    admin_listen: str
    insecure: bool = False
    curve_key: str | None = None
    authorized_keys: str | None = None
    http: str | None = None
    grpc: str | None = None
    max_message: int = 1 << 30
    client_rows: int = 1 << 16
    client_bytes: int = 1 << 30
    models_root: str | None = None
    allowed_roots: tuple[str, ...] = ()
    state_file: str | None = None
    log_level: str = "info"
    log_format: str = "text"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The pool as a whole; ``None`` leaves the choice to :func:`resolve_workers`.

    Base paths are looked at every ``poll_s`` seconds (0: once, None: only when a load asks). A failed load is tried
    again ``load_retries`` times. A worker that keeps more than ``residue_limit`` bytes of unloaded models is replaced.
    Requests that wait hold at most ``queue_budget`` bytes. A worker that is silent for ``hang_s`` seconds, or whose run
    takes that much longer than it should, is killed and replaced; a load may take ``load_timeout_s``.
    """

    workers: int | None = None
    threads_per_worker: int | None = None
    memory_budget: int | None = None
    shm_budget: int = 128 << 20
    queue_budget: int = 1 << 30
    load_concurrency: int = 1
    poll_s: float | None = 1.0
    load_retries: int = 5
    residue_limit: int = 256 << 20
    hang_s: float = 30.0
    load_timeout_s: float = 600.0
    start_method: str = "fork"


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """When models move between workers.

    Every ``interval_s`` seconds the pool is looked at, and at most one step is taken: one that gains over ``horizon_s``
    seconds more than ``hysteresis`` times what it costs. A model has at most ``max_replicas`` replicas (None: one on
    every worker) where it does not say itself. A minute has at most ``moves_per_minute`` steps, which load at most
    ``bytes_per_minute``. Models that may have no replica leave memory after ``idle_s`` without a request. Decisions are
    written to ``journal``, with what they were made from.
    """

    policy: PlacementPolicy = PlacementPolicy.AUTO
    interval_s: float = 1.0
    horizon_s: float = 60.0
    hysteresis: float = 2.0
    max_replicas: int | None = None
    moves_per_minute: int = 60
    bytes_per_minute: int = 16 << 30
    idle_s: float = 300.0
    journal: str | None = None


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where compiled models are kept: in ``directory``, of which they fill at most ``budget`` bytes; those used longest
    ago go first. Nothing is compiled, nor loaded from there, unless ``enabled``. With ``inline`` models change to their
    INLINED form where that is worth the memory."""

    directory: str
    enabled: bool = True
    budget: int = 20 << 30
    inline: bool = True


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The front for HTTP and gRPC: as many processes, which share its ports (None: one for each four CPUs).

    With ``tokens``, a file of bearer tokens and what they allow, only who has one gets in; with ``tls_cert`` and
    ``tls_key`` both ports speak TLS, and with ``tls_client_ca`` only to clients with a certificate of that authority.
    Pages of ``cors_origins`` (``*``: of any) may call the gateway from a browser. A request has at most ``max_body``
    bytes, headers included it has to arrive within ``read_s`` seconds, and ``timeout_s`` is how long an answer may take
    where the caller does not say. A connection without a request is closed after ``idle_s``. Traces go to
    ``otlp_endpoint``, an OpenTelemetry collector (None: nowhere).
    """

    processes: int | None = None
    tokens: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body: int = 256 << 20
    read_s: float = 30.0
    timeout_s: float = 30.0
    idle_s: float = 75.0
    otlp_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a pool is started with."""

    server: ServerSettings
    pool: PoolSettings
    workers: tuple[WorkerSettings, ...]
    batching: BatchingSettings = BatchingSettings()
    models: tuple[ModelSettings, ...] = ()
    placement: PlacementSettings = PlacementSettings()
    store: StoreSettings = StoreSettings("", enabled=False)
    gateway: GatewaySettings = GatewaySettings()


def parse_size(value: object) -> int:
    """Bytes of ``512MiB``, ``8GiB``, ``1.5GB`` or a whole number of bytes.

    Raises InvalidArgument for anything else, and for more than 1 EiB.
    """
    size = -1
    if type(value) is int:
        size = value
    elif isinstance(value, str):
        found = _SIZE.fullmatch(value.strip().lower())
        if found and found[2] in _UNITS:
            size = int(Decimal(found[1]) * _UNITS[found[2]])
    if not 0 <= size <= MAX_SIZE:
        raise InvalidArgument(f"got {str(value)[:40]!r}, expected a size such as '512MiB', '1.5GB' or whole bytes")
    return size


def check_version_policy(value: object) -> VersionPolicy:
    """A version policy as it may stand in settings. Raises InvalidArgument."""
    if isinstance(value, str) and (value in ("latest", "all") or re.fullmatch(r"latest:[1-9]\d{0,5}", value, re.ASCII)):
        return value
    if isinstance(value, list | tuple) and value and all(type(v) is int and 0 < v < 1 << 63 for v in value):
        return tuple(sorted(set(value)))
    raise InvalidArgument(f"got {str(value)[:40]!r}, expected 'latest', 'latest:N', 'all' or a list of versions from 1")


def check_split(value: object) -> Split:
    """The versions that a label leads to: ``3``, ``"3"`` or ``"3:90,4:10"``, versions and weights.

    Raises InvalidArgument for anything else, a version named twice, and weights that are all 0.
    """
    text = str(value) if type(value) is int else value
    if isinstance(text, str) and _SPLIT.fullmatch(text.replace(" ", "")):
        parts = [part.partition(":") for part in text.replace(" ", "").split(",")]
        split = tuple((int(version), int(weight) if colon else 1) for version, colon, weight in parts)
        different = len({version for version, _ in split}) == len(split)
        if different and any(w for _, w in split) and all(v < 1 << 63 for v, _ in split):
            return split
    raise InvalidArgument(f"got {str(value)[:40]!r}, expected a version, or versions and weights such as '3:90,4:10'")


def format_split(split: Split) -> str:
    """As people write it: ``3``, or ``3:90,4:10``."""
    return str(split[0][0]) if len(split) == 1 else ",".join(f"{version}:{weight}" for version, weight in split)


def check_shadow(value: object) -> tuple[int, float]:
    """``"4:10"``: version 4 is also sent 10 percent of the requests. Raises InvalidArgument."""
    found = _SHADOW.fullmatch(value) if isinstance(value, str) else None
    if found and int(found[1]) < 1 << 63 and 0 < float(found[2]) <= 100:
        return int(found[1]), float(found[2]) / 100
    raise InvalidArgument(f"got {str(value)[:40]!r}, expected VERSION:PERCENT such as '4:10'")


def check_model_name(value: object) -> str:
    """A model's name: without ``:``, ``/``, ``=`` and blanks, which separate it elsewhere. Raises InvalidArgument."""
    if isinstance(value, str) and _MODEL_NAME.fullmatch(value):
        return value
    raise InvalidArgument(f"got {str(value)[:40]!r}, expected 1 to 512 characters without ':', '/', '=' and blanks")


def default_store() -> str:
    """Where compiled models are kept when nobody says otherwise: where the environment says, or in this user's cache;
    ``off`` (nowhere) where the environment says so, or the user has no home."""
    named = os.environ.get(STORE_VARIABLE, "")
    if named:
        return named if named == STORE_OFF else os.path.abspath(os.path.expanduser(named))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = cache if os.path.isabs(cache) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tfpool", "store") if os.path.isabs(base) else STORE_OFF
