"""The Open Inference Protocol over HTTP, with its binary tensor extension: a JSON header, then tensors as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod

import numpy as np

from bench.peers.peer import Array
from bench.post import Post


def infer(address: str, model: str, taken: str, rows: Array) -> Post:
    """Ask for all outputs in binary; the model's one input is ``taken``, float32."""
    tensor = {
        "name": taken,
        "shape": list(rows.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return Post(address, f"/v2/models/{model}/infer", header + rows.tobytes(), headers)


def output(content: bytes, shape: Sequence[int]) -> Array:
    """The one output, float32 of ``shape``. Raises ValueError for anything else."""
    nbytes = 4 * prod(shape)
    header = json.loads(content[:-nbytes])
    try:
        (told,) = header["outputs"]
        got = told["datatype"], told["shape"], told["parameters"]["binary_data_size"]
    except (KeyError, TypeError):
        raise ValueError(f"got {header}, expected one output in binary") from None
    if got != (expected := ("FP32", list(shape), nbytes)):
        raise ValueError(f"got {got}, expected {expected}")
    return np.frombuffer(content[-nbytes:], np.float32).reshape(shape)
