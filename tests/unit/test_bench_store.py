from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import variants
from bench.errors import ChildFailed
from bench.scenario import Models, Settings
from bench.scenarios import coldstart, many
from bench.scenarios.coldstart import Asked
from bench.steady import Notes
from bench.variants import ROWS, Variant, build, rows_of
from bench.variety import Asking, agree, twins
from tfpool.errors import NotFound
from tfpool.wire.tensors import Array


class Quiet:
    def say(self, text: str) -> None:
        pass

    def step(self) -> None:
        pass


SETTINGS = Settings(Models({}, {}), "/nowhere", Quiet())
ANSWERS = np.arange(3 * ROWS, dtype=np.float32).reshape(ROWS, 3)
NO_NOTES = Notes(np.array([]), np.array([]), np.array([]))


# -- answers -------------------------------------------------------------------------------------------------------


def test_answers_agree_within_a_tolerance_and_in_shape() -> None:
    assert agree(ANSWERS, ANSWERS * (1 + 1e-4))
    assert not agree(ANSWERS, ANSWERS + 0.01)
    assert not agree(ANSWERS[:1], ANSWERS[0])


def test_twins_are_found() -> None:
    other = ANSWERS.copy()
    other[0, 0] += 1
    assert twins([ANSWERS, other]) == []
    assert twins([ANSWERS, other, ANSWERS * (1 + 1e-5), other]) == [(0, 2), (1, 3)]
    assert twins([ANSWERS]) == []


def test_all_variants_of_a_kind_are_asked_alike() -> None:
    for kind, made in variants.KINDS.items():
        rows = rows_of(kind)
        assert rows.shape == (ROWS, *made.row)
        assert np.array_equal(rows, rows_of(kind))


def test_variants_have_names_and_paths_of_their_own() -> None:
    variant = Variant("patches", 7, "/models/patches/007")
    assert (variant.name, variant.path) == ("patches-007", "/models/patches/007/1")


class Echo:
    """A client of models that answer a row's own answers; ``off`` is added to those of one, another fails."""

    def __init__(self, rows: Array) -> None:
        self._rows = rows
        self.asked: list[str] = []

    def submit(self, model: str, row: Array, timeout: float) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(self.predict(model, row, timeout))
        except NotFound as error:
            future.set_exception(error)
        return future

    def predict(self, model: str, row: Array, timeout: float) -> dict[str, Array]:
        self.asked.append(model)
        if model == "patches-002":
            raise NotFound("no such model")
        (number,) = np.flatnonzero(self._rows == row)
        return {"y": ANSWERS[number : number + 1] + (model == "patches-001")}


@pytest.fixture
def three(tmp_path: Path) -> list[Variant]:
    made = [Variant("patches", number, str(tmp_path / f"{number:03}")) for number in range(3)]
    for variant in made:
        Path(variant.base).mkdir()
        np.save(Path(variant.base, "answers.npy"), ANSWERS)
    return made


Drive = Callable[[Asking, int], None]


def in_turn(asking: Asking, count: int) -> None:
    asking.in_turn()


def at_once(asking: Asking, count: int) -> None:
    asking.at(0.0, [0.0] * count)


@pytest.mark.parametrize("drive", [in_turn, at_once])
def test_every_answer_is_compared(drive: Drive, three: list[Variant]) -> None:
    rows = rows_of("patches")
    client = Echo(rows)
    right = Asking(client, three, {"patches": rows}, [0] * 6)  # type: ignore[arg-type]
    drive(right, 6)
    told = right.told()
    assert (told["checked"], told["wrong"], told["failed"], told["of"]) == (6, 0, 0, [])
    assert sorted(told["numbers"]) == list(range(6))
    assert min(told["seconds"]) >= 0

    mixed = Asking(client, three, {"patches": rows}, [0, 1, 2, 1])  # type: ignore[arg-type]
    drive(mixed, 4)
    told = mixed.told()
    assert (told["checked"], told["wrong"], told["failed"], told["of"]) == (3, 2, 1, ["patches-001"])
    assert told["errors"] == ["NotFound: no such model"]
    assert client.asked[-4:] == ["patches-000", "patches-001", "patches-002", "patches-001"]


def test_nothing_is_told_of_nothing() -> None:
    told = Asking(Echo(rows_of("patches")), [], {}, []).told()  # type: ignore[arg-type]
    assert (list(told["numbers"]), told["checked"], told["wrong"], told["failed"]) == ([], 0, 0, 0)


# -- compiling -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes in the place of compilers: they fail for model 1, and never end for model 2. Model 3 is there."""
    codes = {"1": "print('why not'); raise SystemExit(1)", "2": "import time; time.sleep(600)"}
    begun: list[subprocess.Popen[bytes]] = []

    def start(store: str, path: str) -> subprocess.Popen[bytes]:
        code = codes.get(Path(path).parent.name, "pass")
        begun.append(subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE))
        return begun[-1]

    monkeypatch.setattr(variants, "_compiler", start)
    monkeypatch.setattr(variants, "_usable", lambda shelf, variant: variant.number == 3)
    return begun


def of(*numbers: int) -> list[Variant]:
    return [Variant("patches", number, f"/models/{number}") for number in numbers]


def test_what_is_missing_is_compiled(compiler: list[subprocess.Popen[bytes]]) -> None:
    built = build(SETTINGS, of(0, 3, 4, 5), "/nowhere")
    assert len(built.each) == len(compiler) == 3
    assert max(built.each) <= built.seconds


def test_nothing_runs_on_when_one_fails(
    compiler: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(ChildFailed, match=r"/models/1/1 was not compiled in .*: why not"):
        build(SETTINGS, of(2, 1, 0), "/nowhere")
    assert [process.returncode for process in compiler] == [-9, 1]


def test_a_compiler_has_so_much_time(compiler: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_COMPILE_SECONDS", 0.0)
    with pytest.raises(ChildFailed, match="it wrote nothing"):
        build(SETTINGS, of(2), "/nowhere")
    assert compiler[0].returncode == -9


# -- figures -------------------------------------------------------------------------------------------------------


def test_what_the_first_models_add_for_all_is_not_counted_again() -> None:
    seen = many.Seen(5, {"broker": 30, "worker 1": 120}, {"broker": 30, "worker 1": 180}, NO_NOTES, NO_NOTES, [])
    assert seen.total == 210
    assert seen.each == 20
    assert seen.of(5) == 210
    assert seen.of(105) == 2210


def test_requests_are_the_same_for_all_pools_of_a_repeat() -> None:
    asked, again, other = (Asked.of(replace(SETTINGS, seconds=100.0), 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(asked.moments, again.moments)
    assert asked.picks == again.picks != other.picks
    assert len(asked.moments) == len(asked.picks)
    assert 0 <= asked.moments[0] <= asked.moments[-1] < 100.0
    assert np.all(np.diff(asked.moments) >= 0)
    assert len(asked.moments) == pytest.approx(100 * coldstart.RATE, rel=0.3)
    assert set(asked.picks) <= set(range(50))


def test_cold_requests_are_told_apart() -> None:
    notes = Notes(np.arange(4), np.zeros(4), np.array([0.4, 0.1, 0.3, 0.2]))
    seen = coldstart.Seen(notes, np.array([0.3, 0.0, 0.1, 0.0]), 2, 1)
    assert seen.seconds().tolist() == [0.1, 0.2, 0.3, 0.4]
    assert seen.seconds(True).tolist() == [0.3, 0.4]
    assert seen.seconds(False).tolist() == [0.1, 0.2]
