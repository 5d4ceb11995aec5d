"""Nobody pays for what others ask for: floods, priorities, full queues and deadlines on a live pool.

Models sleep as long as a request says, so that what waits is known. Order of answers is compared, not the clock's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from tfpool.client.reply import Reply
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, ResourceExhausted
from tfpool.testing.fake_worker import FakePool, until

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
SOON = 30.0
BATCH = 16
FLOOD = 4000
GATE = 0.3


def seconds(value: float) -> Any:
    """A request of one row that takes so long."""
    return np.float32([value])


class Order:
    """Which replies came in which order: labels, in the order in which they were done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def watch(self, label: str, replies: Iterable[Reply]) -> None:
        for reply in replies:
            reply.add_done_callback(lambda _: self.done.append(label))

    def before_last(self, label: str, other: str) -> int:
        """How many of ``other`` were done before the last of ``label``."""
        last = max(i for i, name in enumerate(self.done) if name == label)
        return self.done[:last].count(other)


def waiting(client: Client, model: str) -> int:
    return sum(queue["rows"] for queue in client.queues() if queue["model"] == model)


def flood(client: Client, model: str, count: int, value: float, workers: int = 1, gate: str = "") -> list[Reply]:
    """Requests of a row each; the first ones (for ``gate``, if that is another model) hold the workers up until the
    others wait, which they do at the end."""
    gates = [client.submit(gate or model, seconds(GATE), timeout=SOON) for _ in range(workers)]
    replies = [client.submit(model, seconds(value), timeout=SOON) for _ in range(count)]
    until(lambda: waiting(client, model) >= count - 2 * BATCH * workers or gates[0].done(), what="they wait")
    return replies


# -- clients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fair", [True, False], ids=["fair", "unfair"])
def test_a_flood_of_one_client_does_not_hold_up_another(make_pool: MakePool, fair: bool) -> None:
    """Five requests, one after the other, are answered while half of the flood waits; unless first comes first."""
    pool = make_pool([("slow", {"max_batch_size": BATCH, "fair_clients": fair})], workers=1)
    with pool.client() as greedy, pool.client() as modest:
        flooding = flood(greedy, "slow", FLOOD if fair else FLOOD // 10, 0.002)
        for _ in range(5 if fair else 1):
            assert modest.predict("slow", seconds(0.001), timeout=SOON)["y"].shape == (1,)
        left = waiting(modest, "slow")
        assert all(reply.exception(SOON) is None for reply in flooding)
    assert left > FLOOD / 2 if fair else left == 0


def test_many_clients_get_on_while_one_floods(make_pool: MakePool) -> None:
    """Each of five has three requests in flight all the time."""
    pool = make_pool([("slow", {"max_batch_size": BATCH, "replicas": (2, 2)})], workers=2)
    answers: list[int] = []

    def modest() -> None:
        with pool.client() as client:
            for _ in range(10):
                replies = [client.submit("slow", seconds(0.001), timeout=SOON) for _ in range(3)]
                answers.append(sum(reply.exception(SOON) is None for reply in replies))

    with pool.client() as greedy:
        flooding = flood(greedy, "slow", 2 * FLOOD, 0.002, workers=2)
        threads = [threading.Thread(target=modest) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = waiting(greedy, "slow")
        assert all(reply.exception(SOON) is None for reply in flooding)
    assert answers == [3] * 50
    assert left > FLOOD / 2


def test_a_full_queue_makes_room_for_a_client_that_has_little_in_it(make_pool: MakePool) -> None:
    """The flood's newest requests are pushed out, and told so; the flood itself is refused while it has most of it."""
    pool = make_pool([("slow", {"max_batch_size": BATCH, "max_queue_rows": 1000})], workers=1)
    with pool.client() as greedy, pool.client() as modest:
        flooding = flood(greedy, "slow", 2 * BATCH, 0.001)  # these are with the worker, or next
        flooding += [greedy.submit("slow", seconds(0.001), timeout=SOON) for _ in range(1200)]
        until(lambda: waiting(greedy, "slow") == 1000, what="the queue is full")
        replies = [modest.submit("slow", seconds(0.001), timeout=SOON) for _ in range(5)]
        assert refused_and_served(replies) == ([], 5)
        refusals, served = refused_and_served(flooding)
    assert 1000 - 5 <= served <= 1000 - 5 + 2 * BATCH
    assert len(refusals) == 1200 + 2 * BATCH - served


# -- models and priorities -----------------------------------------------------------------------------------------


def test_a_model_of_higher_priority_goes_first(make_pool: MakePool) -> None:
    kinds = [
        ("slow", {"name": "gate"}),
        ("slow", {"name": "bulk", "max_batch_size": 1}),
        ("slow", {"name": "urgent", "max_batch_size": 1, "priority": 10}),
    ]
    pool = make_pool(kinds, workers=1)
    with pool.client() as client:
        order = Order()
        bulk = flood(client, "bulk", 100, 0.003, gate="gate")
        urgent = [client.submit("urgent", seconds(0.003), timeout=SOON) for _ in range(50)]
        order.watch("bulk", bulk)
        order.watch("urgent", urgent)
        for reply in (*urgent, *bulk):
            reply.result(SOON)
    assert order.before_last("urgent", "bulk") <= 15, "those that a worker had already"


def test_a_request_of_higher_priority_goes_first(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1})], workers=1)
    with pool.client() as client:
        order = Order()
        patient = flood(client, "slow", 100, 0.003)
        urgent = [client.submit("slow", seconds(0.003), timeout=SOON, priority=1) for _ in range(50)]
        order.watch("patient", patient)
        order.watch("urgent", urgent)
        for reply in (*urgent, *patient):
            reply.result(SOON)
    assert order.before_last("urgent", "patient") <= 15


def test_models_of_equal_priority_share_the_workers_time(make_pool: MakePool) -> None:
    """A flood of long runs leaves a model of short ones its half of it, not every other run."""
    kinds = [("slow", {"name": name, "max_batch_size": 1}) for name in ("gate", "long", "short")]
    pool = make_pool(kinds, workers=1)
    with pool.client() as client:
        order = Order()
        long = flood(client, "long", 50, 0.02, gate="gate")
        short = [client.submit("short", seconds(0.002), timeout=SOON) for _ in range(50)]
        order.watch("long", long)
        order.watch("short", short)
        for reply in (*short, *long):
            reply.result(SOON)
    assert order.before_last("short", "long") <= 20, "50 runs of 2 ms are worth 5 of 20 ms"


# -- full queues ---------------------------------------------------------------------------------------------------


def refused_and_served(replies: list[Reply]) -> tuple[list[ResourceExhausted], int]:
    """The refusals, and how many were served. Raises AssertionError for any other outcome."""
    failures = [failure for reply in replies if (failure := reply.exception(SOON)) is not None]
    assert all(type(failure) is ResourceExhausted for failure in failures), failures
    return failures, len(replies) - len(failures)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(make_pool: MakePool) -> None:
    most = 20 * BATCH
    pool = make_pool([("slow", {"max_batch_size": BATCH, "max_queue_rows": most})], workers=1)
    with pool.client() as client:
        order = Order()
        first = [client.submit("slow", seconds(0.05), timeout=SOON) for _ in range(most + 100)]
        for reply in first:
            reply.add_done_callback(lambda done: order.done.append("refused" if done.exception() else "served"))
        until(lambda: order.done.count("served") >= 2 * BATCH, what="the pace is known")
        refusals, served = refused_and_served([client.submit("slow", seconds(0.0), timeout=SOON) for _ in range(most)])
        others, others_served = refused_and_served(first)
    assert most <= others_served <= most + 2 * BATCH
    assert order.done[: len(others)] == ["refused"] * len(others), "before the first batch was done"
    assert served < most
    assert all(refusal.retry_after is not None and 0 < refusal.retry_after < SOON for refusal in refusals)


def test_a_queue_is_bounded_in_time(make_pool: MakePool) -> None:
    """With runs of 20 ms, and 60 waiting, 200 ms of waiting are over."""
    pool = make_pool([("slow", {"max_batch_size": 1, "max_queue_ms": 200.0})], workers=1)
    with pool.client() as client:
        first = [client.submit("slow", seconds(0.02), timeout=SOON) for _ in range(80)]
        until(lambda: sum(reply.done() for reply in first) >= 10, what="the pace is known")
        refusals, served = refused_and_served([client.submit("slow", seconds(0.02), timeout=SOON) for _ in range(20)])
        assert sum(reply.done() for reply in first) < 40
        assert served == 0
        assert all(refusal.retry_after is not None and 0.2 < refusal.retry_after < 5 for refusal in refusals)
        assert refused_and_served(first) == ([], 80)


def test_what_cannot_make_its_deadline_is_refused_at_once(make_pool: MakePool) -> None:
    pool = make_pool([("slow", {"max_batch_size": 1})], workers=1)
    with pool.client() as client:
        patient = [client.submit("slow", seconds(0.02), timeout=2.0) for _ in range(200)]
        until(lambda: sum(reply.done() for reply in patient) >= 10, what="the pace is known")
        with pytest.raises(ResourceExhausted, match="rows wait"):
            client.predict("slow", seconds(0.02), timeout=1.9)  # its deadline is the last
        assert sum(reply.done() for reply in patient) < 40, "long before its deadline"
        for reply in patient:
            reply.cancel()


# -- deadlines -----------------------------------------------------------------------------------------------------


def test_nothing_is_begun_after_its_deadline(make_pool: MakePool) -> None:
    """A flood of more than can be done in time, behind slow batches: what is late is told, and not run."""
    pool = make_pool([("slow", {"max_batch_size": BATCH})], workers=2)
    dice = np.random.default_rng(5)
    with pool.client() as client:
        asked: list[tuple[Reply, float]] = []
        done: dict[Reply, float] = {}
        for _ in range(300):
            timeout = float(dice.choice([0.02, 0.05, 0.1, 0.3]))
            reply = client.submit("slow", seconds(float(dice.choice([0.0, 0.01, 0.03]))), timeout=timeout)
            asked.append((reply, time.monotonic() + timeout))
            reply.add_done_callback(lambda reply: done.setdefault(reply, time.monotonic()))
        outcomes = {type(reply.exception(SOON)) for reply, _ in asked}
        assert outcomes <= {type(None), DeadlineExceeded, ResourceExhausted}
        assert outcomes >= {type(None), DeadlineExceeded}
        assert max(done[reply] - deadline for reply, deadline in asked) < 0.25, "nobody waits for what is late"
        assert client.stats()["models"]["slow"]["late_starts"] == 0
