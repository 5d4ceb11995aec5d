"""What a node of a GraphDef leads to: nodes, and operations through the functions that they call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tfpool.worker.loader import called_by


def reached(graph: Any, names: Iterable[str]) -> list[Any]:
    """The nodes that have to run for those of ``names``, themselves too, and those of the functions they call."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    found: dict[str, Any] = {}
    stack = list(names)
    while stack:
        name = stack.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in found:
            found[name] = nodes[name]
            stack.extend(nodes[name].input)
    every = list(found.values())
    called: set[str] = set()
    for node in every:  # it grows as functions are met
        for function in called_by(node):
            if function in functions and function not in called:
                called.add(function)
                every.extend(functions[function])
    return every
