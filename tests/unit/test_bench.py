from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bench import echo, machine
from bench.__main__ import main
from bench.children import Child
from bench.commands import run
from bench.errors import ChildFailed, WrongAnswer
from bench.fleet import Tally, merged
from bench.inprocess import aligned
from bench.loads import wrong
from bench.points import Point, quantile, read
from bench.report import document, tables
from bench.report.document import Result
from bench.scenario import NOTHING, Figure, Form, Models, Outcome, Scenario, Settings, Sheet, Spread, Target
from bench.scenarios import SCENARIOS
from bench.scenarios.swap import around, between
from bench.scenarios.tensors import copies, size_name
from bench.scenarios.zipf import Residency, lru, zipf
from bench.steady import Notes, Run, ms
from bench.workspace import workspace
from tfpool.errors import NotFound


class Quiet:
    steps = 0

    def say(self, text: str) -> None:
        pass

    def step(self) -> None:
        self.steps += 1

    def more(self, steps: int) -> None:
        pass


SETTINGS = Settings(Models({}, {}), "", Quiet())
RATE = Figure("rate", "req/s", Spread((300.0, 100.0, 240.0)), Spread((100.0, 100.0, 120.0)), Target(2.0, aim=2.5))
COST = Figure("cpu", "us", Spread((4.0, 7.0, 5.0)), None, Target(6.0, on="ours"), higher_is_better=False)


# -- figures -------------------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_within_each_repeat() -> None:
    assert RATE.ratio == Spread((3.0, 1.0, 2.0))
    assert COST.ratio is None
    assert replace(RATE, reference=Spread((100.0, 0.0, 120.0))).ratio == Spread((3.0, float("inf"), 2.0))


def test_a_spread_keeps_the_order_of_its_values() -> None:
    spread = Spread((3.0, 1.0, 2.0, 8.0))
    assert (spread.median, spread.least, spread.most) == (2.5, 1.0, 8.0)
    assert spread.values == (3.0, 1.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("figure", "verdict", "aimed"),
    [
        (RATE, "ok", False),
        (replace(RATE, target=Target(2.1)), "missed", False),
        (replace(RATE, target=Target(1.0, aim=2.0)), "ok", True),
        (replace(RATE, target=Target(240.0, on="ours")), "ok", False),
        (replace(RATE, target=None), "", False),
        (COST, "ok", False),
        (replace(COST, target=Target(4.5, aim=3.0, on="ours")), "missed", False),
        (replace(COST, target=Target(6.0, aim=5.0, on="ours")), "ok", True),
        (replace(COST, reference=Spread((2.0, 7.0, 5.0)), target=Target(0.9)), "missed", False),
    ],
)
def test_the_median_is_judged(figure: Figure, verdict: str, aimed: bool) -> None:
    assert (figure.verdict, figure.aimed) == (verdict, aimed)


def test_a_target_on_a_ratio_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="it has no reference"):
        _ = replace(COST, target=Target(1.0)).verdict


def test_a_sheet_collects_repeats_by_figure() -> None:
    sheet = Sheet({"b": Target(1.5)})
    for number in (1.0, 2.0, 3.0):
        sheet.cost("a", "ms", number)
        sheet.rate("b", "req/s", 2 * number, number, {"number": number})
    a, b = sheet.outcome().figures
    assert (a.name, a.ours.values, a.reference, a.higher_is_better, a.verdict) == (
        "a",
        (1.0, 2.0, 3.0),
        None,
        False,
        "",
    )
    assert b.reference == Spread((1.0, 2.0, 3.0))
    assert (b.verdict, b.higher_is_better) == ("ok", True)
    assert [item["number"] for item in b.detail] == [1.0, 2.0, 3.0]


def test_a_target_without_its_figure_is_an_error() -> None:
    with pytest.raises(ValueError, match="targets b"):
        Sheet({"b": Target(1.0)}).outcome()


def test_settings_choose_the_window_and_step_the_progress() -> None:
    assert replace(SETTINGS, seconds=1.5).window == 1.5
    assert replace(SETTINGS, form=Form.QUICK).window < SETTINGS.window
    progress = Quiet()
    assert list(replace(SETTINGS, progress=progress, repeat=3).repeats()) == [0, 1, 2]
    assert progress.steps == 3


# -- loads ---------------------------------------------------------------------------------------------------------


def test_clients_are_added_up() -> None:
    load = merged([Tally(100, 2.0, 0.5, [1.0, 3.0], 5, 1), Tally(300, 1.0, 0.3, [2.0, 4.0], 7, 0)])
    assert load.rate == 350.0
    assert (load.requests, load.checked, load.wrong) == (400, 12, 1)
    assert (load.p50_us, load.p99_us, load.max_us) == (2e6, 4e6, 4e6)
    assert load.cpu_us["client"] == pytest.approx(2000.0)


def test_clients_without_requests_have_no_cpu_a_request() -> None:
    assert merged([Tally(0, 1.0, 0.5)]).cpu_us == {"client": 0.0}


def test_quantiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, q) for q in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert quantile([], 0.5) == 0.0


def test_wrong_answers_are_found() -> None:
    answers = np.arange(8, dtype=np.float32).reshape(4, 2)
    right = [(n, answers[n : n + 1]) for n in range(4)]
    assert wrong(right, answers) == 0
    assert wrong([(0, answers[1:2]), *right], answers) == 1
    assert wrong([(0, answers[0])], answers) == 1


def test_the_roofline_runs_on_aligned_rows() -> None:
    rows = aligned((3, 5))
    assert rows.ctypes.data % 64 == 0
    assert rows.shape == (3, 5)
    assert rows.dtype == np.float32


# -- steady loads --------------------------------------------------------------------------------------------------

ONE = np.ones(1, np.float32)
NOTES = Notes(np.arange(4), np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.4, 0.3, 0.2, 0.1]))


class Echo:
    """A client whose answers are there at once; a row of 13 is refused."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def submit(self, model: str, row: np.ndarray[Any, Any]) -> Future[Any]:
        self.asked.append(model)
        future: Future[Any] = Future()
        if row[0] == 13:
            future.set_exception(ValueError("a row of 13"))
        else:
            future.set_result({"y": row})
        return future


def test_requests_belong_to_the_span_they_were_due_in() -> None:
    assert NOTES.within((2.0, 4.0)).tolist() == [0.2, 0.3]
    assert NOTES.within((0.0, 1.5), (3.5, 9.0)).tolist() == [0.1, 0.4]
    assert NOTES.within((1.1, 1.9)).size == 0


def test_quantiles_of_notes_are_milliseconds() -> None:
    assert ms(NOTES.within((0.0, 9.0)), 0.5) == pytest.approx(200.0)
    assert ms(NOTES.within((0.0, 9.0)), 1.0) == pytest.approx(400.0)


def test_picks_are_asked_for_once_each_in_their_order() -> None:
    client = Echo()
    run = Run(client, ["c", "a", "b", "a"], ONE, ONE)  # type: ignore[arg-type]
    run.lanes(3, 4)
    assert run.ended
    assert client.asked == ["c", "a", "b", "a"]
    assert sorted(run.numbers) == [0, 1, 2, 3]
    assert (len(run.due), len(run.seconds), run.failed) == (4, 4, 0)


def test_failures_are_counted_and_do_not_end_a_load() -> None:
    run = Run(Echo(), ["m"], 13 * ONE, ONE)  # type: ignore[arg-type]
    run.lanes(2, 40)
    assert run.ended
    assert (run.failed, len(run.seconds)) == (40, 0)
    assert run.errors[0] == "ValueError: a row of 13"
    assert len(run.errors) < 40


@pytest.mark.parametrize(("every", "checked"), [(1, 128), (32, 4)])
def test_answers_are_compared(every: int, checked: int) -> None:
    rows = np.arange(3, dtype=np.float32)
    run = Run(Echo(), ["m"], rows, rows, every)  # type: ignore[arg-type]
    run.lanes(1, 128)
    run.compare()
    assert (run.checked, run.wrong) == (checked, 0)
    run = Run(Echo(), ["m"], rows, np.float32([0, 1, 5]), every)  # type: ignore[arg-type]
    run.lanes(1, 128)
    run.compare()
    assert (run.checked, run.wrong) == (checked, checked // 3)


# -- scenarios -----------------------------------------------------------------------------------------------------


def test_the_second_around_a_swap_has_it_in_the_middle() -> None:
    assert around((10.0, 10.2)) == pytest.approx((9.6, 10.6))
    assert around((10.0, 12.0)) == (10.0, 12.0)


def test_what_is_left_of_a_span() -> None:
    assert between((0.0, 9.0), []) == [(0.0, 9.0)]
    assert between((0.0, 9.0), [(1.0, 2.0), (5.0, 6.0)]) == [(0.0, 1.0), (2.0, 5.0), (6.0, 9.0)]


def test_the_ideal_cache_keeps_what_was_asked_for_last() -> None:
    assert lru([0, 1, 0, 2, 0, 1], 2) == (4, 2)
    assert lru([0, 1, 2, 0, 1, 2], 2) == (6, 4)
    assert lru([0, 1, 2, 0, 1, 2], 3) == (3, 0)


def test_popularity_falls_with_the_number_of_a_model() -> None:
    picks = zipf(200, 20_000, 7)
    assert picks == zipf(200, 20_000, 7) != zipf(200, 20_000, 8)
    counts = np.bincount(picks, minlength=200)
    expected = 20_000 / np.arange(1, 201) / sum(1 / n for n in range(1, 201))
    assert counts[:3] == pytest.approx(expected[:3], rel=0.1)
    assert counts[100:].sum() == pytest.approx(expected[100:].sum(), rel=0.1)


def test_a_request_is_cold_where_its_model_was_not_in_memory() -> None:
    residency = Residency([(3.0, "a", False), (1.0, "a", True), (2.0, "b", True), (4.0, "a", True)])
    assert [residency.cold("a", moment) for moment in (0.5, 1.0, 2.9, 3.0, 3.9, 4.1)] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    assert residency.cold("c", 9.0)
    assert residency.most == 2


# -- report --------------------------------------------------------------------------------------------------------


def test_the_document_has_everything() -> None:
    scenario = Scenario("one", "what it does", lambda settings: NOTHING)
    detail = ({"ours": {"p50_us": 1.0}},)
    point = Point("a", "m", "closed", 1, 2.0, [])
    found = Outcome([replace(RATE, detail=detail), COST], [point], {"b": "not installed"})
    results = [Result(scenario, 1.25, found), Result(scenario, 0.1, error="it broke")]
    made = json.loads(json.dumps(document.document(document.preamble(), Form.FULL, results)))
    assert set(made) == {"schema", "date", "commit", "machine", "versions", "form", "scenarios"}
    assert made["form"] == "full"
    good, bad = made["scenarios"]
    assert (read(good["points"][0]), good["absent"]) == (point, {"b": "not installed"})
    assert (good["name"], good["error"], bad["error"], bad["figures"]) == ("one", None, "it broke", [])
    assert good["figures"][0] == {
        "name": "rate",
        "unit": "req/s",
        "higher_is_better": True,
        "ours": {"median": 240.0, "min": 100.0, "max": 300.0, "values": [300.0, 100.0, 240.0]},
        "reference": {"median": 100.0, "min": 100.0, "max": 120.0, "values": [100.0, 100.0, 120.0]},
        "ratio": {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]},
        "target": {"bound": 2.0, "aim": 2.5, "on": "ratio"},
        "verdict": "ok",
        "aimed": False,
        "detail": [{"ours": {"p50_us": 1.0}}],
    }
    assert (good["figures"][1]["reference"], good["figures"][1]["ratio"]) == (None, None)


def test_the_document_says_where_it_was_measured() -> None:
    assert set(machine.machine()) == {"cpu", "cores", "memory_bytes", "kernel", "load_average"}
    assert machine.machine()["cores"] >= 1
    assert {"python", "tensorflow", "pyzmq", "numpy"} <= set(machine.versions())


def test_the_table_has_a_row_a_figure() -> None:
    scenario = Scenario("one", "what it does", lambda settings: NOTHING)
    table = tables.figures(Result(scenario, 1.0, Outcome([RATE, COST])))
    assert table.row_count == 2
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[0] == ["rate, req/s", "cpu, us"]
    assert cells[1] == ["240", "5 (4..7)"]
    assert cells[3] == ["2 (1..3)", ""]
    assert cells[4] == [">= 2x (aim 2.5)", "<= 6"]
    assert cells[5] == ["ok", "ok"]


def test_numbers_read_well() -> None:
    assert [tables.number(n) for n in (67_234.4, 1.7345, 0.001234, 0.0, 999.7)] == [
        "67,234",
        "1.73",
        "0.00123",
        "0",
        "1,000",
    ]
    assert tables.with_spread(Spread((1.0,))) == "1"
    assert [size_name(n) for n in (1 << 10, 256 << 10, 1 << 20, 16 << 20)] == ["1 KiB", "256 KiB", "1 MiB", "16 MiB"]


# -- command line --------------------------------------------------------------------------------------------------


def test_list_names_every_scenario_and_target() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    for name, scenario in SCENARIOS.items():
        assert f"{name} " in result.output
        assert scenario.description in result.output
        for target in scenario.targets:
            assert target in result.output


@pytest.mark.parametrize(
    "words", [["run"], ["run", "nothing"], ["run", "null", "--repeat", "0"], ["run", "null", "--seconds", "x"]]
)
def test_bad_usage(words: list[str]) -> None:
    assert CliRunner().invoke(main, words).exit_code == 2


def measured(measure: Callable[[Settings], Outcome]) -> Result:
    return run.measured(Scenario("one", "what it does", measure), SETTINGS)


@pytest.mark.parametrize(
    "error", [NotFound("no model"), ChildFailed("it has ended"), WrongAnswer("3 of 4"), OSError(2, "x")]
)
def test_a_scenario_that_fails_says_why_and_the_next_can_run(error: Exception) -> None:
    def fail(settings: Settings) -> Outcome:
        raise error

    assert measured(fail).error == f"{type(error).__name__}: {error}"
    assert measured(lambda settings: Outcome([RATE])).outcome.figures == [RATE]


def test_a_bug_in_a_scenario_is_told_with_its_place() -> None:
    def fail(settings: Settings) -> Outcome:
        return [][0]  # type: ignore[no-any-return]

    assert "test_bench.py" in measured(fail).error
    assert measured(fail).error.rstrip().endswith("IndexError: list index out of range")


def test_a_run_is_written_whole_with_numbers_that_json_has(tmp_path: Path) -> None:
    figure = replace(RATE, reference=Spread((0.0, 1.0, 1.0)), detail=({"n": np.int64(3)},))
    whole = document.document({}, Form.FULL, [Result(SCENARIOS["null"], 1.0, Outcome([figure]))])
    run._write(tmp_path / "x.json", whole)
    (found,) = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)["scenarios"][0]["figures"]
    assert (found["ratio"]["max"], found["detail"]) == (None, [{"n": 3}])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_place_that_cannot_be_written_is_told_before_the_run() -> None:
    result = CliRunner().invoke(main, ["run", "null", "--json", "/nonexistent/x.json"])
    assert result.exit_code == 2
    assert "/nonexistent cannot be written" in result.output


def test_what_a_killed_run_has_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"tfpool-bench-{gone.pid}-x", f"tfpool-bench-{os.getpid()}-x", "tfpool-bench-x", "other-1-x"):
        (tmp_path / name / "deep").mkdir(parents=True)
    with workspace() as made:
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"tfpool-bench-{os.getpid()}-x", "tfpool-bench-x", "other-1-x", Path(made).name}


def test_a_scenario_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LIMIT_SECONDS", {Form.NORMAL: 0.01})
    before = signal.getsignal(signal.SIGALRM)

    def hang(settings: Settings) -> Outcome:
        threading.Event().wait(60.0)
        return NOTHING

    assert "OutOfTime: not done after 0.01 s" in measured(hang).error
    assert signal.getsignal(signal.SIGALRM) is before


def test_names_of_groups_stand_for_their_scenarios() -> None:
    assert [one.name for one in run.chosen(["tensors", "null", "tensors"])] == ["tensors", "null"]
    published = run.chosen([run.PUBLISHED])
    numbers = [one.experiment for one in published]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 9))
    assert run.chosen(["soak", run.ALL])[0].name == "soak"
    assert {one.name for one in published} < set(SCENARIOS) == {one.name for one in run.chosen([run.ALL])}


# -- children ------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_child_answers() -> None:
    with Child(copies) as child:
        assert child.ask([1024, 0.01]) > 0


@pytest.mark.process
def test_whether_a_child_has_spoken() -> None:
    with Child(copies) as child:
        assert not child.spoke(0.0)
        child.tell([1024, 0.01])
        assert child.spoke(30.0)
        assert child.hear() > 0


@pytest.mark.process
def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with Child(echo.serve, f"ipc://{tmp_path}/none/echo") as child, pytest.raises(ChildFailed, match="ZMQError"):
        child.hear()
