"""Shadow traffic: a share of a model's requests also goes to another version; its answers are compared and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfpool.broker.gather import Outputs
from tfpool.broker.registry import Registry
from tfpool.broker.resolve import Resolved, Resolver
from tfpool.repository.labels import Sampler
from tfpool.scheduler.events import Submit
from tfpool.scheduler.work import Segment
from tfpool.types import DType, numpy_dtype

SHADOW = b"\0shadow"
MAX_OUTSTANDING = 1024
MAX_BYTES = 1 << 20
_PRIORITY = -(1 << 30)


@dataclass(slots=True)
class ShadowMeter:
    """``skipped`` were not copied (too large, too many under way, refused by the signature), ``failed`` had no answer
    on one of the sides, ``mismatched`` differ in kind or shape. Rows count for the argmax of outputs with a last
    dimension of at least 2."""

    copied: int = 0
    skipped: int = 0
    failed: int = 0
    compared: int = 0
    mismatched: int = 0
    max_abs_difference: float = 0.0
    argmax_rows: int = 0
    argmax_disagreements: int = 0

    def compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Two answers to one request, arrays by output name."""
        self.compared += 1
        if {name: a.shape for name, a in ours.items()} != {name: a.shape for name, a in theirs.items()}:
            self.mismatched += 1
            return
        for name, mine in ours.items():
            other = theirs[name]
            if mine.dtype != other.dtype or mine.dtype == object:
                self.mismatched += mine.dtype != other.dtype or not np.array_equal(mine, other)
            elif mine.size:
                self._numbers(mine, other)

    def _numbers(self, mine: Any, other: Any) -> None:
        wide = np.complex128 if mine.dtype.kind == "c" else np.float64
        with np.errstate(all="ignore"):
            apart = np.abs(mine.astype(wide) - other.astype(wide))
        apart = np.where((mine == other) | ((mine != mine) & (other != other)), 0.0, apart)
        apart = np.nan_to_num(apart, nan=np.inf, posinf=np.inf)
        self.max_abs_difference = max(self.max_abs_difference, float(apart.max()))
        if mine.ndim and mine.shape[-1] > 1 and mine.dtype.kind not in "cb":
            chosen, others = mine.argmax(-1), other.argmax(-1)
            self.argmax_rows += chosen.size
            self.argmax_disagreements += int((chosen != others).sum())

    def snapshot(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(slots=True)
class _Rule:
    version: int
    share: float
    sampler: Sampler
    meter: ShadowMeter = field(default_factory=ShadowMeter)


class Pair:
    """A segment and its copy: keeps the answer that comes first, and has both compared when the other is there."""

    def __init__(self, shadows: Shadows, meter: ShadowMeter, first: int, copy_first: int, count: int) -> None:
        self._shadows = shadows
        self._meter = meter
        self._first = first
        self._copy_first = copy_first
        self._left = count
        self._kept: dict[int, dict[str, Any] | None] = {}

    def __del__(self) -> None:
        self._shadows.outstanding -= self._left  # of a client that is gone, nobody says how it went

    def delivered(self, piece: Segment, begin: int, outputs: Outputs) -> None:
        """A piece has been answered; its rows begin at ``begin`` in the outputs."""
        for i in range(piece.count):
            rows = (begin + i * piece.rows, begin + (i + 1) * piece.rows)
            buffers = outputs.rows([rows]) if outputs.key.by_rows else outputs.whole()
            count = piece.rows if outputs.key.by_rows else None
            self._meet(self._offset(piece) + i, _arrays(outputs, [bytes(b) for b in buffers], count))

    def refused(self, piece: Segment) -> None:
        """A piece will not be answered."""
        for i in range(piece.count):
            self._meet(self._offset(piece) + i, None)

    def _offset(self, piece: Segment) -> int:
        return piece.first - (self._copy_first if piece.client == SHADOW else self._first)

    def _meet(self, offset: int, answer: dict[str, Any] | None) -> None:
        if offset not in self._kept:
            self._kept[offset] = answer
            return
        other = self._kept.pop(offset)
        self._left -= 1
        self._shadows.outstanding -= 1
        if answer is None or other is None:
            self._meter.failed += 1
        else:
            self._meter.compare(other, answer)


class Shadows:
    """The shadows of all models. ``outstanding`` requests wait for one of their two answers."""

    def __init__(self, registry: Registry, resolver: Resolver) -> None:
        self._registry = registry
        self._resolver = resolver
        self._rules: dict[str, _Rule] = {}
        self._next = 0
        self.outstanding = 0

    def models(self) -> set[str]:
        return set(self._rules)

    def refresh(self) -> None:
        """The settings of models have changed; a shadow that stays as it was keeps its meter."""
        wanted = {name: m.settings.shadow for name, m in self._registry.models.items() if m.settings.shadow}
        for name in list(self._rules):
            rule = self._rules[name]
            if wanted.get(name) != (rule.version, rule.share):
                del self._rules[name]
        for name, shadow in wanted.items():
            if shadow is not None and name not in self._rules:
                self._rules[name] = _Rule(*shadow, Sampler(shadow[1]))

    def meter(self, model: str) -> dict[str, Any] | None:
        """What the comparison of a model has shown, if it has a shadow."""
        rule = self._rules.get(model)
        if rule is None:
            return None
        return {"version": rule.version, "share": rule.share, **rule.meter.snapshot()}

    def double(self, found: Resolved, segment: Segment) -> list[Submit]:
        """The segment, and a copy of some of its requests for the shadow."""
        rule = self._rules.get(found.version.key.name)
        if rule is None or found.version.key.version == rule.version or not segment.count:
            return [Submit(found.spec, segment)]
        count = rule.sampler.take(segment.count)
        target = self._target(found, rule, segment, count) if count else None
        if target is None:
            rule.meter.skipped += count
            return [Submit(found.spec, segment)]
        head = segment.take(count) if count < segment.count else segment
        copy = self._copy(head, rule.meter)
        submits = [Submit(found.spec, head), Submit(target.spec, copy)]
        return submits if head is segment else [*submits, Submit(found.spec, segment)]

    def _target(self, found: Resolved, rule: _Rule, segment: Segment, count: int) -> Resolved | None:
        version = self._registry.models[found.version.key.name].versions.get(rule.version)
        nbytes = sum(len(buffer) for buffer in segment.buffers)
        too_large = segment.rows > found.spec.policy.max_rows or nbytes > MAX_BYTES
        if version is None or not version.serving() or too_large or self.outstanding + count > MAX_OUTSTANDING:
            return None
        return self._resolver.shadow(version, found.key)

    def _copy(self, head: Segment, meter: ShadowMeter) -> Segment:
        pair = Pair(self, meter, head.first, self._next, head.count)
        owned = [bytes(buffer) for buffer in head.buffers] if head.regions is not None else head.buffers
        copy = Segment(
            SHADOW,
            self._next,
            head.count,
            head.rows,
            head.deadline,
            head.arrived,
            owned,
            _PRIORITY,
            head.start,
            head.payload,
        )
        self._next += head.count
        self.outstanding += head.count
        meter.copied += head.count
        head.twin = copy.twin = pair
        return copy


def _arrays(outputs: Outputs, buffers: Sequence[bytes], rows: int | None) -> dict[str, Any]:
    """Output buffers as arrays by name; strings as arrays of bytes."""
    arrays: dict[str, Any] = {}
    left = iter(buffers)
    for tensor in outputs.key.outputs:
        shape = tensor.shape if rows is None else (rows, *tensor.shape)
        if tensor.dtype == DType.STRING:
            lengths, payload = np.frombuffer(next(left), "<u4"), next(left)
            ends = np.cumsum(lengths).tolist()
            texts = np.empty(len(ends), object)
            texts[:] = [payload[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]
            arrays[tensor.name] = texts.reshape(shape)
        else:
            arrays[tensor.name] = np.frombuffer(next(left), numpy_dtype(tensor.dtype)).reshape(shape)
    return arrays
