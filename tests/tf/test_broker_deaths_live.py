"""Real models outlive their broker, whichever way their workers were started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import tfpool
from tfpool.testing.fake_worker import until

pytestmark = pytest.mark.tf
SOON = 30.0


def _broker(pool: tfpool.Pool) -> int:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            stat = Path(f"/proc/{name}/stat").read_text()
            if "(tfpool-broker)" in stat and int(stat.rpartition(")")[2].split()[1]) == pool.pid:
                return int(name)
    raise AssertionError("the pool has no broker")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_models_are_served_by_the_next_broker_as_they_are(sample_models: dict[str, str], method: str) -> None:
    models = {name: sample_models[name] for name in ("half_plus_two", "string_length", "two_signatures")}
    with tfpool.Pool(models=models, workers=1, start_method=method) as pool:
        client = pool.client()
        x = np.float32([1.0, 2.0])
        answer = client.predict("half_plus_two", x, timeout=SOON)["y"].tolist()
        (before,) = client.workers()
        for deaths in (1, 2):
            broker = _broker(pool)
            os.kill(broker, signal.SIGKILL)
            until(lambda broker=broker: not os.path.exists(f"/proc/{broker}"))
            assert client.predict("half_plus_two", x, timeout=SOON)["y"].tolist() == answer
            client.wait_ready(SOON)
            until(lambda deaths=deaths: pool.log().count("model.adopted") == 3 * deaths)
        (after,) = client.workers()
        assert after["pid"] == before["pid"]
        assert after["memory"]["base"] == before["memory"]["base"]
        assert after["models"] == before["models"]
        assert pool.log().count("model.loading") == 3
        metadata = client.metadata("two_signatures")
        assert len(metadata["signatures"]) == 2
