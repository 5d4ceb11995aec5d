"""The list of those who get in: read again when it changes, kept when it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import zmq

from tfpool.broker.front import Unread
from tfpool.broker.gate import Gate
from tfpool.errors import NotFound, PermissionDenied, Unauthenticated
from tfpool.keys import Role

A, B = "HelloWorld" * 4, "0" * 40


class Said:
    """A message's frame, and the key that it came with."""

    def __init__(self, key: str) -> None:
        self.key = key

    def get(self, name: str) -> str:
        assert name == "X-Key"
        return self.key


class Disk:
    """Runs jobs when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[], Any], Callable[[Future[Any]], None]]] = []

    def ask(self, job: Callable[[], Any], done: Callable[[Future[Any]], None]) -> None:
        self.asked.append((job, done))

    def answer(self) -> None:
        while self.asked:
            job, done = self.asked.pop()
            future: Future[Any] = Future()
            future.set_result(job())
            done(future)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in (("server.key", f"public = {A}\nsecret = {A}"), ("list", f"admin {A} ann\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@pytest.fixture
def gate(place: Path) -> Iterator[Gate]:
    context = zmq.Context()
    made = Gate(context, str(place / "server.key"), str(place / "list"))
    yield made
    made.close()
    context.term()


def admits(gate: Gate, key: str, role: Role = Role.PREDICT) -> bool:
    try:
        gate.check(Said(key), role)  # type: ignore[arg-type]
    except (Unauthenticated, PermissionDenied):
        return False
    return True


def test_roles(gate: Gate, place: Path) -> None:
    (place / "list").write_text(f"admin {A} ann\npredict {B} pete\n")
    disk = Disk()
    gate.step(0.0, disk.ask)
    disk.answer()
    assert [admits(gate, A, role) for role in Role] == [True, True]
    assert [admits(gate, B, role) for role in Role] == [True, False]
    with pytest.raises(PermissionDenied, match="pete has the role predict, expected admin"):
        gate.check(Said(B), Role.ADMIN)  # type: ignore[arg-type]
    for key in ("", "None", A[1:]):
        with pytest.raises(Unauthenticated, match="not among the server's authorized_keys"):
            gate.check(Said(key), Role.PREDICT)  # type: ignore[arg-type]


def test_the_list_is_looked_at_each_second_and_one_look_at_a_time(gate: Gate, place: Path) -> None:
    disk = Disk()
    gate.step(5.0, disk.ask)
    gate.step(7.0, disk.ask)
    assert len(disk.asked) == 1, "the disk does not answer"
    (place / "list").write_text(f"admin {B} ann\n")
    disk.answer()
    assert admits(gate, B)
    assert not admits(gate, A), "taken off"
    gate.step(7.0, disk.ask)
    disk.answer()
    gate.step(7.9, disk.ask)
    assert not disk.asked


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["fields"]["error"] for record in caplog.records if record.getMessage() == "keys.unreadable"]


def test_what_cannot_be_read_is_told_once(gate: Gate, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    for text, problem in ((f"admin {A}\n", "expected ROLE"), (f"admin {A} ann\nroot\n", "got 1 words")):
        (place / "list").write_text(text)
        for now in range(3):
            gate.step(now + text.count("\n") * 10.0, disk.ask)
            disk.answer()
        assert [problem in error for error in errors(caplog)] == [True]
        caplog.clear()
        assert admits(gate, A)
    (place / "list").unlink()
    gate.step(100.0, disk.ask)
    disk.answer()
    assert admits(gate, A)
    assert ["no such file" in error for error in errors(caplog)] == [True]


def test_a_broker_that_starts_anew_without_a_list_admits_nobody(place: Path) -> None:
    (place / "list").unlink()
    context = zmq.Context()
    gate = Gate(context, str(place / "server.key"), str(place / "list"))
    assert not admits(gate, A)
    gate.close()
    (place / "server.key").unlink()
    with pytest.raises(NotFound):
        Gate(context, str(place / "server.key"), str(place / "list"))
    context.term()


class Tracker:
    done = False


def test_what_is_unread() -> None:
    unread = Unread()
    assert unread.settle() == 0
    trackers = [Tracker() for _ in range(3)]
    for tracker in trackers:
        unread.marks.append((tracker, 10))  # type: ignore[arg-type]
        unread.held += 10
    assert unread.settle() == 30
    trackers[1].done = True
    assert unread.settle() == 30, "it cannot have left before the first"
    trackers[0].done = True
    assert unread.settle() == 10
    assert len(unread.marks) == 1
