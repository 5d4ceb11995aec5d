"""Request key -> queue: which servable and signature is meant, and whether the inputs suit it. A label that is split
over versions leads to several.

All checks that do not need the tensors' bytes happen here, once a key; the answer is kept by the key's bytes until
the registry changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tfpool.broker.registry import NotLoaded, Registry, Version, signature_index, some_names
from tfpool.errors import InvalidArgument, TfpoolError
from tfpool.repository.labels import Spreader
from tfpool.scheduler.work import BatchPolicy, Input, QueueSpec
from tfpool.settings import BatchingSettings, ModelSettings
from tfpool.settings import Split as Weights
from tfpool.types import DType, SignatureSpec, TensorSpec, format_shape
from tfpool.wire.keys import RequestKey, unpack_request_key

MAX_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Resolved:
    """``fixed_rows``: the number of rows that the signature insists on, if any."""

    key: RequestKey
    spec: QueueSpec
    version: Version
    fixed_rows: int | None


@dataclass(frozen=True, slots=True)
class Split:
    """What the versions of a label make of a key, by version; ``spreader`` says how requests are shared out."""

    spreader: Spreader
    parts: dict[int, Resolved]


class Resolver:
    """Keeps what keys mean. ``closed`` collects queues that nothing leads to any more."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._epoch = -1
        self._parsed: dict[bytes, RequestKey] = {}
        self._known: dict[bytes, Resolved | Split | TfpoolError] = {}
        self._specs: dict[tuple[object, ...], QueueSpec] = {}
        self._spreaders: dict[tuple[bytes, Weights], Spreader] = {}
        self._next = 0
        self.closed: list[int] = []

    def parse(self, packed: bytes) -> RequestKey:
        """Raises InvalidArgument."""
        key = self._parsed.get(packed)
        if key is None:
            key = unpack_request_key(packed)
            if len(self._parsed) >= MAX_KEYS:
                self._parsed.clear()
            self._parsed[packed] = key
        return key

    def resolve(self, packed: bytes, key: RequestKey) -> Resolved | Split:
        """Raises NotFound, InvalidArgument, FailedPrecondition, Unavailable, or NotLoaded."""
        if self._epoch != self._registry.epoch or len(self._known) >= MAX_KEYS:
            self._known.clear()
            self._epoch = self._registry.epoch
        found = self._known.get(packed)
        if found is None:
            try:
                found = self._resolve(packed, key)
            except TfpoolError as error:
                found = error
            self._known[packed] = found
        if isinstance(found, TfpoolError):
            raise found
        return found

    def _resolve(self, packed: bytes, key: RequestKey) -> Resolved | Split:
        route = self._registry.route(key.model, key.version, key.label)
        if len(route) == 1:
            return self._meant(route[0][0], key)
        parts = {version.key.version: self._meant(version, key) for version, _ in route}
        return Split(self._spreader(packed, tuple((v.key.version, weight) for v, weight in route)), parts)

    def _spreader(self, packed: bytes, weights: Weights) -> Spreader:
        """One that goes on where it was, however often the registry changes."""
        spreader = self._spreaders.get((packed, weights))
        if spreader is None:
            if len(self._spreaders) >= MAX_KEYS:
                self._spreaders.clear()
            spreader = self._spreaders[packed, weights] = Spreader(weights)
        return spreader

    def _meant(self, version: Version, key: RequestKey) -> Resolved:
        if not version.signatures:
            raise NotLoaded(version.settings, version)
        index = signature_index(version, key.signature)
        signature = version.signatures[index]
        fixed_rows = check_inputs(f"{version.key}, signature {signature.name!r}", signature, key)
        return Resolved(key, self._spec(version, index, signature, key), version, fixed_rows)

    def shadow(self, version: Version, key: RequestKey) -> Resolved | None:
        """What another version makes of a key; None where it would refuse it."""
        try:
            return self._meant(version, key)
        except TfpoolError:
            return None

    def _spec(self, version: Version, index: int, signature: SignatureSpec, key: RequestKey) -> QueueSpec:
        kinds = tuple((tensor.dtype, tensor.shape) for tensor in key.inputs)
        identity = (version.handle, index, kinds, key.by_rows, version.signatures, version.settings)
        spec = self._specs.get(identity)
        if spec is None:
            if len(self._specs) >= MAX_KEYS:
                self.closed.extend(spec.id for spec in self._specs.values())
                self._specs.clear()
            self._next += 1
            inputs = tuple(
                Input(tensor.shape, nbytes, tensor.dtype == DType.STRING)
                for tensor, nbytes in zip(key.inputs, key.row_bytes, strict=True)
            )
            retry = not signature.mutates
            policy = batch_policy(version.settings)
            spec = QueueSpec(
                self._next, version.key, index, inputs, key.by_rows, signature.batchable and key.by_rows, retry, policy
            )
            self._specs[identity] = spec
        return spec


def batch_policy(settings: ModelSettings) -> BatchPolicy:
    batching: BatchingSettings = settings.batching
    return BatchPolicy(
        batching.max_batch_size,
        batching.max_wait_ms / 1000,
        batching.allowed_batch_sizes,
        batching.pad,
        batching.max_queue_rows,
        settings.weight,
        batching.max_queue_ms / 1000,
        batching.fair_clients,
        settings.priority,
    )


def check_inputs(what: str, signature: SignatureSpec, key: RequestKey) -> int | None:
    """The rows that the signature fixes, if it does.

    Raises InvalidArgument that names the input, what was got and what was expected.
    """
    expected = {spec.name: spec for spec in signature.inputs}
    if len(expected) == 1 and len(key.inputs) == 1 and not key.inputs[0].name:
        expected = {"": signature.inputs[0]}  # a bare array: the only input is meant
    got = {tensor.name for tensor in key.inputs}
    if got == {""} and got != set(expected):
        raise InvalidArgument(f"{what}: got one array without a name, expected inputs {some_names(expected)}")
    if got != set(expected):
        wrong = [f"unknown {some_names(got - set(expected))}"] if got - set(expected) else []
        wrong += [f"missing {some_names(set(expected) - got)}"] if set(expected) - got else []
        raise InvalidArgument(
            f"{what}: {' and '.join(wrong)}; got inputs {some_names(got)}, expected {some_names(expected)}"
        )
    fixed: int | None = None
    for tensor in key.inputs:
        spec = expected[tensor.name]
        if tensor.dtype != spec.dtype:
            raise InvalidArgument(
                f"{what}, input {spec.name!r}: got {DType(tensor.dtype).label}, expected {spec.dtype.label}"
            )
        shape = (-1, *tensor.shape) if key.by_rows else tensor.shape
        if not _suits(shape, spec):
            got_shape = format_shape(shape)
            raise InvalidArgument(
                f"{what}, input {spec.name!r}: got shape {got_shape}, expected {format_shape(spec.shape)}"
            )
        if key.by_rows and spec.shape is not None and spec.shape[0] >= 0:
            fixed = spec.shape[0]
    return fixed


def _suits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    if spec.shape is None:
        return True
    return len(shape) == len(spec.shape) and all(
        want < 0 or have in (-1, want) for have, want in zip(shape, spec.shape, strict=True)
    )
