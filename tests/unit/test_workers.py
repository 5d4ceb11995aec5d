"""The supervisor's view of its workers; broker and zygote are the test."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfpool.shm.doorbell import Doorbell
from tfpool.supervisor import policy
from tfpool.supervisor.child import Child
from tfpool.supervisor.workers import Workers
from tfpool.testing import fake_worker
from tfpool.wire.messages import Control, unpack

KILLED = -signal.SIGKILL
NOW = 1e9


class Stage:
    """Two workers, ``cpu0`` and ``cpu1``; ``ends`` has the two descriptors that each was started with."""

    def __init__(self, directory: Path) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.broker, self.heard_by_broker = self._child("broker")
        self.zygote, self.heard_by_zygote = self._child("zygote")
        settings = fake_worker.settings(directory, [])
        self.workers = Workers(settings, self.broker, self.zygote, self._watch, self._hang_up)
        self.ends: dict[str, list[int]] = {}

    @staticmethod
    def _child(name: str) -> tuple[Child, Doorbell]:
        mine, theirs = Doorbell.pair()
        return Child(name, bell=Doorbell(mine, blocking=False)), Doorbell(theirs, blocking=False)

    def _watch(self, bell: Doorbell, hear: Callable[[], None]) -> None:
        self.watched[bell.fileno()] = hear

    def _hang_up(self, bell: Doorbell) -> None:
        del self.watched[bell.fileno()]
        bell.close()

    def start(self) -> None:
        self.workers.start_due(NOW)
        for fields, fds in hear(self.heard_by_zygote, Control.FORK):
            self.ends[fields[0]] = fds
            self.workers.forked(fields[0], fields[1], 4_000_000 + fields[1])

    def die(self, name: str) -> None:
        """The process has ended, and nobody has said so yet."""
        for fd in self.ends.pop(name, []):
            os.close(fd)
        for call in list(self.watched.values()):
            call()

    def told(self, verb: Control) -> list[list[Any]]:
        """What the broker has been told since it was last asked; it forgets all else, and hangs up on workers."""
        found = []
        for fields, fds in hear(self.heard_by_broker, verb):
            for fd in fds:
                os.close(fd)
            found.append(fields)
        return found

    def new_broker(self) -> None:
        self.heard_by_broker.close()
        assert self.broker.bell is not None
        self.broker.bell.close()
        made, self.heard_by_broker = self._child("broker")
        self.broker.bell = made.bell
        self.workers.meet_broker()

    def close(self) -> None:
        self.workers.close()
        for name in list(self.ends):
            self.die(name)
        for bell in (self.broker.bell, self.zygote.bell, self.heard_by_broker, self.heard_by_zygote):
            if bell is not None:
                bell.close()


def hear(bell: Doorbell, verb: Control) -> Iterator[tuple[list[Any], list[int]]]:
    while (heard := bell.hear()) is not None:
        said, *fields = unpack(heard[0])
        if said == verb:
            yield fields, heard[1]
        else:
            for fd in heard[1]:
                os.close(fd)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    made.start()
    yield made
    made.close()


def test_the_broker_hears_how_a_worker_ended_and_it_is_started_again(stage: Stage) -> None:
    assert stage.told(Control.WORKER) == [["cpu0", 1], ["cpu1", 1]]
    stage.workers.ready("cpu0", 1)
    stage.die("cpu0")
    assert stage.told(Control.REAPED) == [], "the zygote knows how it ended"
    stage.workers.exited("cpu0", 1, -11)
    assert stage.told(Control.REAPED) == [["cpu0", 1, -11, False]]
    stage.start()
    assert stage.told(Control.WORKER) == [["cpu0", 2]]


def test_news_of_an_earlier_life_means_nothing(stage: Stage) -> None:
    stage.die("cpu0")
    stage.workers.exited("cpu0", 1, KILLED)
    stage.start()
    stage.told(Control.REAPED)
    stage.workers.exited("cpu0", 1, KILLED)
    stage.workers.forked("cpu0", 1, 1)
    stage.workers.kill("cpu0", 1, "it hangs")
    assert stage.told(Control.REAPED) == []
    assert list(hear(stage.heard_by_zygote, Control.KILL)) == []
    stage.workers.kill("cpu0", 2, "it hangs")
    assert [fields for fields, _ in hear(stage.heard_by_zygote, Control.KILL)] == [["cpu0", 2]]


def test_those_that_live_are_introduced_to_a_new_broker_and_the_halted_are_named(stage: Stage) -> None:
    for generation in range(1, policy.MAX_FAILED_STARTS + 2):
        stage.die("cpu0")
        stage.workers.exited("cpu0", generation, 3)
        stage.start()
    assert stage.told(Control.HALTED) == [["cpu0"]]
    assert [child.name for child in stage.workers.alive()] == ["cpu1"]
    stage.new_broker()
    line = Doorbell(socket.socket(fileno=os.dup(stage.ends["cpu1"][1])), blocking=False)
    heard = line.hear()
    assert heard is not None
    (mine,) = heard[1]
    os.close(mine)
    line.close()
    told = [(unpack(heard[0])[:2], heard[1]) for heard in iter(stage.heard_by_broker.hear, None)]
    for _, fds in told:
        for fd in fds:
            os.close(fd)
    assert [said for said, _ in told] == [[Control.HALTED, "cpu0"], [Control.WORKER, "cpu1"]]


@pytest.mark.parametrize("known", ["before", "after"])
def test_the_end_of_its_line_tells_of_a_worker_that_no_zygote_will_reap(stage: Stage, known: str) -> None:
    if known == "before":
        stage.die("cpu0")
    stage.workers.zygote_ended()
    if known == "after":
        assert stage.told(Control.REAPED) == [], "it may still write to what it has mapped"
        stage.die("cpu0")
    assert stage.told(Control.REAPED) == [["cpu0", 1, KILLED, False]]
    assert stage.workers.dues() != [], "it is started again, when there is a zygote"
    stage.start()
    assert stage.told(Control.WORKER) == [["cpu0", 2]]


def test_the_end_of_its_zygote_is_no_fault_of_a_worker(stage: Stage) -> None:
    for _ in range(3 * policy.MAX_FAILED_STARTS):
        stage.workers.zygote_ended()
        stage.die("cpu0")
        stage.start()
    assert stage.told(Control.HALTED) == []


def test_while_the_pool_ends_nobody_is_started_again(stage: Stage) -> None:
    stage.workers.stopping = True
    stage.die("cpu0")
    stage.workers.exited("cpu0", 1, 0)
    assert stage.workers.dues() == []
