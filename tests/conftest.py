"""Every test leaves the process as it found it.

What a fixture of a wider scope holds was there before the test, and is that fixture's to free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tfpool.settings import STORE_OFF, STORE_VARIABLE
from tfpool.testing.leaks import Traces, left_behind, mark

settings.register_profile(
    "tfpool", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tfpool")
mark()
os.environ[STORE_VARIABLE] = STORE_OFF  # the user's own is no place for what tests compile


def _ours(line: str) -> bool:
    return line.startswith(("child", "orphan", "/dev/shm")) or "tfpool" in line


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    before = Traces.now()
    yield
    tf = "tests/tf/" in request.node.nodeid  # TensorFlow keeps threads and descriptors of its own
    found = left_behind(before, counts=_ours if tf else lambda line: True)
    assert not found, "left behind: " + "; ".join(found)
