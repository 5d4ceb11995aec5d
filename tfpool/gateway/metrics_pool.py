"""tfpool's own metrics, as families: ``tfpool_...``, units in the names. Pure: what was seen in, families out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tfpool.errors import Code
from tfpool.gateway.meters import BOUNDS_US, Meters
from tfpool.telemetry.histogram import BOUNDS
from tfpool.version import __version__

Row = Mapping[str, Any]
Labels = Sequence[str]
Value = tuple[Labels, float | None]
Bucket = tuple[str, float]

_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Seen:
    """What a scrape is made of: the broker's answers by verb (None: it gave none), the requests of all gateways, and
    the gauges of each."""

    pool: Mapping[str, Any] | None
    meters: Meters
    gauges: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Scale:
    """The buckets of a family: the ``picked`` of the broker's, by their ends as they are shown. ``unit`` is what one of
    the histogram's microseconds, or rows, counts as."""

    picked: tuple[tuple[int, str], ...]
    unit: float

    def buckets(self, histogram: Row) -> list[Bucket]:
        """Cumulative, the last with no end."""
        counts, count = histogram["buckets"], histogram["count"]
        found = [(end, float(counts[i] if i < len(counts) else count)) for i, end in self.picked]
        return [*found, ("+Inf", float(count))]


def _first(least: float, most: float, step: int) -> Iterator[tuple[int, float]]:
    begin, end = bisect_right(BOUNDS, least), bisect_right(BOUNDS, most)
    return islice(enumerate(BOUNDS), begin, end, step)


SECONDS = Scale(tuple((i, f"{end * _MICRO:.3g}") for i, end in _first(9.0, 200e6, 2)), _MICRO)
MICROSECONDS = Scale(tuple((i, f"{end:.3g}") for i, end in _first(9.0, 200e6, 2)), 1.0)
ROWS = Scale(tuple((i, f"{int(end)}.0") for i, end in ((0, BOUNDS[0]), *_first(2.0, 5000.0, 2))), 1.0)


def families(seen: Seen) -> list[Metric]:
    """Of one moment; those of the broker are missing where it did not answer."""
    found = [
        _gauges("tfpool_build_info", "The software that answers.", ("version",), [((__version__,), 1.0)]),
        _gauges("tfpool_up", "Whether the broker answers.", (), [((), float(seen.pool is not None))]),
        *_gateways(seen),
    ]
    if seen.pool is not None:
        stats, models = seen.pool["stats"], seen.pool["models"]
        found += _broker(stats, seen.pool["progress"])
        found += _meters(stats["models"])
        found += _versions(models)
        found += _workers(stats["workers"], models)
        found += _queues(seen.pool["queues"])
    return found


def counters(name: str, text: str, labels: Labels, values: Iterable[Value]) -> Metric:
    """A family of counters; ``name`` is without ``_total``."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values:
        if value is not None:
            family.add_metric(key, value)
    return family


def histograms(name: str, text: str, labels: Labels, scale: Scale, found: Iterable[tuple[Labels, Row]]) -> Metric:
    """A family of the broker's histograms."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in found:
        family.add_metric(key, scale.buckets(histogram), histogram["total"] * scale.unit)
    return family


def latencies(name: str, text: str, labels: Labels, unit: float, found: Iterable[tuple[Labels, Any]]) -> Metric:
    """A family of the gateways' histograms; ``unit`` is what a microsecond counts as."""
    family = HistogramMetricFamily(name, text, labels=labels)
    ends = [*(f"{bound * unit:.6g}" for bound in BOUNDS_US), "+Inf"]
    for key, series in found:
        buckets = list(zip(ends, map(float, accumulate(series.counts)), strict=True))
        family.add_metric(key, buckets, series.total_us * unit)
    return family


def _gauges(name: str, text: str, labels: Labels, values: Iterable[Value]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        if value is not None:
            family.add_metric(key, value)
    return family


# -- the gateways ------------------------------------------------------------------------------------------------------


def _gateways(seen: Seen) -> Iterator[Metric]:
    kinds = ("model", "api", "entry")
    requests = [
        ((*kind, Code(code).name), float(count))
        for kind, series in sorted(seen.meters.series.items())
        for code, count in enumerate(series.codes)
        if count
    ]
    yield counters(
        "tfpool_gateway_requests",
        "Requests for models that came in over HTTP and gRPC and are over.",
        (*kinds, "code"),
        requests,
    )
    yield latencies(
        "tfpool_gateway_request_seconds",
        "How long the gateway waited for the pool to answer a request.",
        kinds,
        _MICRO,
        sorted(seen.meters.series.items()),
    )
    responses = [((f"{n}xx",), float(count)) for n, count in enumerate(seen.meters.responses) if count]
    yield counters("tfpool_gateway_http_responses", "Responses over HTTP, by their status.", ("status",), responses)
    for name in sorted({name for gauges in seen.gauges.values() for name in gauges}):
        values = [((str(slot),), gauges.get(name)) for slot, gauges in sorted(seen.gauges.items())]
        yield _gauges(f"tfpool_gateway_{name}", _GATEWAY_GAUGES.get(name, "Of this gateway."), ("gateway",), values)


_GATEWAY_GAUGES = {
    "in_flight": "Requests for models that are under way.",
    "connections": "Open connections over HTTP.",
}

# -- the broker --------------------------------------------------------------------------------------------------------


def _broker(stats: Row, progress: Row) -> Iterator[Metric]:
    for name, text, key in _BROKER_COUNTERS:
        yield counters(name, text, (), [((), stats[key])])
    changes = progress["migrations"]
    begun = max((change["id"] for change in changes), default=0)
    yield counters(
        "tfpool_migrations", "Moves between workers, and changes of form, that were begun.", (), [((), begun)]
    )
    active = sum(change["phase"] not in _OVER for change in changes)
    yield _gauges("tfpool_migrations_active", "Those that are under way.", (), [((), float(active))])
    yield _gauges("tfpool_uptime_seconds", "Since the broker started.", (), [((), stats["uptime_seconds"])])
    yield _gauges("tfpool_waiting_rows", "Rows in all queues.", (), [((), stats["waiting_rows"])])
    for name, text, key in _SHM_GAUGES:
        yield _gauges(name, text, (), [((), stats["shm"][key])])


_OVER = ("DONE", "ABORTED")
_BROKER_COUNTERS = (
    ("tfpool_messages", "Messages from clients.", "messages"),
    ("tfpool_malformed_messages", "Those that were refused as malformed.", "malformed"),
    ("tfpool_unroutable_messages", "Answers to clients that were gone.", "unroutable"),
    ("tfpool_broker_cpu_seconds", "Processor time of the broker.", "broker_cpu_seconds"),
    ("tfpool_loads", "Loads of models by workers.", "loads"),
    ("tfpool_evictions", "Models that were pushed out of a worker's memory.", "evictions"),
)
_SHM_GAUGES = (
    ("tfpool_shm_budget_bytes", "Shared memory for batches.", "budget"),
    ("tfpool_shm_leased_bytes", "What of it is in use.", "leased"),
    ("tfpool_shm_quarantined_bytes", "What of it waits for a dead worker to be gone.", "quarantined"),
    ("tfpool_client_arenas", "Clients that have memory mapped.", "client_arenas"),
)

# -- models ------------------------------------------------------------------------------------------------------------


def _meters(models: Mapping[str, Row]) -> Iterator[Metric]:
    labels = ("model",)
    for name, text, read in _MODEL_COUNTERS:
        yield counters(name, text, labels, [((model,), read(meter)) for model, meter in models.items()])
    errors = [((model, code), count) for model, meter in models.items() for code, count in meter["errors"].items()]
    yield counters("tfpool_errors", "Requests that ended with an error.", ("model", "code"), errors)
    for name, text, scale, key in _MODEL_HISTOGRAMS:
        yield histograms(name, text, labels, scale, [((model,), meter[key]) for model, meter in models.items()])


_MODEL_COUNTERS: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
    ("tfpool_requests", "Requests that were answered well.", lambda meter: meter["requests"]),
    ("tfpool_rows", "Rows that have run.", lambda meter: meter["rows"]),
    ("tfpool_batches", "Batches that have run.", lambda meter: meter["batches"]),
    ("tfpool_late_starts", "Requests whose run began after their deadline.", lambda meter: meter["late_starts"]),
    ("tfpool_padding_rows", "Rows that only filled a batch up.", lambda meter: meter["padding_rows"]["total"]),
)
_MODEL_HISTOGRAMS = (
    ("tfpool_queue_seconds", "How long requests waited for their run.", SECONDS, "queue_us"),
    ("tfpool_run_seconds", "How long batches ran.", SECONDS, "run_us"),
    ("tfpool_batch_rows", "Rows of a batch, without those that fill it up.", ROWS, "batch_rows"),
    ("tfpool_request_rows", "Rows of a request; the mean of those that ran together.", ROWS, "request_rows"),
)


def _versions(rows: Iterable[Row]) -> Iterator[Metric]:
    labels = ("model", "version")
    keyed = {(str(row["name"]), str(row["version"])): row for row in rows}  # of two lives, the later one
    states = [((*key, row["state"]), 1.0) for key, row in keyed.items()]
    yield _gauges("tfpool_version_state", "The state that a version is in.", (*labels, "state"), states)
    for name, text, read in _VERSION_GAUGES:
        yield _gauges(name, text, labels, [(key, read(row)) for key, row in keyed.items()])


_VERSION_GAUGES: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("tfpool_version_available", "Whether a worker serves it now.", lambda row: float(row["state"] == "AVAILABLE")),
    ("tfpool_version_replicas", "Workers that hold it, or are to.", lambda row: len(row["workers"])),
    ("tfpool_version_load_seconds", "How long its last load took.", lambda row: row["load_seconds"]),
    ("tfpool_version_memory_bytes", "What a replica takes.", lambda row: row["memory_bytes"]),
    ("tfpool_version_peak_bytes", "What a load of it takes for a moment.", lambda row: row.get("peak_bytes")),
)

# -- workers and queues ------------------------------------------------------------------------------------------------


def _workers(workers: Sequence[Row], models: Iterable[Row]) -> Iterator[Metric]:
    states = [((row["name"], row["state"]), 1.0) for row in workers]
    yield _gauges("tfpool_worker_state", "The state that a worker is in.", ("worker", "state"), states)
    deaths = [((row["name"],), row["deaths"]) for row in workers]
    yield counters("tfpool_worker_deaths", "Processes of this worker that died.", ("worker",), deaths)
    busy = [((row["name"],), row["busy"]) for row in workers]
    yield _gauges("tfpool_worker_busy_ratio", "The share of its time that it runs batches.", ("worker",), busy)
    for key, text in _WORKER_MEMORY:
        values = [((row["name"],), row["memory"].get(key)) for row in workers]
        yield _gauges(f"tfpool_worker_{key}_bytes", text, ("worker",), values)
    held = {
        (worker, str(row["name"]), str(row["version"])): row["memory_bytes"]
        for row in models
        for worker in row["workers"]
    }
    labels = ("worker", "model", "version")
    yield _gauges("tfpool_worker_model_bytes", "What a model takes of a worker's memory.", labels, held.items())


_WORKER_MEMORY = (
    ("rss", "Its memory, with all that it shares."),
    ("pss", "Its memory, with its part of what it shares."),
    ("unique", "Memory that it has to itself."),
    ("gpu", "Memory of its GPU."),
    ("base", "What it had of it when it was empty."),
    ("budget", "What it may have of it."),
    ("residue", "What models that were unloaded have left behind."),
    ("mapped", "Its part of the models that are mapped."),
)


def _queues(rows: Iterable[Row]) -> Iterator[Metric]:
    labels = ("model", "version", "signature")
    waiting: dict[tuple[str, ...], float] = {}
    oldest: dict[tuple[str, ...], float] = {}
    for row in rows:  # one for each combination of shapes
        key = (str(row["model"]), str(row["version"]), str(row["signature"]))
        waiting[key] = waiting.get(key, 0.0) + row["rows"]
        oldest[key] = max(oldest.get(key, 0.0), row["oldest_ms"] / 1000)
    yield _gauges("tfpool_queue_rows", "Rows that wait.", labels, waiting.items())
    yield _gauges("tfpool_queue_oldest_seconds", "How long the oldest of them has waited.", labels, oldest.items())
