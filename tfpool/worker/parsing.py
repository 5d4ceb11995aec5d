"""The tf.Examples that a graph parses: which features it wants, and made-up examples that have them.

Made-up text is no tf.Example; without these no model that takes them could prove that its rows are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tfpool.types import DType

TEXTS = (b"warm", b"up", b"tfpool")
_OPERATIONS = ("ParseExampleV2", "ParseExample")
_FIRST_KEYS = 2  # among the inputs, after the examples and their names
_SEVERAL = 2


@dataclass(frozen=True, slots=True)
class Feature:
    """``count`` values of FLOAT, INT64 or STRING."""

    name: str
    dtype: DType
    count: int


def features(graph: Any) -> tuple[Feature, ...]:
    """All features of all operations of a GraphDef, its functions too, that parse tf.Examples."""
    found: dict[str, Feature] = {}
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        parsing = [node for node in nodes if node.op in _OPERATIONS]
        if parsing:
            constants = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}
            for node in parsing:
                for feature in _of(node, constants):
                    found.setdefault(feature.name, feature)
    return tuple(found.values())


def made_up(wanted: Iterable[Feature], rows: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Serialized tf.Examples [rows], each with values of its own."""
    from tfpool.protos import example_pb2

    out = np.empty(rows, object)
    for row in range(rows):
        example = example_pb2.Example()
        for feature in wanted:
            values = example.features.feature[feature.name]
            if feature.dtype is DType.STRING:
                values.bytes_list.value.extend(TEXTS[i] for i in random.integers(0, len(TEXTS), feature.count))
            elif feature.dtype is DType.INT64:
                values.int64_list.value.extend(random.integers(0, 2, feature.count).tolist())
            else:
                values.float_list.value.extend(random.random(feature.count).tolist())
        out[row] = example.SerializeToString()
    return out


def _of(node: Any, constants: Mapping[str, Any]) -> Iterator[Feature]:
    """Keys come as constants: one input for all of a kind (V2), or an input each."""
    dense = [prod(max(dim.size, 1) for dim in shape.dim) for shape in node.attr["dense_shapes"].list.shape]
    kinds: list[tuple[list[int], list[int]]] = [
        (list(node.attr["sparse_types"].list.type), []),
        (list(node.attr["Tdense"].list.type), dense),
        (list(node.attr["ragged_value_types"].list.type), []),
    ]
    at = _FIRST_KEYS
    for types, counts in kinds:
        width = 1 if node.op == "ParseExampleV2" else len(types)
        names = [name for source in node.input[at : at + width] for name in _texts(source, constants)]
        at += width
        for i, (name, dtype) in enumerate(zip(names, types, strict=False)):
            yield Feature(name, DType(dtype), counts[i] if i < len(counts) else _SEVERAL)


def _texts(source: str, constants: Mapping[str, Any]) -> list[str]:
    from tfpool.wire.tensor_proto import to_array

    constant = constants.get(source.partition(":")[0])
    if constant is None:
        return []
    return [key.decode(errors="replace") for key in to_array(constant).reshape(-1).tolist()]
