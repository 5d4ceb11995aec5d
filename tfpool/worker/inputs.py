"""Inputs made from a signature, where nobody has sent any: for warming up, measuring, and proofs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfpool.types import DType, TensorSpec, numpy_dtype
from tfpool.worker import parsing
from tfpool.worker.loader import Signature

Feeds = list[np.ndarray[Any, Any]]

SEED = 7
_INNER = (1, 8, 32, 128)


def find_inner(signature: Signature, by_rows: bool) -> int:
    """A size for the open inner dimensions (of all open ones where not ``by_rows``) that the model accepts, found by
    running it; 0 if there is none. It is kept in ``signature.inner``."""
    if signature.inner:
        return signature.inner
    for inner in _INNER:
        try:
            signature.call(*make(signature, 1, inner, by_rows))
        except Exception:  # anything the model's own operations may raise
            continue
        signature.inner = inner
        return inner
    return 0


def make(
    signature: Signature, rows: int, inner: int, by_rows: bool = True, seed: int = SEED, scale: float = 1.0
) -> Feeds:
    """Random feeds of ``rows`` rows, or whole tensors that know no rows; numbers lie in [0, ``scale``)."""
    random = np.random.default_rng(seed)
    inputs = signature.spec.inputs
    if signature.features and len(inputs) == 1 and inputs[0].dtype is DType.STRING and inputs[0].shape == (-1,):
        return [parsing.made_up(signature.features, rows, random)]
    return cast(signature, [_values(t, _shape(t, rows, inner, by_rows), random, scale) for t in inputs])


def tile(signature: Signature, rows: Feeds, size: int) -> Feeds:
    """``size`` rows, these again and again."""
    return cast(signature, [np.resize(array, (size, *array.shape[1:])) for array in rows])


def cast(signature: Signature, arrays: Feeds) -> Feeds:
    """The arrays as the callable takes them."""
    return [np.ascontiguousarray(a).astype(t, copy=False) for a, t in zip(arrays, signature.feed_types, strict=True)]


def _shape(tensor: TensorSpec, rows: int, inner: int, by_rows: bool) -> tuple[int, ...]:
    shape = tensor.shape or ()
    sizes = tuple(inner if d < 0 else d for d in (shape[1:] if by_rows else shape))
    return (rows, *sizes) if by_rows else sizes


def _values(
    tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator, scale: float
) -> np.ndarray[Any, Any]:
    if tensor.dtype is DType.STRING:
        out = np.empty(shape, object)
        flat = out.reshape(-1)
        flat[:] = [parsing.TEXTS[i % len(parsing.TEXTS)] for i in range(flat.size)]
        return out
    dtype = numpy_dtype(tensor.dtype)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return (scale * random.random(shape, np.float32)).astype(dtype)
