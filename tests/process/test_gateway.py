"""The gateways as processes: they listen, share their ports, are replaced, and let everybody have their answers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tfpool.errors import FailedPrecondition, InvalidArgument
from tfpool.settings import PoolSettings, ServerSettings, Settings
from tfpool.supervisor.ports import Ports
from tfpool.testing.fake_worker import FakePool, model, until
from tfpool.testing.fake_worker import settings as made_settings
from tfpool.testing.fronts import Web, await_front, free_address

pytestmark = pytest.mark.process


def test_health(web: Web) -> None:
    assert web.get("/healthz").json == {"live": True}
    assert web.get("/readyz").status == 200


def test_a_path_that_is_not_there(web: Web) -> None:
    answer = web.get("/nothing")
    assert answer.status == 404
    assert answer.json == {"error": "there is nothing at /nothing; see /openapi.json"}


def test_a_method_that_is_not_allowed(web: Web) -> None:
    answer = web.post("/healthz", {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_a_dead_gateway_is_replaced(front: FakePool) -> None:
    address = str(front.settings.server.http)
    (pid,) = front.children("tfpool-gateway")
    os.kill(pid, signal.SIGKILL)
    until(lambda: front.children("tfpool-gateway") not in ([], [pid]))
    await_front(address)
    made = Web(address)
    assert made.get("/healthz").status == 200
    made.close()


def test_it_outlives_the_broker(front: FakePool, web: Web) -> None:
    (pid,) = front.children("tfpool-gateway")
    front.kill_broker()
    until(lambda: web.get("/readyz").status == 200)
    assert front.children("tfpool-gateway") == [pid]


def test_several_share_a_port_and_finish_what_they_have(directory: Path) -> None:
    place = directory / "shared"
    place.mkdir()
    address = free_address()
    pool = FakePool(place, [model(place, "slow")], server={"http": address}, gateway={"processes": 3})
    web, answers = Web(address), []
    try:
        await_front(address)
        until(lambda: len(pool.children("tfpool-gateway")) == 3)
        slow = threading.Thread(
            target=lambda: answers.append(web.post("/v1/models/slow:predict", {"instances": [0.5]}))
        )
        slow.start()
        with pool.client() as client:
            until(lambda: sum(worker["busy"] > 0 for worker in client.workers()))
    finally:
        status = pool.close()
    slow.join()
    web.close()
    assert status == 0
    assert answers[0].json == {"predictions": [0.5]}


# -- ports -------------------------------------------------------------------------------------------------------------


def claimed(directory: Path, **server: object) -> Settings:
    ports = Ports()
    try:
        return ports.claim(made_settings(directory, [], server=dict(server)))
    finally:
        ports.release()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(FailedPrecondition, match=f"http = {address}: Address already in use"):
            claimed(tmp_path, http=address)


def test_port_0_becomes_one_that_is_free(tmp_path: Path) -> None:
    made = claimed(tmp_path, http="127.0.0.1:0", grpc="localhost:0").server
    assert int(str(made.http).rpartition(":")[2]) > 0
    assert str(made.grpc).startswith("localhost:")
    assert made.grpc != "localhost:0"


@pytest.mark.parametrize("address", ["192.0.2.1:0", "[::2]:0", "no.such.host.invalid:1"])
def test_an_address_that_is_not_ours(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidArgument, match="http = "):
        claimed(tmp_path, http=address, insecure=True)


def test_an_address_that_anybody_can_reach(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"grpc|0\.0\.0\.0:0 can be reached from other hosts"):
        claimed(tmp_path, grpc="0.0.0.0:0")


def test_gateways_come_in_by_ipc() -> None:
    """They have no keys for tcp."""
    settings = Settings(
        ServerSettings(("tcp://127.0.0.1:5555",), "ipc:///x/admin", http="127.0.0.1:0"), PoolSettings(), ()
    )
    ports = Ports()
    made = ports.claim(settings).server
    ports.release()
    assert made.listen[0].startswith("ipc://")
    assert made.listen[1:] == ("tcp://127.0.0.1:5555",)


def test_a_gateway_that_cannot_start_again_is_tried_until_it_can(directory: Path) -> None:
    place = directory / "again"
    place.mkdir()
    tokens = place / "tokens"
    tokens.write_text("admin secret-of-this-test\n")
    tokens.chmod(0o600)
    address = free_address()
    gateway = {"tokens": str(tokens)}
    with FakePool(place, [model(place, "double")], server={"http": address}, gateway=gateway) as pool:
        await_front(address)
        tokens.write_text("nonsense\n")
        (pid,) = pool.children("tfpool-gateway")
        os.kill(pid, signal.SIGKILL)
        until(lambda: "gateway0.failed" in pool.log())
        with pool.client() as client:
            assert client.predict("double", [[1.0]])["y"].tolist() == [[2.0]]
        tokens.write_text("admin secret-of-this-test\n")
        await_front(address)


def test_a_gateway_that_hangs_is_replaced(directory: Path) -> None:
    place = directory / "hangs"
    place.mkdir()
    address = free_address()
    with FakePool(place, [], server={"http": address}, hang_s=0.1) as pool:
        await_front(address)
        (pid,) = pool.children("tfpool-gateway")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: pool.children("tfpool-gateway") not in ([], [pid]))
        await_front(address)
        assert "gateway.hung" in pool.log()


def test_a_port_is_kept_from_others_before_anybody_listens(tmp_path: Path) -> None:
    address = free_address()
    ports = Ports()
    ports.claim(made_settings(tmp_path, [], server={"http": address}))
    try:
        with pytest.raises(FailedPrecondition, match="Address already in use"):
            claimed(tmp_path, http=address)
    finally:
        ports.release()
