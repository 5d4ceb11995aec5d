"""Counters and histograms, per model; times in microseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tfpool.errors import Code
from tfpool.telemetry.histogram import Histogram

RECENT_SHARE = 0.05


@dataclass(slots=True)
class ModelMeter:
    """``requests`` were answered well, ``errors`` counts the others by code; ``rows`` and ``batches`` have run.

    ``recent_rows`` is the mean of the last batches' rows. ``request_rows`` takes the requests of a batch to be equally
    large, and ``padding_rows`` are those that fill a batch up to an allowed size. ``late_starts`` counts requests whose
    run began after their deadline: there should be none.
    """

    requests: int = 0
    rows: int = 0
    batches: int = 0
    late_starts: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    queue_us: Histogram = field(default_factory=Histogram)
    run_us: Histogram = field(default_factory=Histogram)
    batch_rows: Histogram = field(default_factory=Histogram)
    request_rows: Histogram = field(default_factory=Histogram)
    padding_rows: Histogram = field(default_factory=Histogram)
    recent_rows: float = 1.0

    def ran(self, rows: int, run: float, waited: float, requests: int, padded: int = 0) -> None:
        """A batch of ``rows`` rows has run, which had been filled up to ``padded``; times in seconds."""
        self.batches += 1
        self.rows += rows
        self.run_us.add(run * 1e6)
        self.batch_rows.add(rows)
        self.recent_rows += RECENT_SHARE * (rows - self.recent_rows)
        self.queue_us.add(waited * 1e6, requests)
        if requests:
            self.request_rows.add(rows / requests, requests)
        self.padding_rows.add(max(0, padded - rows))

    def failed(self, code: int, count: int) -> None:
        self.errors[code] = self.errors.get(code, 0) + count

    def snapshot(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "rows": self.rows,
            "batches": self.batches,
            "late_starts": self.late_starts,
            "errors": {Code(code).name: count for code, count in sorted(self.errors.items())},
            "queue_us": self.queue_us.snapshot(),
            "run_us": self.run_us.snapshot(),
            "batch_rows": self.batch_rows.snapshot(),
            "request_rows": self.request_rows.snapshot(),
            "padding_rows": self.padding_rows.snapshot(),
        }


class Meters:
    """All that ``stats`` shows."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMeter] = {}
        self.malformed = 0
        self.unroutable = 0
        self.messages = 0

    def model(self, name: str) -> ModelMeter:
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = ModelMeter()
        return found

    def drop(self, name: str) -> None:
        self.models.pop(name, None)
