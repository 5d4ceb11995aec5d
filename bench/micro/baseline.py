"""What the ratios were when they were last found to be right: a file beside the code, and where it was taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from bench.errors import BenchError

SCHEMA = 1
_TAKEN = ("date", "commit", "machine", "versions")
_MACHINE = ("cpu", "cores")


class BadBaseline(BenchError):
    """A file is no baseline; the message says what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """A ratio, the least and the most of the repeats behind it, and the share by which a ratio may differ from it."""

    ratio: float
    least: float
    most: float
    tolerance: float


@dataclass(frozen=True)
class Baseline:
    """Entries by name; ``taken`` says when, of which commit, on which machine, with what."""

    taken: Mapping[str, Any]
    entries: Mapping[str, Entry]

    def write(self, file: Path) -> None:
        """As JSON, in a form whose differences can be read. Raises OSError."""
        entries = {name: asdict(entry) for name, entry in sorted(self.entries.items())}
        taken = {key: self.taken[key] for key in _TAKEN}
        taken["machine"] = {key: self.taken["machine"][key] for key in _MACHINE}
        file.write_text(json.dumps({"schema": SCHEMA, **taken, "entries": entries}, indent=2) + "\n")


def read(file: Path) -> Baseline:
    """A baseline that was written before. Raises BadBaseline."""
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise BadBaseline(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadBaseline(f"{file}: it is no JSON: {error}") from None
    if type(document) is not dict or document.get("schema") != SCHEMA:
        got = document.get("schema") if type(document) is dict else type(document).__name__
        raise BadBaseline(f"{file}: got schema {got!r}, expected {SCHEMA}")
    if lacking := [key for key in (*_TAKEN, "entries") if key not in document]:
        raise BadBaseline(f"{file}: it has no {', '.join(lacking)}")
    for key in ("machine", "versions", "entries"):
        if type(document[key]) is not dict:
            raise BadBaseline(f"{file}: {key}: got {type(document[key]).__name__}, expected an object")
    found = {name: _entry(f"{file}: {name}", fields) for name, fields in document["entries"].items()}
    return Baseline({key: document[key] for key in _TAKEN}, found)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was when the baseline was taken, of what moves ratios: the CPU, cores, versions."""
    for part, keys in (("machine", _MACHINE), ("versions", now["versions"])):
        for key in keys:
            was, here = before[part].get(key), now[part][key]
            if was != here:
                yield f"{key} {was} there, {here} here"


def _entry(where: str, fields: Any) -> Entry:
    names = Entry.__dataclass_fields__.keys()
    if type(fields) is not dict or fields.keys() != names:
        got = ", ".join(fields) if type(fields) is dict else type(fields).__name__
        raise BadBaseline(f"{where}: got {got}, expected {', '.join(names)}")
    for name, value in fields.items():
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise BadBaseline(f"{where}: {name}: got {value!r}, expected a number above 0")
    return Entry(**fields)
