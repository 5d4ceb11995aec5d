"""What lies beside a compiled graph: how to feed it, where its weights are, what it was measured to take. JSON on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from tfpool.errors import InvalidArgument
from tfpool.settings import Form
from tfpool.types import DType, SignatureSpec, TensorSpec

VERSION = 1
GRAPH, WEIGHTS, MANIFEST = "graph.pb", "weights.bin", "manifest.json"
ALIGNMENT = 64
Curve = tuple[tuple[int, float], ...]


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
    """What has to run once before the first request: ``operation``, which is fed the paths of ``assets`` (tensor,
    file within the model's directory)."""

    operation: str
    assets: tuple[tuple[str, str], ...] = ()


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
        fields = asdict(self)
        fields["costs"] = {form.value: asdict(cost) for form, cost in self.costs.items()}
        return json.dumps({"version": VERSION, **fields}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises InvalidArgument for anything but what :meth:`to_bytes` gave."""
        try:
            fields = json.loads(data)
            version = fields.pop("version", None)
            if version != VERSION:
                raise InvalidArgument(f"got version {version!r}, expected {VERSION}")
            return _manifest(fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidArgument(f"not a manifest: {error!r}") from None


def signature_spec(fields: dict[str, Any]) -> SignatureSpec:
    """The spec of what ``asdict`` made of one. Raises KeyError, TypeError or ValueError."""
    sides = {
        side: tuple(
            TensorSpec(t["name"], DType(t["dtype"]), None if t["shape"] is None else tuple(t["shape"]))
            for t in fields[side]
        )
        for side in ("inputs", "outputs")
    }
    return SignatureSpec(
        fields["name"],
        fields["method"],
        sides["inputs"],
        sides["outputs"],
        fields["batchable"],
        fields["mutates"],
        fields["reason"],
    )


def _manifest(fields: dict[str, Any]) -> Manifest:
    start = fields.pop("start")
    return Manifest(
        signatures=tuple(_compiled(item) for item in fields.pop("signatures")),
        weights=tuple(Weight(w["dtype"], tuple(w["shape"]), w["offset"], w["nbytes"]) for w in fields.pop("weights")),
        costs={Form(name): _cost(cost) for name, cost in fields.pop("costs").items()},
        start=None if start is None else Start(start["operation"], tuple((a, b) for a, b in start["assets"])),
        **fields,
    )


def _compiled(fields: dict[str, Any]) -> Compiled:
    return Compiled(
        signature_spec(fields["spec"]),
        tuple(fields["feeds"]),
        tuple(fields["fetches"]),
        tuple(fields["fetch_of"]),
        fields["inner"],
        tuple(Feature(f["name"], f["dtype"], f["count"]) for f in fields["features"]),
    )


def _cost(fields: dict[str, Any]) -> Cost:
    curves = tuple(tuple((rows, seconds) for rows, seconds in curve) for curve in fields["curves"])
    return Cost(fields["nbytes"], fields["peak"], fields["load_seconds"], fields["threads"], curves)
