"""Plain Python values take the dtypes that the signature wants; arrays are left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.types import DType, numpy_dtype


def cast(inputs: Any, rows: bool, metadata: Callable[[], dict[str, Any]], signature: str) -> Any:
    """``inputs`` with lists and numbers made into arrays of the signature's dtypes; ``metadata`` is only asked for
    them where there are any.

    Raises InvalidArgument for values that do not fit the dtype.
    """
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if any(not isinstance(name, str) for name in named):
        raise InvalidArgument(f"inputs: got {str(list(named))[:80]}, expected a mapping of names to arrays")
    if all_arrays(inputs):
        return inputs
    dtypes = _dtypes(metadata(), signature)
    return {name: _cast(name, value, dtypes) for name, value in named.items()}


def all_arrays(inputs: Any) -> bool:
    """Whether every value knows its dtype already."""
    values = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return all(hasattr(value, "dtype") for value in values)


def _cast(name: str, value: Any, dtypes: dict[str, str]) -> Any:
    if hasattr(value, "dtype"):
        return value
    wanted = dtypes.get(name) or (next(iter(dtypes.values())) if not name and len(dtypes) == 1 else None)
    if wanted is None or wanted == DType.STRING.label:
        return value
    dtype = next(numpy_dtype(d) for d in DType if d.label == wanted)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"input {name!r} is not an array: {error}") from None
    if (
        array.dtype.kind in "OSU"
        or (array.dtype.kind in "fc" and dtype.kind in "iub")
        or array.dtype.kind == "c" != dtype.kind
    ):
        raise InvalidArgument(f"input {name!r}: got values of {array.dtype}, expected {wanted}")
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(made, array):
        raise InvalidArgument(f"input {name!r}: got values out of the range of {wanted}")
    return made


def _dtypes(metadata: dict[str, Any], signature: str) -> dict[str, str]:
    signatures = metadata["signatures"]
    wanted = signature or "serving_default"
    found = next((s for s in signatures if s["name"] == wanted), signatures[0] if len(signatures) == 1 else None)
    return {tensor["name"]: tensor["dtype"] for tensor in found["inputs"]} if found else {}
