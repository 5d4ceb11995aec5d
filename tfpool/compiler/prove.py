"""Whether a compiled model gives what the original gives: on its warm-up requests, and on random inputs of several
sizes.

Numbers may differ by a tolerance that depends on their type, relative to the largest number of the original's output;
all else must be equal. Where the original refuses an input, the compiled model must, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfpool.errors import FailedPrecondition
from tfpool.types import DType, numpy_dtype
from tfpool.worker import inputs, warmup
from tfpool.worker.inputs import Feeds
from tfpool.worker.loader import Loaded, Signature

TOLERANCES = {
    **{"float64": 1e-9, "complex128": 1e-9, "float32": 1e-4, "complex64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2},
    **{"float8_e5m2": 0.5, "float8_e4m3fn": 0.25},
}
BATCHES = ((1, 1.0), (3, 255.0), (8, 1.0), (1, 255.0), (3, 1.0), (8, 255.0))  # rows, and how large the numbers are
_SECONDS = 3.0  # that the original may take to answer those of a signature
_FEWEST = 2
SCALES = (1.0, 255.0)
_MOST_REQUESTS = 32


class Probes:
    """What every signature of the original is asked, and what it answered; ``path`` has the warm-up requests, and
    ``words`` are strings that its tables know.

    Raises FailedPrecondition where there is nothing to ask a signature, or where it answers the same differently.
    """

    def __init__(self, original: Loaded, path: str, words: Sequence[bytes] = ()) -> None:
        self._asked: list[list[tuple[Feeds, Any]]] = []
        recorded = _recorded(original, path)
        for signature in original.signatures:
            asked = [(feeds, _answer(signature, feeds)) for feeds in recorded[signature.spec.name]]
            asked += _within(signature, _random(signature))
            asked += [(f, _answer(signature, f)) for feeds, _ in asked[-1:] for f in _spoken(signature, feeds, words)]
            if all(isinstance(answer, Exception) for _, answer in asked):
                raise FailedPrecondition(
                    f"signature {signature.spec.name!r} could not be run on made-up inputs, and there is no warm-up "
                    "request for it: nothing would prove that it gives the same when it is compiled"
                )
            feeds, answer = next(pair for pair in asked if not isinstance(pair[1], Exception))
            if _differ(signature, answer, _answer(signature, feeds))[1]:
                raise FailedPrecondition(f"signature {signature.spec.name!r} answers the same input differently")
            self._asked.append(asked)

    def compare(self, compiled: Loaded) -> float:
        """The outputs' greatest difference, relative to their scale. Raises FailedPrecondition where it is too much."""
        greatest = 0.0
        for signature, asked in zip(compiled.signatures, self._asked, strict=True):
            for feeds, answer in asked:
                difference, why = _differ(signature, answer, _answer(signature, feeds))
                if why:
                    raise FailedPrecondition(f"signature {signature.spec.name!r} gives something else compiled: {why}")
                greatest = max(greatest, difference)
        return greatest


def _recorded(original: Loaded, path: str) -> dict[str, list[Feeds]]:
    found: dict[str, list[Feeds]] = {signature.spec.name: [] for signature in original.signatures}
    for name, _, feeds in warmup.requests({s.spec.name: s.spec for s in original.signatures}, path):
        if len(found[name]) < _MOST_REQUESTS:
            found[name].append(feeds)
    return found


def _random(signature: Signature) -> Iterator[Feeds]:
    spec = signature.spec
    if not spec.inputs:
        yield []
    elif spec.batchable:
        inner = inputs.find_inner(signature, by_rows=True)
        for seed, (size, scale) in enumerate(BATCHES):
            yield inputs.make(signature, size, inner, seed=seed, scale=scale)
    elif all(tensor.shape is not None for tensor in spec.inputs):
        by_rows = all(tensor.shape and tensor.shape[0] == -1 for tensor in spec.inputs)
        inner = inputs.find_inner(signature, by_rows)
        for seed, scale in enumerate(SCALES if inner else ()):
            yield inputs.make(signature, 1, inner, by_rows, seed, scale)


def _within(signature: Signature, asking: Iterator[Feeds]) -> list[tuple[Feeds, Any]]:
    """What is asked, with the answers: as much as there is time for, and no less than a few."""
    asked: list[tuple[Feeds, Any]] = []
    until = time.monotonic() + _SECONDS
    for feeds in asking:
        if len(asked) >= _FEWEST and time.monotonic() > until:
            break
        asked.append((feeds, _answer(signature, feeds)))
    return asked


def _spoken(signature: Signature, feeds: Feeds, words: Sequence[bytes]) -> Iterator[Feeds]:
    """The feeds with words that the model knows for its strings; so are those of tf.Examples."""
    for word in words if any(array.dtype == object for array in feeds) else ():
        if signature.features:
            yield [_examples(signature, word, array.shape) if array.dtype == object else array for array in feeds]
        else:
            yield [np.full(array.shape, word, object) if array.dtype == object else array for array in feeds]


def _examples(signature: Signature, word: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    from tfpool.protos import example_pb2

    example = example_pb2.Example()
    for feature in signature.features:
        values = example.features.feature[feature.name]
        if feature.dtype is DType.STRING:
            values.bytes_list.value.extend([word] * feature.count)
        elif feature.dtype is DType.INT64:
            values.int64_list.value.extend([1] * feature.count)
        else:
            values.float_list.value.extend([1.0] * feature.count)
    return np.full(shape, example.SerializeToString(), object)


def _answer(signature: Signature, feeds: Feeds) -> Any:
    """The outputs, or the error."""
    try:
        results = signature.call(*feeds)
    except Exception as error:  # anything the model's own operations may raise
        return error
    return [np.array(results[at]) for at in signature.fetch_of]


def _differ(signature: Signature, expected: Any, got: Any) -> tuple[float, str]:
    """By how much, and why that is too much (empty: it is not)."""
    if isinstance(expected, Exception) or isinstance(got, Exception):
        if isinstance(expected, Exception) and isinstance(got, Exception):
            return 0.0, ""
        failed = got if isinstance(got, Exception) else expected
        which = "it" if failed is got else "only the original"
        return 0.0, f"{which} fails: {' '.join(str(failed).split())[:300]}"
    greatest = 0.0
    for output, a, b in zip(signature.spec.outputs, expected, got, strict=True):
        difference, why = compare(a, b, TOLERANCES.get(numpy_dtype(output.dtype).name, 0.0))
        if why:
            return difference, f"output {output.name!r}: {why}"
        greatest = max(greatest, difference)
    return greatest, ""


def compare(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any], tolerance: float) -> tuple[float, str]:
    """The greatest difference, relative to the largest of ``expected``, and why it is too much (empty: it is not)."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return 0.0, f"got {got.dtype} {got.shape}, expected {expected.dtype} {expected.shape}"
    if not tolerance:
        return 0.0, "" if np.array_equal(expected, got) else "it is not the same, and must be exactly"
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return 0.0, "other numbers are infinite, or none"
    if not finite.any():
        return 0.0, ""
    scale = float(np.abs(a[finite]).max())
    difference = float(np.abs(a[finite] - b[finite]).max()) / max(scale, float(np.finfo(np.float32).tiny))
    return (
        difference,
        "" if difference <= tolerance else f"it differs by {difference:.1e} of its scale, expected {tolerance:.0e}",
    )
