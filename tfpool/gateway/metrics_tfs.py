"""The metrics that TensorFlow Serving has too, by its names and labels, times in microseconds. Pure.

Bounds of the buckets are its own for request_latency; elsewhere they are the broker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from tfpool.errors import Code
from tfpool.gateway.metrics_pool import MICROSECONDS, ROWS, Labels, Seen, Value, histograms, latencies

_ROOT = ":tensorflow:serving:"
_BATCHING = f"{_ROOT}batching_session:"


def families(seen: Seen) -> list[Metric]:
    """Of one moment. Counters are families of unknown type: see :func:`tfpool.gateway.metrics._serving`."""
    found = [*_requests(seen)]
    if seen.pool is not None:
        found += _models(seen.pool["stats"]["models"])
    return found


def _requests(seen: Seen) -> Iterator[Metric]:
    counts: dict[tuple[str, str], int] = {}
    for (model, _, _), series in sorted(seen.meters.series.items()):
        for code, count in enumerate(series.codes):
            if count:
                key = (model, Code(code).name)
                counts[key] = counts.get(key, 0) + count
    yield _counter("request_count", "Requests that are over.", ("model_name", "status"), list(counts.items()))
    yield latencies(
        f"{_ROOT}request_latency",
        "Microseconds that requests took.",
        ("model_name", "API", "entrypoint"),
        1.0,
        [((model, _api(api), entry), one) for (model, api, entry), one in sorted(seen.meters.series.items())],
    )


def _models(models: Mapping[str, Any]) -> Iterator[Metric]:
    yield _counter(
        "request_example_count_total",
        "Rows that have run.",
        ("model",),
        [((m,), one["rows"]) for m, one in models.items()],
    )
    yield histograms(
        f"{_ROOT}request_example_counts",
        "Rows of a request.",
        ("model",),
        ROWS,
        [((m,), one["request_rows"]) for m, one in models.items()],
    )
    yield histograms(
        f"{_ROOT}runtime_latency",
        "Microseconds that TensorFlow ran.",
        ("model_name", "API", "runtime"),
        MICROSECONDS,
        [((m, "Predict", "TF1"), one["run_us"]) for m, one in models.items()],
    )
    for name, text, label, scale, key in _BATCHES:
        found = [((m,), one[key]) for m, one in models.items()]
        yield histograms(f"{_BATCHING}{name}", text, (label,), scale, found)


_BATCHES = (
    ("queuing_latency", "Microseconds that requests waited.", "thread_pool_name", MICROSECONDS, "queue_us"),
    ("input_batch_size", "Rows of a request.", "model_name", ROWS, "request_rows"),
    ("processed_batch_size", "Rows of a batch.", "model_name", ROWS, "batch_rows"),
    ("padding_size", "Rows that only filled a batch up.", "model_name", ROWS, "padding_rows"),
)


def _counter(name: str, text: str, labels: Labels, values: list[Value]) -> Metric:
    family = Metric(f"{_ROOT}{name}", text, "unknown")
    for key, value in values:
        assert value is not None
        family.add_sample(family.name, dict(zip(labels, key, strict=True)), value)
    return family


def _api(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
