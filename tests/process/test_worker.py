"""One worker at its doorbell: what it says to LOAD and UNLOAD, in whatever order they come."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfpool.shm.doorbell import Doorbell
from tfpool.testing import fake_worker
from tfpool.testing.fake_worker import Orders, model
from tfpool.wire.messages import Bell, pack, unpack

pytestmark = pytest.mark.process
OPTIONS: dict[str, Any] = {"stateful": [], "sizes": []}
HANDLE = 7


class Bare:
    """A worker in a forked child."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            try:
                ours.close()
                fake_worker.run(theirs, "cpu0", load_concurrency=2)
            finally:
                os._exit(0)
        theirs.close()
        ours.settimeout(20.0)
        self._bell = Doorbell(ours, blocking=True)
        assert self.hear()[0] == Bell.READY

    def ring(self, *fields: Any) -> None:
        self._bell.ring(pack(list(fields)))

    def hear(self) -> list[Any]:
        """The next thing it says, gauges left out."""
        while True:
            heard = self._bell.hear()
            assert heard is not None
            said: list[Any] = unpack(heard[0])
            if said[0] != Bell.GAUGE:
                return said

    def close(self) -> None:
        self.ring(Bell.STOP)
        os.waitpid(self.pid, 0)
        self._bell.close()


@pytest.fixture
def worker() -> Iterator[Bare]:
    made = Bare()
    try:
        yield made
        made.close()
    except BaseException:
        os.kill(made.pid, signal.SIGKILL)
        raise


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(Path(model(tmp_path, "double").base_path) / "1")


def test_a_load_tells_what_it_took_and_an_unload_what_is_left(worker: Bare, path: str) -> None:
    Orders(path).nbytes.write_text(str(1 << 30))
    Orders(path).residue.write_text("4096")
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert worker.hear() == [Bell.WARMING, HANDLE]
    verb, handle, info = worker.hear()
    assert (verb, handle) == (Bell.LOADED, HANDLE)
    assert info["peak_bytes"] >= info["memory_bytes"] == 1 << 30
    assert info["load_seconds"] > 0
    worker.ring(Bell.UNLOAD, HANDLE)
    left = fake_worker.BASE_BYTES + 4096
    assert worker.hear() == [Bell.UNLOADED, HANDLE, left, left]


def test_an_unload_waits_for_the_load_that_is_under_way(worker: Bare, path: str) -> None:
    Orders(path).hold.touch()
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    worker.ring(Bell.UNLOAD, HANDLE)
    Orders(path).hold.unlink()
    assert [worker.hear()[0] for _ in range(3)] == [Bell.WARMING, Bell.LOADED, Bell.UNLOADED]
    worker.ring(Bell.RUN, 1, HANDLE, 0, True, float("inf"), [])
    assert worker.hear()[:2] == [Bell.FAILED, 1]


def test_an_unload_of_what_failed_or_never_was(worker: Bare, path: str) -> None:
    Orders(path).fail.write_text("on purpose")
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    verb, handle, _, message = worker.hear()
    assert (verb, handle) == (Bell.LOAD_FAILED, HANDLE)
    assert "on purpose" in message
    for one in (HANDLE, 8):
        worker.ring(Bell.UNLOAD, one)
        assert worker.hear()[:2] == [Bell.UNLOADED, one]


def test_without_warm_up_a_file_is_left_alone(worker: Bare, path: str) -> None:
    file = Path(path) / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    file.write_text("no TFRecord at all")
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert worker.hear() == [Bell.WARMING, HANDLE]
    verb, _, _, message = worker.hear()
    assert verb == Bell.LOAD_FAILED
    assert f"{file}, record 1: corrupt" in message
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, {**OPTIONS, "warm_up": False})
    assert [worker.hear()[0] for _ in range(2)] == [Bell.WARMING, Bell.LOADED]
