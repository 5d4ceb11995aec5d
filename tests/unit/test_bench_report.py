from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.__main__ import main
from bench.points import QUANTILES, Point, at_quantiles
from bench.report import document, palette, plots, reading, tables
from bench.report.cases import Repeats, cases
from bench.report.document import Result
from bench.report.page import latest
from bench.report.reading import BadRun, read
from bench.scenario import NOTHING, Figure, Form, Outcome, Scenario, Spread, Target

NASTY = "<script>alert('&')</script> \x1b[31m[/bold]"
PREAMBLE = {
    "schema": document.SCHEMA,
    "date": "2026-01-02T03:04:05+00:00",
    "commit": {"revision": "0123456789abcdef", "dirty": False},
    "machine": {"cpu": "a CPU", "cores": 4, "memory_bytes": 8 << 30, "kernel": "6.1", "load_average": 0.25},
    "versions": {"python": "3.11.7", "pyzmq": None},
}


def scenario(name: str, experiment: int = 1, description: str = "what it does") -> Scenario:
    return Scenario(name, description, lambda settings: NOTHING, experiment=experiment)


def points(model: str, load: str, levels: Sequence[float], seed: int = 0) -> list[Point]:
    """Three repeats of ours, a peer, and what the machine can do, which has no latencies."""
    chance, found = random.Random(seed), []
    for _ in range(3):
        for level in levels:
            for system, speed in (("tfpool", 4e4), ("tfpool, HTTP", 1e4), ("mosec", 2e4), ("LitServe", 1e3)):
                taken = sorted(chance.lognormvariate(7.0, 0.4) for _ in range(200))
                cpu = {"client": 9.0, "server": 40.0 * chance.random()}
                memory = {"worker 1": 100.0, "worker 2": 50.0, "broker": 30.0}
                found.append(Point(system, model, load, level, speed * level, at_quantiles(taken), cpu, memory))
            found.append(Point("TensorFlow in process", model, load, level, 5e4))
    return found


def spread(*values: float) -> Spread:
    return Spread(values)


FIGURES = [
    Figure(
        "64 in flight, beside the best peer", "req/s", spread(3e5, 1e5, 2.4e5), spread(1e5, 1e5, 1.2e5), Target(5.0)
    ),
    Figure("p99", "ms", spread(4.0, 7.0, 5.0), None, Target(6.0, aim=5.0, on="ours"), higher_is_better=False),
    Figure("failed", "", spread(0.0), None, None, higher_is_better=False),
]
SIZES = [
    Figure(f"{size}, beside {other}", "GiB/s", spread(2.0, 2.1), spread(speed, 9.0), Target(0.5) if speed > 5 else None)
    for size in ("1 KiB", "64 KiB", "1 MiB")
    for other, speed in (("a memcpy", 8.0), ("zmq", 1.0))
]
RESULTS = [
    Result(
        scenario("null", 1),
        61.5,
        Outcome(FIGURES, points("half_plus_two", "closed", (1, 64)), {"Triton": f"no package:\n{NASTY}"}),
    ),
    Result(scenario("tensors", 2, NASTY), 3.0, Outcome(SIZES)),
    Result(scenario("faults", 8), 0.1, error=f"ChildFailed: {NASTY}"),
]


def whole(results: Sequence[Result] = RESULTS, form: Form = Form.FULL, **changed: Any) -> dict[str, Any]:
    return json.loads(json.dumps(document.document({**PREAMBLE, **changed}, form, results)))


def write(path: Path, results: Sequence[Result] = RESULTS, form: Form = Form.FULL, **changed: Any) -> Path:
    path.write_text(json.dumps(whole(results, form, **changed)))
    return path


# -- reading -------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), max_size=8)
numbers = st.floats(-1e9, 1e9)
sheets = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5)
targets = st.none() | st.builds(Target, numbers, st.none() | numbers, st.sampled_from(["ratio", "ours"]))


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    ours, reference = zip(*draw(sheets), strict=True)
    target = draw(targets)
    beside = target is not None and target.on == "ratio"
    other = Spread(reference) if beside or draw(st.booleans()) else None
    return Figure(draw(texts), draw(texts), Spread(ours), other, target, draw(st.booleans()))


parts = st.dictionaries(texts, numbers, max_size=3)
dots = st.builds(
    Point,
    *(texts, texts, texts, numbers, numbers),
    st.just([]) | st.lists(numbers, min_size=len(QUANTILES), max_size=len(QUANTILES)),
    *(parts, parts, st.integers(0, 9)),
)
outcomes = st.builds(Outcome, st.lists(figures(), max_size=3), st.lists(dots, max_size=3), st.just({"a": "b"}))


@settings(max_examples=30)
@given(outcomes)
def test_what_was_written_is_read(tmp_path: Path, outcome: Outcome) -> None:
    run = read(write(tmp_path / "run.json", [Result(scenario("one", 7), 1.25, outcome)]))
    assert (run.file, run.form, run.revision, run.dirty) == ("run.json", Form.FULL, "0123456789abcdef", False)
    assert (run.machine.cores, run.versions) == (4, {"python": "3.11.7"})
    one = run.scenarios["one"]
    assert (one.experiment, one.seconds, one.error) == (7, 1.2, "")
    assert one.outcome == outcome


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ((), [], r"run\.json: got \[\], expected an object"),
        (("schema",), 1, r"run\.json: schema: got 1, expected 2"),
        (("date",), "yesterday", "expected a date"),
        (("date",), "2026-01-02T03:04:05", "its offset from UTC"),
        (("form",), "slow", "expected one of quick, normal, full"),
        (("machine",), None, "got None, expected an object"),
        (("machine", "cores"), 2.5, "expected a whole number"),
        (("versions",), {"numpy": 2}, "numpy: got 2, expected a text"),
        (("scenarios",), {}, "expected a list"),
        (("scenarios", 0, "figures", 0, "ours", "values"), [], "has no values"),
        (("scenarios", 0, "figures", 0, "ours", "values"), [1.0], "1 values of ours and 3 of the reference"),
        (("scenarios", 0, "figures", 0, "ours", "values", 1), float("nan"), r"values\[1\]: got nan, expected a finite"),
        (("scenarios", 0, "figures", 0, "reference", "values", 0), float("inf"), "got inf, expected a finite number"),
        (("scenarios", 0, "figures", 0, "ours", "values", 1), 10**400, "expected a finite number"),
        (("scenarios", 0, "figures", 0, "ours", "values", 1), True, "got True, expected a finite number"),
        (("scenarios", 0, "figures", 0, "reference"), None, "its target is on a ratio, and it has no reference"),
        (("scenarios", 0, "figures", 0, "target", "on"), "all", "expected ratio or ours"),
        (("scenarios", 0, "points", 0, "quantiles_us"), [1.0], "1 quantiles, expected none or 17"),
        (("scenarios", 0, "points", 0, "rate"), "fast", "got 'fast', expected a finite number"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, where: tuple[Any, ...], value: Any, message: str) -> None:
    changed = whole()
    if where:
        *path, last = where
        inner: Any = changed
        for key in path:
            inner = inner[key]
        inner[last] = value
    else:
        changed = value
    (tmp_path / "run.json").write_text(json.dumps(changed))
    with pytest.raises(BadRun, match=message):
        read(tmp_path / "run.json")


@pytest.mark.parametrize("key", sorted(whole()))
def test_nothing_may_be_missing(tmp_path: Path, key: str) -> None:
    lacking = {name: value for name, value in whole().items() if name != key}
    (tmp_path / "run.json").write_text(json.dumps(lacking))
    with pytest.raises(BadRun, match=rf"run\.json: has no '{key}'"):
        read(tmp_path / "run.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 10_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(BadRun, match=r"^run\.json: not JSON"):
        read(tmp_path / "run.json")


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(reading.LIMIT_BYTES + 1)
    with pytest.raises(BadRun, match="268,435,457 bytes, expected at most 268,435,456"):
        read(tmp_path / "run.json")


def test_a_run_says_why_to_doubt_it(tmp_path: Path) -> None:
    machine = {**PREAMBLE["machine"], "load_average": 2.1}  # type: ignore[dict-item]
    changed = {"machine": machine, "commit": {"revision": "0", "dirty": True}}
    quick, busy, dirty = read(write(tmp_path / "run.json", form=Form.QUICK, **changed)).doubts()
    assert ("quick form" in quick, "load average 2.1 on 4 cores" in busy, "the commit" in dirty) == (True, True, True)
    assert read(write(tmp_path / "run.json")).doubts() == []
    assert read(write(tmp_path / "run.json", commit={})).revision == ""


# -- cases ---------------------------------------------------------------------------------------------------------


def test_points_are_sorted_by_model_load_and_level() -> None:
    some = [*points("mlp", "closed", (64, 1)), *points("mlp", "poisson", (0.5,))]
    closed, poisson = cases(some)
    assert (closed.title, poisson.title) == ("mlp, closed loops", "mlp, poisson")
    assert list(closed.levels) == [1, 64]
    assert closed.level_text(64) == "64 in flight"
    assert poisson.level_text(0.5) == "50 % load"
    assert closed.systems()[0] == "tfpool"
    assert len(closed.of("mosec")[64].points) == 3
    assert closed.of("TensorFlow in process")[1].quantiles_ms() == []
    assert len(closed.of("tfpool")[1].quantiles_ms()) == len(QUANTILES)


def test_repeats_give_medians_by_role() -> None:
    cpu = [{"client": 9.0, "broker": spent} for spent in (5.0, 1.0, 2.0)]
    memory = {"worker 1": 100.0, "worker-2": 50.0, "broker": 30.0}
    repeats = Repeats([Point("tfpool", "mlp", "closed", 1, 10.0 * n, (), c, memory, 2) for n, c in enumerate(cpu)])
    assert repeats.cpu_us() == {"client": 9.0, "broker": 2.0}
    assert repeats.server_cpu_us() == Spread((5.0, 1.0, 2.0))
    assert repeats.memory_mb() == {"worker": 150.0, "broker": 30.0}
    assert repeats.all_memory_mb() == Spread((180.0,) * 3)
    assert (repeats.rate.median, repeats.latency_ms(0.5), repeats.failed) == (10.0, None, 6)


def test_the_level_that_tells_most_is_taken() -> None:
    taken = {1: 1, 16: 2, 64: 2, 256: 2}
    some = [
        Point(str(n), "mlp", "closed", level, 1.0, [1.0] * 17) for level, most in taken.items() for n in range(most)
    ]
    (case,) = cases(some)
    assert case.telling(Repeats.quantiles_ms) == 64
    assert case.telling(Repeats.memory_mb) is None


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 118, 200])
@pytest.mark.parametrize("drawn", [tables.figures(RESULTS[0]), tables.points(RESULTS[0].outcome.points)])
def test_tables_fit_and_lose_nothing(drawn: Any, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(drawn)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, told.splitlines())) <= width
    assert "…" not in told
    expected = {
        True: [
            "240,000",
            "100,000",
            "(1..3)",
            ">= 5x",
            "missed",
            "5",
            "(4..7)",
            "<= 6",
            "(aim 5)",
            "ok, aim",
            "failed",
        ],
        False: ["closed loops", "tfpool, HTTP", "LitServe", "2,560,000", "40,000", "180", "9"],
    }[isinstance(drawn, tables.Table)]
    words = told.replace("\n", " ")
    assert [one for one in expected if one not in words] == []


def test_names_are_no_markup() -> None:
    console = Console(width=118, file=io.StringIO())
    console.print(tables.drawn(tables.Grid(("figure", "ours"), [["[/bold][red]x", "1"]])))
    assert "[/bold][red]x" in console.file.getvalue()  # type: ignore[attr-defined]


def test_failures_have_a_column_where_there_are_any() -> None:
    some = points("mlp", "closed", (1,))
    assert "failed" not in tables.point_grid(cases(some)[0], spreads=False).columns
    grid = tables.point_grid(cases([replace(some[0], failed=3), *some[1:]])[0], spreads=True)
    assert (grid.columns[-1], [row[-1] for row in grid.rows]) == ("failed", ["3", "", "", "", ""])
    assert grid.rows[0][2] == "40,000"
    assert grid.rows[0][3].startswith("1.")
    assert ".." in grid.rows[0][3]


# -- the report ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("runs")
    write(directory / "new.json")
    old = [Result(scenario("null"), 1.0, error="the old one"), Result(scenario("mlp", 3), 1.0, Outcome(FIGURES[2:]))]
    write(directory / "old.json", old, date="2025-01-01T00:00:00+00:00", commit={"revision": "fedcba", "dirty": True})
    (directory / "other.json").write_text("{}")
    result = CliRunner().invoke(main, ["report", str(directory)])
    assert result.exit_code == 0, result.output
    return directory, result.output


@pytest.fixture(scope="module")
def page(reported: tuple[Path, str]) -> Page:
    return Page((reported[0] / "report.html").read_text())


def test_the_report_names_what_it_skips(reported: tuple[Path, str]) -> None:
    assert "skipped other.json: has no 'schema'" in reported[1]
    assert "4 scenarios of 2 runs" in reported[1]


def test_plots_are_files_and_in_the_page(reported: tuple[Path, str], page: Page) -> None:
    files = {path.stem: path.read_bytes() for path in reported[0].glob("*.png")}
    closed = "null-half-plus-two-closed"
    assert set(files) == {
        *(f"{closed}-{what}" for what in ("latency", "distribution", "cpu", "memory")),
        *("tensors-sizes", "tensors-ratios"),
    }
    for content in files.values():
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 1400  # twice the 700 pixels that it takes on the page
    shown = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.of("img")]
    assert sorted(shown) == sorted(files.values())


def test_the_page_is_one_file_without_scripts(reported: tuple[Path, str], page: Page) -> None:
    assert not page.of("script")
    assert not page.of("link")
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.of("img"))
    assert all((link["href"] or "").startswith("#") for link in page.of("a"))
    (policy,) = [meta["content"] or "" for meta in page.of("meta") if "http-equiv" in meta]
    style = (reported[0] / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "default-src 'none'" in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy


def test_the_page_can_be_heard(page: Page) -> None:
    assert all(image["alt"] for image in page.of("img"))
    assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in page.of("th"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {(link["href"] or "")[1:] for link in page.of("a")} <= targets
    assert page.of("html") == [{"lang": "en"}]


def test_the_page_has_what_was_found(page: Page) -> None:
    for told in (
        *("1 of 5 targets kept.", "Failed, without figures: faults."),
        *("64 in flight, beside the best peer, req/s", "missed", "ok, aim", "Not measured", "Triton"),
        *("1. the null path", "2. large tensors", "8. neighbours, overload, faults", "took 62 s", "a CPU, 4 cores"),
        "old.json: files differed from the commit",
        "the runs are of 2 commits",
        "<script>alert('&')</script>",
    ):
        assert told in page.text
    assert "the old one" not in page.text
    assert "\x1b" not in page.text


def test_the_latest_measurement_of_a_scenario_counts(tmp_path: Path) -> None:
    def run(name: str, *scenarios: str) -> reading.Run:
        return read(write(tmp_path / name, [Result(scenario(one), 1.0) for one in scenarios]))

    runs = [run("a", "null", "mlp"), run("b", "mlp", "hot"), run("c", "hot")]
    assert {measured.name: of.file for of, measured in latest(runs)} == {"null": "a", "mlp": "b", "hot": "c"}


def test_a_directory_without_runs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{")
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "no run in" in result.output
    assert "other.json: not JSON" in result.output
    assert not (tmp_path / "report.html").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run.json")
    for name in ("canvas", "plots", "page"):
        monkeypatch.delitem(sys.modules, f"bench.report.{name}")
        monkeypatch.delattr(f"bench.report.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "pip install" in result.output


# -- looks ---------------------------------------------------------------------------------------------------------


def test_a_system_looks_the_same_whoever_else_is_there() -> None:
    known = ["Triton", "mosec", "Ray Serve", "LitServe", "BentoML", "MLServer", *palette.REFERENCES]
    everyone = palette.looks([*known, "tfpool", "tfpool, HTTP"])
    assert len({look.color for look in everyone.values()}) == len(everyone)
    assert all(palette.looks([name])[name] == look for name, look in everyone.items())
    assert max(everyone.values(), key=lambda look: look.width) is everyone["tfpool"]
    assert {everyone[name].dashes for name in palette.REFERENCES} == {"--"}
    assert palette.looks(["b", "a"]) == palette.looks(["a", "b"])


@pytest.mark.parametrize(
    ("changed", "drawn"),
    [
        ({"rate": 0.0}, []),
        ({"quantiles_us": [0.0] * len(QUANTILES)}, []),
        ({"quantiles_us": []}, []),
        ({"quantiles_us": [5.0] * len(QUANTILES), "load": "poisson", "level": 0.5}, ["latency", "distribution"]),
    ],
)
def test_plots_show_what_there_is(changed: dict[str, Any], drawn: list[str]) -> None:
    some = [replace(point, memory_mb={}, cpu_us={}, **changed) for point in points("mlp", "closed", (1,))]
    measured = reading.Measured("null", 1, "", 1.0, Outcome((), some), "")
    assert [plot.name.rpartition("-")[2] for plot in plots.of([measured])["null"]] == drawn


def test_who_is_alone_is_drawn_once_for_all_loads() -> None:
    ours = [one for one in points("mlp", "poisson", (0.5, 0.8)) if one.system == "tfpool"]
    some = [*ours, *(replace(one, load="bursts") for one in ours)]
    (plot,) = plots.of([reading.Measured("traffic", 4, "", 1.0, Outcome((), some), "")])["traffic"]
    assert (plot.name, plot.alt) == ("traffic-mlp-distribution", "mlp, tfpool: distribution of latencies by load")
