"""Keys on tcp: who has one that is on the list gets in, as what the list says, and nobody else does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from click.testing import CliRunner

from tfpool.cli.main import main
from tfpool.client.sync import Client
from tfpool.errors import Code, Unauthenticated
from tfpool.keys import ClientKeys, read_client_keys
from tfpool.testing.fake_worker import FakePool, model, until
from tfpool.types import DType
from tfpool.wire import messages
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Group, Verb

pytestmark = pytest.mark.process
KEY = pack_request_key(RequestKey("double", 0, "", "", (Tensor("x", DType.FLOAT, (3,)),), True))
ROW = np.ones((1, 3), np.float32).tobytes()
REFUSED_HANDSHAKE = zmq.EVENT_HANDSHAKE_FAILED_AUTH


def keygen(place: Path, *arguments: str) -> None:
    done = CliRunner().invoke(main, ["keygen", str(place), *arguments])
    assert done.exit_code == 0, done.output


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Peer:
    """A DEALER with keys, or without, and what becomes of its handshakes."""

    def __init__(self, endpoint: str, keys: ClientKeys | None, identity: bytes = b"") -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.RCVTIMEO, 10_000), (zmq.RECONNECT_IVL, 20)):
            self.socket.setsockopt(option, value)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        if keys is not None:
            self.socket.curve_serverkey = keys.server
            self.socket.curve_publickey, self.socket.curve_secretkey = keys.public, keys.secret
        wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        wanted |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED
        self.monitor = self.socket.get_monitor_socket(wanted)
        self.monitor.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(endpoint)

    def event(self) -> int:
        """What becomes of the next handshake."""
        from zmq.utils.monitor import recv_monitor_message

        found: Any = recv_monitor_message(self.monitor)
        return int(found["event"])

    def predict(self) -> Any:
        """The answer's verb, and an error's code."""
        group = Group(KEY, 1, 1, 1, 10_000, 0, None, None)
        self.socket.send_multipart([messages.encode(Verb.PREDICT, [group]), ROW])
        return self._hear()

    def call(self, method: str, **arguments: Any) -> Any:
        self.socket.send(messages.encode(Verb.CALL, [1, method, arguments, 10_000]))
        return self._hear()

    def _hear(self) -> Any:
        verb, body = messages.decode(self.socket.recv_multipart()[0])
        return (verb, Code(messages.decode_error(body).code)) if verb == Verb.ERROR else verb

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self.context.term()


class Guarded:
    """A pool that listens on tcp with keys, and on ipc; ``keys`` is where keygen puts them."""

    def __init__(self, pool: FakePool, keys: Path, endpoint: str, admin: str) -> None:
        self.pool, self.keys, self.endpoint, self.admin = pool, keys, endpoint, admin

    @contextmanager
    def peer(self, name: str, admin: bool = False, **options: Any) -> Iterator[Peer]:
        keys = read_client_keys(str(self.keys / f"{name}.key")) if name else None
        made = Peer(self.admin if admin else self.endpoint, keys, **options)
        try:
            yield made
        finally:
            made.close()

    def log_has(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.pool.log().splitlines())


@pytest.fixture(scope="module")
def guarded(directory: Path) -> Iterator[Guarded]:
    keys = directory / "keys"
    keygen(keys, "--client", "ann", "--role", "admin")
    keygen(keys, "--client", "pete")
    endpoint, admin = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    server = {
        "listen": (f"ipc://{directory}/pool", endpoint),
        "admin_listen": admin,
        "curve_key": str(keys / "server.key"),
        "authorized_keys": str(keys / "authorized_keys"),
    }
    with FakePool(directory, [model(directory, "double")], workers=1, server=server) as pool:
        yield Guarded(pool, keys, endpoint, admin)


def test_a_key_on_the_list_gets_in(guarded: Guarded) -> None:
    with guarded.peer("pete") as pete:
        assert pete.predict() == Verb.ANSWER
        assert pete.call("models") == Verb.RESULT
        assert pete.event() == zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert pete.call("unload", model="double") == (Verb.ERROR, Code.PERMISSION_DENIED), "not the admin endpoint"


def test_a_client_with_its_key_file(guarded: Guarded) -> None:
    rows = np.ones((1, 3), np.float32)
    with Client(guarded.endpoint, admin=guarded.admin, keys=guarded.keys / "ann.key") as ann:
        assert ann.predict("double", rows)["y"].tolist() == [[2.0] * 3]
        assert ann.load("double")["state"] == "AVAILABLE"
    with Client(guarded.endpoint, admin=guarded.admin, keys=guarded.keys / "pete.key") as pete:
        assert pete.predict("double", rows)["y"].tolist() == [[2.0] * 3]
        with pytest.raises(Unauthenticated):
            pete.load("double", timeout=10.0)


def test_ipc_needs_no_key(guarded: Guarded) -> None:
    with guarded.pool.client() as client:
        assert client.predict("double", np.ones((1, 3), np.float32))["y"].tolist() == [[2.0] * 3]


def test_the_admin_endpoint_needs_the_role(guarded: Guarded) -> None:
    with guarded.peer("pete", admin=True) as pete:
        assert pete.event() == REFUSED_HANDSHAKE
    with guarded.peer("ann", admin=True) as ann:
        assert ann.call("load", model="double") == Verb.RESULT
    with guarded.peer("ann") as ann:
        assert ann.predict() == Verb.ANSWER
    until(lambda: guarded.log_has("key.refused", "expected admin"))


def test_a_key_that_nobody_knows(guarded: Guarded) -> None:
    public, secret = zmq.curve_keypair()
    server = read_client_keys(str(guarded.keys / "ann.key")).server
    for endpoint in (guarded.endpoint, guarded.admin):
        stranger = Peer(endpoint, ClientKeys(public, secret, server))
        assert stranger.event() == REFUSED_HANDSHAKE
        stranger.close()
    until(lambda: guarded.log_has("key.refused", "127.0.0.1", "not among the server's authorized_keys"))


def test_no_key_at_all_and_the_key_of_another_server(guarded: Guarded) -> None:
    mine = read_client_keys(str(guarded.keys / "ann.key"))
    other, _ = zmq.curve_keypair()
    for keys in (None, ClientKeys(mine.public, mine.secret, other)):
        stranger = Peer(guarded.endpoint, keys)
        stranger.socket.setsockopt(zmq.RCVTIMEO, 300)
        with pytest.raises(zmq.Again):
            stranger.predict()
        assert stranger.event() != zmq.EVENT_HANDSHAKE_SUCCEEDED
        stranger.close()
    test_a_key_on_the_list_gets_in(guarded)


def edited(guarded: Guarded, change: Callable[[str], str]) -> None:
    path = guarded.keys / "authorized_keys"
    draft = guarded.keys / "draft"
    draft.write_text(change(path.read_text()))
    draft.chmod(0o600)
    draft.rename(path)


def _as_predict(line: str) -> str:
    return line.replace("admin", "predict") if "bob" in line else line


def test_the_list_is_read_again_when_it_changes(guarded: Guarded) -> None:
    keygen(guarded.keys, "--client", "bob", "--role", "admin")

    def gets_in() -> bool:
        with guarded.peer("bob", admin=True) as bob:
            return bob.event() == zmq.EVENT_HANDSHAKE_SUCCEEDED

    until(gets_in)
    with guarded.peer("bob", admin=True) as bob:
        assert bob.call("models") == Verb.RESULT
        edited(guarded, lambda text: "".join(_as_predict(line) for line in text.splitlines(True)))
        until(lambda: bob.call("models") == (Verb.ERROR, Code.PERMISSION_DENIED), what="the connection lost its role")
        with guarded.peer("bob") as again:
            assert again.predict() == Verb.ANSWER
            edited(guarded, lambda text: "".join(line for line in text.splitlines(True) if "bob" not in line))
            until(lambda: again.predict() == (Verb.ERROR, Code.UNAUTHENTICATED), what="the connection is refused")
            assert again.call("models") == (Verb.ERROR, Code.UNAUTHENTICATED)
    test_a_key_on_the_list_gets_in(guarded)


def test_a_list_that_cannot_be_read_changes_nothing(guarded: Guarded) -> None:
    path = guarded.keys / "authorized_keys"
    good = path.read_text()
    for harm in (lambda: path.write_text(good + "root everything\n"), path.unlink):
        harm()
        until(lambda: guarded.log_has("keys.unreadable", "expected ROLE" if path.exists() else "no such file"))
        test_a_key_on_the_list_gets_in(guarded)
    path.write_text(good)
    path.chmod(0o622)
    until(lambda: guarded.log_has("keys.unreadable", "others may write it"))
    test_a_key_on_the_list_gets_in(guarded)
    path.chmod(0o600)


def test_one_identity_on_several_sockets(guarded: Guarded) -> None:
    """Everybody who calls himself the same gets the answers to what he asked, on the socket he asked on."""
    with (
        guarded.peer("pete", identity=b"same") as pete,
        guarded.peer("ann", admin=True, identity=b"same") as ann,
    ):
        local = Peer(guarded.pool.endpoint, None, identity=b"same")
        for _ in range(20):
            assert local.call("workers") == Verb.RESULT
            assert pete.predict() == Verb.ANSWER
            assert ann.call("unload", model="nobody") == (Verb.ERROR, Code.NOT_FOUND)
        local.close()


def test_a_flood_of_strangers_stalls_nobody(guarded: Guarded) -> None:
    public, secret = zmq.curve_keypair()
    server = read_client_keys(str(guarded.keys / "ann.key")).server
    strangers = [Peer(guarded.endpoint, ClientKeys(public, secret, server)) for _ in range(30)]
    halves = [socket.create_connection(("127.0.0.1", int(guarded.endpoint.rpartition(":")[2]))) for _ in range(200)]
    for half in halves[::2]:
        half.sendall(os.urandom(64))
    with guarded.pool.client() as client, guarded.peer("pete") as pete:
        for _ in range(50):
            client.predict("double", np.ones((1, 3), np.float32), timeout=5.0)
            assert pete.predict() == Verb.ANSWER
    for stranger in strangers:
        assert stranger.event() != zmq.EVENT_HANDSHAKE_SUCCEEDED
        stranger.close()
    for half in halves:
        half.close()
