"""Whatever comes in at the HTTP port, the answer is clear, the gateway lives, and others are unharmed.

Most of it is said, byte by byte, to a server in a thread of the test; the rest to a whole pool.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest
import uvloop

from tfpool.gateway import server as serving
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.http import Access, Request, Response, route
from tfpool.gateway.protocol import MAX_WAITING
from tfpool.gateway.reading import MAX_HEAD, MAX_HEADERS, MAX_URL
from tfpool.gateway.server import HttpServer
from tfpool.settings import GatewaySettings
from tfpool.testing.fake_worker import FakePool, until
from tfpool.testing.fronts import Web, free_address

pytestmark = pytest.mark.process
BYTES = ((b"content-type", b"application/octet-stream"),)
HOST = b"Host: a\r\n"
GET = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
LARGE = 8 << 20


class Stand:
    """A server in a thread, with a few routes; ``cancelled`` counts the requests whose callers have gone."""

    def __init__(self, **settings: object) -> None:
        self.address = free_address()
        self.cancelled = 0
        chosen = GatewaySettings(**{"max_body": 1 << 20, "read_s": 20.0, "idle_s": 20.0, **settings})  # type: ignore[arg-type]
        routes = (
            route("GET", "/x", self._small, Access.OPEN),
            route("POST", "/echo", self._echo, Access.OPEN),
            route("GET", "/large", self._large, Access.OPEN),
            route("GET", "/wait", self._wait, Access.OPEN),
            route("GET", "/stream", self._stream, Access.OPEN),
            route("GET", "/breaks", self._breaks, Access.OPEN),
            route("GET", "/bug", self._bug, Access.OPEN),
            route("GET", "/split", self._split, Access.OPEN),
            route("POST", "/change", self._small, Access.ADMIN),
        )
        self.loop = uvloop.new_event_loop()
        self.http = HttpServer(App(chosen, Keeper(chosen), routes), chosen)
        self.loop.run_until_complete(self.http.start(self.address))
        self.loop.run_until_complete(asyncio.to_thread(lambda: None))  # the thread that unpacks is there from now on
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    async def _small(self, request: Request) -> Response:
        return Response(b"{}")

    async def _echo(self, request: Request) -> Response:
        return Response(request.body, headers=BYTES)

    async def _large(self, request: Request) -> Response:
        return Response(bytes(LARGE), headers=BYTES)

    async def _wait(self, request: Request) -> Response:
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled += 1
        return Response()

    async def _stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"again and "
                    await asyncio.sleep(0.005)
            finally:
                self.cancelled += 1

        return Response(pieces(), headers=BYTES)

    async def _breaks(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"once"
            raise RuntimeError("no more")

        return Response(pieces(), headers=BYTES)

    async def _bug(self, request: Request) -> Response:
        raise KeyError("oh")

    async def _split(self, request: Request) -> Response:
        return Response(b"{}", headers=((b"x", b"a\r\nset-cookie: b"),))

    def quiet(self) -> None:
        """Return when nothing is held, and nobody is connected."""
        until(lambda: not self.http.connections and not self.http.budget.held, what="something is still held")

    def close(self, seconds: float = 0.0) -> None:
        asyncio.run_coroutine_threadsafe(self.http.stop(seconds), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@contextmanager
def stand(**settings: object) -> Iterator[Stand]:
    made = Stand(**settings)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def hall() -> Iterator[Stand]:
    with stand() as made:
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """One that waits for nobody."""
    monkeypatch.setattr(serving, "_SWEEP_SECONDS", 0.05)
    with stand(read_s=0.3, idle_s=0.6) as made:
        yield made


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 10.0)


def hear(sock: socket.socket, ends: bytes = b"") -> bytes:
    """What comes until the other side closes, or until it ``ends`` so."""
    heard = b""
    while not (ends and heard.endswith(ends)):
        piece = sock.recv(1 << 20)
        if not piece:
            break
        heard += piece
    return heard


def say(stand: Stand, *pieces: bytes, ends: bytes = b"") -> bytes:
    """Say some bytes on a new connection, in pieces that arrive one by one; the answer."""
    with dial(stand.address) as sock:
        for piece in pieces:
            with suppress(ConnectionError):  # it may have had enough
                sock.sendall(piece)
        return hear(sock, ends)


def closes_with(answer: bytes, status: int, said: str) -> None:
    """One answer, an error as JSON, after which the connection is closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    assert said in json.loads(body)["error"]


# -- what could be read in two ways --------------------------------------------------------------------------------


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"".join((b"POST /echo HTTP/1.1\r\n", HOST, *(header + b"\r\n" for header in headers), b"\r\n", body))


CHUNKED = b"Transfer-Encoding: chunked"
TWO_WAYS = {
    "both lengths": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "both lengths, turned": post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "two equal lengths": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "a list of lengths": post(b"Content-Length: 5, 5", body=b"hello"),
    "a signed length": post(b"Content-Length: +5", body=b"hello"),
    "a negative length": post(b"Content-Length: -5", body=b"hello"),
    "a length in hex": post(b"Content-Length: 0x5", body=b"hello"),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999", body=b"hello"),
    "an empty length": post(b"Content-Length:", body=b"hello"),
    "chunked inside out": post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "chunked twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "chunked behind a tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "a blank before the colon": post(b"Content-Length : 5", body=b"hello"),
    "a folded header": post(b"X: a\r\n b"),
    "a blank before a header": post(b" X: a"),
    "a bare line feed": post(b"X: a\nContent-Length: 5", body=b"hello"),
    "a bare carriage return": post(b"X: a\rContent-Length: 5", body=b"hello"),
    "a null": post(b"X: a\0b"),
    "a header without a name": post(b": a"),
    "a header without a colon": post(b"xyz"),
    "a name that is none": post(b"X@: a"),
    "lines without carriage returns": b"GET /x HTTP/1.1\nHost: a\n\n",
    "a chunk size with a prefix": post(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a sign": post(CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with blanks": post(CHUNKED, body=b"5 \r\nhello\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": post(CHUNKED, body=b"f" * 17 + b"\r\nhello"),
    "a chunk that is longer": post(CHUNKED, body=b"3\r\nhello\r\n0\r\n\r\n"),
    "a chunk line without a carriage return": post(CHUNKED, body=b"5\nhello\r\n0\r\n\r\n"),
    "a line feed in a chunk's extension": post(CHUNKED, body=b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "no method": b" /x HTTP/1.1\r\n" + HOST + b"\r\n",
    "another method": b"BREW /x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version that is none": b"GET /x HTTP/1.x\r\n" + HOST + b"\r\n",
    "something after the version": b"GET /x HTTP/1.1 x\r\n" + HOST + b"\r\n",
    "a target with blanks": b"GET /x y HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is no path": b"GET x HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_could_be_read_in_two_ways_is_refused(hall: Stand, name: str) -> None:
    """What follows on the connection is not read."""
    closes_with(say(hall, TWO_WAYS[name] + GET), 400, "this is no HTTP/1.1: ")


@pytest.mark.parametrize(
    ("said", "status", "problem"),
    [
        (b"GET /x HTTP/1.1\r\n\r\n", 400, "got 0 Host headers, expected one"),
        (b"GET /x HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "got 2 Host headers, expected one"),
        (b"GET /x\r\n\r\n", 505, "got HTTP/0.9, expected HTTP/1.1"),
        (b"POST /echo HTTP/1.0\r\n" + CHUNKED + b"\r\n\r\n0\r\n\r\n", 505, "got HTTP/1.0"),
        (b"GET /x#y HTTP/1.1\r\n" + HOST + b"\r\n", 400, "expected one without '#'"),
        (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "change to another protocol"),
        (post(b"Transfer-Encoding: gzip, chunked"), 501, "got 'gzip, chunked', expected chunked or none"),
        (post(b"Transfer-Encoding: xchunked"), 501, "got 'xchunked', expected chunked or none"),
        (post(CHUNKED, b"Connection: upgrade", b"Upgrade: h2c"), 501, "change to another protocol"),
        (post(b"Expect: tea", b"Content-Length: 5"), 417, "expect: got 'tea', expected 100-continue"),
        (b"GET /" + b"a" * MAX_URL + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "at most 8192 bytes"),
        (post(b"X: " + b"a" * MAX_HEAD), 431, "at most 65536 bytes"),
        (post(*[b"X: a"] * MAX_HEADERS), 431, "got more than 100 headers"),
        (b"\r\n" * MAX_HEAD, 431, "at most 65536 bytes"),
        (post(CHUNKED, body=b"5;" + b"a" * 9 * MAX_HEAD), 431, "at most 65536 bytes"),
        (post(CHUNKED, body=b"0\r\nX: " + b"a" * 9 * MAX_HEAD), 431, "at most 65536 bytes"),
        (post(b"Content-Length: 1048577"), 413, "got 1048577 bytes or more, expected at most 1048576"),
        (post(b"Content-Length: 1048577", b"Expect: 100-continue"), 413, "expected at most 1048576"),
        (post(CHUNKED, body=b"100001\r\n" + bytes(1 << 20) + b"!\r\n"), 413, "at most 1048576"),
        (post(b"Content-Length: 100000").replace(b"echo", b"nothing"), 404, "there is nothing at /nothing"),
    ],
)
def test_what_is_refused_before_it_is_read(hall: Stand, said: bytes, status: int, problem: str) -> None:
    closes_with(say(hall, said), status, problem)


def test_a_head_without_an_end_is_refused(hall: Stand) -> None:
    with dial(hall.address) as sock:
        sock.sendall(GET[:-2])
        with suppress(ConnectionError):
            for _ in range(64):
                sock.sendall(b"X: " + b"a" * (32 << 10))
        closes_with(hear(sock), 431, "expected at most 65536 bytes")


# -- what is allowed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (GET, OK),
        (GET * 3, OK * 3),
        (b"\r\n" + GET, OK),
        (b"GET http://user@elsewhere:80/x?y HTTP/1.1\r\n" + HOST + b"\r\n", OK),
        (b"HEAD /x HTTP/1.1\r\n" + HOST + b"\r\n", OK[:-2]),
        (b"GET /x HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GET, OK * 2),
        (b"POST /none HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + GET, OK),
    ],
)
def test_kept_connections(hall: Stand, said: bytes, answer: bytes) -> None:
    assert say(hall, said, ends=answer).endswith(answer)


@pytest.mark.parametrize(
    "said",
    [
        post(b"Content-Length: 5", body=b"hello"),
        post(b"Content-Length: 5 \t", body=b"hello"),
        post(CHUNKED, body=b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nAuthorization: x\r\n\r\n"),
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello"),
        post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
    ],
)
def test_bodies(hall: Stand, said: bytes) -> None:
    """However they are framed, and in whatever pieces they come; the next request is understood too."""
    rest = said + GET
    for pieces in ((rest,), tuple(rest[i : i + 1] for i in range(len(rest))), (said[:-2], said[-2:] + GET)):
        answer = say(hall, *pieces, ends=OK).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert answer.endswith(b"\r\ncontent-length: 5\r\n\r\nhello" + OK)
        assert answer.count(b"HTTP/1.1 ") == 2


def test_bodies_in_crumbs(hall: Stand) -> None:
    """They are read in pieces of any size, and take no more memory than their bytes."""
    body = os.urandom(100_000)
    crumbs = b"".join(b"1\r\n%b\r\n" % body[i : i + 1] for i in range(30_000))
    lump = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 30_000, body[30_000:])
    assert say(hall, post(CHUNKED, body=crumbs + lump) + GET, ends=OK).endswith(b"\r\n\r\n" + body + OK)


def test_many_upgrades_at_once(hall: Stand) -> None:
    said = b"GET /none HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n!"
    assert say(hall, said * 3000 + GET, ends=OK).count(b"HTTP/1.1 404 ") == 3000


def test_a_body_is_asked_for(hall: Stand) -> None:
    with dial(hall.address) as sock:
        sock.sendall(post(b"Expect: 100-continue", b"Content-Length: 5"))
        assert hear(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert hear(sock, b"hello").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("said", [GET.replace(b"1.1", b"1.0"), GET[:-2] + b"Connection: close\r\n\r\n" + GET])
def test_connections_that_are_not_kept(hall: Stand, said: bytes) -> None:
    assert say(hall, said) == OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def test_who_asks_for_too_much_at_once_gets_the_first_answers(hall: Stand) -> None:
    answer = say(hall, b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n" + GET * 10_000)
    assert answer.count(OK) == MAX_WAITING
    assert answer.endswith(b"connection: close\r\n\r\n{}")


def test_a_stream_in_pieces(hall: Stand) -> None:
    with dial(hall.address) as sock:
        sock.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        heard = hear(sock, b"a\r\nagain and \r\n")
        assert b"transfer-encoding: chunked\r\n\r\n" in heard
    with dial(hall.address) as sock:
        sock.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        assert b"connection: close\r\n\r\nagain and " in hear(sock, b"again and ")
    assert b"HTTP/1.1 200 OK" in say(hall, b"HEAD /stream HTTP/1.1\r\n" + HOST + b"\r\n", ends=b"\r\n\r\n")


def test_an_answer_that_breaks_off_is_seen_to(hall: Stand) -> None:
    with dial(hall.address) as sock:
        sock.sendall(b"GET /breaks HTTP/1.1\r\n" + HOST + b"\r\n" + GET)
        heard = b""
        with suppress(ConnectionResetError):
            heard = hear(sock)
    assert b"0\r\n\r\n" not in heard
    assert OK not in heard


def test_bugs_are_answered(hall: Stand) -> None:
    assert b"HTTP/1.1 500 " in say(hall, b"GET /bug HTTP/1.1\r\n" + HOST + b"\r\n" + GET, ends=OK)
    assert b"set-cookie" not in say(hall, b"GET /split HTTP/1.1\r\n" + HOST + b"\r\n")


# -- packed bodies -------------------------------------------------------------------------------------------------


def packed(body: bytes, encoding: bytes = b"gzip") -> bytes:
    return post(b"Content-Encoding: " + encoding, b"Content-Length: %d" % len(body), body=body)


@pytest.mark.parametrize(
    ("said", "status", "problem"),
    [
        (packed(gzip.compress(bytes(64 << 20))), 413, "the body is too long"),
        (packed(gzip.compress(gzip.compress(bytes(1 << 20)))[:-9]), 400, "its compressed data do not end"),
        (packed(b"hello"), 400, "the body is not what its content-encoding says"),
        (packed(gzip.compress(b"a") * 2), 400, "bytes after the compressed body, expected none"),
        (packed(b"hello", b"br"), 415, "content-encoding: got 'br', expected gzip, deflate or none"),
        (packed(b"hello", b"gzip, gzip"), 415, "got 'gzip, gzip'"),
    ],
)
def test_bodies_that_do_not_unpack(hall: Stand, said: bytes, status: int, problem: str) -> None:
    answer = say(hall, said + GET, ends=OK)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert problem.encode() in answer
    until(lambda: not hall.http.budget.held)


@pytest.mark.parametrize("nbytes", [0, 5, 1 << 20])
def test_bodies_that_unpack(hall: Stand, nbytes: int) -> None:
    body = os.urandom(nbytes // 2) + bytes(nbytes - nbytes // 2)
    for said in (packed(gzip.compress(body)), packed(zlib.compress(body), b"Deflate"), packed(body, b"identity")):
        assert say(hall, said, ends=body or b"\r\n\r\n").endswith(b"content-length: %d\r\n\r\n" % nbytes + body)


# -- who is slow, or goes ------------------------------------------------------------------------------------------


def test_who_is_slow_is_waited_for_no_longer(hasty: Stand) -> None:
    """Neither with a head, nor with a body, nor for a first or another request, nor for an answer to be read."""
    socks = [dial(hasty.address) for _ in range(5)]
    head, body, nothing, again, deaf = socks
    head.sendall(GET[:-5])
    body.sendall(post(b"Content-Length: 5", body=b"hell"))
    again.sendall(GET)
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
    began = time.monotonic()
    for sock in (head, body):
        closes_with(hear(sock), 408, "the request did not arrive within 0.3 s")
    assert hear(nothing) == b""
    assert hear(again) == OK
    for sock in (nothing, again):
        assert time.monotonic() - began >= 0.6
        sock.close()
    head.close()
    body.close()
    hasty.quiet()
    with suppress(ConnectionResetError):
        assert len(hear(deaf)) < LARGE
    deaf.close()


def test_a_request_of_who_hangs_up_is_cancelled(hall: Stand) -> None:
    for path in (b"/wait", b"/stream"):
        before = hall.cancelled
        with dial(hall.address) as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\n" % path + HOST + b"\r\n")
            until(lambda: hall.http.connections)
            if path == b"/stream":
                hear(sock, b"again and \r\n")
        until(lambda before=before: hall.cancelled == before + 1)
    hall.quiet()


def test_those_who_hang_up_leave_nothing_behind(hall: Stand) -> None:
    said = (
        b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n",
        post(b"Content-Length: 100000", body=bytes(50_000)),
        b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n" + GET,
        GET[:-9],
    )
    hall.quiet()
    tasks, descriptors = len(asyncio.all_tasks(hall.loop)), len(os.listdir("/proc/self/fd"))
    for i in range(1000):
        sock = dial(hall.address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", i % 2, 0))  # every other one resets
        sock.sendall(said[i % len(said)])
        sock.close()
    hall.quiet()
    until(lambda: len(asyncio.all_tasks(hall.loop)) == tasks)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert say(hall, GET, ends=OK) == OK


def test_memory_for_bodies_is_bounded(hall: Stand) -> None:
    """Who comes when it is full is told to try again; what others have begun goes on."""
    hall.http.budget.most = 1 << 20
    with dial(hall.address) as first:
        half = 700_000
        first.sendall(post(b"Content-Length: %d" % half, body=bytes(half - 1)))
        until(lambda: hall.http.budget.held == half - 1)
        answer = say(hall, post(b"Content-Length: %d" % half, body=bytes(half)))
        closes_with(answer, 429, "requests hold 1048576 bytes of memory already")
        assert b"retry-after: 1" in answer
        assert say(hall, GET, ends=OK) == OK
        first.sendall(b"!")
        assert hear(first, b"!").startswith(b"HTTP/1.1 200 OK")
    hall.quiet()
    hall.http.budget.most = 1 << 30


def test_too_many_connections(hall: Stand) -> None:
    hall.quiet()
    hall.http.most = 2
    kept = [dial(hall.address) for _ in range(2)]
    until(lambda: len(hall.http.connections) == 2)
    with dial(hall.address) as sock:
        closes_with(hear(sock), 503, "too many connections")
    for sock in kept:
        sock.sendall(GET)
        assert hear(sock, OK) == OK
        sock.close()
    hall.http.most = 1000


def test_idle_connections_harm_nobody(hall: Stand) -> None:
    idle = [dial(hall.address) for _ in range(500)]
    until(lambda: len(hall.http.connections) == len(idle))
    assert say(hall, GET, ends=OK) == OK
    for sock in idle:
        sock.close()
    hall.quiet()


def test_who_is_served_while_the_server_ends_gets_the_answer() -> None:
    made = Stand()
    waiting, idle, reading = (dial(made.address) for _ in range(3))
    waiting.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
    reading.sendall(GET[:-2])
    until(lambda: len(made.http.connections) == 3)
    ended = threading.Thread(target=made.close, args=(0.5,))
    ended.start()
    assert hear(idle) == b""
    reading.sendall(b"\r\n")
    assert hear(reading) == OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    with suppress(ConnectionResetError):
        assert hear(waiting) == b""
    ended.join()
    assert made.cancelled == 1
    for sock in (waiting, idle, reading):
        sock.close()


# -- a whole pool --------------------------------------------------------------------------------------------------


def predict(model: str, value: object) -> bytes:
    body = json.dumps({"instances": value}).encode()
    head = b"POST /v1/models/%b:predict HTTP/1.1\r\n" % model.encode() + HOST
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_the_pool_is_told_who_has_hung_up(front: FakePool, web: Web) -> None:
    address = str(front.settings.server.http)
    busy, begun = front.base("slow") / "1" / "busy", front.base("slow") / "1" / "begun"
    busy.touch()
    socks: list[socket.socket] = []

    def another_and_four_wait() -> bool:
        socks.append(dial(address))
        socks[-1].sendall(predict("slow", [0.0]))
        return sum(row["rows"] for row in client.queues() if row["model"] == "slow") >= 4

    first = dial(address)
    first.sendall(predict("slow", [-1.0]))
    with front.client() as client:
        try:
            until(begun.exists)
            until(another_and_four_wait)
            for sock in socks:
                sock.close()
            until(lambda: client.stats()["models"]["slow"]["errors"].get("CANCELLED", 0) >= 4)
        finally:
            busy.unlink()
    assert hear(first, b"}").startswith(b"HTTP/1.1 200 OK")
    first.close()
    assert web.get("/healthz").status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"instances": [[1.0, 2.0, 3.0]]', 400),
        (b'\xff\xfe{"instances": 1}', 400),
        (b'{"instances": [["a"]]}', 400),
        (b"null", 400),
    ],
)
def test_bodies_that_say_nothing(web: Web, body: bytes, status: int) -> None:
    answer = web.ask("POST", "/v1/models/double:predict", body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    answer = web.ask("POST", "/v2/models/double/infer", body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
