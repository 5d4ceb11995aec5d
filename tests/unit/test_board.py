from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tfpool.client.examples import Target
from tfpool.errors import Code, ResourceExhausted
from tfpool.gateway import board as module
from tfpool.gateway.board import HALF_BYTES, Board, Post
from tfpool.gateway.meters import Meters
from tfpool.gateway.serving import Call

CALL = Call(Target("m", 0, "", ""), "predict", "REST")
KIND = ("m", "predict", "REST")


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(3)
    yield made
    made.close()


def served(meters: Meters, times: int) -> None:
    for _ in range(times):
        meters.served(CALL, Code.OK, 0.001)


def counts(post: Post) -> dict[int, int]:
    return {slot: snapshot["series"][0][3][Code.OK] for slot, snapshot in post.all().items() if snapshot["series"]}


def test_an_empty_slot_holds_nothing(board: Board) -> None:
    assert board.read(2) == b""


def test_a_slot_holds_what_was_written_last(board: Board) -> None:
    for content in (b"first", b"", b"the third, which is longer", b"4"):
        board.write(1, content)
        assert board.read(1) == content
    assert (board.read(0), board.read(2)) == (b"", b"")


def test_what_does_not_fit_is_refused_and_the_slot_left_alone(board: Board) -> None:
    board.write(0, b"before")
    with pytest.raises(ResourceExhausted, match=f"does not fit into {HALF_BYTES}"):
        board.write(0, bytes(HALF_BYTES))
    assert board.read(0) == b"before"


def test_a_writer_that_dies_midway_leaves_the_last_snapshot(board: Board) -> None:
    board.write(0, b"whole")
    at = board._half(0, board._sequences[0][0] + 1)
    board._arena.view[at : at + 16] = b"half of the next"
    assert board.read(0) == b"whole"


def test_a_half_that_was_overtaken_is_not_believed(board: Board) -> None:
    board.write(0, b"whole")
    at = board._half(0, board._sequences[0][0])
    board._arena.view[at + 8] ^= 1
    assert board.read(0) == b""


def test_nothing_is_torn_while_another_process_writes(board: Board) -> None:
    writer = os.fork()
    if not writer:
        with suppress(BaseException):
            for number in range(1 << 40):
                board.write(0, bytes([number % 251]) * (1000 + number % 5000))
        os._exit(1)
    try:
        seen: set[bytes] = set()
        deadline = time.monotonic() + 10.0
        while len(seen) < 200 and time.monotonic() < deadline:
            content = board.read(0)
            assert len(set(content)) <= 1
            seen.add(content)
        assert len(seen) >= 200
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_everybody_sees_what_everybody_has_counted(board: Board) -> None:
    mine, others = Meters(), Meters()
    here, there = Post(board, 0, mine), Post(board, 1, others)
    served(mine, 2)
    served(others, 3)
    assert counts(there) == {1: 3}
    assert counts(here) == {0: 2, 1: 3}
    served(mine, 1)
    assert counts(here) == {0: 3, 1: 3}
    assert counts(there) == {0: 3, 1: 3}, "what the other was told, at least"


def test_a_successor_goes_on_counting(board: Board) -> None:
    first = Meters()
    post = Post(board, 1, first)
    served(first, 5)
    post.publish()
    second = Meters()
    successor = Post(board, 1, second)
    assert counts(successor) == {1: 5}
    served(second, 1)
    assert counts(successor) == {1: 6}


def test_what_is_too_long_is_not_posted_but_still_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    meters = Meters()
    post = Post(board, 0, meters)
    served(meters, 4)
    monkeypatch.setattr(module, "HALF_BYTES", 100)
    assert counts(post) == {0: 4}
    assert board.read(0) == b""


def test_it_is_published_again_and_again_and_at_the_end(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.001)
    meters = Meters()
    post = Post(board, 0, meters)

    async def written_since(before: bytes) -> None:
        while board.read(0) == before:
            await asyncio.sleep(0)

    async def go() -> None:
        running = asyncio.create_task(post.run())
        for _ in range(2):
            before = board.read(0)
            served(meters, 1)
            await asyncio.wait_for(written_since(before), 5.0)
        monkeypatch.setattr(module, "PERIOD_SECONDS", 60.0)
        served(meters, 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(go())
    found = Meters()
    Post(board, 0, found)
    assert found.series[KIND].codes[Code.OK] == 3
