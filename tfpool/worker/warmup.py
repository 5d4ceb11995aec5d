"""Warm a model up: on the requests that lie beside it, and on inputs made from its signatures; the latter prove
whether rows may share a batch.

A signature batches only where every input and output leaves its first dimension open, and where three different
rows, run together, give what each of them gives alone. A model that mixes rows (a mean over the batch, say), draws
random numbers or cannot be run on made-up inputs is served one request at a time, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument, TfpoolError, from_code
from tfpool.repository import warmup_file
from tfpool.repository.warmup_file import Sample
from tfpool.types import DType, SignatureSpec, numpy_dtype
from tfpool.worker import loader
from tfpool.worker.inputs import Feeds, find_inner, make, tile
from tfpool.worker.loader import Loaded, Signature, with_batching

DEFAULT_SIGNATURE = "serving_default"
PROOF_ROWS = 3


def warm(loaded: Loaded, sizes: Iterable[int]) -> None:
    """Run every signature that changes no state: singly, as a batch, and once in each of ``sizes``."""
    for signature in loaded.signatures:
        with_batching(signature, prove(signature))
        run_sizes(signature, sizes)


def run_sizes(signature: Signature, sizes: Iterable[int]) -> None:
    """Run a signature that batches once in each of ``sizes``."""
    if signature.spec.batchable and sizes:
        rows = make(signature, PROOF_ROWS, find_inner(signature, by_rows=True))
        for size in sizes:
            signature.call(*tile(signature, rows, size))


def replay(loaded: Loaded, directory: str) -> bool:
    """Run each request of the model's warm-up file once; whether there is one.

    Raises the error of the first that fails, with the file and the record's number.
    """
    if not os.path.exists(warmup_file.path_in(directory)):
        return False
    by_name = {signature.spec.name: signature for signature in loaded.signatures}
    for name, what, feeds in requests({name: signature.spec for name, signature in by_name.items()}, directory):
        try:
            by_name[name].call(*feeds)
        except Exception as error:  # anything the model's own operations may raise
            raise _failure(error, name, what) from None
    return True


def requests(specs: Mapping[str, SignatureSpec], directory: str) -> Iterator[tuple[str, str, Feeds]]:
    """The requests of a model's warm-up file, if it has one: signature, file and record for people, and what to feed.

    Raises the error of the first that does not suit its signature.
    """
    path = warmup_file.path_in(directory)
    for number, samples in enumerate(warmup_file.read(path) if os.path.exists(path) else (), 1):
        for sample in samples:
            name, what = sample.signature or DEFAULT_SIGNATURE, f"{path}, record {number}"
            try:
                if name not in specs:
                    raise InvalidArgument(f"got signature {name!r}, expected one of {', '.join(specs)}")
                feeds = _feeds(specs[name], sample)
            except TfpoolError as error:
                raise _failure(error, name, what) from None
            yield name, what, feeds


def _failure(error: Exception, signature: str, what: str) -> TfpoolError:
    failure = loader.explain(error, f"signature {signature!r}")
    return from_code(failure.code, f"{what}: {failure.message}")


def _feeds(spec: SignatureSpec, sample: Sample) -> Feeds:
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
                find_inner(signature, by_rows=False)  # it pays the first run's cost now
                return f"{what} {tensor} has no open first dimension"
            if tensor.shape is None and what == "input":
                return f"input {tensor} leaves its rank open"
    return _compare(signature)


def _compare(signature: Signature) -> str:
    inner = find_inner(signature, by_rows=True)
    if inner == 0:
        return "it could not be run on made-up inputs, so its rows could not be proven independent"
    rows = make(signature, PROOF_ROWS, inner)
    try:
        together = signature.call(*rows)
        for i in range(PROOF_ROWS):
            alone = signature.call(*(np.ascontiguousarray(array[i : i + 1]) for array in rows))
            for output, at in zip(signature.spec.outputs, signature.fetch_of, strict=True):
                many, one = together[at], alone[at]
                if many.shape[:1] != (PROOF_ROWS,) or one.shape[:1] != (1,):
                    return f"output {output.name!r} does not keep the rows: {PROOF_ROWS} gave shape {many.shape}"
                if not _same(many[i : i + 1], one):
                    return f"output {output.name!r} of one row depends on the others (or is random)"
    except Exception as error:
        return f"made-up inputs of {PROOF_ROWS} rows failed: {' '.join(str(error).split())[:200]}"
    return ""


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "OSUb" or a.dtype.kind in "iu":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.complex128), b.astype(np.complex128)
    scale = float(np.abs(b).max()) if b.size and np.isfinite(b).all() else 1.0
    return bool(np.allclose(a, b, rtol=2e-3, atol=2e-3 * max(scale, 1e-6), equal_nan=True))
