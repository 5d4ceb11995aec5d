"""Deaths, restarts and hand-overs: workers, brokers, whole pools."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.broker import main as broker_main
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from tfpool.settings import ServerSettings
from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor.ground import Claim
from tfpool.testing import fake_worker
from tfpool.testing.fake_worker import CRASH_VALUE, FakePool, until
from tfpool.wire.messages import Control, pack, unpack

pytestmark = pytest.mark.process
X = np.ones((2, 3), np.float32)
SOON = 15.0
MakePool = Callable[..., FakePool]
REPLICATED = {"replicas": (2, 2)}


def pids(client: Client) -> dict[str, int]:
    return {worker["name"]: worker["pid"] for worker in client.workers() if worker["state"] == "READY"}


def healthy(client: Client) -> bool:
    """Both workers are there again, and nothing of the dead is held back."""
    return len(pids(client)) == 2 and client.stats()["shm"]["quarantined"] == 0


# -- workers that die ----------------------------------------------------------------------------------------------


def test_a_request_that_was_running_when_its_worker_died_runs_again(make_pool: MakePool) -> None:
    with make_pool([("crash", REPLICATED), ("double", {})]).client() as client:
        before = pids(client)
        assert client.predict("crash", np.float32([-1.0, 5.0]), timeout=SOON)["y"].tolist() == [-1.0, 5.0]
        until(lambda: healthy(client))
        assert len(set(before.items()) & set(pids(client).items())) == 1, "one of the two has been replaced"
        assert sum(worker["deaths"] for worker in client.workers()) == 1
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


def test_a_request_that_kills_is_given_up_though_nobody_seems_guilty(make_pool: MakePool) -> None:
    with make_pool([("crash", REPLICATED)]).client() as client:
        with pytest.raises(FailedPrecondition, match="5 workers died while running it"):
            client.predict("crash", np.float32([CRASH_VALUE]), timeout=SOON)
        until(lambda: healthy(client))
        assert client.predict("crash", np.float32([1.0]), timeout=SOON)["y"].tolist() == [1.0]
        assert sum(worker["deaths"] for worker in client.workers()) == 5


def test_what_changes_state_is_not_run_again(make_pool: MakePool) -> None:
    with make_pool([("counter", {}), ("slow", {"max_batch_size": 1})], workers=1).client() as client:
        busy = client.submit("slow", np.float32([0.3]))
        until(lambda: client.queues())
        counting = client.submit("counter", np.float32([0.0]))
        until(lambda: len(client.queues()) == 2)  # it is staged behind the slow one, or waits
        os.kill(pids(client)["cpu0"], signal.SIGKILL)
        assert busy.result(SOON)["y"].tolist() == [np.float32(0.3)]
        try:
            assert counting.result(SOON)["total"].tolist() == [1.0]
        except Unavailable:
            assert client.predict("counter", np.float32([0.0]))["total"].tolist() == [1.0]


def test_workers_killed_under_load_cost_no_request(make_pool: MakePool) -> None:
    """Small, large and very large requests go on while workers are killed, one at a time."""
    with make_pool([("double", {**REPLICATED, "max_batch_size": 16})]).client(timeout=30.0) as client:
        stop = threading.Event()
        failures: list[Any] = []
        answered = [0]

        def load(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                rows, width = [(1, 3), (40, 3), (2, 20_000)][int(rng.integers(3))]
                x = rng.random((rows, width), np.float32)
                try:
                    assert client.predict("double", x)["y"].tolist() == (2 * x).tolist()
                    answered[0] += 1
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(4):
            seen = answered[0]
            until(lambda seen=seen: answered[0] > seen + 20, SOON, "requests are answered")
            os.kill(pids(client)[f"cpu{turn % 2}"], signal.SIGKILL)
            until(lambda turn=turn: sum(w["deaths"] for w in client.workers()) > turn and healthy(client), SOON)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []


def test_a_model_that_kills_its_workers_is_given_up_and_others_serve(make_pool: MakePool) -> None:
    with make_pool([("killer", {}), ("double", {})]).client() as client:
        until(lambda: healthy(client), SOON)
        (row,) = client.status("killer")
        assert row["state"] == "FAILED"
        assert "killed 2 workers" in row["error"]
        with pytest.raises(FailedPrecondition, match="killed 2 workers"):
            client.predict("killer", X)
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()


# -- brokers that die ----------------------------------------------------------------------------------------------


def test_a_new_broker_is_found_again(make_pool: MakePool) -> None:
    pool = make_pool([("double", {}), ("slow", {})])
    with pool.client(timeout=SOON) as client:
        large = np.ones((2, 50_000), np.float32)
        kept = client.predict("double", large)["y"]
        kept = client.predict("double", large)["y"]
        slow = client.submit("slow", np.float32([1.0]))
        until(lambda: client.queues())
        old = pool.broker_pid()
        os.kill(old, signal.SIGKILL)
        assert slow.result(SOON)["y"].tolist() == [1.0], "the client asks again"
        until(lambda: _serves(client), SOON, "the client finds the new broker")
        assert pool.broker_pid() != old
        assert client.predict("double", large)["y"].tolist() == (2 * large).tolist()
        assert kept.tolist() == (2 * large).tolist(), "what was returned before stays"


def _serves(client: Client) -> bool:
    try:
        return bool(client.predict("double", X, timeout=2.0)["y"].tolist() == (2 * X).tolist())
    except (Unavailable, DeadlineExceeded):
        return False


def test_a_pool_that_ends_and_comes_back(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})])
    with pool.client(timeout=SOON) as client:
        client.predict("double", X)
        assert pool.close() == 0
        begin = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.predict("double", X, timeout=0.3)
        assert time.monotonic() - begin < 1.0
        waiting = client.submit("double", X, timeout=SOON)
        pool.start()
        assert waiting.result(SOON)["y"].tolist() == (2 * X).tolist(), "what was asked meanwhile is answered"


# -- the control plane ---------------------------------------------------------------------------------------------


def test_models_come_and_go(make_pool: MakePool) -> None:
    with make_pool([("double", {}), ("slow", {})]).client(timeout=SOON) as client:
        (row,) = client.unload("double")
        assert row["name"] == "double"
        with pytest.raises(NotFound, match="double:1 is unloaded; `tfpool load double:1` loads it"):
            client.predict("double", X)
        with pytest.raises(NotFound, match="has no version 7"):
            client.load("double", 7)
        assert client.load("double")["state"] == "AVAILABLE"
        assert client.predict("double", X)["y"].shape == (2, 3)
        with pytest.raises(InvalidArgument, match="got str, expected int"):
            client.admin("load", model="double", version="1")


def test_a_worker_is_restarted_without_losing_a_request(make_pool: MakePool) -> None:
    with make_pool([("slow", {"max_batch_size": 1})], workers=1).client(timeout=SOON) as client:
        replies = [client.submit("slow", np.float32([0.05])) for _ in range(10)]
        old = pids(client)["cpu0"]
        row = client.restart("cpu0", timeout=SOON)
        assert row["pid"] != old
        for reply in replies:
            reply.result(SOON)
        with pytest.raises(NotFound, match="no worker 'cpu9'; there are cpu0"):
            client.restart("cpu9")


def test_a_worker_is_drained_while_another_takes_over(make_pool: MakePool) -> None:
    with make_pool([("double", {}), ("slow", {})]).client(timeout=SOON) as client:
        (holder,) = (w["name"] for w in client.workers() if "double:1" in w["models"])
        stop, failures = threading.Event(), []

        def load() -> None:
            while not stop.is_set():
                try:
                    client.predict("double", X)
                except BaseException as error:
                    failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        row = client.drain(holder, timeout=SOON)
        stop.set()
        thread.join()
        assert row["models"] == []
        assert failures == []


def test_a_pool_drains_before_it_ends(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {})])
    with pool.client(timeout=SOON) as client:
        reply = client.submit("slow", np.float32([0.4]))
        until(lambda: client.queues())
        client.shutdown()
        assert reply.result(SOON)["y"].tolist() == [np.float32(0.4)]
        assert pool.process.wait(SOON) == 0


# -- the supervisor ------------------------------------------------------------------------------------------------


def test_two_pools_cannot_have_one_endpoint(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})], workers=1)
    with pytest.raises(FailedPrecondition, match=rf"another pool \(pid {pool.process.pid}\) serves ipc://"):
        Claim(pool.settings.server)
    with pool.client() as client:
        client.predict("double", X)
    pool.close()
    Claim(pool.settings.server).release()


def test_a_claim_of_many_endpoints_is_all_or_nothing(tmp_path: Path) -> None:
    first = ServerSettings((f"ipc://{tmp_path}/a", f"ipc://{tmp_path}/b"), f"ipc://{tmp_path}/admin")
    second = ServerSettings((f"ipc://{tmp_path}/c", f"ipc://{tmp_path}/b"), f"ipc://{tmp_path}/other")
    claim = Claim(first)
    with pytest.raises(FailedPrecondition):
        Claim(second)
    third = ServerSettings((f"ipc://{tmp_path}/c",), f"ipc://{tmp_path}/other")
    Claim(third).release()
    claim.release()
    Claim(second).release()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".lock")]


def test_the_default_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = ServerSettings((f"ipc://{tmp_path}/tfpool/pool",), f"ipc://{tmp_path}/tfpool/admin")
    Claim(server).release()
    assert (tmp_path / "tfpool").stat().st_mode & 0o777 == 0o700
    (tmp_path / "tfpool").chmod(0o755)
    with pytest.raises(PermissionDenied, match="expected mode 0700"):
        Claim(server)


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5555", "tcp://192.168.1.2:5555", "tcp://example.org:5555"])
def test_other_hosts_are_let_in_on_purpose_only(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="can be reached from other hosts"):
        Claim(ServerSettings((endpoint,), f"ipc://{tmp_path}/admin"))
    Claim(ServerSettings((endpoint,), f"ipc://{tmp_path}/admin", insecure=True)).release()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_pool_and_all_its_processes(make_pool: MakePool, number: signal.Signals) -> None:
    pool = make_pool([("double", {})])
    with pool.client() as client:
        members = [pool.broker_pid(), *pids(client).values()]
    pool.process.send_signal(number)
    assert pool.process.wait(SOON) == 0
    until(lambda: not any(map(_alive, members)), SOON)


def test_nothing_outlives_a_supervisor_that_is_killed(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})])
    with pool.client() as client:
        members = [pool.broker_pid(), *pids(client).values()]
    pool.process.kill()
    pool.process.wait()
    until(lambda: not any(map(_alive, members)), SOON)


def _alive(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


# -- the broker alone: the test is its supervisor ------------------------------------------------------------------


class Bare:
    """A broker in a forked child, and fake workers; the other end of its control socket is the test's."""

    def __init__(self, directory: Path, workers: int = 1) -> None:
        models = [fake_worker.model(directory, "double"), fake_worker.model(directory, "slow")]
        self.settings = fake_worker.settings(directory, models, workers)
        mine, theirs = Doorbell.pair()
        self.pids: dict[str, int] = {"broker": os.fork()}
        if self.pids["broker"] == 0:
            mine.close()
            fake_worker.install()
            self._be(lambda: broker_main.run(theirs, self.settings))
        theirs.close()
        self.bell = Doorbell(mine, blocking=True)
        self.hear_until(Control.UP)

    @staticmethod
    def _be(what: Callable[[], None]) -> None:
        status = 1
        try:
            what()
            status = 0
        finally:
            os._exit(status)

    def hear_until(self, wanted: Control) -> list[Any]:
        while (heard := self.bell.hear()) is not None:
            verb, *fields = unpack(heard[0])
            if verb == wanted:
                return list(fields)
        raise AssertionError

    def tell(self, verb: Control, *fields: Any, fds: tuple[int, ...] = ()) -> None:
        self.bell.ring(pack([verb, *fields]), fds)

    def start_worker(self, name: str, generation: int) -> None:
        ours, theirs = Doorbell.pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self.bell.close()
            self._be(lambda: fake_worker.run(theirs, name))
        self.pids[name] = pid
        self.tell(Control.WORKER, name, generation, fds=(ours.fileno(),))
        ours.close()
        theirs.close()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[name], number)

    def reap(self, name: str) -> None:
        os.waitpid(self.pids.pop(name), 0)

    def close(self) -> None:
        self.kill("broker", signal.SIGCONT)
        self.bell.close()
        for name in list(self.pids):
            self.reap(name)


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    made = Bare(tmp_path_factory.mktemp("b"))
    yield made
    made.close()


@pytest.mark.parametrize("order", ["death, reaped, worker", "reaped and worker first"])
def test_the_dead_workers_memory_is_freed_however_the_news_arrives(bare: Bare, order: str) -> None:
    """The broker may be busy while a worker dies, is reaped and is replaced: it then hears all of it at once."""
    server = bare.settings.server
    with Client(server.listen[0], admin=server.admin_listen, timeout=SOON) as client:
        bare.start_worker("cpu0", 1)
        client.wait_ready(SOON)
        slow = client.submit("slow", np.float32([0.3]))
        until(lambda: client.stats()["shm"]["leased"] > 0)
        if order == "reaped and worker first":
            bare.kill("broker", signal.SIGSTOP)
        bare.kill("cpu0")
        bare.reap("cpu0")
        if order != "reaped and worker first":
            until(lambda: client.stats()["shm"]["quarantined"] > 0)
            assert client.stats()["shm"]["leased"] == 0
        bare.tell(Control.REAPED, "cpu0", 1, -signal.SIGKILL, False)
        bare.start_worker("cpu0", 2)
        bare.kill("broker", signal.SIGCONT)
        assert slow.result(SOON)["y"].tolist() == [np.float32(0.3)]
        assert client.stats()["shm"]["quarantined"] == 0
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        (worker,) = client.workers()
        assert (worker["state"], worker["deaths"]) == ("READY", 1)


def test_a_worker_that_is_given_up_is_told(bare: Bare) -> None:
    server = bare.settings.server
    with Client(server.listen[0], admin=server.admin_listen, timeout=SOON) as client:
        bare.start_worker("cpu0", 1)
        client.wait_ready(SOON)
        bare.kill("cpu0")
        bare.reap("cpu0")
        bare.tell(Control.REAPED, "cpu0", 1, -signal.SIGKILL, False)
        bare.tell(Control.HALTED, "cpu0")
        until(lambda: client.workers()[0]["state"] == "HALTED")
        with pytest.raises((FailedPrecondition, Unavailable)):
            client.predict("double", X)


def test_a_drained_broker_says_so_and_ends(bare: Bare) -> None:
    server = bare.settings.server
    slow = Path(bare.settings.models[1].base_path) / "1"
    (slow / "busy").touch()
    with Client(server.listen[0], admin=server.admin_listen, timeout=SOON) as client:
        bare.start_worker("cpu0", 1)
        client.wait_ready(SOON)
        reply = client.submit("slow", np.float32([-1.0]))
        until((slow / "begun").exists)
        bare.tell(Control.DRAIN)
        until(lambda: _shuts_down(client), SOON, "it says so")
        (slow / "busy").unlink()
        bare.hear_until(Control.DRAINED)
        assert reply.result(SOON)["y"].tolist() == [-1.0]


def _shuts_down(client: Client) -> bool:
    """Whether it refuses for that reason; what came before it was told waits behind the run."""
    try:
        client.predict("double", X, timeout=0.2)
    except Unavailable as error:
        return "shutting down" in error.message
    except DeadlineExceeded:
        pass
    return False


def test_a_broker_ends_with_its_supervisor(bare: Bare) -> None:
    bare.bell.close()
    pid = bare.pids["broker"]
    assert until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)).si_code == os.CLD_EXITED


def test_a_broker_refuses_an_endpoint_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="expected at most 107"):
        Client(f"ipc://{tmp_path}/{'x' * 107}")


def test_ends_of_sockets_are_not_mixed_up() -> None:
    """What a worker inherits is its own doorbell: the end of one side is seen by the other at once."""
    ours, theirs = Doorbell.pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        Bare._be(lambda: fake_worker.run(theirs, "cpu0"))
    theirs.close()
    bell = Doorbell(ours, blocking=True)
    heard = bell.hear()
    assert heard is not None
    assert unpack(heard[0])[1] == pid
    bell.close()
    assert os.waitpid(pid, 0)[1] == 0
