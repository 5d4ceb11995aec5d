from __future__ import annotations

from tfpool.broker.meters import ModelMeter
from tfpool.errors import Code


def test_what_a_batch_adds() -> None:
    meter = ModelMeter()
    meter.ran(6, run=0.001, waited=0.002, requests=3, padded=8)
    found = meter.snapshot()
    assert (found["batches"], found["rows"]) == (1, 6)
    assert (found["run_us"]["count"], found["run_us"]["total"]) == (1, 1000.0)
    assert (found["queue_us"]["count"], found["queue_us"]["total"]) == (3, 6000.0)
    assert (found["batch_rows"]["count"], found["batch_rows"]["total"]) == (1, 6.0)
    assert (found["request_rows"]["count"], found["request_rows"]["total"]) == (3, 6.0)
    assert (found["padding_rows"]["count"], found["padding_rows"]["total"]) == (1, 2.0)


def test_a_batch_of_nobodys_requests_counts_no_request() -> None:
    meter = ModelMeter()
    meter.ran(6, run=0.001, waited=0.002, requests=0, padded=6)
    found = meter.snapshot()
    assert (found["batches"], found["request_rows"]["count"], found["padding_rows"]["total"]) == (1, 0, 0.0)


def test_errors_are_counted_by_code() -> None:
    meter = ModelMeter()
    meter.failed(Code.UNAVAILABLE, 2)
    meter.failed(Code.UNAVAILABLE, 1)
    assert meter.snapshot()["errors"] == {"UNAVAILABLE": 3}
