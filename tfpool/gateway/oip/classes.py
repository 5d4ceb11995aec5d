"""The classification extension: the highest values of an output and where they are, instead of all of them. Pure."""

from __future__ import annotations

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.wire.tensors import Array


def top(array: Array, count: int, name: str) -> Array:
    """``VALUE:INDEX`` of the ``count`` highest of each row, the highest first: an object array [rows, count] of bytes,
    [count] where ``array`` is no more than a row itself (rank 0 or 1).

    Of equal values the one with the lower index goes first; what is no number goes last. Raises InvalidArgument for
    strings.
    """
    if array.dtype.kind not in "biufV":
        raise InvalidArgument(f"output {name!r}: classification needs numbers, and these are {array.dtype.name}")
    rows = array.reshape(len(array) if array.ndim > 1 else 1, -1)
    width = rows.shape[1]
    count = min(count, width)
    ranked = rows.astype(np.float64) if rows.dtype.kind in "fV" else rows
    if ranked.dtype.kind == "f":
        ranked = np.where(np.isnan(ranked), -np.inf, ranked)
    order = width - 1 - np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    values = np.take_along_axis(rows, order, axis=1)
    form = "{:f}:{}" if rows.dtype.kind in "fV" else "{:d}:{}"
    found = np.empty(order.size, object)
    found[:] = [form.format(*pair).encode() for pair in zip(values.flat, order.flat, strict=True)]
    return found.reshape(order.shape if array.ndim > 1 else (count,))
