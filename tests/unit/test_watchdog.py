"""Who is stuck, and who only seems to be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.watchdog import LONGEST_STEP, QUIET_SECONDS, Quiet, Stuck, Watchdog, process_state
from tfpool.settings import PoolSettings, WorkerSettings

HANG, LOAD = 10.0, 60.0


@dataclass
class Run:
    """As much of a batch as a watchdog looks at."""

    id: int
    thought: float = 0.0
    spec: Any = field(default_factory=lambda: SimpleNamespace(servable="m:1"))


class Kennel:
    """Workers ``a`` and ``b``, a watchdog, and a clock that only goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.running: dict[str, Run] = {}
        self.state = "S"
        self.fleet = Fleet((WorkerSettings("a"), WorkerSettings("b")))
        pool = PoolSettings(hang_s=HANG, load_timeout_s=LOAD)
        scheduler = SimpleNamespace(running=self.running.get)
        self.dog = Watchdog(self.fleet, scheduler, pool, self.now, lambda pid: self.state)  # type: ignore[arg-type]
        for name in self.fleet.links:
            self.begin(name)
        assert self.dog.look(self.now) == []

    def begin(self, name: str, state: WorkerState = WorkerState.READY) -> Link:
        link = self.fleet.links[name]
        link.bell, link.state = object(), state  # type: ignore[assignment]
        link.generation += 1
        return link

    def pass_by(self, seconds: float, *silent: str) -> list[Stuck | Quiet]:
        """All but ``silent`` speak each second; what the watchdog says meanwhile."""
        found: list[Stuck | Quiet] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            for name, link in self.fleet.links.items():
                link.heard = link.heard or name not in silent
            found += self.dog.look(self.now)
        return found


def stuck(found: list[Stuck | Quiet]) -> list[Stuck]:
    return [one for one in found if isinstance(one, Stuck)]


@pytest.fixture
def kennel() -> Kennel:
    return Kennel()


def test_who_speaks_is_well(kennel: Kennel) -> None:
    assert kennel.pass_by(500) == []


def test_who_is_silent_is_given_nothing_and_then_given_up(kennel: Kennel) -> None:
    a = kennel.fleet.links["a"]
    assert kennel.pass_by(QUIET_SECONDS, "a") == []
    assert kennel.pass_by(1, "a") == [Quiet(a, True)]
    assert kennel.pass_by(HANG - QUIET_SECONDS - 1, "a") == []
    (found,) = kennel.pass_by(1, "a")
    assert isinstance(found, Stuck)
    assert (found.link, found.own_fault, found.run, found.load) == (a, True, False, 0)
    assert "said nothing for 11.0 s" in found.why


def test_who_speaks_again_is_given_work_again(kennel: Kennel) -> None:
    a = kennel.fleet.links["a"]
    assert kennel.pass_by(HANG, "a") == [Quiet(a, True)]
    assert kennel.pass_by(1) == [Quiet(a, False)]
    assert stuck(kennel.pass_by(HANG, "a")) == []
    assert len(stuck(kennel.pass_by(1, "a"))) == 1


@pytest.mark.parametrize(
    ("state", "own"), [("R", True), ("S", True), ("T", False), ("t", False), ("D", False), ("", False)]
)
def test_who_was_stopped_from_outside_is_not_to_blame(kennel: Kennel, state: str, own: bool) -> None:
    kennel.state = state
    (found,) = stuck(kennel.pass_by(HANG + 1, "a"))
    assert found.own_fault is own


def test_a_broker_that_was_stopped_itself_blames_nobody(kennel: Kennel) -> None:
    """Nobody is older than the time that the broker has seen pass, however far the clock is."""
    kennel.running["a"] = Run(1)
    kennel.fleet.links["b"].loading.add(7)
    kennel.pass_by(2)
    kennel.now += 3600.0
    assert kennel.dog.look(kennel.now) == []
    assert kennel.pass_by(HANG - LONGEST_STEP - 2) == []


def test_a_run_that_does_not_end(kennel: Kennel) -> None:
    kennel.running["a"] = Run(1, thought=0.5)
    kennel.running["b"] = Run(2, thought=5.0)
    assert kennel.pass_by(HANG + 5 + 1) == []
    (found,) = kennel.pass_by(1)
    assert isinstance(found, Stuck)
    assert (found.link.name, found.own_fault, found.run) == ("a", True, True)
    assert "a batch of m:1 has run for 16.0 s, expected at most 15.0 s" in found.why


def test_many_runs_that_end_are_no_hang(kennel: Kennel) -> None:
    for number in range(10):
        kennel.running["a"] = Run(number)
        assert kennel.pass_by(HANG) == []
        if number % 2:
            del kennel.running["a"]
            assert kennel.pass_by(1) == []


def test_a_load_that_does_not_end(kennel: Kennel) -> None:
    a = kennel.fleet.links["a"]
    a.loading.add(7)
    kennel.pass_by(LOAD / 2)
    a.loading.add(8)
    assert kennel.pass_by(LOAD / 2 + 1) == []
    (found,) = kennel.pass_by(1)
    assert isinstance(found, Stuck)
    assert (found.link, found.own_fault, found.load) == (a, True, 7)


def test_loads_one_after_the_other_may_take_as_long_as_they_want_together(kennel: Kennel) -> None:
    a = kennel.fleet.links["a"]
    for handle in (1, 2, 1, 2):
        a.loading = {handle}
        assert kennel.pass_by(LOAD) == []


def test_one_that_never_gets_ready(kennel: Kennel) -> None:
    a = kennel.begin("a", WorkerState.STARTING)
    assert kennel.pass_by(LOAD + 1, "a") == []
    (found,) = kennel.pass_by(1, "a")
    assert isinstance(found, Stuck)
    assert (found.link, found.run, found.load) == (a, False, 0)
    assert "not ready after 60 s" in found.why


def test_a_new_life_begins_anew(kennel: Kennel) -> None:
    """It is neither as old as the one before it, nor known to be silent."""
    a = kennel.fleet.links["a"]
    kennel.running["a"] = Run(1)
    kennel.pass_by(HANG, "a")
    kennel.begin("a")
    assert kennel.pass_by(QUIET_SECONDS, "a") == []
    a.bell = None
    assert kennel.pass_by(100, "a") == []


def test_the_state_of_a_process() -> None:
    assert process_state(os.getpid()) == "R"
    assert process_state(0) == ""
