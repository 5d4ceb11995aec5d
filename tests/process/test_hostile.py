"""Whatever comes in at the front door, the broker lives, and serves everybody else meanwhile."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpool.client.arena import ClientArena
from tfpool.client.sync import Client
from tfpool.errors import Code, InvalidArgument, PermissionDenied, Unimplemented
from tfpool.testing.fake_worker import FakePool, Orders, aside, until
from tfpool.types import DType
from tfpool.wire import messages
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Group, Region, Verb

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 3), np.float32)
KEY = pack_request_key(RequestKey("double", 0, "", "", (Tensor("x", DType.FLOAT, (3,)),), True))
TEXT = pack_request_key(RequestKey("text", 0, "", "", (Tensor("s", DType.STRING, (2,)),), True))
EMPTY_TEXT = pack_request_key(RequestKey("text", 0, "", "", (Tensor("s", DType.STRING, (0,)),), True))


class Raw:
    """A DEALER socket and nothing else; ``options`` are set before it connects."""

    def __init__(self, endpoint: str, options: dict[int, Any] | None = None) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in (options or {}).items():
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 5000)
        self.socket.connect(endpoint)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(list(frames))

    def hear(self) -> tuple[int, Any]:
        """The next message's verb and body."""
        return messages.decode(self.socket.recv_multipart()[0])

    def error(self) -> messages.Error:
        verb, body = self.hear()
        assert verb == Verb.ERROR
        return messages.decode_error(body)

    def ask(self, *frames: bytes) -> messages.Error:
        self.send(*frames)
        return self.error()

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def raw(pool: FakePool) -> Iterator[Raw]:
    made = Raw(pool.endpoint)
    yield made
    made.close()


def serves(client: Client) -> None:
    """A good client is served within a second."""
    assert client.predict("double", X, timeout=1.0)["y"].tolist() == [[2.0] * 3]


def malformed(client: Client) -> int:
    count: int = client.stats()["malformed"]
    return count


def predict(*groups: Group) -> bytes:
    return messages.encode(messages.Verb.PREDICT, list(groups))


def group(key: bytes = KEY, **changes: Any) -> Group:
    return Group(key, 1, 1, 1, 1000, 0, None, None)._replace(**changes)


ROW = X.tobytes()
ONE_TWO = np.array([1, 2], "<u4").tobytes()
REFUSED: list[tuple[str, list[bytes], str]] = [
    ("empty", [b""], "truncated header"),
    ("wrong version", [b"\x02\x03\x90"], "protocol version: got 2, expected 1"),
    ("unknown verb", [messages.encode(99, [])], "verb: got 99, expected one of"),  # type: ignore[arg-type]
    ("an answer", [messages.encode(Verb.ANSWER, [])], "verb: got 5"),
    ("truncated", [predict(group())[:-3], ROW], "malformed MessagePack"),
    ("deep", [b"\x01\x03" + b"\x91" * 100_000], "malformed MessagePack"),
    (
        "deeper than Python's own stack",
        [b"\x01\x03\x91\x99\xc4\x01k" + b"\x91" * 1000 + bytes(8)],
        "got list, expected",
    ),
    ("a deep call", [b"\x01\x07\x94\x01\xa1m\x81\xa1x" + b"\x91" * 1000 + bytes(2)], "more than 32 levels deep"),
    ("a deep key", [predict(group(b"\x96" + b"\x91" * 1000 + bytes(6)))], "more than 32 levels deep"),
    ("huge array", [b"\x01\x03\xdd\xff\xff\xff\xff"], "malformed MessagePack"),
    ("huge binary", [b"\x01\x03\xc6\xff\xff\xff\xff"], "malformed MessagePack"),
    ("long header", [b"\x01\x03" + bytes(1 << 21)], "header too long"),
    ("no groups", [predict()], "expected 1 to 4096 groups"),
    ("too many groups", [predict(*[group()] * 5000)], "expected 1 to 4096 groups"),
    ("frames missing", [predict(group())], "got 2 frames, expected 3"),
    ("frames too many", [predict(group()), ROW, ROW], "got 4 frames, expected 3"),
    ("very many frames", [predict(group()), *[b""] * 17_000], "expected 2 to 16384"),
    ("a frame too short", [predict(group()), ROW[:-1]], "input 'x': got 11 bytes, expected 12"),
    ("fewer rows than said", [predict(group(count=3, rows=2)), ROW], "got 12 bytes, expected 72 for 6 rows"),
    ("huge count", [predict(group(count=1 << 17)), ROW], "count: got 131072"),
    ("huge rows", [predict(group(rows=1 << 30)), ROW], "rows: got"),
    ("no rows", [predict(group(rows=0)), ROW], "at least one row a request"),
    ("key is garbage", [predict(group(b"\xc1")), ROW], "malformed MessagePack"),
    ("key is too long", [predict(group(bytes(1 << 17))), ROW], "got 131072 bytes, expected at most"),
    ("strings do not add up", [predict(group(TEXT)), ONE_TWO, b"ab"], "add up to 3 bytes, the payload has 2"),
    ("lengths are cut", [predict(group(TEXT)), b"\1\0\0\0\2\0\0", b"abc"], "got 7 bytes, expected 8"),
    ("rows of nothing", [predict(group(EMPTY_TEXT, rows=1 << 24, count=1 << 16)), b"", b""], "empty rows"),
    ("no arena was offered", [predict(group(regions=(Region(4096, 12),)))], "this client has offered no arena"),
    ("a reply room that was not offered", [predict(group(reply=Region(4096, 12))), ROW], "has offered no arena"),
    ("cancel", [messages.encode(Verb.CANCEL, {"a": 1})], "cancel: expected an array"),
    ("hello", [messages.encode(Verb.HELLO, [1, 2, 3, b""])], "hello: expected"),
    ("call", [messages.encode(Verb.CALL, [1, 2])], "call: expected"),
    ("a call's arguments", [messages.encode(Verb.CALL, [1, "stats", {b"x": 1}, 9])], "expected a method name"),
]


@pytest.mark.parametrize(("frames", "problem"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_makes_no_sense_is_refused_with_a_reason(
    raw: Raw, client: Client, frames: list[bytes], problem: str
) -> None:
    error = raw.ask(*frames)
    assert error.code == Code.INVALID_ARGUMENT
    assert problem in error.message
    serves(client)


def test_malformed_messages_are_counted(raw: Raw, client: Client) -> None:
    before = malformed(client)
    for frames in ([b""], [b"\x09\x09\x09"], [predict(group())]):
        raw.ask(*frames)
    assert malformed(client) == before + 3


def test_a_bad_group_does_not_harm_its_neighbours(raw: Raw) -> None:
    good, bad = group(first=1), group(first=2, key=pack_request_key(RequestKey("nobody", 0, "", "", (), False)), rows=0)
    raw.send(predict(good, bad, good._replace(first=3)), ROW, ROW)
    got = {}
    while len(got) < 3:
        verb, body = raw.hear()
        for piece in body[1] if verb == Verb.ANSWER else body[0]:
            got.update(dict.fromkeys(range(piece[0], piece[0] + piece[1]), verb))
    assert got == {1: Verb.ANSWER, 2: Verb.ERROR, 3: Verb.ANSWER}


@pytest.fixture
def arena() -> Iterator[ClientArena]:
    made = ClientArena(1 << 16)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("region", "problem"),
    [
        (Region(1 << 16, 12), "are not in an arena"),
        (Region((1 << 16) - 64, 12 + 64), "are not in an arena|expected 12"),
        (Region(1 << 39, 12), "are not in an arena"),
        (Region(4097, 12), "are not in an arena"),
        (Region(0, 12), "lies in the arena's header"),
        (Region(4096, 13), "got 13 bytes, expected 12"),
    ],
)
def test_references_outside_the_arena(
    raw: Raw, arena: ClientArena, client: Client, region: Region, problem: str
) -> None:
    raw.send(messages.encode(Verb.HELLO, arena.offer()))
    assert raw.hear() == (Verb.WELCOME, [True])
    error = raw.ask(predict(group(regions=(region,))))
    assert any(part in error.message for part in problem.split("|"))
    error = raw.ask(predict(group(reply=Region(1 << 38, 64))), ROW)
    assert "are not in an arena" in error.message
    serves(client)


def test_an_arena_that_is_not_one(raw: Raw, arena: ClientArena, client: Client) -> None:
    pid, fd, nbytes, nonce = arena.offer()
    for offer in (
        (pid, 0, 4096, nonce),
        (pid, 1 << 20, nbytes, nonce),
        (1 << 30, fd, nbytes, nonce),
        (pid, fd, nbytes * 2, nonce),
        (pid, fd, 1 << 40, nonce),
        (pid, fd, nbytes, bytes(16)),
        (1, 1, nbytes, nonce),
    ):
        raw.send(messages.encode(Verb.HELLO, offer))
        assert raw.hear() == (Verb.WELCOME, [False])
    serves(client)


def test_an_arena_that_has_gone(raw: Raw, arena: ClientArena, client: Client) -> None:
    raw.send(messages.encode(Verb.HELLO, arena.offer()))
    assert raw.hear() == (Verb.WELCOME, [True])
    slow = pack_request_key(RequestKey("slow", 0, "", "", (Tensor("x", DType.FLOAT, ()),), True))
    arena._arena.view[4096:4100] = np.float32(0.2).tobytes()
    one = group(slow, regions=(Region(4096, 4),), reply=Region(8192, 4096))
    for first in range(6):
        raw.send(predict(one._replace(first=first)))
    raw.send(messages.encode(Verb.BYE, None))
    serves(client)
    raw.send(predict(group(first=99, regions=(Region(4096, 12),))))
    verb, body = raw.hear()
    assert verb == Verb.ERROR, "an answer, though the memory that held it is gone"
    assert "has offered no arena" in messages.decode_error(body).message
    until(lambda: not sum(q["rows"] for q in client.queues()))
    serves(client)


def test_a_client_may_start_anew_with_another_arena(raw: Raw, arena: ClientArena, client: Client) -> None:
    for _ in range(20):
        raw.send(messages.encode(Verb.HELLO, arena.offer()))
        assert raw.hear() == (Verb.WELCOME, [True])
        arena._arena.view[4096:4108] = ROW
        raw.send(predict(group(regions=(Region(4096, 12),), reply=Region(8192, 64))))
        verb, body = raw.hear()
        assert verb == Verb.ANSWER
        (region,) = messages.decode_answer(body).regions or ()
        assert bytes(arena._arena.view[region.offset :][: region.nbytes]) == (2 * X).tobytes()
    raw.send(messages.encode(Verb.HELLO, None))
    assert raw.hear() == (Verb.WELCOME, [False])
    serves(client)


# -- verbs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["load", "unload", "drain", "restart", "shutdown"])
def test_admin_verbs_are_refused_on_the_predict_endpoint(client: Client, method: str) -> None:
    with pytest.raises(PermissionDenied, match=f"{method} is an admin verb: call it on the admin endpoint"):
        client.call(method)


def test_requests_are_refused_on_the_admin_endpoint(pool: FakePool) -> None:
    raw = Raw(pool.admin)
    assert "verb: got 3" in raw.ask(predict(group()), ROW).message
    raw.close()


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("frobnicate", {}, Unimplemented, "no verb 'frobnicate'; there are "),
    ("stats", {"x": 1}, InvalidArgument, "unexpected keyword argument 'x'"),
    ("status", {}, InvalidArgument, "missing 1 required positional argument: 'model'"),
    ("status", {"broker": 1, "model": "double"}, InvalidArgument, "multiple values for argument 'broker'"),
    ("status", {"model": ["double"]}, InvalidArgument, "got list, expected str"),
    ("status", {"model": {}}, InvalidArgument, "got dict, expected str"),
    ("metadata", {"model": "double", "label": []}, InvalidArgument, "got list, expected str"),
    ("metadata", {"model": "double", "version": "1"}, InvalidArgument, "got str, expected int"),
]


@pytest.mark.parametrize(("method", "arguments", "error", "problem"), WRONG)
def test_wrong_calls_say_so(
    client: Client, method: str, arguments: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        client.call(method, **arguments)
    serves(client)


ARGUMENTS: Any = st.dictionaries(
    st.sampled_from(["model", "version", "label", "worker", "x", "signature", "stateful"]),
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats()
    | st.sampled_from(["double", "cpu0", "nobody", ""])
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2),
    max_size=3,
)


@settings(max_examples=150)
@given(
    st.sampled_from(["models", "status", "metadata", "workers", "queues", "stats", "progress", "load", "nonsense"]),
    ARGUMENTS,
)
def test_any_call_is_answered(pool: FakePool, method: str, arguments: dict[str, Any]) -> None:
    raw = _shared(pool)
    raw.send(messages.encode(Verb.CALL, [5, method, arguments, 1000]))
    verb, body = raw.hear()
    assert verb in (Verb.RESULT, Verb.ERROR)
    assert body[0] == (5 if verb == Verb.RESULT else [[5, 1]])


# -- fuzz ----------------------------------------------------------------------------------------------------------

_sockets: dict[str, Raw] = {}


def _shared(pool: FakePool) -> Raw:
    if pool.endpoint not in _sockets:
        _sockets[pool.endpoint] = Raw(pool.endpoint)
    return _sockets[pool.endpoint]


@pytest.fixture(autouse=True)
def _close_shared() -> Iterator[None]:
    yield
    while _sockets:
        _sockets.popitem()[1].close()


LEAVES = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=8)
BODIES = st.recursive(
    LEAVES | st.sampled_from([KEY, TEXT, EMPTY_TEXT]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)
REGIONS = st.none() | st.lists(st.tuples(st.integers(0, 1 << 17), st.integers(0, 1 << 17)), max_size=2)
GROUPS = st.tuples(
    st.sampled_from([KEY, TEXT, EMPTY_TEXT]) | st.binary(max_size=20),
    st.integers(0, 1 << 62),
    st.sampled_from([0, 1, 2, 5, 1 << 16, 1 << 17]),
    st.sampled_from([0, 1, 2, 9, 1 << 14, 1 << 24, 1 << 25]),
    st.sampled_from([0, 1, 50, 1 << 40]),
    st.sampled_from([0, 1, -100, 101]),
    REGIONS,
    st.none() | st.tuples(st.integers(0, 1 << 17), st.integers(0, 1 << 17)),
)
BUFFERS = st.sampled_from([b"", ROW, ROW * 2, ONE_TWO[:4], ONE_TWO, b"ab", b"abc"])
FRAMES = st.lists(BUFFERS | st.binary(max_size=20), max_size=4)
HEADERS = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda verb, body: bytes((1, verb)) + msgpack.packb(body), st.integers(0, 12), BODIES),
    st.builds(lambda groups: bytes((1, 3)) + msgpack.packb(groups), st.lists(GROUPS, max_size=3)),
)


@settings(max_examples=400)
@given(HEADERS, FRAMES)
def test_any_message_is_survived(pool: FakePool, header: bytes, frames: list[bytes]) -> None:
    raw = _shared(pool)
    raw.send(header, *frames)
    raw.send(messages.encode(Verb.CALL, [1 << 61, "progress", {}, 1000]))
    while True:
        verb, body = raw.hear()
        if verb == Verb.RESULT and body[0] == 1 << 61:
            return


def test_a_storm_of_garbage_stalls_nobody(pool: FakePool, client: Client) -> None:
    """20,000 messages that are random, or good ones with a few bytes changed, from three sockets at once."""
    before = malformed(client)
    begun = threading.Event()

    def storm(seed: int) -> None:
        dice, raw = random.Random(seed), Raw(pool.endpoint)
        good = [frames for _, frames, _ in REFUSED if sum(map(len, frames)) + len(frames) < 5000]
        good.append([predict(group()), ROW])
        for i in range(7000):
            frames = [bytearray(frame) for frame in dice.choice(good)] or [bytearray()]
            for _ in range(dice.randint(0, 3)):
                frame = dice.choice(frames)
                if frame:
                    frame[dice.randrange(len(frame))] = dice.getrandbits(8)
            raw.send(*(bytes(frame) for frame in frames))
            if i == 100:
                begun.set()
        raw.send(messages.encode(Verb.CALL, [1 << 61, "progress", {}, 9000]))
        while raw.hear()[0] != Verb.RESULT:  # who leaves at once is not heard to the end
            pass
        raw.close()

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        begin = time.monotonic()
        serves(client)
        slowest = max(slowest, time.monotonic() - begin)
    for thread in threads:
        thread.join()
    serves(client)
    until(lambda: malformed(client) > before + 15_000, what="all is read, and counted")
    assert slowest < 1.0


def test_many_cancels_of_many_requests_do_not_stall(raw: Raw, client: Client) -> None:
    """A thousand requests wait; a CANCEL of 65,536 ranges that hit none of them must not take seconds."""
    slow = pack_request_key(RequestKey("slow", 0, "", "", (Tensor("x", DType.FLOAT, ()),), True))
    for first in range(1000):
        raw.send(
            predict(group(slow, first=first, priority=first % 2, budget_ms=messages.MAX_BUDGET_MS)),
            np.float32(0.3).tobytes(),
        )
    until(lambda: sum(q["rows"] for q in client.queues()) >= 990)
    raw.send(messages.encode(Verb.CANCEL, [(1 << 40, 1 + i % 2) for i in range(1 << 16)]))
    begin = time.monotonic()
    client.call("progress", timeout=5.0)
    assert time.monotonic() - begin < 1.0
    raw.send(messages.encode(Verb.CANCEL, [(0, 1000)]))
    until(lambda: not sum(q["rows"] for q in client.queues()))


def test_a_client_that_never_listens_harms_nobody(pool: FakePool, client: Client) -> None:
    deaf = Raw(pool.endpoint, {zmq.RCVHWM: 1})
    for first in range(3000):
        deaf.send(predict(group(first=first)), ROW)
        if first % 500 == 0:
            serves(client)
    serves(client)
    deaf.close()
    serves(client)


def test_bytes_that_are_not_zeromq(pool: FakePool, client: Client) -> None:
    import socket

    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, os.urandom(1000)):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(pool.endpoint.removeprefix("ipc://"))
            other.sendall(data)
    serves(client)


# -- floods --------------------------------------------------------------------------------------------------------

MIB = np.ones((1, 1 << 18), np.float32)
ECHO = pack_request_key(RequestKey("echo", 0, "", "float32", (Tensor("x", DType.FLOAT, MIB.shape[1:]),), True))


def test_a_client_that_leaves_large_answers_unread(make_pool: MakePool) -> None:
    """Some are dropped, so that memory is bounded; those that were sent are there when it reads again."""
    pool = make_pool([("echo", {}), ("double", {})], workers=1, server={"client_bytes": 8 << 20})
    broker = psutil.Process(pool.broker_pid())
    deaf = Raw(pool.endpoint, {zmq.RCVHWM: 1, zmq.RCVBUF: 1 << 16})
    with pool.client(timeout=20.0) as client:

        def answered() -> int:
            return sum(meter["requests"] for meter in client.stats()["models"].values())

        before, asked = 0, 100
        for first in range(asked):
            deaf.send(predict(group(ECHO, first=first, budget_ms=20_000)), MIB.tobytes())
            until(lambda sent=first: answered() > sent)  # type: ignore[misc]
            if first == 20:
                before = broker.memory_info().rss
        assert broker.memory_info().rss < before + (32 << 20)
        dropped = client.stats()["unroutable"]
        assert dropped >= asked / 2
        serves(client)
        client.predict("echo", MIB, signature="float32")
        heard = [messages.decode_answer(deaf.hear()[1]).pieces[0].first for _ in range(asked - dropped)]
        assert heard[:8] == list(range(8))
        deaf.send(predict(group(ECHO, first=asked, budget_ms=20_000)), MIB.tobytes())
        assert messages.decode_answer(deaf.hear()[1]).pieces[0].first == asked, "it is served as before"
    deaf.close()


def test_a_message_that_is_too_long_ends_its_connection(make_pool: MakePool) -> None:
    pool = make_pool([("echo", {}), ("double", {})], workers=1, server={"max_message": 1 << 20})
    raw = Raw(pool.endpoint)
    with pool.client(timeout=5.0) as client:
        raw.send(predict(group(ECHO)), MIB.tobytes())
        assert raw.hear()[0] == Verb.ANSWER
        monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        raw.send(predict(group(ECHO)), bytes((1 << 20) + 1))
        assert monitor.poll(5000)
        serves(client)
        raw.socket.disable_monitor()
        monitor.close(0)
    raw.close()


def test_a_flood_of_connections(pool: FakePool, client: Client) -> None:
    """Hundreds that say nothing, or garbage, or half a message."""
    import socket

    raws = [Raw(pool.endpoint) for _ in range(100)]
    halves = []
    for i in range(200):
        half = socket.socket(socket.AF_UNIX)
        half.connect(pool.endpoint.removeprefix("ipc://"))
        half.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3"[: i % 12])
        halves.append(half)
    for i, raw in enumerate(raws):
        if i % 2:
            raw.send(os.urandom(i), bytes(i))
    for _ in range(50):
        serves(client)
    errors = [raw.error().code for raw in raws[1::2]]
    assert errors == [Code.INVALID_ARGUMENT] * 50
    for thing in (*halves, *raws):
        thing.close()
    serves(client)


def test_one_client_cannot_have_every_call_wait(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"preload": "explicit"})], workers=1)
    base = pool.base("double")
    Orders(base / "1").hold.touch()
    greedy = Raw(pool.admin)
    with pool.client(timeout=20.0) as client:
        for number in range(100):
            greedy.send(messages.encode(Verb.CALL, [number, "load", {"model": "double"}, 20_000]))
        refused = [greedy.error() for _ in range(36)]
        assert {Code(error.code) for error in refused} == {Code.RESOURCE_EXHAUSTED}
        with aside(lambda: client.load("double")) as failures:
            Orders(base / "1").hold.unlink()
        assert failures == []
        assert [greedy.hear()[0] for _ in range(64)] == [Verb.RESULT] * 64
    greedy.close()


def test_clients_that_choose_the_identity_of_others(pool: FakePool, client: Client) -> None:
    """The first keeps it; answers, arenas and cancellations are never mixed up, not even with the admin endpoint's."""
    first = Raw(pool.endpoint, {zmq.IDENTITY: b"me"})
    assert first.ask(b"").code == Code.INVALID_ARGUMENT
    second = Raw(pool.endpoint, {zmq.IDENTITY: b"me"})
    admin = Raw(pool.admin, {zmq.IDENTITY: b"me"})
    slow = pack_request_key(RequestKey("slow", 0, "", "", (Tensor("x", DType.FLOAT, ()),), True))
    for number in range(4):
        first.send(predict(group(slow, first=number, budget_ms=10_000)), np.float32(0.1).tobytes())
    second.send(messages.encode(Verb.CANCEL, [(0, 4)]))
    until(lambda: client.stats()["models"].get("slow"))
    admin.send(messages.encode(Verb.CANCEL, [(0, 4)]))
    admin.send(messages.encode(Verb.BYE, None))
    assert admin.ask(b"").code == Code.INVALID_ARGUMENT, "what it said before has been heard"
    assert {first.hear()[0] for _ in range(4)} == {Verb.ANSWER}
    for raw in (first, second, admin):
        raw.close()
    serves(client)
