"""Optimized graphs of signatures -> one graph, and one file with what is large in them.

A large constant becomes a variable that is read, ``w/N``: loading has it alias the file. Kernels cannot tell the two
apart, only passes over the graph can; and of these nothing runs at load but oneDNN's, which wants to know small ones
(permutations, paddings) and filters that it may keep in an order of its own: those are what the inlined form is for. So
the size alone decides. What is small stays: reading a variable costs a microsecond, and small are all shapes and axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from math import prod
from typing import Any, BinaryIO

import numpy as np

from tfpool.compiler.reach import reached
from tfpool.store.manifest import ALIGNMENT, Weight
from tfpool.types import numpy_dtype

LEAST_BYTES = 4096
_MEANT = ("_XlaMustCompile", "_noinline", "_lower_using_switch_merge", "_parallel_iterations")
WEIGHT, HANDLE, SOURCE, ALIAS = "w/{}", "w/{}/handle", "w/{}/source", "w/{}/alias"
_DTYPES = frozenset((1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23))  # not strings, nor those without a kernel
_CONTROL = frozenset(f"{ref}{name}" for ref in ("", "Ref") for name in ("Switch", "Merge", "Enter", "NextIteration"))


class Weigher:
    """Collects graphs. ``file`` takes the weights as they come, each once however many graphs have it; ``graph`` is
    the GraphDef, and ``weights`` tells what lies where in the file."""

    def __init__(self, file: BinaryIO) -> None:
        from tensorflow.core.framework import graph_pb2

        self.graph = graph_pb2.GraphDef()
        self.weights: list[Weight] = []
        self._file = file
        self._known: dict[tuple[bytes, int, tuple[int, ...]], int] = {}

    def add(self, graph: Any, prefix: str, kept: Container[str]) -> None:
        """Take a graph in, every name of it below ``prefix``; nodes of ``kept`` stay what they are."""
        import tensorflow as tf

        if not self.graph.HasField("versions"):
            self.graph.versions.CopyFrom(graph.versions)
        renamed = {
            function.signature.name: f"{prefix}_{function.signature.name}" for function in graph.library.function
        }
        names: dict[str, str] = {}
        others = []
        for node in graph.node:
            moves = _large(node) and node.name not in kept and not (node.input and _inside(graph, node))
            value = tf.make_ndarray(node.attr["value"].tensor) if moves else None
            if value is None:
                names[node.name] = f"{prefix}/{node.name}"
                others.append(node)
            else:
                weight = WEIGHT.format(self._put(value, node.attr["dtype"].type))
                if node.input:
                    names[node.name], names[weight] = f"{prefix}/{node.name}", weight
                    others.append(_waiting(node, weight))
                else:
                    names[node.name] = weight
        for node in others:
            made = self.graph.node.add()
            made.CopyFrom(node)
            made.name, made.device = names[node.name], ""
            del made.input[:]
            made.input.extend(_renamed(source, names) for source in node.input)
            _call_by(made, renamed)
            _strip(made)
        for function in graph.library.function:
            made = self.graph.library.function.add()
            made.CopyFrom(function)
            made.signature.name = renamed[function.signature.name]
            for inner in made.node_def:
                inner.device = ""
                _call_by(inner, renamed)
                _strip(inner)

    def finish(self) -> None:
        """Add what reads the weights."""
        for number, weight in enumerate(self.weights):
            for node in reading(number, weight):
                self.graph.node.add().CopyFrom(node)

    def _put(self, value: np.ndarray[Any, Any], dtype: int) -> int:
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        key = hashlib.sha256(data).digest(), dtype, value.shape
        number = self._known.get(key)
        if number is None:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.write(b"\0" * (offset - self._file.tell()))
            self._file.write(data)
            number = self._known[key] = len(self.weights)
            self.weights.append(Weight(dtype, tuple(value.shape), offset, len(data)))
        return number


def reading(number: int, weight: Weight) -> Iterator[Any]:
    """The nodes of a weight: a variable, what reads it, and what has it alias the array that is fed."""
    from tensorflow.core.framework import node_def_pb2

    name, handle, source, alias = (text.format(number) for text in (WEIGHT, HANDLE, SOURCE, ALIAS))
    made = [
        node_def_pb2.NodeDef(op="VarHandleOp", name=handle),
        node_def_pb2.NodeDef(op="ReadVariableOp", name=name, input=[handle]),
        node_def_pb2.NodeDef(op="Placeholder", name=source),
        node_def_pb2.NodeDef(op="AssignVariableOp", name=alias, input=[handle, source]),
    ]
    for node in made:
        node.attr["dtype"].type = weight.dtype
        if node.op in ("VarHandleOp", "Placeholder"):
            for size in weight.shape:
                node.attr["shape"].shape.dim.add(size=size)
            node.attr["shape"].shape.unknown_rank = False
    made[0].attr["shared_name"].s = handle.encode()
    made[0].attr["container"].s = b""
    return iter(made)


def _strip(node: Any) -> None:
    """Drop what only passes over the graph, and readers of its errors, would look at: every replica would keep it."""
    node.ClearField("experimental_debug_info")
    for attribute in [name for name in node.attr if name.startswith("_") and name not in _MEANT]:
        del node.attr[attribute]


def _large(node: Any) -> bool:
    if node.op != "Const" or node.attr["dtype"].type not in _DTYPES:
        return False
    tensor = node.attr["value"].tensor
    count = prod(dim.size for dim in tensor.tensor_shape.dim)
    return bool(count * numpy_dtype(tensor.dtype).itemsize >= LEAST_BYTES)


def _inside(graph: Any, node: Any) -> bool:
    """Whether a constant belongs to a branch or a loop: by what it waits for."""
    return any(source.op in _CONTROL for source in reached(graph, [node.name]))


def _waiting(node: Any, weight: str) -> Any:
    """What takes a constant's place and gives the weight, once what the constant waited for is done."""
    from tensorflow.core.framework import node_def_pb2

    made = node_def_pb2.NodeDef(op="Identity", name=node.name, input=[weight, *node.input])
    made.attr["T"].type = node.attr["dtype"].type
    return made


def _renamed(source: str, names: dict[str, str]) -> str:
    mark = "^" if source.startswith("^") else ""
    name, colon, port = source.lstrip("^").partition(":")
    return f"{mark}{names[name]}{colon}{port}"


def _call_by(node: Any, renamed: dict[str, str]) -> None:
    """Have a node call functions by their new names."""
    node.op = renamed.get(node.op, node.op)
    for value in node.attr.values():
        if value.HasField("func"):
            value.func.name = renamed.get(value.func.name, value.func.name)
        elif value.HasField("list"):
            for function in value.list.func:
                function.name = renamed.get(function.name, function.name)
