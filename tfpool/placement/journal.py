"""The planner's journal: a line of JSON for each look at the pool, with what was seen and what was decided. Pure.

A line is whole, or says only what is not as in the line before: such a line has ``gone``, the handles of servables that
are no more, and ``forgot``, how many of the oldest steps of the past are; it leaves out the rules, the steps, the
servables and the fields of servables that are as they were. The first line of a file is whole. In a whole line, workers
and servables are written without what is as by default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from enum import Enum
from typing import Any, TypeVar

from tfpool.config_toml import flag, number, show, text, whole
from tfpool.errors import InvalidArgument
from tfpool.placement.snapshot import (
    Demand,
    Hold,
    Inlined,
    Kind,
    Past,
    Replica,
    Rules,
    ServableView,
    Snapshot,
    Step,
    WorkerView,
)

T = TypeVar("T")
K = TypeVar("K", bound=Enum)

VERSION = 1
BEGUN = "begun"
_SAME_IDLE = 1e-3  # seconds by which a clock may seem to have run differently


@dataclass(frozen=True, slots=True)
class Entry:
    """One look at the pool, at ``when`` (seconds since 1970); the decision took ``took`` seconds.

    ``outcome`` is what became of the step: :data:`BEGUN`, refused, or empty where it was only advised.
    """

    when: float
    snapshot: Snapshot
    rules: Rules
    step: Step | None = None
    took: float = 0.0
    outcome: str = ""


class CutOff(InvalidArgument):
    """A line that is no JSON: whoever wrote it did not come to its end, or never wrote a journal."""


class Reader:
    """Reads the lines of a journal in their order; ``lines`` counts those so far."""

    def __init__(self) -> None:
        self.lines = 0
        self._before: Entry | None = None

    def read(self, line: str) -> Entry:
        """The next line. Raises InvalidArgument, with its number, for what is none: CutOff for what is no JSON. After
        that a whole line has to follow."""
        self.lines += 1
        before, self._before = self._before, None
        try:
            self._before = from_fields(_json(line), before)
        except InvalidArgument as error:
            raise type(error)(f"line {self.lines}: {error.message}") from None
        return self._before


def to_fields(entry: Entry, before: Entry | None = None) -> dict[str, Any]:
    """What JSON can hold. With the entry of the line ``before`` it says only what has changed, where that can be."""
    seen: dict[str, Any] = {"now": entry.snapshot.now, "workers": [_pack(worker) for worker in entry.snapshot.workers]}
    found: dict[str, Any] = {"v": VERSION, "when": entry.when, "took": entry.took, "snapshot": seen}
    servables = entry.snapshot.servables
    left = {} if before is None else _as_left(before.snapshot, entry.snapshot.now)
    if before is None or not _in_order(left, servables):
        found["rules"] = asdict(entry.rules)
        seen["servables"] = [_pack(servable) for servable in servables]
        seen["past"] = _plain(entry.snapshot.past)
    else:
        if entry.rules != before.rules:
            found["rules"] = asdict(entry.rules)
        seen["gone"] = sorted(left.keys() - {servable.handle for servable in servables})
        packed = (_pack(servable, left.get(servable.handle)) for servable in servables)
        seen["servables"] = [row for row in packed if len(row) > 1 or row["handle"] not in left]
        seen["forgot"] = _forgotten(before.snapshot.past, entry.snapshot.past)
        seen["past"] = _plain(entry.snapshot.past[len(before.snapshot.past) - seen["forgot"] :])
    if entry.step is not None:
        found["step"] = _pack(entry.step)
    return {**found, "outcome": entry.outcome} if entry.outcome else found


def from_fields(value: object, before: Entry | None = None) -> Entry:
    """The entry of :func:`to_fields`; ``before`` is that of the line before.

    Raises InvalidArgument for anything else, and for changes without a line before them.
    """
    known = _table(value)
    version = known.pop("v", None)
    if version != VERSION:
        raise InvalidArgument(f"got version {show(version)} of the journal, expected {VERSION}")
    seen = _at("snapshot", _table, known.get("snapshot"))
    if "gone" not in seen:
        return _unpack(Entry, _ENTRY, known)
    if before is None:
        raise InvalidArgument("got changes, expected everything: a journal begins with a whole line")
    gone, forgot = _at("gone", _list(_handle), seen.pop("gone")), _at("forgot", _count, seen.pop("forgot", None))
    rows = _at("servables", _list(_table), seen.pop("servables", None))
    known = {"rules": asdict(before.rules), **known, "snapshot": {**seen, "servables": []}}
    entry = _unpack(Entry, _ENTRY, known)
    servables = _as_left(before.snapshot, entry.snapshot.now)
    for handle in gone:
        servables.pop(handle, None)
    for row in rows:
        handle = _at("handle", _handle, row.get("handle"))
        servables[handle] = _unpack(ServableView, _SERVABLE, row, servables.get(handle))
    past = (*before.snapshot.past[forgot:], *entry.snapshot.past)
    return replace(entry, snapshot=replace(entry.snapshot, servables=tuple(servables.values()), past=past))


def _as_left(before: Snapshot, now: float) -> dict[int, ServableView]:
    """Servables by handle, as they would be ``now`` if nothing had happened to them: only idle for longer."""
    passed = max(0.0, now - before.now)
    return {servable.handle: replace(servable, idle=servable.idle + passed) for servable in before.servables}


def _forgotten(before: tuple[Past, ...], after: tuple[Past, ...]) -> int:
    """How many of the oldest steps are no more; those that are left come first, as they were."""
    ends = (number for number in range(len(before)) if after[: len(before) - number] == before[number:])
    return next(ends, len(before))


def _in_order(left: Mapping[int, ServableView], servables: tuple[ServableView, ...]) -> bool:
    """Whether those that were there come first, in the order that they had: changes can say nothing else."""
    handles = [servable.handle for servable in servables]
    there = set(handles)
    return handles == [h for h in left if h in there] + [h for h in handles if h not in left]


# -- to JSON -------------------------------------------------------------------------------------------------------


def _pack(item: Any, like: Any = None) -> dict[str, Any]:
    """The handle, and the fields that are not as in ``like``, or where that is None, not as by default."""
    found = {}
    for field in fields(item):
        value = getattr(item, field.name)
        other = _default(field) if like is None else getattr(like, field.name)
        same = value == other or (like is not None and field.name == "idle" and abs(value - other) <= _SAME_IDLE)
        if field.name == "handle" or not same:
            found[field.name] = _plain(value)
    return found


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Replica) and not value.inlined:
        value = value[:2]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


# -- from JSON -----------------------------------------------------------------------------------------------------


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise CutOff(f"got {show(line)}, expected JSON") from None


def _unpack(made: type[T], checks: Mapping[str, Callable[[Any], Any]], value: object, like: T | None = None) -> T:
    """A dataclass from its fields; those that are missing are as in ``like``, or as by default."""
    known = _table(value)
    if unknown := [name for name in known if name not in checks]:
        raise InvalidArgument(f"got {show(unknown[0])}, expected none but {', '.join(checks)}")
    found = {name: _at(name, check, known[name]) for name, check in checks.items() if name in known}
    if like is not None:
        return replace(like, **found)  # type: ignore[type-var]
    for field in fields(made):  # type: ignore[arg-type]
        if field.name not in found and _default(field) is MISSING:
            raise InvalidArgument(f"got no {field.name}, expected one")
    return made(**found)


def _at(name: str, check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from None


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"got {show(value)}, expected a table")
    return dict(value)


def _list(check: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    def read(value: Any) -> list[T]:
        if not isinstance(value, list):
            raise InvalidArgument(f"got {show(value)}, expected a list")
        return [_at(str(number), check, item) for number, item in enumerate(value)]

    return read


def _tuple(check: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    read = _list(check)
    return lambda value: tuple(read(value))


def _row(made: Callable[..., T], *checks: Callable[[Any], Any]) -> Callable[[Any], T]:
    """A list with as many items as there are checks."""

    def read(value: Any) -> T:
        if not isinstance(value, list) or len(value) != len(checks):
            raise InvalidArgument(f"got {show(value)}, expected a list of {len(checks)}")
        return made(*(check(item) for check, item in zip(checks, value, strict=True)))

    return read


def _replica(value: Any) -> Replica:
    mapped = isinstance(value, list) and len(value) == 2
    return (_row(Replica, _hold, _any) if mapped else _row(Replica, _hold, _any, flag))(value)


def _by_worker(check: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    return lambda value: {text(name): _at(name, check, item) for name, item in _table(value).items()}


def _maybe(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda value: None if value is None else check(value)


def _one_of(kind: type[K]) -> Callable[[Any], K]:
    def read(value: Any) -> K:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(member.value for member in kind)
            raise InvalidArgument(f"got {show(value)}, expected one of {known}") from None

    return read


def _real(least: float) -> Callable[[Any], float]:
    check = number(least, math.inf)
    return lambda value: check(_INFINITE.get(value, value) if isinstance(value, str) else value)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"got {show(value)}, expected a text")
    return value


_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}
_some, _any = _real(0.0), _real(-math.inf)
_count, _bytes = whole(0, (1 << 63) - 1), whole(-(1 << 63), (1 << 63) - 1)
_handle = _count
_hold = _one_of(Hold)
_demand = _row(Demand, _some, _some)
_WORKER: dict[str, Callable[[Any], Any]] = {
    "name": text,
    "device": text,
    "threads": _count,
    "room": _maybe(_bytes),
    "held": _bytes,
    "residue": _bytes,
    "busy": _some,
    "open": flag,
    "kept_for": _handle,
}
_SERVABLE: dict[str, Callable[[Any], Any]] = {
    "handle": _handle,
    "name": text,
    "nbytes": _count,
    "peak": _count,
    "load_seconds": _some,
    "fast": _demand,
    "slow": _demand,
    "row_seconds": _by_worker(_some),
    "replicas": _row(lambda least, most: (least, most), _count, _count),
    "pins": _tuple(text),
    "on": _by_worker(_replica),
    "wanted": flag,
    "movable": flag,
    "crashes": _count,
    "idle": _some,
    "inlined": _maybe(_row(Inlined, _count, _count, _some, _real(1e-9))),
}
_STEP: dict[str, Callable[[Any], Any]] = {
    "kind": _one_of(Kind),
    "handle": _handle,
    "name": _word,
    "source": _word,
    "target": _word,
    "nbytes": _bytes,
    "gain": _any,
    "cost": _any,
    "reason": _word,
}
_RULES: dict[str, Callable[[Any], Any]] = {
    "horizon": _some,
    "hysteresis": _some,
    "moves_per_minute": _count,
    "bytes_per_minute": _count,
    "residue": _count,
    "idle": _some,
}
_SNAPSHOT: dict[str, Callable[[Any], Any]] = {
    "now": _any,
    "workers": _tuple(lambda value: _unpack(WorkerView, _WORKER, value)),
    "servables": _tuple(lambda value: _unpack(ServableView, _SERVABLE, value)),
    "past": _tuple(_row(Past, _any, _one_of(Kind), _handle, _word, _word, _bytes)),
}
_ENTRY: dict[str, Callable[[Any], Any]] = {
    "when": _some,
    "took": _some,
    "snapshot": lambda value: _unpack(Snapshot, _SNAPSHOT, value),
    "rules": lambda value: _unpack(Rules, _RULES, value),
    "step": _maybe(lambda value: _unpack(Step, _STEP, value)),
    "outcome": _word,
}
