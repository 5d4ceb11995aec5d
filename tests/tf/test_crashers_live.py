"""TensorFlow that aborts, spins or finds no memory: what real models do to their workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tfpool
from tfpool.errors import FailedPrecondition, ResourceExhausted
from tfpool.testing.models import CRASH_VALUE

pytestmark = [pytest.mark.process, pytest.mark.tf]
SOON = 60.0
NAMES = ("half_plus_two", "crash", "greedy", "spinning")
_MAKE = """
import sys
import tensorflow as tf
from tfpool.testing import models

def greedy(x):  # a row of more than 100 asks for petabytes
    size = tf.cast(tf.maximum(tf.reduce_max(x) - 100.0, 0.0), tf.int64)
    return {"y": x + tf.reduce_sum(tf.random.uniform([size, 1 << 30, 1 << 10]))}

def spinning(x):  # a row of 13 never ends
    def more(i):
        return tf.reduce_any(tf.equal(x, 13.0))
    (count,) = tf.while_loop(more, lambda i: (i + 1.0,), (tf.constant(0.0),))
    return {"y": x + count}

models.MAKERS["half_plus_two"](sys.argv[1])
models.MAKERS["crash"](sys.argv[1])
for run in (greedy, spinning):
    function = models._function(run, x=((None,), tf.float32))
    models._save(sys.argv[1], run.__name__, {"serving_default": function})
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tfpool.Pool]:
    directory = tmp_path_factory.mktemp("crashers")
    made = subprocess.run([sys.executable, "-c", _MAKE, str(directory)], capture_output=True, text=True, timeout=110)
    assert made.returncode == 0, made.stderr[-2000:]
    with tfpool.Pool({name: directory / name for name in NAMES}, workers=2, hang_s=1.0) as running:
        yield running


@pytest.fixture
def client(pool: tfpool.Pool) -> Iterator[tfpool.Client]:
    with tfpool.Client(pool.endpoint, admin=pool.admin_endpoint) as made:
        yield made


def row_of(client: tfpool.Client, model: str) -> dict[str, object]:
    (row,) = client.status(model)
    return row


def pids(client: tfpool.Client) -> list[int]:
    return [worker["pid"] for worker in client.workers()]


def test_a_tensor_that_does_not_fit_fails_its_run_alone(client: tfpool.Client) -> None:
    before = pids(client)
    with pytest.raises(ResourceExhausted, match="OOM"):
        client.predict("greedy", np.float32([2e6]), timeout=SOON)
    assert client.predict("greedy", np.float32([1.0]), timeout=SOON)["y"].tolist() == [1.0]
    assert pids(client) == before


def test_a_graph_that_spins_for_ever_is_ended(client: tfpool.Client, pool: tfpool.Pool) -> None:
    with pytest.raises(FailedPrecondition, match="quarantine"):
        client.predict("spinning", np.float32([13.0]), timeout=SOON)
    assert client.predict("spinning", np.float32([1.0]), timeout=SOON)["y"].tolist() == [1.0]
    assert client.predict("half_plus_two", np.float32([2.0]), timeout=SOON)["y"].tolist() == [3.0]
    assert "a batch of spinning:1 has run for" in pool.log()


def test_a_model_that_aborts_all_the_time_is_stopped_and_the_others_serve(client: tfpool.Client) -> None:
    row = row_of(client, "crash")
    for _ in range(12):
        if row["state"] == "FAILED":
            break
        with pytest.raises(FailedPrecondition):
            client.predict("crash", np.float32([CRASH_VALUE]), timeout=SOON)
        assert client.predict("half_plus_two", np.float32([2.0]), timeout=SOON)["y"].tolist() == [3.0]
        row = row_of(client, "crash")
    assert row["state"] == "FAILED"
    assert "the last by signal 6" in str(row["error"])
    client.load("crash", 1, timeout=SOON)
    assert client.predict("crash", np.float32([1.0]), timeout=SOON)["y"].tolist() == [1.0]
