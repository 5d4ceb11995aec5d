"""The asyncio client on its loop: it sends together, comes back by itself, and refuses what would hold the loop up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

import tfpool
from tfpool.client import looped
from tfpool.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, PermissionDenied
from tfpool.testing.fake_worker import FakePool

pytestmark = pytest.mark.process
X = np.float32([[1.0, 2.0]])


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, 30))


def client_of(pool: FakePool, **options: Any) -> tfpool.AsyncClient:
    return tfpool.AsyncClient(pool.endpoint, admin=pool.admin, **options)


def test_what_is_submitted_together_leaves_together(pool: FakePool) -> None:
    async def story() -> None:
        async with client_of(pool) as client:
            await client.predict("double", X)
            before = (await client.stats())["messages"]
            replies = [client.submit("double", X + i) for i in range(50)]
            answers = [await client.result(reply) for reply in replies]
            assert [a["y"][0, 0] for a in answers] == [2.0 * (1 + i) for i in range(50)]
            assert (await client.stats())["messages"] - before <= 4
            assert {reply.version for reply in replies} == {1}
            assert all(reply.timing is not None and reply.timing[2] >= 1 for reply in replies)

    run(story())


def test_an_idle_client_uses_no_time(pool: FakePool) -> None:
    async def story() -> float:
        async with client_of(pool) as client:
            await client.predict("double", X)
            await asyncio.sleep(0)
            began = time.thread_time()
            await asyncio.sleep(0.2)
            return time.thread_time() - began

    assert run(story()) < 0.05


def test_large_tensors(pool: FakePool) -> None:
    large = np.arange(1 << 18, dtype=np.float32).reshape(2, -1)

    async def story() -> None:
        async with client_of(pool) as client:
            for _ in range(3):
                found = await client.predict("double", large)
                assert np.array_equal(found["y"], 2 * large)

    run(story())


def test_waiting_as_threads_do_is_refused(pool: FakePool) -> None:
    async def story() -> None:
        async with client_of(pool) as client:
            reply = client.submit("slow", np.float32([0.2]))
            with pytest.raises(FailedPrecondition, match="await the answer"):
                reply.result()
            assert (await client.result(reply))["y"].tolist() == [np.float32(0.2)]

    run(story())


def test_it_belongs_to_one_loop(pool: FakePool) -> None:
    client = client_of(pool)

    async def use() -> None:
        await client.predict("double", X)

    async def close() -> None:
        await client.close()
        with pytest.raises(FailedPrecondition, match="closed"):
            await client.predict("double", X)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(FailedPrecondition, match="another event loop"):
        run(use())
    loop.run_until_complete(close())
    loop.close()


def test_closing_cancels_what_is_in_flight(pool: FakePool) -> None:
    async def story() -> None:
        client = client_of(pool)
        slow = asyncio.ensure_future(client.predict("slow", np.float32([1.0])))
        await client.predict("double", X)
        await client.close()
        with pytest.raises((Cancelled, asyncio.CancelledError)):
            await slow
        await client.close()

    run(story())


def test_what_is_withdrawn_is_cancelled_for_whoever_awaits_it(pool: FakePool) -> None:
    async def story() -> None:
        async with client_of(pool) as client:
            reply = client.submit("slow", np.float32([1.0]))
            waiting = asyncio.ensure_future(client.result(reply))
            await asyncio.sleep(0)
            assert reply.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(story())


def test_a_child_of_a_fork_is_refused(pool: FakePool) -> None:
    async def story() -> int:
        async with client_of(pool) as client:
            await client.predict("double", X)
            pid = os.fork()
            if pid == 0:
                try:
                    client.submit("double", X)
                except FailedPrecondition:
                    os._exit(7)
                finally:
                    os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert run(story()) == 7


def test_nobody_is_there() -> None:
    async def story() -> None:
        async with tfpool.AsyncClient("ipc:///tmp/tfp-nobody/pool") as client:
            with pytest.raises(DeadlineExceeded, match="nobody answers"):
                await client.predict("double", X, timeout=0.1)

    run(story())


def test_admin_verbs_go_to_the_admin_endpoint(pool: FakePool) -> None:
    async def story() -> None:
        async with client_of(pool) as client:
            with pytest.raises(PermissionDenied):
                await client.call("unload", model="double")
            assert (await client.load("double"))["name"] == "double"

    run(story())


def test_bad_arguments() -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        tfpool.AsyncClient("ipc:///tmp/x", timeout=0)
    with pytest.raises(InvalidArgument, match="expected ipc://"):
        tfpool.AsyncClient("udp://x")


@pytest.mark.parametrize(
    "story",
    [
        "c = tfpool.Client(sys.argv[1]); c.predict('double', x)",
        "async def f(): await tfpool.AsyncClient(sys.argv[1]).predict('double', x)\nasyncio.run(f()); c = 0",
    ],
)
def test_a_client_that_nobody_closes_is_collected(pool: FakePool, story: str) -> None:
    """In a process of its own, which would wait for ever."""
    before = "import asyncio, gc, sys\nimport numpy as np, tfpool\nx = np.float32([[1.0]])\n"
    program = f"{before}{story}\ndel c\ngc.collect()\nprint('collected')"
    done = subprocess.run([sys.executable, "-c", program, pool.endpoint], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == ("collected\n", "")


def test_callbacks_that_submit_do_not_nest(pool: FakePool) -> None:
    async def story() -> int:
        async with client_of(pool) as client:
            await client.predict("double", X)
            deepest, left = 0, 2000
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def again(_: Any) -> None:
                nonlocal deepest, left
                deepest, left = max(deepest, sum(1 for _ in traceback.walk_stack(None))), left - 1
                if left > 0:
                    client.submit("double", X).add_done_callback(again)
                elif not ended.done():
                    ended.set_result(None)

            for _ in range(200):
                client.submit("double", X).add_done_callback(again)
            await ended
            return deepest

    assert run(story()) < 100


def test_who_is_patient_waits_for_company_only_where_the_loop_is_busy(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_by_one(client: tfpool.AsyncClient) -> int:
        before = (await client.stats())["messages"]
        replies = []
        for _ in range(40):
            replies.append(client.submit("slow", np.float32([0.0]), patient=True))
            await asyncio.sleep(0)
        for reply in replies:
            await client.result(reply)
        return int((await client.stats())["messages"] - before)

    async def story() -> None:
        async with client_of(pool) as client:
            monkeypatch.setattr(looped, "BUSY_SHARE", 100.0)
            idle = await one_by_one(client)
            monkeypatch.setattr(looped, "BUSY_SHARE", -1.0)
            assert await one_by_one(client) < idle

    run(story())
