"""What grappler leaves lying: scales after depthwise convolutions, and additions that are biases.

A batch normalization becomes a scale and a shift. Grappler folds the scale into the filter of a convolution, but not of
a depthwise one; and it fuses a shift with the operation before it and the activation behind it, but only where that is
a BiasAdd. With constants for all of them, both can be had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from math import prod
from typing import Any

import numpy as np

_DEPTHWISE = "DepthwiseConv2dNative"
_BIASED = ("Conv2D", _DEPTHWISE, "MatMul")
_FLOATS = (1, 2)  # float32 and float64: what the fused kernels are made for


def fold_scales(graph: Any, kept: Container[str]) -> int:
    """Fold constants that multiply the channels of a depthwise convolution into its filter; how many were.

    ``kept`` are nodes that must stay as they are.
    """
    nodes, uses = _nodes(graph)
    folded = 0
    for node in list(graph.node):
        found = _with_constant(node, ("Mul",), nodes, uses, (_DEPTHWISE,), kept)
        if found is None:
            continue
        convolution, scale = found
        constant = nodes.get(convolution.input[1].partition(":")[0])
        if constant is None or constant.op != "Const" or constant.input or uses[constant.name] != 1:
            continue
        if constant.name in kept:
            continue
        _scale(constant, scale)
        name = node.name
        node.CopyFrom(convolution)  # it takes the place of the product, whose name others know
        node.name = name
        graph.node.remove(nodes.pop(convolution.name))
        folded += 1
    return folded


def name_biases(graph: Any, kept: Container[str]) -> int:
    """Make additions of a constant to each channel BiasAdds, which can be fused; how many there were."""
    nodes, uses = _nodes(graph)
    named = 0
    for node in graph.node:
        found = _with_constant(node, ("Add", "AddV2"), nodes, uses, _BIASED, kept)
        if found is None:
            continue
        before, _ = found
        bias = next(source for source in node.input if source.partition(":")[0] != before.name)
        constant = nodes[bias.partition(":")[0]]
        shape = constant.attr["value"].tensor.tensor_shape
        if len(shape.dim) != 1:
            if uses[constant.name] != 1 or constant.name in kept:
                continue
            channels = shape.dim[-1].size
            del shape.dim[:]
            shape.dim.add(size=channels)
            constant.attr.pop("_output_shapes", None)
        node.op = "BiasAdd"
        del node.input[:]
        node.input.extend([before.name, bias])
        node.attr["data_format"].s = b"NHWC"
        named += 1
    return named


def _nodes(graph: Any) -> tuple[dict[str, Any], Counter[str]]:
    uses = Counter(source.lstrip("^").partition(":")[0] for node in graph.node for source in node.input)
    return {node.name: node for node in graph.node}, uses


def _with_constant(
    node: Any,
    operations: tuple[str, ...],
    nodes: Mapping[str, Any],
    uses: Mapping[str, int],
    before: tuple[str, ...],
    kept: Container[str],
) -> tuple[Any, np.ndarray[Any, Any]] | None:
    """Where ``node`` is one of ``operations`` on the output of one ``before``, which nobody else uses, and a constant
    for each of its channels: that node and the constant's values."""
    import tensorflow as tf

    if node.op not in operations or len(node.input) != 2 or node.attr["T"].type not in _FLOATS:
        return None
    first, second = (nodes.get(source.partition(":")[0]) for source in node.input)
    for one, other in ((first, second), (second, first)):
        if one is None or other is None or one.op not in before or other.op != "Const" or other.input:
            continue
        if uses[one.name] != 1 or one.name in kept or one.attr["data_format"].s not in (b"", b"NHWC"):
            continue
        shape = [dim.size for dim in other.attr["value"].tensor.tensor_shape.dim]
        channels = _channels(one, nodes)
        if channels > 1 and prod(shape) == channels and shape[-1:] == [channels]:
            return one, tf.make_ndarray(other.attr["value"].tensor)
    return None


def _channels(node: Any, nodes: Mapping[str, Any]) -> int:
    """How many channels a node gives; 0 where its weights are no constant."""
    weights = nodes.get(node.input[1].partition(":")[0])
    if weights is None or weights.op != "Const":
        return 0
    shape = [int(dim.size) for dim in weights.attr["value"].tensor.tensor_shape.dim]
    if node.op == _DEPTHWISE:
        return shape[2] * shape[3] if len(shape) == 4 else 0
    if node.op == "MatMul":
        return shape[0 if node.attr["transpose_b"].b else 1] if len(shape) == 2 else 0
    return shape[3] if len(shape) == 4 else 0


def _scale(constant: Any, scale: np.ndarray[Any, Any]) -> None:
    import tensorflow as tf

    filters = tf.make_ndarray(constant.attr["value"].tensor)
    scaled = filters * scale.reshape(filters.shape[2:])
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(scaled.astype(filters.dtype)))
