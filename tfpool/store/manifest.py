"""What lies beside a compiled graph: how to feed it, where its weights are, what it was measured to take.

On disk it is JSON that begins with the checksum of the rest. What is read is believed only when all of it can be true.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from tfpool.config_toml import show
from tfpool.errors import InvalidArgument
from tfpool.settings import MAX_SIZE, Form
from tfpool.types import ITEM_BYTES, DType, SignatureSpec, TensorSpec

T = TypeVar("T")
VERSION = 1
GRAPH, WEIGHTS, MANIFEST = "graph.pb", "weights.bin", "manifest.json"
ALIGNMENT = 64
Curve = tuple[tuple[int, float], ...]
_HEAD, _AFTER_HEAD = b'{"sha256":"', len(b'{"sha256":"') + 64 + len(b'",')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = {int(dtype): dtype for dtype in DType}
_ITEM_BYTES = {int(dtype): count for dtype, count in ITEM_BYTES.items() if dtype is not DType.STRING}


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant of ``dtype`` (TensorFlow's number) at ``offset`` of the weights' file."""

    dtype: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature that the graph parses tf.Examples for: ``count`` values."""

    name: str
    dtype: int
    count: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled signature. ``feeds`` and ``fetches`` are tensors of the graph; ``fetch_of[i]`` is the fetch that is
    output ``i``; ``inner`` is a size that its open inner dimensions accept (0: none was found)."""

    spec: SignatureSpec
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    fetch_of: tuple[int, ...]
    inner: int = 0
    features: tuple[Feature, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one form takes: private bytes that stay, bytes at the height of the load, seconds to load. ``curves`` are,
    by signature, (rows, seconds) of runs on ``threads`` threads."""

    nbytes: int
    peak: int
    load_seconds: float
    threads: int = 1
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """What has to run once before the first request."""

    operation: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One compiled model, or why it is served from its SavedModel (``refusal``; then there is no graph).

    ``content`` is the hash of its files, ``source`` where they were. ``digests`` are SHA-256 of the files beside this
    one. ``costs`` have plain, mapped and inlined; ``gain`` is how much more rows a second the inlined form runs than
    the mapped one, ``difference`` the outputs' greatest difference from the original's, relative to their scale.
    """

    content: str
    source: str
    tensorflow: str
    cpu: str
    compiler: int
    created: float
    refusal: str = ""
    signatures: tuple[Compiled, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    weights: tuple[Weight, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    costs: dict[Form, Cost] = field(default_factory=dict)
    gain: float = 1.0
    difference: float = 0.0
    start: Start | None = None

    @property
    def shared(self) -> int:
        """Bytes of the weights' file."""
        return max((weight.offset + weight.nbytes for weight in self.weights), default=0)

    def to_bytes(self) -> bytes:
        told = asdict(self)
        told["costs"] = {form.value: asdict(cost) for form, cost in self.costs.items()}
        body = json.dumps({"version": VERSION, **told}, separators=(",", ":")).encode()
        return _HEAD + hashlib.sha256(body).hexdigest().encode() + b'",' + body[1:]

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises InvalidArgument for anything but what :meth:`to_bytes` gave."""
        body = b"{" + data[_AFTER_HEAD:]
        if data[:_AFTER_HEAD] != _HEAD + hashlib.sha256(body).hexdigest().encode() + b'",':
            raise InvalidArgument(f"a corrupt manifest: got {show(data[:_AFTER_HEAD])}, expected its own SHA-256")
        try:
            told = json.loads(body, parse_constant=_no_number)
            version = told.pop("version", None)
            if version != VERSION:
                raise InvalidArgument(f"a manifest of version {show(version)}, expected {VERSION}")
            return _manifest(told)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"not a manifest: {show(error)}") from None


def _manifest(told: dict[str, Any]) -> Manifest:
    known = {each.name for each in fields(Manifest)}
    if told.keys() != known:
        _fail("keys", sorted(told.keys() ^ known), "none too many and none missing")
    made = Manifest(
        content=_sha256(told["content"]),
        source=_text(told["source"]),
        tensorflow=_text(told["tensorflow"]),
        cpu=_text(told["cpu"]),
        compiler=_whole(told["compiler"]),
        created=_number(told["created"]),
        refusal=_text(told["refusal"]),
        signatures=_each(told["signatures"], _compiled),
        skipped=_map(told["skipped"], _text),
        weights=_each(told["weights"], _weight),
        digests=_map(told["digests"], _sha256),
        costs={Form(name): cost for name, cost in _map(told["costs"], _cost).items()},
        gain=_number(told["gain"]),
        difference=_number(told["difference"]),
        start=None if told["start"] is None else _start(told["start"]),
    )
    _check_whole(made)
    return made


def _check_whole(made: Manifest) -> None:
    """Raises InvalidArgument where parts contradict each other."""
    expected = set() if made.refusal else {GRAPH, WEIGHTS} if made.weights else {GRAPH}
    if not expected <= made.digests.keys() <= (expected and {GRAPH, WEIGHTS}):
        _fail("digests", sorted(made.digests), sorted(expected))
    if bool(made.signatures) == bool(made.refusal) or (made.weights and made.refusal):
        _fail("signatures", len(made.signatures), "none, nor weights, with a refusal, and else at least one")


def _compiled(told: dict[str, Any]) -> Compiled:
    made = Compiled(
        _spec(told["spec"]),
        _each(told["feeds"], _text),
        _each(told["fetches"], _text),
        _each(told["fetch_of"], _whole),
        _whole(told["inner"]),
        _each(told["features"], lambda f: Feature(_text(f["name"]), _dtype(f["dtype"]), _whole(f["count"]))),
    )
    if len(made.fetch_of) != len(made.spec.outputs) or any(number >= len(made.fetches) for number in made.fetch_of):
        _fail("fetch_of", made.fetch_of, f"{len(made.spec.outputs)} numbers below {len(made.fetches)}")
    return made


def _spec(told: dict[str, Any]) -> SignatureSpec:
    return SignatureSpec(
        _text(told["name"]),
        _text(told["method"]),
        _each(told["inputs"], _tensor),
        _each(told["outputs"], _tensor),
        _flag(told["batchable"]),
        _flag(told["mutates"]),
        _text(told["reason"]),
    )


def _tensor(told: dict[str, Any]) -> TensorSpec:
    shape = None if told["shape"] is None else _each(told["shape"], _open_size)
    return TensorSpec(_text(told["name"]), _dtype(told["dtype"]), shape)


def _weight(told: dict[str, Any]) -> Weight:
    made = Weight(told["dtype"], tuple(told["shape"]), told["offset"], told["nbytes"])
    for size in (*made.shape, made.offset, made.nbytes):
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            _fail("weight", told, "whole numbers")
    if made.offset % ALIGNMENT:
        _fail("offset", made.offset, f"a multiple of {ALIGNMENT}")
    if made.nbytes != math.prod(made.shape) * _ITEM_BYTES[made.dtype] or type(made.dtype) is not int:
        _fail("nbytes", made.nbytes, f"those of shape {show(list(made.shape))} and dtype {show(made.dtype)}")
    return made


def _cost(told: dict[str, Any]) -> Cost:
    return Cost(
        _whole(told["nbytes"]),
        _whole(told["peak"]),
        _number(told["load_seconds"]),
        _whole(told["threads"], 1),
        _each(told["curves"], lambda curve: _each(curve, _point)),
    )


def _point(told: list[Any]) -> tuple[int, float]:
    rows, seconds = told
    return _whole(rows, 1), _number(seconds)


def _start(told: dict[str, Any]) -> Start:
    return Start(_text(told["operation"]))


def _fail(what: str, got: object, expected: object) -> NoReturn:
    raise InvalidArgument(f"not a manifest: {what}: got {show(got)}, expected {expected}")


def _no_number(text: str) -> NoReturn:
    _fail("number", text, "a finite one")


def _each(told: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    return tuple(map(read, told)) if type(told) is list else _fail("value", told, "a list")


def _map(told: Any, read: Callable[[Any], T]) -> dict[str, T]:
    return {name: read(value) for name, value in told.items()}


def _text(told: Any) -> str:
    return told if type(told) is str else _fail("value", told, "a text")


def _sha256(told: Any) -> str:
    return _text(told) if _SHA256.fullmatch(told) else _fail("digest", told, "a SHA-256")


def _whole(told: Any, least: int = 0) -> int:
    return told if type(told) is int and least <= told <= MAX_SIZE else _fail("value", told, "a whole number")


def _open_size(told: Any) -> int:
    return _whole(told, -1)


def _number(told: Any) -> float:
    good = type(told) in (int, float) and math.isfinite(told) and told >= 0
    return float(told) if good else _fail("value", told, "a number from 0")


def _flag(told: Any) -> bool:
    return told if type(told) is bool else _fail("value", told, "true or false")


def _dtype(told: Any) -> DType:
    return _DTYPES[told] if type(told) is int else _fail("dtype", told, "a number")
