"""What a pool remembers over a restart: what was changed at run time, and what models were measured to take. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

from tfpool.config_toml import number, show, text, whole
from tfpool.errors import InvalidArgument
from tfpool.settings import MAX_SIZE, check_model_name, check_shadow, check_split

T = TypeVar("T")

_FOOTPRINTS_KEPT = 10_000
_MAX_SECONDS = 1e9
_nbytes = whole(0, MAX_SIZE)
_seconds = number(0, _MAX_SECONDS)
_version = whole(1, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one load took: bytes that stayed, bytes at its height, seconds. ``shared`` are those of a mapped file."""

    nbytes: int
    peak: int
    load_seconds: float
    shared: int = 0


@dataclass(slots=True)
class Memo:
    """Changes that were made at run time, by model, and footprints by fingerprint, the oldest first.

    ``labels`` are texts such as ``3:90,4:10``, ``shadows`` such as ``4:10``, or empty. ``models`` are tables as they
    would stand in the configuration. ``removed`` and ``unloaded`` (model and version) are not brought back at a start.
    """

    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    shadows: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    unloaded: list[tuple[str, int]] = field(default_factory=list)
    footprints: dict[str, Footprint] = field(default_factory=dict)

    def measured(self, fingerprint: str, footprint: Footprint) -> None:
        """Remember a load as the newest; the oldest beyond 10,000 are forgotten."""
        self.footprints.pop(fingerprint, None)
        self.footprints[fingerprint] = footprint
        while len(self.footprints) > _FOOTPRINTS_KEPT:
            del self.footprints[next(iter(self.footprints))]

    def copy(self) -> Memo:
        """A memo that later changes to this one do not reach; the tables of ``models`` are shared."""
        return Memo(
            {model: dict(labels) for model, labels in self.labels.items()},
            dict(self.shadows),
            dict(self.models),
            list(self.removed),
            list(self.unloaded),
            dict(self.footprints),
        )

    def to_fields(self) -> dict[str, Any]:
        """What JSON can hold, by field."""
        return {
            "labels": self.labels,
            "shadows": self.shadows,
            "models": self.models,
            "removed": self.removed,
            "unloaded": [list(pair) for pair in self.unloaded],
            "footprints": {key: _fields(footprint) for key, footprint in self.footprints.items()},
        }

    @classmethod
    def from_fields(cls, fields: object) -> Memo:
        """The memo of :meth:`to_fields`; what is missing is empty. Raises InvalidArgument for anything else."""
        known: dict[str, Any] = _table(text)(fields)
        memo = cls(
            labels=_read(known, "labels", _table(check_model_name, _table(text, _split)), {}),
            shadows=_read(known, "shadows", _table(check_model_name, _shadow), {}),
            models=_read(known, "models", _table(check_model_name, _table(text)), {}),
            removed=_read(known, "removed", _list(check_model_name), []),
            unloaded=_read(known, "unloaded", _list(_pair), []),
            footprints=_read(known, "footprints", _table(text, _footprint), {}),
        )
        if known:
            raise InvalidArgument(f"got {show(next(iter(known)))}, expected none but {', '.join(memo.to_fields())}")
        surplus = len(memo.footprints) - _FOOTPRINTS_KEPT
        for key in list(islice(memo.footprints, max(0, surplus))):
            del memo.footprints[key]
        return memo


def _read(fields: dict[str, Any], name: str, check: Callable[[Any], T], default: T) -> T:
    """Takes ``name`` out of ``fields``."""
    if name not in fields:
        return default
    try:
        return check(fields.pop(name))
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from None


def _same(value: Any) -> Any:
    return value


def _table(key: Callable[[Any], str], check: Callable[[Any], T] = _same) -> Callable[[Any], dict[str, T]]:
    def read(value: Any) -> dict[str, T]:
        if not isinstance(value, dict):
            raise InvalidArgument(f"got {show(value)}, expected a table")
        return {key(name): check(item) for name, item in value.items()}

    return read


def _list(check: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    def read(value: Any) -> list[T]:
        if not isinstance(value, list):
            raise InvalidArgument(f"got {show(value)}, expected a list")
        return [check(item) for item in value]

    return read


def _split(value: Any) -> str:
    check_split(value)
    return str(value)


def _shadow(value: Any) -> str:
    if value != "":  # it was ended
        check_shadow(value)
    return str(value)


def _pair(value: Any) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise InvalidArgument(f"got {show(value)}, expected a model and a version")
    return check_model_name(value[0]), _version(value[1])


def _fields(footprint: Footprint) -> dict[str, Any]:
    return asdict(footprint)


def _footprint(value: Any) -> Footprint:
    fields: dict[str, Any] = _table(text)(value)
    if set(fields) | {"shared"} != {"nbytes", "peak", "load_seconds", "shared"}:
        raise InvalidArgument(f"got {show(value)}, expected nbytes, peak and load_seconds")
    nbytes, peak, shared = (_nbytes(fields.get(name, 0)) for name in ("nbytes", "peak", "shared"))
    return Footprint(nbytes, peak, _seconds(fields["load_seconds"]), shared)
