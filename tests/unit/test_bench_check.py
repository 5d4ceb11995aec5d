"""The guard: what it judges, what it reads, what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.commands import check
from bench.errors import ChildFailed
from bench.micro import suite
from bench.micro.baseline import BadBaseline, Baseline, Entry, differences, read
from bench.micro.pair import Pair
from bench.micro.scheduler import Bare
from bench.micro.verdict import Verdict, entry, judge, too_noisy
from bench.report import document
from bench.scenario import Settings

RATIOS = st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=12)
TOLERANCES = st.floats(0.01, 0.5)
TAKEN: dict[str, Any] = {
    "date": "2025-01-01T00:00:00+00:00",
    "commit": {"revision": "abc", "dirty": False},
    "machine": {"cpu": "a CPU", "cores": 2},
    "versions": {"python": "3.11.1", "numpy": "2.0"},
}
OPPOSITE = {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}


def verdict(before: Entry, now: Sequence[float]) -> Verdict:
    (row,) = judge({"a": before}, {"a": now})
    return row.verdict


# -- verdicts ------------------------------------------------------------------------------------------------------


@given(RATIOS, TOLERANCES)
def test_what_did_not_move_is_ok(ratios: list[float], tolerance: float) -> None:
    assert verdict(entry(ratios, tolerance), ratios) is Verdict.OK


@given(st.floats(0.1, 1000.0), st.floats(0.1, 1000.0), TOLERANCES)
def test_worse_one_way_is_better_the_other(one: float, other: float, tolerance: float) -> None:
    there = verdict(Entry(one, one, one, tolerance), [other])
    back = verdict(Entry(other, other, other, tolerance), [one])
    assert back is OPPOSITE.get(there, there)
    assert there is not Verdict.WORSE or other > one
    assert there is not Verdict.BETTER or other < one


@given(RATIOS, RATIOS, TOLERANCES, st.floats(1.0, 10.0))
def test_slower_is_never_judged_better(before: list[float], now: list[float], tolerance: float, factor: float) -> None:
    order = [Verdict.BETTER, Verdict.OK, Verdict.WORSE]
    known = entry(before, tolerance)
    one, slower = (verdict(known, ratios) for ratios in (now, [factor * ratio for ratio in now]))
    if Verdict.UNSURE not in (one, slower):
        assert order.index(one) <= order.index(slower)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ([12.5] * 5, Verdict.OK),  # the edge belongs to the tolerance
        ([12.51] * 5, Verdict.WORSE),
        ([8.0] * 5, Verdict.OK),
        ([7.99] * 5, Verdict.BETTER),
        ([1.0, 13.0, 13.0, 13.0, 99.0], Verdict.WORSE),  # one that differs does not matter
        ([10.0, 10.0, 13.0, 13.0, 13.0], Verdict.UNSURE),
        ([7.0, 7.0, 7.0, 10.0, 10.0], Verdict.UNSURE),
        ([1.0, 10.0, 10.0, 10.0, 99.0], Verdict.OK),
    ],
)
def test_three_quarters_of_the_repeats_are_beyond_the_tolerance(now: list[float], expected: Verdict) -> None:
    assert verdict(Entry(10.0, 9.0, 11.0, 0.25), now) is expected


def test_new_gone_and_absent_entries_are_told_apart() -> None:
    known = {name: Entry(1.0, 1.0, 1.0, 0.1) for name in ("kept", "gone", "absent")}
    rows = {row.name: row for row in judge(known, {"kept": [1.2], "new": [2.0]}, ["absent"])}
    assert {name: row.verdict for name, row in rows.items()} == {
        "kept": Verdict.WORSE,
        "new": Verdict.NEW,
        "gone": Verdict.GONE,
        "absent": Verdict.ABSENT,
    }
    assert rows["kept"].change == pytest.approx(0.2)
    assert rows["new"].change is rows["gone"].change is None


def test_a_doubtful_entry_is_not_judged() -> None:
    known = {"a": Entry(1.0, 1.0, 1.0, 0.1)}
    for ratio, expected in ((2.0, Verdict.UNSURE), (0.5, Verdict.UNSURE), (1.05, Verdict.OK)):
        assert [row.verdict for row in judge(known, {"a": [ratio]}, (), ["a"])] == [expected]


def test_repeats_that_lie_far_apart_make_no_baseline() -> None:
    assert not too_noisy([1.0, 10.0, 10.1, 10.2, 99.0], 0.1)
    assert too_noisy([9.0, 9.7, 10.1, 10.3, 10.4], 0.1)
    assert not too_noisy([9.0, 9.7, 10.1, 10.3, 10.4], 0.2)


# -- baselines -----------------------------------------------------------------------------------------------------

NUMBERS = st.floats(1e-3, 1e6)
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@given(st.dictionaries(st.text(max_size=20), ENTRIES, max_size=5))
def test_a_baseline_is_read_as_it_was_written(entries: dict[str, Entry]) -> None:
    files: list[str] = []

    class File:
        """A Path as far as a baseline needs one."""

        def write_text(self, text: str) -> None:
            files.append(text)

        def read_text(self) -> str:
            return files[-1]

    file: Any = File()
    more = {**TAKEN, "schema": 9, "machine": {**TAKEN["machine"], "load_average": 0.1}}
    Baseline(more, entries).write(file)
    assert read(file) == Baseline(TAKEN, entries)


GOOD: dict[str, Any] = {"schema": 1, **TAKEN, "entries": {"a": {"ratio": 1, "least": 1, "most": 1, "tolerance": 0.1}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "got schema 'list', expected 1"),
        (json.dumps({**GOOD, "schema": 2}), "got schema 2, expected 1"),
        (json.dumps({key: GOOD[key] for key in ("schema", "entries", "date")}), "no commit, machine, versions"),
        (json.dumps({**GOOD, "machine": 3}), "machine: got int, expected an object"),
        (json.dumps({**GOOD, "entries": []}), "entries: got list, expected an object"),
        (json.dumps({**GOOD, "entries": {"a": 3}}), "a: got int, expected ratio, least, most, tolerance"),
        (json.dumps({**GOOD, "entries": {"a": {"ratio": 1}}}), "a: got ratio, expected ratio, least"),
        (json.dumps(GOOD).replace('"ratio": 1', '"ratio": NaN'), "a: ratio: got nan, expected a number above 0"),
        (json.dumps(GOOD).replace('"ratio": 1', '"ratio": 0'), "a: ratio: got 0"),
        (json.dumps(GOOD).replace('"ratio": 1', '"ratio": true'), "a: ratio: got True"),
        (json.dumps(GOOD).replace('"ratio": 1', '"ratio": 1e400'), "a: ratio: got inf"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(text)
    with pytest.raises(BadBaseline, match=said):
        read(file)


def test_a_baseline_from_elsewhere_is_told() -> None:
    assert not list(differences(TAKEN, TAKEN))
    here = {**TAKEN, "machine": {**TAKEN["machine"], "cores": 64, "load_average": 9.0}}
    here["versions"] = {"python": "3.12.0", "numpy": "2.0", "pyzmq": None}
    assert list(differences(TAKEN, here)) == ["cores 2 there, 64 here", "python 3.11.1 there, 3.12.0 here"]


def test_the_baseline_of_the_repository_has_every_group() -> None:
    found = read(check.BASELINE).entries
    assert {suite.group_of(name) for name in found} == set(suite.GROUPS)
    assert all(0.05 <= known.tolerance <= 0.5 for known in found.values())


# -- measuring -----------------------------------------------------------------------------------------------------


def test_the_quick_quarter_of_the_turns_counts() -> None:
    ours, roofline = iter([50.0, 9.0, 6.0, 8.0, 7.0]), iter([50.0, 3.0, 9.0, 2.0, 9.0])
    assert Pair("p", lambda: next(ours), lambda: next(roofline), turns=4).ratio() == 3.0


def test_the_bare_scheduler_takes_what_is_due_first_and_keeps_as_many() -> None:
    bare = Bare()
    waiting = len(bare.order)
    for _ in range(100):
        before = set(bare.order)
        bare.request()
        assert before - set(bare.order) <= {min(before)}
    assert len(bare.order) == waiting == sum(map(len, bare.queues.values()))


# -- the command ---------------------------------------------------------------------------------------------------


class Machine:
    """What is measured instead; ``again`` from the second time on."""

    def __init__(self, ratios: Sequence[float], again: Sequence[float] = ()) -> None:
        self.asked: list[list[str]] = []
        self._ratios, self._again = ratios, again

    def pairs(self, settings: Settings, groups: Sequence[str]) -> suite.Found:
        self.asked.append(list(groups))
        ratios = self._again if len(self.asked) > 1 and self._again else self._ratios
        return {f"{group}: a": list(ratios) for group in groups}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check.signal, "signal", lambda *_: None)
    monkeypatch.setattr(suite, "absent", lambda: {suite.NULL: "TensorFlow is not installed"})
    found = tmp_path / "baseline.json"
    names = [f"{group}: a" for group in suite.GROUPS]
    Baseline(document.preamble(), {name: Entry(10.0, 9.0, 11.0, 0.2) for name in names}).write(found)
    return found


def run(monkeypatch: pytest.MonkeyPatch, file: Path, machine: Machine, *words: str) -> Result:
    monkeypatch.setattr(suite, "pairs", machine.pairs)
    return CliRunner().invoke(main, ["check", "--baseline", str(file), *words])


def test_a_clean_tree_passes(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    machine = Machine([10.0, 10.1, 9.9])
    result = run(monkeypatch, file, machine)
    assert result.exit_code == 0, result.output
    assert machine.asked == [list(suite.PAIRS)]
    assert "not measured here" in result.output


def test_what_is_worse_is_measured_again_named_and_fails(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    machine = Machine([13.0, 13.1, 12.9])
    result = run(monkeypatch, file, machine)
    assert result.exit_code == 1
    assert machine.asked == [list(suite.PAIRS)] * 2
    assert "worse than the baseline by more than the tolerance: scheduler: a, wire: a" in result.output.replace(
        "\n", " "
    )
    assert "+30.0 %" in result.output


def test_what_was_worse_by_chance_passes(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    result = run(monkeypatch, file, Machine([13.0, 13.1, 12.9], [10.0, 10.1, 9.9]))
    assert result.exit_code == 0, result.output


def test_a_child_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def fails(settings: Settings, groups: Sequence[str]) -> suite.Found:
        raise ChildFailed("it has ended")

    machine = Machine([10.0])
    monkeypatch.setattr(machine, "pairs", fails)
    result = run(monkeypatch, file, machine)
    assert result.exit_code == 1
    assert "ChildFailed: it has ended" in result.output


def test_a_bad_baseline_is_bad_usage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine([10.0])
    result = run(monkeypatch, tmp_path / "none.json", machine)
    assert (result.exit_code, machine.asked) == (2, [])
    assert "No such file" in result.output


@pytest.mark.parametrize(("others", "status", "said"), [(0.1, 1, "WORSE"), (0.9, 0, "too noisy to tell")])
def test_times_of_the_null_path_count_where_nobody_else_runs(
    monkeypatch: pytest.MonkeyPatch, file: Path, others: float, status: int, said: str
) -> None:
    monkeypatch.setattr(suite, "absent", dict)
    monkeypatch.setattr(suite, "null_path", lambda settings: ({f"{suite.NULL}: a": [20.0]}, others))
    result = run(monkeypatch, file, Machine([10.0]))
    assert result.exit_code == status, result.output
    assert said in result.output
    if others > check.BUSY_CORES:
        assert run(monkeypatch, file, Machine([10.0]), "--update").exit_code == 1


def test_an_update_keeps_tolerances_and_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    before = read(file).entries
    result = run(monkeypatch, file, Machine([20.0, 20.1, 19.9]), "--update")
    assert result.exit_code == 0, result.output
    after = read(file).entries
    assert after.keys() == before.keys()
    assert after["scheduler: a"] == Entry(20.0, 19.9, 20.1, 0.2)
    assert after[f"{suite.NULL}: a"] == before[f"{suite.NULL}: a"]


def test_an_update_drops_what_is_gone_and_adds_what_is_new(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    known = read(file)
    entries = {name: old for name, old in known.entries.items() if name != "wire: a"}
    replace(known, entries={**entries, "slots: b": Entry(1.0, 1.0, 1.0, 0.3)}).write(file)
    assert run(monkeypatch, file, Machine([20.0]), "--update").exit_code == 0
    after = read(file).entries
    assert "slots: b" not in after
    assert after["wire: a"].tolerance == check.TOLERANCE


def test_an_update_on_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    before = file.read_text()
    result = run(monkeypatch, file, Machine([10.0, 12.0, 14.0]), "--update")
    assert result.exit_code == 1
    assert "too busy" in result.output
    assert file.read_text() == before


def test_tensorflow_decides_over_the_null_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    assert suite.absent().keys() == {suite.NULL}
    monkeypatch.setattr(suite, "find_spec", lambda name: object())
    assert not suite.absent()
