from __future__ import annotations

import orjson
import pytest

from tfpool.client.examples import Target
from tfpool.errors import Code
from tfpool.gateway import meters
from tfpool.gateway.meters import BOUNDS_US, Meters
from tfpool.gateway.serving import Call


def call(model: str = "m", api: str = "predict", entry: str = "REST") -> Call:
    return Call(Target(model, 0, "", ""), api, entry)


def counted(found: Meters) -> dict[tuple[str, str, str, str], int]:
    return {
        (*kind, Code(code).name): count
        for kind, series in found.series.items()
        for code, count in enumerate(series.codes)
        if count
    }


def test_requests_by_model_kind_protocol_and_outcome() -> None:
    found = Meters()
    found.served(call(), Code.OK, 0.001)
    found.served(call(), Code.OK, 0.001)
    found.served(call(entry="GRPC"), Code.OK, 0.001)
    found.served(call(), Code.UNAVAILABLE, 0.001)
    assert counted(found) == {
        ("m", "predict", "REST", "OK"): 2,
        ("m", "predict", "REST", "UNAVAILABLE"): 1,
        ("m", "predict", "GRPC", "OK"): 1,
    }


@pytest.mark.parametrize(("seconds", "index"), [(0.0, 0), (10e-6, 0), (10.1e-6, 1), (18e-6, 1), (1e5, len(BOUNDS_US))])
def test_a_time_counts_in_the_first_bucket_that_it_does_not_exceed(seconds: float, index: int) -> None:
    found = Meters()
    found.served(call(), Code.OK, seconds)
    (series,) = found.series.values()
    assert series.counts.index(1) == index
    assert series.total_us == pytest.approx(seconds * 1e6)


def test_names_that_callers_made_up_share_one_series() -> None:
    found = Meters()
    for number in range(100):
        found.served(call(f"made-up-{number}"), Code.NOT_FOUND, 0.001)
    assert counted(found) == {("", "predict", "REST", "NOT_FOUND"): 100}


def test_failures_count_by_name_where_the_model_is_known() -> None:
    found = Meters()
    found.know(["broken"])
    found.served(call("broken"), Code.FAILED_PRECONDITION, 0.001)
    found.served(call("answers"), Code.OK, 0.001)
    found.served(call("answers", api="classify"), Code.INVALID_ARGUMENT, 0.001)
    assert counted(found) == {
        ("broken", "predict", "REST", "FAILED_PRECONDITION"): 1,
        ("answers", "predict", "REST", "OK"): 1,
        ("answers", "classify", "REST", "INVALID_ARGUMENT"): 1,
    }


def test_series_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MAX_SERIES", 2)
    found = Meters()
    for name in "abcd":
        found.served(call(name), Code.OK, 0.001)
    assert counted(found) == {(n, "predict", "REST", "OK"): c for n, c in (("a", 1), ("b", 1), ("", 2))}


def test_series_of_models_that_are_gone_vanish() -> None:
    found = Meters()
    for name in ("stays", "goes"):
        found.served(call(name), Code.OK, 0.001)
    found.served(call("unknown"), Code.NOT_FOUND, 0.001)
    found.keep(["stays"])
    assert {kind[0] for kind in found.series} == {"stays", ""}
    found.served(call("goes"), Code.NOT_FOUND, 0.001)
    assert {kind[0] for kind in found.series} == {"stays", ""}


def test_counts_of_several_gateways_are_put_together() -> None:
    one, other, total = Meters(), Meters(), Meters()
    for found, times in ((one, 2), (other, 3)):
        for _ in range(times):
            found.served(call(), Code.OK, 20e-6)
        found.responses[2] += times
        found.in_flight = 7
    other.served(call("elsewhere"), Code.OK, 20e-6)
    for found in (one, other):
        total.add(orjson.loads(orjson.dumps(found.snapshot())))
    assert counted(total) == {("m", "predict", "REST", "OK"): 5, ("elsewhere", "predict", "REST", "OK"): 1}
    series = total.series["m", "predict", "REST"]
    assert series.counts[2] == 5
    assert series.total_us == pytest.approx(100)
    assert total.responses == [0, 0, 5, 0, 0, 0]
    assert total.in_flight == 0


def test_gauges_are_read_when_somebody_looks() -> None:
    found = Meters()
    found.gauges["connections"] = lambda: 3.0
    found.in_flight += 1
    assert found.snapshot()["gauges"] == {"in_flight": 1, "connections": 3.0}
