"""What the console shows, made from what the pool tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfpool.gateway.console.digest import STORY_SECONDS, WINDOW_SECONDS, Digest, Polled
from tfpool.gateway.console.spread import Spread
from tfpool.telemetry.histogram import Histogram


def filled(*microseconds: float) -> Histogram:
    histogram = Histogram()
    for value in microseconds:
        histogram.add(value)
    return histogram


def meter(requests: int = 0, queue: Histogram | None = None, **errors: int) -> dict[str, Any]:
    times = (queue or Histogram()).snapshot()
    return {"requests": requests, "rows": 2 * requests, "errors": errors, "queue_us": times, "run_us": times}


def row(name: str, **more: Any) -> dict[str, Any]:
    known = {"version": 1, "state": "AVAILABLE", "labels": [], "workers": ["cpu0"], "memory_bytes": 5, "error": None}
    return {"name": name, **known, "load_seconds": 0.5, "forms": {}, **more}


def polled(at: float, meters: dict[str, Any] | None = None, models: Any = (), **more: Any) -> Polled:
    stats = {
        "uptime_seconds": more.pop("uptime", at),
        "waiting_rows": 0,
        "loads": 1,
        "evictions": 0,
        "broker_cpu_seconds": at / 4,
        "shm": {"budget": 10, "leased": 0},
        "models": meters or {},
        "workers": [{"name": "cpu0"}],
    }
    progress = {"settled": True, "replacing": [], "reload": None, "migrations": more.pop("migrations", [])}
    return Polled(at, stats, list(models), more.pop("queues", []), progress)


def test_a_first_look_has_no_rates() -> None:
    digest = Digest()
    digest.add(polled(100.0, {"m": meter(7)}, [row("m")]))
    assert (digest.head["requests"], digest.head["wait"]) == (0.0, None)
    assert not digest.story
    assert digest.sections["models"]["m:1"]["memory"] == 5


def test_rates_are_those_since_the_last_look() -> None:
    digest = Digest()
    digest.add(polled(100.0, {"m": meter(7, NOT_FOUND=1)}))
    digest.add(polled(102.0, {"m": meter(17, NOT_FOUND=2), "n": meter(4)}))
    head = digest.head
    assert (head["requests"], head["rows"], head["errors"], head["broker"]) == (7.0, 14.0, 0.5, 0.25)
    assert head["codes"] == {"NOT_FOUND": 2}
    assert [point["requests"] for point in digest.story] == [7.0]


def test_another_broker_is_no_fall_in_requests() -> None:
    digest = Digest()
    digest.add(polled(100.0, {"m": meter(50)}))
    digest.add(polled(101.0, {"m": meter(3)}, uptime=0.5))
    assert digest.head["requests"] == 0.0
    digest.add(polled(102.0, {"m": meter(5)}, uptime=1.5))
    assert digest.head["requests"] == 2.0


def test_times_are_those_of_the_last_seconds() -> None:
    digest, models = Digest(), [row("m", rate={"asks": 3.0, "rows": 6.0}, row_seconds={"cpu0": 0.01, "cpu1": 0.03})]
    slow = filled(*[1e6] * 100)
    digest.add(polled(100.0, {"m": meter(100, slow)}, models))
    for _ in range(100):
        slow.add(200.0)
    digest.add(polled(101.0, {"m": meter(200, slow)}, models))
    shown = digest.sections["models"]["m:1"]
    assert shown["wait"]["p99"] == pytest.approx(200.0, rel=0.3)
    assert digest.head["wait"] == shown["wait"]
    assert shown["load"] == pytest.approx(0.12)
    digest.add(polled(102.0 + WINDOW_SECONDS, {"m": meter(200, slow)}, models))
    digest.add(polled(103.0 + WINDOW_SECONDS, {"m": meter(200, slow)}, models))
    assert "wait" not in digest.sections["models"]["m:1"]


def test_a_version_that_nobody_asks_for_has_no_times() -> None:
    digest = Digest()
    models = [row("m", rate={"asks": 0.0, "rows": 0.0}), row("m", version=2, rate={"asks": 1.0, "rows": 1.0})]
    digest.add(polled(100.0, {"m": meter()}, models))
    digest.add(polled(101.0, {"m": meter(5, filled(10.0), INTERNAL=1)}, models))
    old, new = (digest.sections["models"][key] for key in ("m:1", "m:2"))
    assert ("wait" in old, "wait" in new) == (False, True)
    assert old["errors"] == {"INTERNAL": 1}


def test_points_go_when_they_are_old() -> None:
    digest = Digest()
    for second in range(int(STORY_SECONDS) + 50):
        digest.add(polled(1000.0 + second))
    assert len(digest.story) == STORY_SECONDS + 1
    assert digest.story[0]["at"] == 1049.0


def test_only_queues_with_requests_are_shown() -> None:
    digest = Digest()
    queue = {"model": "m", "version": 1, "signature": "s", "shapes": [[4]], "oldest_ms": 1.0}
    digest.add(polled(1.0, queues=[{**queue, "rows": 3}, {**queue, "signature": "t", "rows": 0}]))
    assert [one["rows"] for one in digest.sections["queues"].values()] == [3]


def test_a_move_began_when_it_was_first_said_to() -> None:
    digest = Digest()
    digest.add(polled(100.0, migrations=[{"id": 4, "ago": 10.0, "phase": "LOADING"}]))
    digest.add(polled(101.0, migrations=[{"id": 4, "ago": 11.4, "phase": "DONE"}]))
    assert digest.sections["changes"] == {"4": {"id": 4, "phase": "DONE", "begun": 90.0}}


def test_quantiles_of_what_came_in_between() -> None:
    values = np.random.default_rng(7).lognormal(7.0, 1.5, 5000)
    histogram = filled(*np.full(3000, 5e6))
    before = histogram.snapshot()
    for value in values:
        histogram.add(value)
    spread = Spread()
    assert spread.add(before, histogram.snapshot())
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        assert spread.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.3)
    assert not spread.add(histogram.snapshot(), histogram.snapshot())


def test_several_histograms_are_one_spread() -> None:
    one, other, spread = filled(10.0, 20.0), filled(5e8, 3e9), Spread()
    assert spread.row() is None
    assert spread.add(None, one.snapshot())
    assert spread.add(None, other.snapshot())
    assert spread.total == 4
    assert spread.quantile(0.5) == pytest.approx(20.0, rel=0.5)
    assert spread.quantile(1.0) > 1e8
