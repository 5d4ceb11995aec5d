"""classify and regress: tf.Examples in, labels with scores or numbers out, as TensorFlow Serving does them.

Such a signature takes one string tensor ``inputs`` [n] of serialized tf.Examples. One that classifies gives ``classes``
[n, k] of strings, ``scores`` [n, k] of float32, or both; one that regresses gives ``outputs`` [n] or [n, 1] of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfpool.errors import InvalidArgument
from tfpool.types import DType, format_shape
from tfpool.wire.tensors import Array

if TYPE_CHECKING:
    from tfpool.protos import example_pb2

INPUT = "inputs"
Example = Mapping[str, Any] | bytes
Classes = list[list[tuple[str, float]]]
_DEFAULT = "serving_default"
_STRING = DType.STRING.label
_FLOAT = DType.FLOAT.label


class Target(NamedTuple):
    """What a request is for, as the user said it."""

    model: str
    version: int
    label: str
    signature: str


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """``outputs``: the dtypes of those that a signature may have, one or more of them. ``read`` makes the result."""

    name: str
    outputs: Mapping[str, str]
    read: Callable[[Mapping[str, Array], int], Any]

    def check(self, metadata: Mapping[str, Any], target: Target) -> None:
        """Raises InvalidArgument, saying what the signature is, where it is not of this kind."""
        wanted = target.signature or _DEFAULT
        found = next((s for s in metadata["signatures"] if s["name"] == wanted), None)
        if found is None:
            have = ", ".join(s["name"] for s in metadata["signatures"])
            raise InvalidArgument(f"model {target.model!r} has no signature {wanted!r}; it has {have}")
        inputs = {tensor["name"]: tensor["dtype"] for tensor in found["inputs"]}
        outputs = {tensor["name"]: tensor["dtype"] for tensor in found["outputs"]}
        if inputs != {INPUT: _STRING} or not outputs or not outputs.items() <= self.outputs.items():
            expected = " and/or ".join(f"{name}: {dtype}" for name, dtype in self.outputs.items())
            raise InvalidArgument(
                f"model {target.model!r}, signature {wanted!r} does not {self.name}: "
                f"got inputs {_listed(found['inputs'])}; outputs {_listed(found['outputs'])}; "
                f"expected input {INPUT}: {_STRING}; outputs {expected}"
            )


def encode(examples: Iterable[Example], context: Example | None = None) -> Array:
    """Serialized tf.Examples, an object array [n].

    An example is serialized already, or maps features to a value or a list of values: text or bytes, floats (ints
    among them become floats), or ints and bools. The features of ``context`` are added to every example.

    Raises InvalidArgument for no example, and for what is no example.
    """
    if isinstance(examples, Mapping | str | bytes) or not hasattr(examples, "__iter__"):
        raise InvalidArgument(f"examples: got {type(examples).__name__}, expected a list of tf.Examples")
    shared = b"" if context is None else _encoded(context, "context")
    items = [shared + _encoded(example, f"example {i}") for i, example in enumerate(examples)]
    if not items:
        raise InvalidArgument("examples: got none, expected one or more")
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _encoded(example: Any, what: str) -> bytes:
    if isinstance(example, bytes):
        return example
    if not isinstance(example, Mapping):
        got = type(example).__name__
        raise InvalidArgument(f"{what}: got {got}, expected features by name, or the bytes of a tf.Example")
    from tfpool.protos import example_pb2

    message = example_pb2.Example()
    for name, value in example.items():
        if not isinstance(name, str):
            raise InvalidArgument(f"{what}: got {type(name).__name__} as the name of a feature, expected text")
        try:
            _set_feature(message.features.feature[name], value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument(f"{what}, feature {name!r}: {error}") from None
    data: bytes = message.SerializeToString()
    return data


def _set_feature(feature: example_pb2.Feature, value: Any) -> None:
    """An empty list is a feature without a kind: the model's default is taken. Raises TypeError, ValueError."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.reshape(-1).tolist()
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        return
    if all(isinstance(item, str | bytes) for item in values):
        feature.bytes_list.value.extend(item.encode() if isinstance(item, str) else item for item in values)
    elif all(isinstance(item, int | np.integer | np.bool_) for item in values):
        feature.int64_list.value.extend(map(int, values))
    elif all(isinstance(item, int | float | np.number) for item in values):
        feature.float_list.value.extend(map(float, values))
    else:
        kinds = ", ".join(sorted({type(item).__name__ for item in values}))
        raise TypeError(f"got values of {kinds}, expected text, or numbers")


def _classes(outputs: Mapping[str, Array], count: int) -> Classes:
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for name, array in (("classes", classes), ("scores", scores)):
        if array is not None and (array.ndim != 2 or len(array) != count):
            raise InvalidArgument(f"{name}: got shape {format_shape(array.shape)}, expected [{count}, classes]")
    if classes is None:
        assert scores is not None  # the signature was checked
        return [[("", score) for score in row] for row in scores.tolist()]
    labels = [[label.decode(errors="replace") for label in row] for row in classes.tolist()]
    if scores is None:
        return [[(label, 0.0) for label in row] for row in labels]
    if classes.shape != scores.shape:
        raise InvalidArgument(f"got {classes.shape[1]} classes and {scores.shape[1]} scores, expected as many")
    return [list(zip(*rows, strict=True)) for rows in zip(labels, scores.tolist(), strict=True)]


def _values(outputs: Mapping[str, Array], count: int) -> Array:
    array = outputs["outputs"]
    if array.shape not in ((count,), (count, 1)):
        raise InvalidArgument(f"outputs: got shape {format_shape(array.shape)}, expected [{count}] or [{count}, 1]")
    return array.reshape(count)


def _listed(tensors: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{tensor['name']}: {tensor['dtype']}" for tensor in tensors) or "none"


CLASSIFY = Method("classify", {"classes": _STRING, "scores": _FLOAT}, _classes)
REGRESS = Method("regress", {"outputs": _FLOAT}, _values)
