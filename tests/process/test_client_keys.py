"""A client's keys: who is who is proved before a word is said, and what went wrong is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.z85

import tfpool
from tfpool.client.sync import Client
from tfpool.errors import InvalidArgument, NotFound, PermissionDenied, TfpoolError, Unauthenticated
from tfpool.wire import messages
from tfpool.wire.messages import Verb

pytestmark = pytest.mark.process
SOON = 15.0
Keys = tuple[bytes, bytes]


class Server:
    """Answers every call with its method. With keys, only ``welcome`` public keys get in."""

    def __init__(self, keys: Keys | None = None, welcome: tuple[bytes, ...] = ()) -> None:
        self._context = zmq.Context()
        self._welcome = {zmq.utils.z85.decode(key) for key in welcome}
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        if keys is not None:
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = keys
            self._socket.zap_domain = b"tfpool"
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._zap, zmq.POLLIN)
        while not self._ended.is_set():
            for sock, _ in poller.poll(10):
                frames = sock.recv_multipart()
                if sock is self._zap:
                    version, number, *_, key = frames
                    code = b"200" if key in self._welcome else b"400"
                    sock.send_multipart([version, number, code, b"", b"", b""])
                    continue
                verb, body = messages.decode(frames[1])
                assert verb == Verb.CALL
                call = messages.decode_call(body)
                sock.send_multipart([frames[0], messages.encode(Verb.RESULT, [call.id, call.method])])

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close(0)
        self._zap.close(0)
        self._context.term()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*arguments: Any) -> Server:
        made.append(Server(*arguments))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def mine() -> Keys:
    return zmq.curve_keypair()


@pytest.fixture
def theirs() -> Keys:
    return zmq.curve_keypair()


def key_file(directory: Path, mine: Keys, server: bytes) -> Path:
    path = directory / "me.key"
    path.write_text(f"public = {mine[0].decode()}\nsecret = {mine[1].decode()}\nserver = {server.decode()}\n")
    path.chmod(0o600)
    return path


def failure(client: Client) -> TfpoolError:
    """What a call fails with, well before its deadline."""
    began = time.monotonic()
    with pytest.raises(TfpoolError) as caught:
        client.models()
    assert time.monotonic() - began < SOON / 2
    return caught.value


def test_a_client_with_the_right_keys_gets_in(
    serve: Callable[..., Server], mine: Keys, theirs: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, path = serve(theirs, (mine[0],)), key_file(tmp_path, mine, theirs[0])
    with Client(server.endpoint, admin=server.endpoint, keys=path, timeout=SOON) as client:
        assert client.call("models") == "models"
        assert client.admin("shutdown") == "shutdown"
    monkeypatch.setenv("TFPOOL_KEYS", str(path))
    with tfpool.Client(server.endpoint, timeout=SOON) as client:
        assert client.call("models") == "models"


def test_a_client_that_is_unknown(serve: Callable[..., Server], mine: Keys, theirs: Keys, tmp_path: Path) -> None:
    server = serve(theirs)
    with Client(server.endpoint, keys=key_file(tmp_path, mine, theirs[0]), timeout=SOON) as client:
        error = failure(client)
    assert isinstance(error, Unauthenticated)
    assert f"{server.endpoint} does not let this key in" in error.message


def test_a_server_that_is_another(serve: Callable[..., Server], mine: Keys, theirs: Keys, tmp_path: Path) -> None:
    server = serve(theirs, (mine[0],))
    with Client(server.endpoint, keys=key_file(tmp_path, mine, mine[0]), timeout=SOON) as client:
        error = failure(client)
    assert isinstance(error, Unauthenticated)
    assert "is not the server of the key file" in error.message


def test_a_server_without_keys(serve: Callable[..., Server], mine: Keys, theirs: Keys, tmp_path: Path) -> None:
    server = serve()
    with Client(server.endpoint, keys=key_file(tmp_path, mine, theirs[0]), timeout=SOON) as client:
        error = failure(client)
    assert isinstance(error, Unauthenticated)
    assert "has no keys" in error.message


def test_a_client_without_keys(serve: Callable[..., Server], theirs: Keys) -> None:
    with Client(serve(theirs).endpoint, timeout=SOON) as client:
        error = failure(client)
    assert isinstance(error, Unauthenticated)
    assert "lets in who has a key only" in error.message
    assert "(--keys, TFPOOL_KEYS, keys=)" in error.message


def test_key_files_are_read_when_the_client_is_made(mine: Keys, theirs: Keys, tmp_path: Path) -> None:
    path = key_file(tmp_path, mine, theirs[0])
    path.chmod(0o640)
    with pytest.raises(PermissionDenied, match="expected mode 0600"):
        Client("tcp://127.0.0.1:1", keys=path)
    with pytest.raises(NotFound, match="no such file"):
        Client("tcp://127.0.0.1:1", keys=tmp_path / "none")
    path.chmod(0o600)
    path.write_text("public = x\n")
    with pytest.raises(InvalidArgument, match="expected a key"):
        Client("tcp://127.0.0.1:1", keys=path)
    with Client(f"ipc://{tmp_path}/pool", keys=path):
        pass  # nothing is proved over a socket file, which only its owner can open
