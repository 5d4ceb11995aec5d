from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tfpool.cli.main import main
from tfpool.errors import InvalidArgument
from tfpool.placement.journal import BEGUN, Entry, to_fields
from tfpool.placement.recording import LONGEST_GAP, Change, Recording
from tfpool.placement.snapshot import (
    Demand,
    Hold,
    Inlined,
    Kind,
    Replica,
    Rules,
    ServableView,
    Snapshot,
    Step,
    WorkerView,
)

WORKERS = (WorkerView("cpu0", room=1000, held=600, busy=0.5), WorkerView("cpu1", room=1000))
STEP = Step(Kind.LOAD, 2, "cold:1", "", "cpu1", 300, 1.0, 0.1, "it is asked for")


def hot(asks: float = 50.0) -> ServableView:
    """Each request has two rows of 10 ms."""
    demand = Demand(asks, 2 * asks)
    on = {"cpu0": Replica(Hold.SERVES, 1.0)}
    return ServableView(1, "hot:3", 600, 700, 0.5, demand, demand, {"cpu0": 0.01}, (1, 2), ("cpu0", "cpu9"), on)


COLD = ServableView(2, "cold:1", 300, 300, 0.1)


def entry(second: float, *servables: ServableView, step: Step | None = None) -> Entry:
    seen = Snapshot(50.0 + second, WORKERS, servables)
    return Entry(1.7e9 + second, seen, Rules(hysteresis=3.0), step, outcome="" if step is None else BEGUN)


def recorded(*entries: Entry) -> Recording:
    recording = Recording()
    for each in entries:
        recording.add(each)
    return recording


def lines(*entries: Entry) -> str:
    """A journal, the first line whole."""
    before: Entry | None = None
    found = ""
    for each in entries:
        found += json.dumps(to_fields(each, before)) + "\n"
        before = each
    return found


MINUTE = [entry(float(second), hot(), COLD) for second in range(0, 61, 10)]


# -- what a recording tells ----------------------------------------------------------------------------------------


def test_demand_is_that_of_the_time_before() -> None:
    """Nothing is known before the first look; then 8 a second for 10 s, 2.5 a second for 10 s."""
    recording = recorded(entry(0, hot(1000.0)), entry(10, hot(8.0)), entry(20, hot(2.5)))
    ticks = list(recording.ticks())
    assert recording.seconds == 20.0
    assert len(ticks) == 80
    assert [sum(tick.values()) for tick in ticks[:40]] == [2] * 40
    assert sum(sum(tick.values()) for tick in ticks[40:]) == 25
    assert all(set(tick) <= {1} for tick in ticks)


def test_the_average_that_looks_back_as_far_as_needed() -> None:
    """Over two seconds the fast one, over ten the slow one."""
    view = replace(hot(8.0), slow=Demand(2.0, 4.0))
    near, far = recorded(entry(0, view), entry(2, view)), recorded(entry(0, view), entry(10, view))
    assert sum(sum(tick.values()) for tick in near.ticks()) == 16
    assert sum(sum(tick.values()) for tick in far.ticks()) == 20


def test_a_pool_that_was_down_asked_for_nothing() -> None:
    recording = recorded(entry(0, hot()), entry(10, hot()), entry(5000, hot()), entry(4000, hot()))
    assert recording.seconds == 10 + LONGEST_GAP
    assert sum(sum(tick.values()) for tick in recording.ticks()) == 50 * (10 + LONGEST_GAP)


def test_the_world_as_it_was_recorded() -> None:
    recording = recorded(entry(0, hot()), entry(10, hot(), COLD, step=STEP))
    world = recording.world(Change(), 1.0)
    assert world.workers == (WorkerView("cpu0", room=1000), WorkerView("cpu1", room=1000))
    first, second = world.tenants
    assert (first.view.name, first.view.handle, first.rows) == ("hot:3", 1, 2.0)
    assert first.seconds == {"cpu0": 0.01, "cpu1": 0.01}
    assert dict(first.view.on) == {"cpu0": Replica(Hold.SERVES, 1.0)}
    assert (first.view.replicas, first.view.pins, first.view.fast) == ((1, 2), ("cpu0",), Demand(0.0, 0.0))
    assert (second.view.name, second.view.on) == ("cold:1", {})
    assert (recording.looks, recording.steps, recording.rules) == (2, 1, Rules(hysteresis=3.0))


@pytest.mark.parametrize(
    ("change", "workers", "replicas"),
    [
        (Change(workers=1), [("cpu0", 1000)], (1, 1)),
        (Change(workers=4), [("cpu0", 1000), ("cpu1", 1000), ("cpu2", 1000), ("cpu3", 1000)], (1, 4)),
        (Change(memory=5000), [("cpu0", 2500), ("cpu1", 2500)], (1, 2)),
        (Change(workers=3, memory=900), [("cpu0", 300), ("cpu1", 300), ("cpu2", 300)], (1, 3)),
        (Change(workers=3, most=2), [("cpu0", 1000), ("cpu1", 1000), ("cpu2", 1000)], (1, 2)),
    ],
)
def test_the_world_as_it_might_be(change: Change, workers: list[tuple[str, int]], replicas: tuple[int, int]) -> None:
    world = recorded(*MINUTE).world(change, 1.0)
    assert [(worker.name, worker.room) for worker in world.workers] == workers
    assert world.tenants[0].view.replicas == replicas
    assert set(world.tenants[0].seconds) == {name for name, _ in workers}


def test_forms_are_as_at_the_beginning_and_rows_as_without_them() -> None:
    """It was inlined at first, is now, and runs twice as fast so."""
    form = Inlined(100, 150, 1.0, 2.0)
    faster = replace(hot(), inlined=form, on={"cpu0": Replica(Hold.SERVES, 1.0, True)})
    (tenant,) = recorded(entry(0, faster), entry(10, faster)).world(Change(), 1.0).tenants
    assert (tenant.view.inlined, dict(tenant.view.on)) == (form, dict(faster.on))
    assert tenant.seconds == {"cpu0": 0.02, "cpu1": 0.02}


def test_a_restart_of_the_pool_gives_other_handles() -> None:
    """After it, the handle of the hot one belongs to the cold one."""
    turned = entry(10, replace(COLD, handle=1), replace(hot(), handle=2))
    recording = recorded(entry(0, hot(), COLD), turned)
    assert [tenant.view.name for tenant in recording.world(Change(), 1.0).tenants] == ["hot:3", "cold:1"]
    assert {handle for tick in recording.ticks() for handle in tick} == {1}


def test_what_keeps_state_stays_where_it_is() -> None:
    """One that was on its way could not move at that moment; that is all."""
    coming = replace(COLD, on={"cpu0": Replica(Hold.COMES, 1.0)}, movable=False)
    tenants = recorded(entry(0, replace(hot(), movable=False), coming), MINUTE[1]).world(Change(), 1.0).tenants
    assert [tenant.view.movable for tenant in tenants] == [True, True]
    tenants = recorded(MINUTE[0], entry(9, replace(hot(), movable=False), coming)).world(Change(), 1.0).tenants
    assert [tenant.view.movable for tenant in tenants] == [False, True]


def test_one_look_is_too_little() -> None:
    with pytest.raises(InvalidArgument, match="expected at least two looks"):
        recorded(MINUTE[0]).world(Change(), 1.0)


# -- the command ---------------------------------------------------------------------------------------------------


def replay(tmp_path: Path, text: str | bytes, *options: str) -> Result:
    log = tmp_path / "placement.jsonl"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CliRunner().invoke(main, ["replay", str(log), *options])


def figures(tmp_path: Path, *options: str) -> dict[str, Any]:
    found = replay(tmp_path, lines(*MINUTE), "--json", *options)
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.output)
    return document


def test_one_column_where_nothing_is_otherwise(tmp_path: Path) -> None:
    """50 requests a second of 20 ms are all that one worker can do."""
    found = replay(tmp_path, lines(*MINUTE[:-1], entry(60, hot(), COLD, step=STEP)))
    assert found.exit_code == 0, found.output
    assert found.output.startswith("7 looks at a pool in 1m 00s, 1 step taken\n")
    rows = {line[:27].strip(): line[27:].split() for line in found.output.splitlines()[3:] if line}
    assert rows["requests"] == ["3,000"]
    assert "WHAT IF" not in found.output
    assert rows["moves reversed"] == ["0"]


def test_another_pool_stands_beside_it(tmp_path: Path) -> None:
    found = replay(tmp_path, lines(*MINUTE), "--workers", "1", "--policy", "static")
    assert found.exit_code == 0, found.output
    (last,) = [line for line in found.output.splitlines() if line.startswith("cpu1 busy")]
    assert last.split()[-1] == "-"
    assert "AS RECORDED" in found.output
    assert "WHAT IF" in found.output


def test_more_memory_less_waiting(tmp_path: Path) -> None:
    """In 500 bytes a worker, the hot one has no place; in 1000 it has."""
    found = figures(tmp_path, "--memory-budget", "1000")
    assert found["log"] == {"looks": 7, "seconds": 60.0, "steps": 0, "note": ""}
    assert found["as_recorded"]["cold_rate"] == 0.0
    assert found["what_if"]["served_share"] == 0.0
    assert found["what_if"]["cold_rate"] == 1.0
    assert set(found["what_if"]["busy"]) == {"cpu0", "cpu1"}


def test_options_that_change_nothing_make_no_second_column(tmp_path: Path) -> None:
    assert "what_if" not in figures(tmp_path, "--hysteresis", "3", "--horizon", "60")
    assert "what_if" in figures(tmp_path, "--hysteresis", "1")
    assert "what_if" in figures(tmp_path, "--max-replicas", "1")


def test_what_was_hot_is_inlined(tmp_path: Path) -> None:
    """Half a worker's work, and room beside it. Where nothing moves, no form changes either."""
    view = replace(hot(25.0), replicas=(1, 1), inlined=Inlined(100, 150, 0.2, 1.5))
    text = lines(*(entry(float(second), view) for second in range(0, 61, 10)))
    found = replay(tmp_path, text, "--policy", "static", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.output)
    assert [document[pool]["form_changes"] for pool in ("as_recorded", "what_if")] == [1, 0]
    assert document["as_recorded"]["busy"]["cpu0"] < document["what_if"]["busy"]["cpu0"] - 0.1
    (line,) = [row for row in replay(tmp_path, text).output.splitlines() if row.startswith("changes of form")]
    assert line.split()[-1] == "1"


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    """The broker was killed twice: it came back with a whole line, and did not come back."""
    text = lines(*MINUTE[:3])[:-20] + "\n" + lines(*MINUTE[3:])[:-20]
    found = replay(tmp_path, text.encode() + b"\xc3")
    assert found.exit_code == 0, found.output
    assert "note: left out, as they were not written to their end: line 3, 7" in found.output
    assert "5 looks at a pool in 50.0 s" in found.output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "got no whole line, expected a journal"),
        ('{"v": 1', "got no whole line, expected a journal"),
        ("not JSON\n", "line 1: got 'not JSON.*, expected JSON"),
        (b"\xff\xfe\n", "line 1: got .*, expected JSON"),
        ('{"v": 2}\n', "line 1: got version 2 of the journal, expected 1"),
        (lines(*MINUTE[:2]) + "{}\n", "line 3: got version None"),
        (lines(*MINUTE[:2]) + "cut\n" + lines(*MINUTE).split("\n", 1)[1], "line 3: got 'cut.*, expected JSON"),
        (lines(*MINUTE[:2]) + "cut\n", "line 3: got 'cut.*, expected JSON"),
        (lines(*MINUTE).split("\n", 1)[1], "line 1: got changes, expected everything"),
        (lines(MINUTE[0]), "got a journal of one moment"),
    ],
)
def test_what_is_no_journal(tmp_path: Path, text: str | bytes, problem: str) -> None:
    found = replay(tmp_path, text)
    assert found.exit_code == 1
    assert found.output.startswith("error: INVALID_ARGUMENT: ")
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(found.output)


def test_no_file_and_wrong_options(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["replay", str(tmp_path / "none")])
    assert (found.exit_code, "NOT_FOUND" in found.output) == (1, True)
    found = CliRunner().invoke(main, ["replay", str(tmp_path)])
    assert found.exit_code == 2
    for options in (["--workers", "0"], ["--memory-budget", "much"], ["--policy", "best"]):
        found = replay(tmp_path, lines(*MINUTE), *options)
        assert found.exit_code == 2
        assert "Error: Invalid value" in found.output
