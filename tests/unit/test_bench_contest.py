from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import contest, systems, wrk
from bench.arrivals import Schedule
from bench.contest import BEST, Closed, Poisson
from bench.errors import ChildFailed, PeerAbsent, WrongAnswer
from bench.fleet import Load, Tally, merged
from bench.points import QUANTILES, Point, at_quantiles, quantile, read
from bench.post import Post
from bench.scenario import Form, Models, Settings, Sheet
from bench.systems import OURS, OURS_HTTP, Web


class Steps:
    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def say(self, text: str) -> None:
        pass

    def step(self) -> None:
        self.done += 1

    def more(self, steps: int) -> None:
        self.total += steps


@dataclass
class Fake:
    """A system that answers ``rates`` by level; ``order`` is who was asked, of all that share it."""

    name: str
    rates: dict[int, float]
    order: list[str] = field(default_factory=list)

    def closed(self, settings: Settings, in_flight: int) -> Point:
        self.order.append(self.name)
        latencies = [1e6 * in_flight / self.rates[in_flight]] * len(QUANTILES)
        return Point(self.name, "m", "closed", in_flight, self.rates[in_flight], latencies)

    def open(self, settings: Settings, schedule: Schedule, load: str, level: float) -> Point:
        self.order.append(f"{self.name} at {len(schedule.moments)}")
        latency = 1e9 / max(self.rates.values())
        return Point(self.name, "m", load, level, len(schedule.moments) / schedule.window, [latency] * len(QUANTILES))


ALONE, MANY = Closed(1), Closed(64)
LOADS = (ALONE, MANY)


def settings(tmp_path: Path, repeat: int = 3, form: Form = Form.NORMAL) -> Settings:
    samples = tmp_path / "m.npz"
    np.savez(samples, x=np.zeros((2, 3), np.float32), y=np.ones((2, 1), np.float32))
    return Settings(Models({}, {"m": str(samples)}), str(tmp_path), Steps(), repeat=repeat, form=form)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Peers by their title: a :class:`Fake`, or the error that starting them raises."""
    chosen: dict[str, Any] = {}

    @contextmanager
    def serving(peer: Any, *_: object) -> Iterator[Any]:
        found = chosen[peer.title]
        if isinstance(found, Exception):
            raise found
        yield found

    monkeypatch.setattr(contest, "serving", serving)
    monkeypatch.setattr(contest, "theirs", lambda _, served: served)
    monkeypatch.setattr(contest, "task", lambda *_: None)

    class Registry(dict[str, Any]):
        def values(self) -> Any:
            return [SimpleNamespace(title=title) for title in chosen]

        def __len__(self) -> int:
            return len(chosen)

    monkeypatch.setattr(contest, "PEERS", Registry())
    return chosen


def ours(order: list[str] | None = None) -> list[Fake]:
    order = [] if order is None else order
    return [Fake(OURS, {1: 2000.0, 64: 80_000.0}, order), Fake(OURS_HTTP, {1: 1000.0, 64: 20_000.0}, order)]


def test_each_peer_is_measured_beside_ours_in_turns(tmp_path: Path, peers: dict[str, Any]) -> None:
    order: list[str] = []
    peers["A"] = Fake("A", {1: 500.0, 64: 40_000.0}, order)
    sheet = Sheet({})
    found = contest.contest(settings(tmp_path, repeat=2), sheet, ours(order), "m", LOADS)
    there, back = ["A", OURS_HTTP, OURS], [OURS, OURS_HTTP, "A"]
    assert order == [*there, *there, *back, *back]
    assert [len(found["A"][load]) for load in LOADS] == [2, 2]
    assert [point.system for point in sheet.outcome().points] == [*back] * 4


def test_open_loads_come_at_the_same_moments_for_all(tmp_path: Path, peers: dict[str, Any]) -> None:
    order: list[str] = []
    peers["A"] = Fake("A", {1: 500.0, 64: 40_000.0}, order)
    loads = (MANY, Poisson(0.1, 1000.0))
    sheet = Sheet({})
    found = contest.contest(settings(tmp_path, repeat=1), sheet, ours(order), "m", loads)
    sent = [name.partition(" at ")[2] for name in order[3:]]
    assert len(set(sent)) == 1
    assert int(sent[0]) == pytest.approx(3000, rel=0.1)
    contest.tell(sheet, found, loads, "M, ")
    (figure,) = [one for one in sheet.outcome().figures if one.name == f"p99, M, poisson at 10 %, beside {BEST}"]
    assert figure.ratio is not None
    assert (figure.ratio.median, figure.higher_is_better) == (0.5, False)


def test_a_peer_is_spared_loads_that_it_cannot_bear(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers |= {name: Fake(name, {64: rate}) for name, rate in (("slow", 9000.0), ("quick", 11_000.0))}
    loads = (MANY, Poisson(0.3, 10_000.0))
    sheet = Sheet({})
    found = contest.contest(settings(tmp_path, repeat=1), sheet, ours(), "m", loads)
    assert [loads[1] in found[title] for title in ("slow", "quick")] == [False, True]
    contest.tell(sheet, found, loads)
    assert f"p99, poisson at 30 %, beside {BEST}" in {one.name for one in sheet.outcome().figures}
    assert contest.best(found, loads[1]) == "quick"


def test_an_open_load_lasts_until_there_are_enough_requests(tmp_path: Path) -> None:
    order: list[str] = []
    Poisson(0.5, 10.0).put(settings(tmp_path), Fake("A", {1: 1.0}, order), 0)
    assert int(order[0].partition(" at ")[2]) == pytest.approx(500, rel=0.15)


def test_who_is_far_behind_the_best_peer_is_measured_once(tmp_path: Path, peers: dict[str, Any]) -> None:
    rates = {"first": 10_000.0, "best": 40_000.0, "near": 20_001.0, "far": 19_999.0}
    peers |= {title: Fake(title, {1: 500.0, 64: rate}) for title, rate in rates.items()}
    found = contest.contest(settings(tmp_path), Sheet({}), ours(), "m", LOADS)
    assert [len(found[title][MANY]) for title in rates] == [3, 3, 3, 1]


def test_a_peer_that_cannot_be_measured_is_told_and_the_others_go_on(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers |= {"absent": PeerAbsent("not installed"), "wrong": WrongAnswer("nonsense")}
    peers["B"] = Fake("B", {1: 500.0, 64: 40_000.0})
    sheet = Sheet({})
    assert set(contest.contest(settings(tmp_path), sheet, ours(), "m", LOADS)) == {"B"}
    assert sheet.outcome().absent == {"absent": "not installed", "wrong": "nonsense"}


@dataclass
class Failing(Fake):
    """Fails after so many loads."""

    good: int = 0
    error: Exception = field(default_factory=lambda: WrongAnswer("one socket error"))

    def closed(self, settings: Settings, in_flight: int) -> Point:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return super().closed(settings, in_flight)


@pytest.mark.parametrize("error", [WrongAnswer("one socket error"), ChildFailed("slow"), OSError(111, "refused")])
def test_what_a_peer_did_before_it_failed_counts(tmp_path: Path, peers: dict[str, Any], error: Exception) -> None:
    peers["A"] = Failing("A", {1: 500.0, 64: 79_000.0}, good=3, error=error)
    sheet = Sheet({})
    found = contest.contest(settings(tmp_path), sheet, ours(), "m", LOADS)
    assert [len(found["A"][load]) for load in LOADS] == [2, 1]
    assert "repeat 2, 64 in flight" in sheet.outcome().absent["A"]
    assert contest.complete(found)


def test_ours_failing_fails_the_scenario(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers["A"] = Fake("A", {1: 500.0, 64: 40_000.0})
    mine = [Failing(OURS, {1: 2000.0, 64: 80_000.0}, good=1), ours()[1]]
    with pytest.raises(WrongAnswer, match="one socket error"):
        contest.contest(settings(tmp_path), Sheet({}), mine, "m", LOADS)


def test_the_quick_form_measures_one_peer_and_says_so(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers |= {name: Fake(name, {1: 500.0, 64: 40_000.0}) for name in "AB"}
    sheet = Sheet({})
    assert set(contest.contest(settings(tmp_path, 1, Form.QUICK), sheet, ours(), "m", LOADS)) == {"A"}
    assert "one peer" in sheet.outcome().absent["B"]


def test_the_bar_ends_where_the_steps_end(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers |= {"A": Fake("A", {1: 500.0, 64: 40_000.0}), "far": Fake("far", {1: 500.0, 64: 600.0})}
    chosen = settings(tmp_path)
    contest.contest(chosen, Sheet({}), ours(), "m", LOADS)
    assert (chosen.progress.total, chosen.progress.done) == (4, 4)  # type: ignore[attr-defined]


def test_the_best_peer_is_chosen_at_each_level(tmp_path: Path, peers: dict[str, Any]) -> None:
    peers |= {"quick": Fake("quick", {1: 4000.0, 64: 20_000.0}), "wide": Fake("wide", {1: 100.0, 64: 40_000.0})}
    sheet = Sheet({})
    contest.tell(sheet, contest.contest(settings(tmp_path), sheet, ours(), "m", LOADS), LOADS, "M, ")
    figures = {figure.name: figure for figure in sheet.outcome().figures}
    alone, many = figures[f"p50, M, 1 in flight, beside {BEST}"], figures[f"M, 64 in flight, beside {BEST}"]
    assert {one["peer"] for one in alone.detail} == {"quick"}
    assert {one["peer"] for one in many.detail} == {"wide"}
    assert alone.ratio is not None
    assert many.ratio is not None
    assert (alone.ratio.median, alone.higher_is_better) == (2.0, False)
    assert many.ratio.values == (2.0, 2.0, 2.0)
    over_http = figures["HTTP, M, 64 in flight, beside quick"].ratio
    assert over_http is not None
    assert over_http.median == 1.0


def test_without_peers_there_is_nothing_to_tell() -> None:
    sheet = Sheet({})
    contest.tell(sheet, {}, LOADS)
    assert sheet.outcome().figures == []


# -- points --------------------------------------------------------------------------------------------------------


def test_a_point_goes_through_json() -> None:
    point = Point("a", "m", "closed", 64, 10.0, [float(n) for n in range(len(QUANTILES))], {"client": 1.0}, {"x": 2.0})
    assert read(point.document()) == point
    assert point.at_us(1.0) == len(QUANTILES) - 1


def test_who_serves_does_not_include_the_client() -> None:
    point = Point("a", "m", "closed", 1, 1.0, cpu_us={"client": 8.0, "broker": 1.0, "workers": 2.0})
    assert point.server_cpu_us == 3.0
    assert point.at_us(0.5) == 0.0


def test_quantiles_of_increasing_values() -> None:
    values = [float(n) for n in range(1, 1001)]
    found = at_quantiles(values)
    assert found == [quantile(values, q) for q in QUANTILES]
    assert (found[QUANTILES.index(0.5)], found[QUANTILES.index(0.999)], found[-1]) == (500.0, 999.0, 1000.0)
    assert at_quantiles([]) == []


def test_a_fleet_tells_its_quantiles() -> None:
    load = merged([Tally(2, 1.0, 0.5, [0.001, 0.003])])
    point = load.point("a", "m", 2, {"worker": 5.0})
    assert (point.rate, point.level, point.at_us(0.5), point.at_us(1.0)) == (2.0, 2, 1000.0, 3000.0)
    assert point.memory_mb == {"worker": 5.0}


# -- over HTTP -----------------------------------------------------------------------------------------------------

TOLD = '{"requests": 400, "seconds": 2.0, "latencies": [%s], "bad": %d, "telling": 0.0}'


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What wrk prints, the last first; commands are kept in front of it."""
    lines: list[str] = []

    def run(command: Sequence[str], seconds: float) -> str:
        return lines[-1]

    monkeypatch.setattr(wrk, "_run", run)
    monkeypatch.setattr(wrk, "_found", lambda name, package: name)
    return lines


EVEN = "[10, 300], [90, 100]"


def test_what_wrk_tells_becomes_a_load(tmp_path: Path, said: list[str]) -> None:
    said.append("  some text\n" + TOLD % (EVEN, 0))
    seconds = iter([1.0, 1.4])
    load = wrk.shoot(
        settings(tmp_path), "x", Post("h:1", "/p", b"b", {"A": 'q"'}), 4, lambda: {"server": next(seconds)}
    )
    assert (load.rate, load.requests) == (200.0, 400)
    assert (load.p50_us, load.p99_us) == (10.0, 90.0)
    assert load.cpu_us["server"] == pytest.approx(1000.0)
    assert 'wrk.headers["A"] = "q\\""' in (tmp_path / "wrk.lua").read_text()


@pytest.mark.parametrize("connections", [1, 4])
def test_what_wrk_believes_to_be_omitted_is_taken_out_again(tmp_path: Path, said: list[str], connections: int) -> None:
    measured = {5000: 390, 6000: 9, 300_000: 1}
    expected = 2_000_000 // (400 // connections)
    told = dict(measured)
    for value, count in measured.items():
        for added in range(value - expected, expected, -expected) if value >= 2 * expected else ():
            told[added] = told.get(added, 0) + count
    assert sum(told.values()) > 400
    said.append(TOLD % (", ".join(f"[{value}, {count}]" for value, count in sorted(told.items())), 0))
    load = wrk.shoot(settings(tmp_path), "x", Post("h:1", "/p", b"", {}), connections)
    assert (load.p50_us, load.p99_us, load.max_us) == (5000.0, 6000.0, 300_000.0)


@pytest.mark.parametrize("bad", [1, 400])
def test_one_bad_answer_is_too_many(tmp_path: Path, said: list[str], bad: int) -> None:
    said.append(TOLD % (EVEN, bad))
    with pytest.raises(WrongAnswer, match=f"{bad} of 400"):
        wrk.shoot(settings(tmp_path), "x", Post("h:1", "/p", b"", {}), 4)


def test_a_generator_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk.shutil, "which", lambda _: None)
    with pytest.raises(ChildFailed, match="apt install wrk"):
        wrk.shoot(settings(tmp_path), "x", Post("h:1", "/p", b"", {}), 4)


def test_answers_are_compared_while_the_load_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    enough = threading.Event()

    def audit(number: int, content: bytes) -> None:
        asked.append(number)
        if len(asked) == 3:
            enough.set()

    def shoot(*_: object) -> Load:
        assert enough.wait(10.0)
        return merged([Tally(1, 1.0, 0.0)])

    monkeypatch.setattr(systems.wrk, "shoot", shoot)
    posts = [SimpleNamespace(once=lambda: b""), SimpleNamespace(once=lambda: b"")]
    web = Web("x", "m", posts, audit, dict, dict)  # type: ignore[arg-type]
    assert web.closed(settings(tmp_path), 4).system == "x"
    assert asked[:3] == [0, 1, 0]


def test_a_wrong_answer_under_load_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def audit(number: int, content: bytes) -> None:
        raise WrongAnswer("an answer is not TensorFlow's")

    monkeypatch.setattr(systems.wrk, "shoot", lambda *_: merged([Tally(1, 1.0, 0.0)]))
    web = Web("x", "m", [SimpleNamespace(once=lambda: b"")], audit, dict, dict)  # type: ignore[arg-type,list-item]
    with pytest.raises(WrongAnswer, match="x: an answer is not"):
        web.closed(settings(tmp_path), 4)
