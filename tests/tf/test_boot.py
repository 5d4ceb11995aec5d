"""What a worker sets before TensorFlow starts. GPU settings are checked as settings: none has run on a GPU here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tfpool.worker import loader
from tfpool.worker.boot import Boot

PINNED = """
import json, os, sys
from tfpool.worker.boot import Boot, pin
pin(Boot.from_fields(json.loads(sys.argv[1])))
print(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], sorted(os.sched_getaffinity(0))]))
"""


def pinned(boot: Boot) -> list[object]:
    command = [sys.executable, "-c", PINNED, json.dumps(boot.to_fields())]
    found: list[object] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return found


@pytest.mark.parametrize(("device", "visible"), [("cpu", "-1"), ("gpu:0", "0"), ("gpu:3", "3")])
def test_a_worker_sees_its_own_device_only(device: str, visible: str) -> None:
    assert pinned(Boot("w", device, threads=3))[:2] == [visible, "3"]


def test_a_worker_runs_on_its_own_cpus() -> None:
    last = max(os.sched_getaffinity(0))
    assert pinned(Boot("w", cpus=(last,)))[2] == [last]


def test_a_lost_cpu_is_no_reason_to_die() -> None:
    assert pinned(Boot("w", cpus=(1023,)))[2] == sorted(os.sched_getaffinity(0))


def test_a_memory_limit_is_one_of_the_gpu() -> None:
    config = loader.session_config(2, 3 << 30)
    assert list(config.gpu_options.experimental.virtual_devices[0].memory_limit_mb) == [3072.0]
    assert (config.intra_op_parallelism_threads, config.gpu_options.allow_growth) == (2, True)
    assert not loader.session_config(2, None).gpu_options.experimental.virtual_devices
