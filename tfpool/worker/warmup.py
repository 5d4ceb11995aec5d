"""Warm a model up: on the requests that lie beside it, and on inputs made from its signatures; the latter prove
whether rows may share a batch.

A signature batches only where every input and output leaves its first dimension open, and where three different
rows, run together, give what each of them gives alone. A model that mixes rows (a mean over the batch, say), draws
random numbers or cannot be run on made-up inputs is served one request at a time, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument, from_code
from tfpool.repository import warmup_file
from tfpool.repository.warmup_file import Sample
from tfpool.types import DType, SignatureSpec, TensorSpec, numpy_dtype
from tfpool.worker import loader, parsing
from tfpool.worker.loader import Loaded, Signature, with_batching

DEFAULT_SIGNATURE = "serving_default"
PROOF_ROWS = 3
_OPEN_DIMS = (1, 8, 32, 128)


def warm(loaded: Loaded, sizes: Iterable[int]) -> None:
    """Run every signature that changes no state: singly, as a batch, and once in each of ``sizes``."""
    for signature in loaded.signatures:
        with_batching(signature, prove(signature))
        if signature.spec.batchable:
            rows = made_up(signature) if sizes else []
            for size in sizes:
                signature.call(*tile(signature, rows, size))


def replay(loaded: Loaded, directory: str) -> bool:
    """Run each request of the model's warm-up file once; whether there is one.

    Raises the error of the first that fails, with the file and the record's number.
    """
    path = warmup_file.path_in(directory)
    if not os.path.exists(path):
        return False
    by_name = {signature.spec.name: signature for signature in loaded.signatures}
    for number, samples in enumerate(warmup_file.read(path), 1):
        for sample in samples:
            name = sample.signature or DEFAULT_SIGNATURE
            try:
                if name not in by_name:
                    raise InvalidArgument(f"got signature {name!r}, expected one of {', '.join(by_name)}")
                signature = by_name[name]
                signature.call(*_feeds(signature.spec, sample))
            except Exception as error:  # anything the model's own operations may raise
                failure = loader.explain(error, f"signature {name!r}")
                raise from_code(failure.code, f"{path}, record {number}: {failure.message}") from None
    return True


def _feeds(spec: SignatureSpec, sample: Sample) -> list[np.ndarray[Any, Any]]:
    if sample.examples is not None:
        if len(spec.inputs) != 1 or spec.inputs[0].dtype is not DType.STRING:
            got = "; ".join(map(str, spec.inputs))
            raise InvalidArgument(
                f"signature {spec.name!r} takes {got or 'no input'}; for tf.Examples it must take one string tensor"
            )
        return [sample.examples]
    if set(sample.inputs) != {tensor.name for tensor in spec.inputs}:
        wanted = ", ".join(tensor.name for tensor in spec.inputs)
        raise InvalidArgument(
            f"signature {spec.name!r}: got inputs {', '.join(sorted(sample.inputs)) or 'none'}, expected {wanted}"
        )
    for tensor in spec.inputs:
        got_dtype = sample.inputs[tensor.name].dtype
        if got_dtype != numpy_dtype(tensor.dtype):
            raise InvalidArgument(f"signature {spec.name!r}: got {got_dtype} for input {tensor}")
    return [sample.inputs[tensor.name] for tensor in spec.inputs]


def prove(signature: Signature) -> str:
    """Why the rows of a signature may not share a batch; empty where they may."""
    spec = signature.spec
    if spec.mutates:
        return "it changes variables"
    if not spec.inputs:
        return "it has no input"
    for what, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            if tensor.shape is not None and (not tensor.shape or tensor.shape[0] != -1):
                _run_once(signature)
                return f"{what} {tensor} has no open first dimension"
            if tensor.shape is None and what == "input":
                return f"input {tensor} leaves its rank open"
    return _compare(signature)


def _run_once(signature: Signature) -> None:
    """Pay the first run's cost now. That made-up inputs may not suit the model is no failure."""
    for dim in _OPEN_DIMS:
        try:
            signature.call(*_cast(signature, _made_up(signature, 1, dim, rows_only=False)))
            return
        except Exception:  # anything the model's own operations may raise
            continue


def _compare(signature: Signature) -> str:
    dim = _working_dim(signature)
    if dim == 0:
        return "it could not be run on made-up inputs, so its rows could not be proven independent"
    rows = _made_up(signature, PROOF_ROWS, dim)
    try:
        together = signature.call(*_cast(signature, rows))
        for i in range(PROOF_ROWS):
            alone = signature.call(*_cast(signature, [array[i : i + 1] for array in rows]))
            for output, at in zip(signature.spec.outputs, signature.fetch_of, strict=True):
                many, one = together[at], alone[at]
                if many.shape[:1] != (PROOF_ROWS,) or one.shape[:1] != (1,):
                    return f"output {output.name!r} does not keep the rows: {PROOF_ROWS} gave shape {many.shape}"
                if not _same(many[i : i + 1], one):
                    return f"output {output.name!r} of one row depends on the others (or is random)"
    except Exception as error:
        return f"made-up inputs of {PROOF_ROWS} rows failed: {' '.join(str(error).split())[:200]}"
    return ""


def _working_dim(signature: Signature) -> int:
    """A size for the open inner dimensions that the model accepts, 0 if none was found."""
    for dim in _OPEN_DIMS:
        try:
            signature.call(*_cast(signature, _made_up(signature, 1, dim)))
            return dim
        except Exception:  # anything the model's own operations may raise
            continue
    return 0


def _made_up(signature: Signature, rows: int, dim: int, rows_only: bool = True) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(7)
    inputs = signature.spec.inputs
    if signature.features and len(inputs) == 1 and inputs[0].dtype is DType.STRING and inputs[0].shape == (-1,):
        return [parsing.made_up(signature.features, rows, random)]
    return [_values(tensor, _shape(tensor, rows, dim, rows_only), random) for tensor in inputs]


def _shape(tensor: TensorSpec, rows: int, dim: int, rows_only: bool) -> tuple[int, ...]:
    shape = tensor.shape or ()
    inner = tuple(dim if d < 0 else d for d in (shape[1:] if rows_only else shape))
    return (rows, *inner) if rows_only else inner


def _values(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    if tensor.dtype is DType.STRING:
        out = np.empty(shape, object)
        flat = out.reshape(-1)
        flat[:] = [parsing.TEXTS[i % len(parsing.TEXTS)] for i in range(flat.size)]
        return out
    dtype = numpy_dtype(tensor.dtype)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.random(shape, np.float32).astype(dtype)


def made_up(signature: Signature) -> list[np.ndarray[Any, Any]]:
    """A few rows for a signature that has been proven to batch; it is run to see which inputs it accepts."""
    return _made_up(signature, PROOF_ROWS, _working_dim(signature))


def tile(signature: Signature, rows: list[np.ndarray[Any, Any]], size: int) -> list[np.ndarray[Any, Any]]:
    """``size`` rows, these again and again."""
    return _cast(signature, [np.resize(array, (size, *array.shape[1:])) for array in rows])


def _cast(signature: Signature, arrays: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    return [np.ascontiguousarray(a).astype(t, copy=False) for a, t in zip(arrays, signature.feed_types, strict=True)]


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "OSUb" or a.dtype.kind in "iu":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.complex128), b.astype(np.complex128)
    scale = float(np.abs(b).max()) if b.size and np.isfinite(b).all() else 1.0
    return bool(np.allclose(a, b, rtol=2e-3, atol=2e-3 * max(scale, 1e-6), equal_nan=True))
