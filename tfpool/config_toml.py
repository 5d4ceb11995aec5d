"""A TOML document that remembers its lines, and the checks its values pass.

A check takes a value and returns the setting, or raises InvalidArgument with ``got X, expected Y``; :class:`Table`
puts ``FILE:LINE: [table] key:`` before it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from tfpool.errors import InvalidArgument, NotFound
from tfpool.settings import parse_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
D = TypeVar("D")
Path = tuple[str | int, ...]
"""Tables and keys from the outside in; the index of an array of tables follows its name."""

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")


class Document:
    """A TOML document, and where each of its keys was written."""

    def __init__(self, tables: dict[str, Any], places: dict[Path, str], source: str) -> None:
        self.tables = tables
        self.places = places
        self.source = source

    @classmethod
    def parse(cls, text: str, filename: str) -> Document:
        """Raises InvalidArgument with file and line for what is not TOML."""
        try:
            tables = tomllib.loads(text)
        except ValueError as error:  # a number of 5000 digits is one too
            found = re.search(r"\(at line (\d+)", str(error))
            line = int(found[1]) if found else text.count("\n") + 1
            raise InvalidArgument(f"{filename}:{line}: not TOML: {error}") from None
        return cls(tables, _places(text, filename), f"{filename}:1")

    def override(self, table: Path, key: str, value: object, place: str = "command line") -> None:
        """Lay a value of ``place`` over the document."""
        inner: Any = self.tables
        for step in table:
            inner = inner.setdefault(step, {}) if isinstance(step, str) else inner[step]
        if isinstance(inner, dict):
            inner[key] = value
            self.places[(*table, key)] = place

    def fail(self, table: Path, key: str, problem: str) -> NoReturn:
        """Raises InvalidArgument at the line of ``key``, or of the nearest thing around it."""
        name = ".".join(step for step in table if isinstance(step, str))
        where = " ".join(part for part in (f"[{name}]" if name else "", key) if part)
        raise InvalidArgument(f"{self.place((*table, key) if key else table)}: {where}: {problem}")

    def place(self, path: Path) -> str:
        """Where ``path`` was written, or the nearest thing around it."""
        inward = (path[:size] for size in range(len(path), 0, -1))
        return next((self.places[part] for part in inward if part in self.places), self.source)


def read_text(path: str) -> str:
    """A configuration file. Raises NotFound where there is none, InvalidArgument where it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidArgument(f"{path}:{line}: got byte 0x{data[error.start]:02x}, expected UTF-8") from None


def _places(text: str, filename: str) -> dict[Path, str]:
    """Where tables and keys begin, found by their looks: enough to point at a line."""
    places: dict[Path, str] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        found = header or _ASSIGNMENT.match(line)
        if found is None:
            continue
        path: Path = () if header else table
        names = [name.strip("\"'") for name in re.findall(_KEY, found[found.re.groups])]
        for i, name in enumerate(names, 1):
            path = (*path, name)
            if header and header[1] == "[[" and i == len(names):
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path = (*path, counts[path])
            places.setdefault(path, f"{filename}:{number}")
        if header:
            table = path
    return places


class Table:
    """One table of a document, whose keys are all among ``known``. Raises InvalidArgument where they are not."""

    def __init__(self, document: Document, path: Path, values: object, known: Collection[str]) -> None:
        self.document, self.path = document, path
        if not isinstance(values, dict):
            key = path[-1]
            where, name = (path, "") if isinstance(key, int) else (path[:-1], key)
            document.fail(where, name, f"got {show(values)}, expected a table")
        self.values: dict[str, Any] = values
        for key in values:
            if key not in known:
                self.fail(str(key), f"got an unknown key, expected one of {', '.join(known)}{nearest(key, known)}")

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises InvalidArgument at the place of ``key``."""
        self.document.fail(self.path, key, problem)

    def need(self, key: str, check: Callable[[Any], T]) -> T:
        """The checked value of a key that has no default. Raises InvalidArgument."""
        if key not in self.values:
            self.fail(key, "got nothing, expected a value")
        try:
            return check(self.values[key])
        except InvalidArgument as error:
            self.fail(key, error.message)

    def read(self, key: str, check: Callable[[Any], T], default: D) -> T | D:
        """The checked value of a key, or its default. Raises InvalidArgument."""
        return self.need(key, check) if key in self.values else default


def show(value: object) -> str:
    """A value for an error message: as TOML writes it, cut at 60 characters."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: object, known: Iterable[str]) -> str:
    """``; did you mean 'Z'?``, or nothing when no known word is near."""
    near = get_close_matches(str(word), known, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def whole(least: int, most: int) -> Callable[[Any], int]:
    """A whole number from ``least`` to ``most``."""

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise InvalidArgument(f"got {show(value)}, expected a whole number from {least} to {most}")
        return value

    return check


def number(least: float, most: float) -> Callable[[Any], float]:
    """A number from ``least`` to ``most``; nan is none."""

    def check(value: Any) -> float:
        if type(value) not in (int, float) or not least <= value <= most:
            raise InvalidArgument(f"got {show(value)}, expected a number from {least:g} to {most:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """true or false."""
    if type(value) is not bool:
        raise InvalidArgument(f"got {show(value)}, expected true or false")
    return value


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidArgument(f"got {show(value)}, expected a text")
    return value


def path_from(directory: str | None) -> Callable[[Any], str]:
    """A path, made absolute: a relative one starts at ``directory``, ``~`` at home; both are refused at None."""

    def check(value: Any) -> str:
        path = text(value)
        if directory is None:
            if not os.path.isabs(path):
                raise InvalidArgument(f"got {show(value)}, expected an absolute path")
            return os.path.abspath(path)
        return os.path.abspath(os.path.join(directory, os.path.expanduser(path)))

    return check


def one_of(*choices: str) -> Callable[[Any], str]:
    """One of a few words."""

    def check(value: Any) -> str:
        if value not in choices:
            raise InvalidArgument(f"got {show(value)}, expected one of {', '.join(choices)}{nearest(value, choices)}")
        return str(value)

    return check


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, none of them twice."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InvalidArgument(f"got {show(value)}, expected a list of texts")
    if len(set(value)) < len(value):
        raise InvalidArgument(f"got {show(value)}, expected no text twice")
    return tuple(value)


def increasing(least: int, most: int) -> Callable[[Any], tuple[int, ...]]:
    """A list of increasing whole numbers from ``least`` to ``most``."""

    def check(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise InvalidArgument(f"got {show(value)}, expected a list of whole numbers")
        sizes = tuple(map(whole(least, most), value))
        if any(a >= b for a, b in pairwise(sizes)):
            raise InvalidArgument(f"got {show(value)}, expected increasing numbers")
        return sizes

    return check


def budget(value: Any) -> int:
    """A size of at least 1 MiB. Raises InvalidArgument."""
    size = parse_size(value)
    if size < 1 << 20:
        raise InvalidArgument(f"got {show(value)}, expected at least 1MiB")
    return size
