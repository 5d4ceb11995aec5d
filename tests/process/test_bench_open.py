"""Open loops of several client processes, on a pool and over HTTP."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.arrivals import Schedule
from bench.errors import ChildFailed, WrongAnswer
from bench.open import Stream, capacity
from bench.post import Post
from bench.senders import Together
from bench.web import WebStream
from tfpool.testing.fake_worker import FakePool

pytestmark = pytest.mark.process
ROWS = np.arange(16, dtype=np.float32).reshape(4, 4)
WINDOW = 0.2
MOMENTS = np.linspace(0.0, WINDOW, 100, endpoint=False)
SCHEDULE = Schedule(MOMENTS, np.arange(100) % 2, WINDOW)


def samples(directory: Path, answers: Any) -> str:
    """Rows of the model that doubles them, and what they are compared with."""
    path = directory / f"{len(list(directory.iterdir()))}.npz"
    np.savez(path, x=ROWS, y=answers)
    return str(path)


@pytest.fixture
def open_streams(front: FakePool, tmp_path: Path) -> Iterator[Callable[..., list[Stream]]]:
    with ExitStack() as stack:

        def start(clients: int, factor: float = 2.0) -> list[Stream]:
            pool: Any = front
            file = samples(tmp_path, factor * ROWS)
            return [stack.enter_context(Stream(pool, ["double", "double"], file)) for _ in range(clients)]

        yield start


def test_two_clients_are_one_load(open_streams: Callable[..., list[Stream]]) -> None:
    streams = open_streams(2)
    assert capacity(streams, 4, 0.1, [0, 1]) > 0
    for _ in range(2):
        found = Together(streams).send(SCHEDULE, None)
        assert found.due == pytest.approx(MOMENTS)
        assert (found.errors, found.share(30.0)) == ({}, 100.0)
        assert np.all(found.seconds >= found.lateness)
        assert found.cpu > 0


def test_a_wrong_answer_ends_it(open_streams: Callable[..., list[Stream]]) -> None:
    with pytest.raises(WrongAnswer, match="answers are wrong"):
        Together(open_streams(1, factor=3.0)).send(SCHEDULE, None)


def test_a_client_that_dies_is_told_of(open_streams: Callable[..., list[Stream]]) -> None:
    (stream,) = open_streams(1)
    stream.begin(MOMENTS, WINDOW, None)
    os.kill(stream._child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailed, match="has ended"):
        stream.collect()


def posts(front: FakePool) -> list[Post]:
    address = front.settings.server.http
    bodies = [json.dumps({"instances": [row]}).encode() for row in ROWS.tolist()]
    return [Post(address, "/v1/models/double:predict", body, {"X-Large": "x" * 2000}) for body in bodies]


def test_two_clients_over_http(front: FakePool) -> None:
    audited: list[int] = []

    def audit(number: int, content: bytes) -> None:
        assert json.loads(content) == {"predictions": [(2 * ROWS[number]).tolist()]}
        audited.append(number)

    with WebStream(posts(front), audit) as one, WebStream(posts(front), audit, connections=2) as other:
        found = Together([one, other]).send(Schedule.of_one(MOMENTS, WINDOW), 10.0)
    assert found.due == pytest.approx(MOMENTS)
    assert (found.errors, found.share(30.0)) == ({}, 100.0)
    assert sorted(audited) == sorted(2 * [0, 1, 2])


def test_what_an_audit_finds_ends_it(front: FakePool) -> None:
    def audit(number: int, content: bytes) -> None:
        raise WrongAnswer(f"{number}: {content!r}")

    with WebStream(posts(front), audit) as stream, pytest.raises(WrongAnswer, match="predictions"):
        Together([stream]).send(Schedule.of_one(MOMENTS, WINDOW), 10.0)
