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
from tfpool.wire.messages import Bell, Control, pack, unpack

pytestmark = pytest.mark.process
OPTIONS: dict[str, Any] = {"stateful": [], "sizes": [], "rows": 4}
HANDLE = 7


class Bare:
    """A worker in a forked child."""

    def __init__(self) -> None:
        ours, theirs = Doorbell.pair()
        self.line, line = Doorbell.pair()
        self.pid = os.fork()
        if not self.pid:
            try:
                ours.close()
                self.line.close()
                fake_worker.run(theirs, "cpu0", load_concurrency=2, line=line)
            finally:
                os._exit(0)
        theirs.close()
        line.close()
        self._take(ours)
        assert self.hear()[-1] == []

    def _take(self, sock: socket.socket) -> None:
        self._bell = Doorbell(sock, blocking=True)
        sock.settimeout(20.0)

    def offer_broker(self) -> socket.socket:
        """Hand it the doorbell to a new broker; the broker's end."""
        ours, theirs = Doorbell.pair()
        Doorbell(self.line, blocking=True).ring(pack([Control.WORKER]), (theirs.fileno(),))
        theirs.close()
        return ours

    def change_broker(self) -> list[Any]:
        """Be a new broker; what it holds."""
        self.close_bell()
        self._take(self.offer_broker())
        verb, pid, gauge, base, inventory = self.hear()
        assert (verb, pid, base) == (Bell.READY, self.pid, gauge_of(0))
        assert gauge == gauge_of(gauge[1] - fake_worker.BASE_BYTES)
        return list(inventory)

    def close_bell(self) -> None:
        self._bell.close()

    def ring(self, *fields: Any) -> None:
        self._bell.ring(pack(list(fields)))

    def hear(self, gauges: bool = False) -> list[Any]:
        """The next thing it says, gauges and beats left out if not asked for."""
        while True:
            heard = self._bell.hear()
            assert heard is not None
            said: list[Any] = unpack(heard[0])
            if gauges or said[0] not in (Bell.GAUGE, Bell.BEAT):
                return said

    def close(self) -> None:
        self.ring(Bell.STOP)
        os.waitpid(self.pid, 0)
        self._bell.close()
        self.line.close()


def gauge_of(held: int) -> list[int | None]:
    """What a worker tells that holds so many bytes beside its base."""
    unique = fake_worker.BASE_BYTES + held
    return [unique + fake_worker.SHARED_BYTES, unique, unique + fake_worker.SHARED_BYTES // 2, None]


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
    assert worker.hear() == [Bell.UNLOADED, HANDLE, gauge_of(4096)]


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


# -- brokers come and go -------------------------------------------------------------------------------------------


def test_a_new_broker_is_told_what_there_is_and_adopts_it(worker: Bare, path: str) -> None:
    Orders(path).nbytes.write_text("4096")
    options = {**OPTIONS, "fingerprint": "f"}
    for handle in (1, 2):
        worker.ring(Bell.LOAD, handle, "double:1", path, options)
        assert [worker.hear()[0] for _ in range(2)] == [Bell.WARMING, Bell.LOADED]
    inventory = worker.change_broker()
    assert inventory == [[-1, "double:1", path, options, 4096], [-2, "double:1", path, options, 4096]]
    worker.ring(Bell.ADOPT, -2, 1)
    verb, handle, info = worker.hear()
    assert (verb, handle, info["memory_bytes"]) == (Bell.LOADED, 1, 4096)
    worker.ring(Bell.RUN, 9, 1, 0, True, float("inf"), [])
    assert worker.hear()[:2] == [Bell.DONE, 9]
    worker.ring(Bell.UNLOAD, -1)
    assert worker.hear() == [Bell.UNLOADED, -1, gauge_of(4096)]
    assert worker.change_broker() == [[-1, "double:1", path, options, 4096]]


def test_nobody_is_told_of_a_load_for_a_broker_that_is_gone(worker: Bare, path: str) -> None:
    """The next one has handles of its own, which may be the same."""
    other = Path(path).with_name("2")
    other.mkdir()
    Orders(path).hold.touch()
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert worker.change_broker() == [[-1, "double:1", path, OPTIONS, None]]
    worker.ring(Bell.LOAD, HANDLE, "double:2", str(other), OPTIONS)
    assert worker.hear() == [Bell.WARMING, HANDLE]
    assert worker.hear()[:2] == [Bell.LOADED, HANDLE]
    Orders(path).hold.unlink()
    worker.ring(Bell.UNLOAD, HANDLE)
    assert worker.hear()[:2] == [Bell.UNLOADED, HANDLE]
    worker.ring(Bell.ADOPT, -1, HANDLE)
    assert until_loaded(worker) == [Bell.LOADED, HANDLE]


def until_loaded(worker: Bare) -> list[Any]:
    """A load may tell that it warms up, if it had not when it was adopted."""
    said = worker.hear()
    return (worker.hear() if said == [Bell.WARMING, HANDLE] else said)[:2]


@pytest.mark.parametrize("claimed", ["in time", "late", "never"])
def test_a_load_that_fails_after_its_broker_is_told_to_who_adopts_it(worker: Bare, path: str, claimed: str) -> None:
    orders = Orders(path)
    orders.hold.touch()
    orders.fail.write_text("on purpose")
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert len(worker.change_broker()) == 1
    if claimed == "in time":
        worker.ring(Bell.ADOPT, -1, 3)
    orders.hold.unlink()
    if claimed == "late":
        worker.ring(Bell.LOAD, 4, "double:1", path, OPTIONS)
        worker.ring(Bell.LOAD, 5, "double:1", path, OPTIONS)
        assert {worker.hear()[0] for _ in range(2)} == {Bell.LOAD_FAILED}  # two loads at once: the first is over
        worker.ring(Bell.ADOPT, -1, 3)
    if claimed == "never":
        worker.ring(Bell.UNLOAD, -1)
        assert worker.hear()[:2] == [Bell.UNLOADED, -1]
    else:
        assert worker.hear()[:2] == [Bell.LOAD_FAILED, 3]
    assert worker.change_broker() == []


def test_an_unload_goes_on_without_a_broker_and_what_is_left_is_told(worker: Bare, path: str) -> None:
    orders = Orders(path)
    orders.hold.touch()
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    worker.ring(Bell.UNLOAD, HANDLE)
    assert worker.change_broker() == []
    orders.hold.unlink()
    assert worker.hear(gauges=True) == [Bell.GAUGE, gauge_of(0)]


def test_brokers_may_die_faster_than_they_are_noticed(worker: Bare, path: str) -> None:
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert [worker.hear()[0] for _ in range(2)] == [Bell.WARMING, Bell.LOADED]
    for _ in range(3):
        worker.offer_broker().close()
    assert len(worker.change_broker()) == 1


def test_it_ends_with_its_supervisor() -> None:
    made = Bare()
    made.line.close()
    made.close_bell()
    assert os.waitpid(made.pid, 0)[1] == 0


def test_it_shows_that_it_is_alive_while_it_loads(worker: Bare, path: str) -> None:
    Orders(path).hold.touch()
    worker.ring(Bell.LOAD, HANDLE, "double:1", path, OPTIONS)
    assert [worker.hear(gauges=True) for _ in range(2)] == [[Bell.BEAT]] * 2
    Orders(path).hold.unlink()
    assert until_loaded(worker) == [Bell.LOADED, HANDLE]
