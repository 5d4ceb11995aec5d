from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.report import document
from bench.report.compare import FLOOR, UNKNOWN, Change, Verdict, compare
from bench.report.document import Result
from bench.report.reading import BadRun, Machine, Measured, Run
from bench.scenario import NOTHING, Figure, Form, Outcome, Scenario, Spread, Target

MACHINE = Machine("a CPU", 4, 8 << 30, "6.1", 0.1)
DATE = datetime(2026, 1, 2, tzinfo=timezone.utc)


def run(*figures: Figure, name: str = "A.json", scenario: str = "null", error: str = "", **changed: Any) -> Run:
    measured = Measured(scenario, 1, "", 1.0, Outcome(figures), error)
    made = Run(name, DATE, Form.FULL, "0123", False, MACHINE, {"python": "3.11.7"}, {scenario: measured})
    return replace(made, **changed)


def figure(ours: Sequence[float], reference: Sequence[float] | None = None, **changed: Any) -> Figure:
    return replace(Figure("a", "req/s", Spread(tuple(ours)), reference and Spread(tuple(reference))), **changed)


def change(before: Figure, after: Figure) -> Change:
    (found,) = compare(run(before), run(after)).changes
    return found


def noisy(chance: random.Random, level: float, noise: float, repeats: int) -> list[float]:
    return [level * math.exp(chance.gauss(0.0, noise)) for _ in range(repeats)]


# -- any figures ---------------------------------------------------------------------------------------------------

positive = st.floats(1e-6, 1e6)
any_value = positive | st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6)


@st.composite
def figures(draw: st.DrawFn, values: st.SearchStrategy[float] = any_value) -> Figure:
    repeats = draw(st.integers(1, 5))
    some = st.lists(values, min_size=repeats, max_size=repeats)
    return figure(draw(some), draw(st.none() | some), higher_is_better=draw(st.booleans()))


def facing(other: Figure, one: Figure) -> Figure:
    return replace(other, higher_is_better=one.higher_is_better)


@given(figures())
def test_nothing_moves_beside_itself(one: Figure) -> None:
    assert change(one, one).verdict is Verdict.SAME


@given(figures(), figures())
def test_turned_round_better_is_worse(one: Figure, other: Figure) -> None:
    there, back = change(one, facing(other, one)), change(facing(other, one), one)
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert back.verdict is turned.get(there.verdict, there.verdict)
    if there.factor is not None:
        assert there.factor * (back.factor or 0.0) == pytest.approx(1.0)
        assert there.seen == back.seen


@given(figures(), figures())
def test_what_is_better_is_worse_where_less_is_better(one: Figure, other: Figure) -> None:
    before, after = one, facing(other, one)
    flipped = [replace(each, higher_is_better=not one.higher_is_better) for each in (before, after)]
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    there = change(before, after).verdict
    assert change(*flipped).verdict is turned.get(there, there)


@given(figures(positive), figures(positive), st.integers(-20, 20), st.integers(-20, 20))
def test_the_speed_of_a_machine_changes_no_ratio(one: Figure, other: Figure, before: int, after: int) -> None:
    """By powers of two, which change no digits."""
    pair = [replace(each, reference=each.reference or each.ours) for each in (one, facing(other, one))]
    scaled = [
        replace(each, ours=scale(each.ours, 2.0**power), reference=scale(each.reference or each.ours, 2.0**power))
        for each, power in zip(pair, (before, after), strict=True)
    ]
    found = change(*pair)
    assert found.relative
    assert replace(change(*scaled), figure=found.figure) == found


def scale(spread: Spread, factor: float) -> Spread:
    return Spread(tuple(factor * value for value in spread.values))


# -- some figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [3, 5])
def test_what_only_is_noise_hardly_ever_moves(repeats: int) -> None:
    chance, moved, tried = random.Random(repeats), 0, 500
    for _ in range(tried):
        pair = (figure(noisy(chance, 100.0, 0.1, repeats)) for _ in range(2))
        moved += change(*pair).verdict in (Verdict.BETTER, Verdict.WORSE)
    assert moved <= 0.025 * tried


@pytest.mark.parametrize(("repeats", "factor"), [(3, 1.4), (5, 1.25)])
def test_a_large_move_is_seen_through_the_noise(repeats: int, factor: float) -> None:
    chance, seen, tried = random.Random(repeats), 0, 100
    for _ in range(tried):
        before, after = noisy(chance, 100.0, 0.04, repeats), noisy(chance, 100.0 * factor, 0.04, repeats)
        seen += change(figure(before), figure(after)).verdict is Verdict.BETTER
    assert seen >= 0.9 * tried


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([100.0, 101.0, 99.0], [103.0, 104.0, 102.0], Verdict.SAME),  # below what differs from run to run
        ([100.0, 101.0, 99.0], [110.0, 111.0, 109.0], Verdict.BETTER),
        ([100.0, 101.0, 99.0], [90.0, 91.0, 89.0], Verdict.WORSE),
        ([100.0, 160.0, 80.0], [120.0, 190.0, 90.0], Verdict.NOISY),
        ([100.0], [101.0], Verdict.NOISY),  # one repeat tells nothing of the noise
        ([100.0], [199.0], Verdict.NOISY),
        ([100.0], [201.0], Verdict.BETTER),
        ([100.0], [100.0, 100.4, 99.6], Verdict.SAME),
        ([0.0], [0.0], Verdict.SAME),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0], Verdict.NOISY),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 1.0], Verdict.BETTER),
        ([0.0], [1.0], Verdict.BETTER),  # counts
        ([-0.5], [0.5], Verdict.NOISY),
        ([-0.5, -0.6], [0.5, 0.6], Verdict.BETTER),
    ],
)
def test_verdicts(before: Sequence[float], after: Sequence[float], verdict: Verdict) -> None:
    assert change(figure(before), figure(after)).verdict is verdict


def test_the_interval_is_that_of_student() -> None:
    """By hand: the logarithms' means differ by 2, both variances are 1, and t(0.995, 4) = 4.604095."""
    found = change(figure([math.exp(n) for n in (1, 2, 3)]), figure([math.exp(n) for n in (3, 4, 5)]))
    assert math.log(found.factor or 0.0) == pytest.approx(2.0)
    assert math.log(found.seen or 0.0) == pytest.approx(4.604095 * math.sqrt(2 / 3), rel=1e-6)
    low, high = found.interval or (0.0, 0.0)
    assert (math.log(low), math.log(high)) == pytest.approx((2.0 - 3.7592, 2.0 + 3.7592), rel=1e-4)


def test_the_least_that_could_have_been_seen() -> None:
    assert change(figure([5.0, 5.0]), figure([5.0, 5.0])).seen == pytest.approx(FLOOR)
    assert change(figure([5.0]), figure([6.0])).seen == pytest.approx(UNKNOWN)


def test_a_reference_of_zero_leaves_our_own_value() -> None:
    found = change(figure([5.0, 5.1], [0.0, 1.0]), figure([9.0, 9.1], [1.0, 1.0]))
    assert (found.relative, found.verdict, found.before.values) == (False, Verdict.BETTER, (5.0, 5.1))


# -- whole runs ----------------------------------------------------------------------------------------------------


def test_what_only_one_run_has_is_named() -> None:
    before = run(figure([1.0]), figure([1.0], name="b"), figure([1.0], name="c", unit="ms"))
    after = run(figure([1.0]), figure([1.0], name="c", unit="us"), name="B.json")
    more = replace(after, scenarios={**after.scenarios, "hot": replace(after.scenarios["null"], name="hot")})
    assert list(compare(before, more).alone) == [
        "hot: only in B.json",
        "null: b, req/s: only in A.json",
        "null: c, ms: only in A.json",
        "null: c, us: only in B.json",
    ]


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(BadRun, match=r"no figure is in both: A\.json has null, B\.json has hot"):
        compare(run(figure([1.0])), run(figure([1.0]), name="B.json", scenario="hot"))


def test_a_scenario_that_failed_is_named() -> None:
    good = run(figure([1.0]))
    failed = replace(run(scenario="hot", error="it broke"), file="B.json")
    both = replace(failed, scenarios={**failed.scenarios, **good.scenarios})
    before = replace(good, scenarios={**good.scenarios, **run(figure([1.0]), scenario="hot").scenarios})
    assert list(compare(before, both).alone) == ["hot: failed in B.json"]


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        (lambda one: replace(one, form=Form.QUICK), "forms differ: full and quick"),
        (lambda one: replace(one, dirty=True), "B.json: files differed from the commit"),
        (lambda one: replace(one, versions={"python": "3.12.0"}), "versions of python differ: 3.11.7 and 3.12.0"),
        (lambda one: replace(one, versions={}), "versions of python differ: 3.11.7 and none"),
        (
            lambda one: replace(one, machine=replace(MACHINE, cores=2)),
            "machines differ: a CPU, 4 cores and a CPU, 2 cores",
        ),
        (lambda one: replace(one, machine=replace(MACHINE, kernel="6.2")), "kernels differ: 6.1 and 6.2"),
        (lambda one: replace(one, machine=replace(MACHINE, load_average=2.1)), "load average 2.1 on 4 cores"),
        (
            lambda one: run(figure([2.0, 2.0], [1.0, 1.3]), name="B.json"),
            "B.json: 1 of 1 references moved by more than 20 % between repeats, most null: a (1.3x)",
        ),
        (
            lambda one: run(figure([2.0, 2.0], [1.5, 1.5]), name="B.json"),
            "the machine was 1.50x as fast in B.json as in A.json",
        ),
        (
            lambda one: run(figure([2.0, 2.0]), name="B.json"),
            "by their own value, with the speed of the machine in it: 1",
        ),
    ],
)
def test_warnings(changed: Callable[[Run], Run], warning: str) -> None:
    quiet = run(figure([2.0, 2.0], [1.0, 1.0]))
    assert list(compare(quiet, replace(quiet, file="B.json")).warnings) == []
    assert warning in "\n".join(compare(quiet, replace(changed(quiet), file="B.json")).warnings)


def test_a_faster_machine_has_lower_costs() -> None:
    slow, fast = (figure([2.0], [cost], higher_is_better=False) for cost in (3.0, 1.5))
    assert "2.00x as fast in B.json" in "\n".join(compare(run(slow), run(fast, name="B.json")).warnings)


# -- command line --------------------------------------------------------------------------------------------------


def write(path: Path, *figures: Figure) -> str:
    preamble = {
        **{"schema": document.SCHEMA, "date": DATE.isoformat(), "commit": {}, "versions": {}},
        "machine": {"cpu": "a CPU", "cores": 4, "memory_bytes": 1, "kernel": "6.1", "load_average": 0.0},
    }
    scenario = Scenario("null", "what it does", lambda settings: NOTHING)
    path.write_text(json.dumps(document.document(preamble, Form.FULL, [Result(scenario, 1.0, Outcome(figures))])))
    return str(path)


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["compare", *words])
    return result.exit_code, " ".join(result.output.split())


def test_moves_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    same = figure([5.0, 5.0], name="steady")
    before = write(tmp_path / "A.json", figure([100.0, 101.0], target=Target(95.0, on="ours")), same)
    after = write(tmp_path / "B.json", figure([90.0, 90.5], target=Target(95.0, on="ours")), same)
    code, told = said(before, after)
    assert code == 0
    assert "worse figure A B change interval seen from target" in told
    assert "null: a, req/s 100 90.2 -10 % " in told
    assert "missed (was ok)" in told
    assert "2 figures: 1 worse, 0 better, 0 too noisy to tell, 1 same" in told
    assert "steady" not in told
    assert "null: steady" in said(before, after, "--all")[1]
    assert "1 better" in said(after, before)[1]


def test_one_repeat_shows_no_interval(tmp_path: Path) -> None:
    pair = [write(tmp_path / f"{name}.json", figure([value])) for name, value in (("A", 1.0), ("B", 1.5))]
    told = said(*pair)[1]
    assert "null: a, req/s 1 1.5 +50 % 2x" in told
    assert "changes from 2x to 2x could hide" in told
    assert "by chance" not in told


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1}'])
def test_a_bad_file_is_bad_usage(tmp_path: Path, content: str) -> None:
    good, bad = write(tmp_path / "A.json", figure([1.0])), tmp_path / "B.json"
    bad.write_text(content)
    code, told = said(good, str(bad))
    assert (code, told.startswith("error: B.json: ")) == (2, True)
    assert said(good, str(tmp_path / "none.json"))[0] == 2
    assert said(good, str(tmp_path))[0] == 2
