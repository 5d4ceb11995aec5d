from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator

import pytest

from tfpool.telemetry import log


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    logger = logging.getLogger("tfpool")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def test_text_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("broker")
    log.get("broker").info("model.loaded", model="mnist", version=3, seconds=0.12)
    line = capfd.readouterr().err
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO  broker  model\.loaded model=", line)
    assert line.endswith("model.loaded model=mnist version=3 seconds=0.12\n")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain-1.5/x:3", "plain-1.5/x:3"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a"b', '"a\\"b"'),
        ("a\nb", '"a\\nb"'),
        ("\u2028", '"\\u2028"'),
        ("\udc80", '"\\udc80"'),
        ("größe", "größe"),
        ("a=b", '"a=b"'),
        (None, "null"),
        (True, "true"),
        (1 / 3, "0.333333"),
        (float("nan"), "nan"),
        ([1, "a"], "[1,a]"),
        (ValueError("no"), '"ValueError: no"'),
    ],
)
def test_values_are_quoted_only_when_needed(value: object, written: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("w", fmt="text")
    log.get("x").warning("event", field=value)
    assert capfd.readouterr().err.endswith(f" WARN  w       event field={written}\n")


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("broker", "debug", "json")
    out = log.get("x")
    out.debug("a", n=1, text="x\ny", level="mine", items=[1.5, None])
    out.error("b", ratio=float("inf"), error=OSError("gone"), odd={(1, 2): 3})
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "debug",
        "process": "broker",
        "event": "a",
        "n": 1,
        "text": "x\ny",
        "items": [1.5, None],
    }
    assert second["ratio"] == "inf"
    assert second["error"] == "OSError: gone"


def test_level(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("w", "warning")
    out = log.get("x")
    out.debug("a")
    out.info("b")
    out.warning("c")
    out.error("100% d")
    assert [line.split()[2:] for line in capfd.readouterr().err.splitlines()] == [["w", "c"], ["w", "100%", "d"]]


def test_a_value_that_cannot_be_written_costs_its_line_only(capfd: pytest.CaptureFixture[str]) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    log.configure("w")
    log.get("x").info("lost", value=Odd())
    log.get("x").info("kept")
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("broken", ["closed pipe", "full disk"])
def test_a_broken_stderr_never_raises(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "full disk":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, fd = os.pipe()
        os.close(reader)
    monkeypatch.setattr(log, "_STDERR", fd)
    log.configure("w")
    log.get("x").error("nobody reads this")
    os.close(fd)
    log.get("x").error("nor this")


def test_lines_of_threads_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, fd = os.pipe()
    monkeypatch.setattr(log, "_STDERR", fd)
    log.configure("w", fmt="json")

    def write(number: int) -> None:
        for i in range(20):
            log.get("x").info("e", number=number, i=i, text="x" * 100)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    with os.fdopen(reader) as file:
        lines = [json.loads(line) for line in file]
    assert sorted((line["number"], line["i"]) for line in lines) == [(n, i) for n in range(8) for i in range(20)]
