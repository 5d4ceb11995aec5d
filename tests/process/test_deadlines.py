"""Deadlines that nobody said, requests that come again, and what one client may have with the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq

from tfpool.client.sync import Client
from tfpool.errors import Code, DeadlineExceeded, ResourceExhausted
from tfpool.settings import Loading
from tfpool.testing.fake_worker import FakePool, until
from tfpool.types import DType
from tfpool.wire import messages
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Flag, Group, Verb

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
SOON = 20.0
LONG = np.float32([0.6])
SHORT = np.float32([0.01])


@pytest.fixture
def raw() -> Iterator[Callable[[FakePool], zmq.Socket[bytes]]]:
    """A bare socket to a pool."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:

        def connect(pool: FakePool) -> zmq.Socket[bytes]:
            made.setsockopt(zmq.LINGER, 0)
            made.setsockopt(zmq.RCVTIMEO, 10_000)
            made.connect(pool.endpoint)
            return made

        yield connect


def busy(client: Client) -> None:
    """The only worker is at a run of 0.6 s, and nothing waits."""
    client.submit("slow", LONG, timeout=SOON)
    until(lambda: client.queues() and not client.stats()["waiting_rows"])


def test_a_models_own_deadline_counts_where_the_caller_says_none(make_pool: MakePool) -> None:
    options = {"max_batch_size": 1, "slo_ms": 100.0}
    pool = make_pool([("slow", {"max_batch_size": 1}), ("double", options)], workers=1)
    with pool.client() as client:
        busy(client)
        with pytest.raises(DeadlineExceeded):
            client.predict("double", np.float32([[1.0]]))
        busy(client)
        patient = client.predict("double", np.float32([[1.0]]), timeout=SOON)
        assert patient["y"].tolist() == [[2.0]]


def test_an_answer_says_how_long_it_waited(make_pool: MakePool) -> None:
    with make_pool([("slow", {"max_batch_size": 1})], workers=1).client() as client:
        busy(client)
        late = client.submit("slow", SHORT, timeout=SOON)
        late.result(SOON)
        waited, ran, rows = late.timing or (0, 0, 0)
        assert waited > 100_000
        assert ran >= 10_000
        assert rows == 1
        assert client.stats()["models"]["slow"]["late_starts"] == 0


def test_what_was_sent_before_does_not_change_state_again(
    make_pool: MakePool, raw: Callable[[FakePool], zmq.Socket[bytes]]
) -> None:
    pool = make_pool([("counter", {}), ("double", {})], workers=1)
    sock = raw(pool)
    for model, shape, outcome in (("counter", (), Verb.ERROR), ("double", (1,), Verb.ANSWER)):
        key = pack_request_key(RequestKey(model, 0, "", "", (Tensor("x", DType.FLOAT, shape),), True))
        again = Group(key, 1, 1, 1, 5000, 0, None, None, Flag.AGAIN)
        sock.send_multipart([messages.encode(Verb.PREDICT, [again]), np.float32([0.0]).tobytes()])
        verb, body = messages.decode(sock.recv_multipart()[0])
        assert verb == outcome, model
        if verb == Verb.ERROR:
            error = messages.decode_error(body)
            assert error.code == Code.UNAVAILABLE
            assert "changes state" in error.message
    with pool.client() as client:
        assert client.predict("counter", np.float32([0.0]))["total"].tolist() == [1.0], "it has not run before"


def test_what_a_client_may_have_with_the_pool(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1})], workers=1, server={"client_rows": 5})
    with pool.client() as greedy, pool.client() as other:
        mine = [greedy.submit("slow", SHORT + np.float32(0.2), timeout=SOON) for _ in range(1)]
        until(lambda: greedy.queues())
        mine += [greedy.submit("slow", SHORT, timeout=SOON) for _ in range(4)]
        until(lambda: greedy.stats()["waiting_rows"] >= 3 or mine[-1].done())
        refused = greedy.submit("slow", SHORT, timeout=SOON)
        with pytest.raises(ResourceExhausted, match="a client may have 5 rows with the pool"):
            refused.result(SOON)
        assert other.predict("slow", SHORT, timeout=SOON)["y"].tolist() == SHORT.tolist()
        assert all(reply.result(SOON) for reply in mine)
        assert greedy.predict("slow", SHORT, timeout=SOON)["y"].tolist() == SHORT.tolist(), "there is room again"


def test_what_waits_for_a_model_to_be_loaded_is_bounded(make_pool: MakePool) -> None:
    pool = make_pool([("echo", {"preload": Loading.LAZY, "hold": ""})], workers=1, queue_budget=1 << 20)
    big = np.ones((1, 12_000), np.float32)
    with pool.client() as client:
        replies = []
        while not any(reply.done() for reply in replies):
            heard = client.stats()["messages"]
            replies.append(client.submit("echo", big, signature="float32", timeout=SOON))
            until(lambda before=heard: client.stats()["messages"] > before + 1)  # type: ignore[misc]
        with pytest.raises(ResourceExhausted, match="queue_budget is 1048576"):
            replies[-1].result(SOON)
        (pool.base("echo") / "1" / "hold").unlink()
        assert len(replies) == (1 << 20) // big.nbytes + 1
        assert all(reply.result(SOON)["y"].size == big.size for reply in replies[:-1])
