"""Lookup tables: what they hold once the original has started becomes what fills them in the compiled model.

However a table got its entries - from constants, a file, the checkpoint - is then over and done with. The compiled
signatures find the table by its name, as those of the original do.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import numpy as np

from tfpool.compiler.freeze import nodes
from tfpool.compiler.reach import reached
from tfpool.errors import FailedPrecondition
from tfpool.store.manifest import Start
from tfpool.worker.restore import brief

START = "start"
KINDS = frozenset(
    f"{name}{version}"
    for name in ("HashTable", "MutableHashTable", "MutableHashTableOfTensors")
    for version in ("", "V2")
)
_ENDURING = ("TensorArray", "Stack", "Anonymous", "Temporary")  # made anew by each run
_BY_CHANCE = ("Random", "Truncated", "Parameterized", "Multinomial", "Stateful", "Timestamp", "PyFunc", "EagerPyFunc")
_CALLS = ("StatefulPartitionedCall",)
_WORDS = 16

Name = tuple[bytes, ...]


class Table(NamedTuple):
    """A table: its node in the original graph, and the keys and values it holds (None: it was never filled)."""

    node: Any
    held: tuple[np.ndarray[Any, Any], ...] | None


def name_them(graph: Any) -> None:
    """Give each table of a GraphDef the name that its resource goes by, where it has none of its own: copies of the
    node then mean one table."""
    for node in graph.node:
        if node.op in KINDS and not node.attr["shared_name"].s:
            node.attr["shared_name"].s = node.name.encode()


def check_state(graph: Any, known: Container[Name], signature: str) -> None:
    """Raises FailedPrecondition where a frozen signature keeps state other than the tables of ``known``: nothing would
    carry it over."""
    for node in nodes(graph):
        if node.op in KINDS:
            if name_of(node) not in known:
                raise FailedPrecondition(f"signature {signature!r} makes a table within a function ({node.name})")
        elif _keeps_state(node.op):
            raise FailedPrecondition(f"signature {signature!r} uses state that cannot be carried over ({node.op})")


def check_start(graph: Any, operation: str | None) -> None:
    """Raises FailedPrecondition where what runs before the first request is different each time: frozen, it would be
    what it was once."""
    for node in reached(graph, [operation]) if operation else ():
        if node.op.startswith(_BY_CHANCE) and node.op not in _CALLS:
            raise FailedPrecondition(f"what has to run before its first request depends on chance or time ({node.op})")


def contents(session: Any, graph: Any, outputs: Iterable[str]) -> list[Table]:
    """The tables that ``outputs``, tensors of the original ``graph``, lead to, with what they hold in the session.

    Raises FailedPrecondition where a table cannot be read.
    """
    import tensorflow as tf
    from tensorflow.python.ops import gen_lookup_ops

    at_top = {node.name for node in graph.node}
    found = []
    for node in reached(graph, outputs):
        if node.op not in KINDS or node.name not in at_top:
            continue
        export = gen_lookup_ops.lookup_table_export_v2 if _newer(node) else gen_lookup_ops.lookup_table_export
        types = node.attr["key_dtype"].type, node.attr["value_dtype"].type
        entries = None
        try:
            with session.graph.as_default():
                entries = tuple(session.run(export(session.graph.get_tensor_by_name(f"{node.name}:0"), *types)))
        except tf.errors.FailedPreconditionError:
            pass  # it has not been filled: the compiled model says the same, when asked
        except Exception as error:  # a table of a kind that cannot tell
            raise FailedPrecondition(f"the table {node.name!r} cannot be read: {brief(error)}") from None
        found.append(Table(node, entries))
    return found


def filling(tables: Iterable[Table]) -> tuple[list[Any], Start | None]:
    """The nodes that fill tables, and what to run; None where there is no table."""
    from tensorflow.core.framework import node_def_pb2

    made: list[Any] = []
    fill = node_def_pb2.NodeDef(op="NoOp", name=START)
    for number, (table, held) in enumerate(tables):
        if held is None:
            continue
        prefix = f"{START}/{number}"
        node = node_def_pb2.NodeDef(op=table.op, name=f"{prefix}/table")
        for key, value in table.attr.items():
            if not key.startswith("_"):
                node.attr[key].CopyFrom(value)
        entries = []
        for side, value in zip(("keys", "values"), held, strict=True):
            packed, entry = _packed(f"{prefix}/{side}", value)
            made += [packed, entry]
            entries.append(entry)
        put = node_def_pb2.NodeDef(
            op="LookupTableImportV2" if _newer(table) else "LookupTableImport",
            name=f"{prefix}/put",
            input=[node.name, *(entry.name for entry in entries)],
        )
        put.attr["Tin"].type, put.attr["Tout"].type = (entry.attr["out_type"].type for entry in entries)
        made += [node, put]
        fill.input.append(f"^{put.name}")
    return ([*made, fill], Start(START)) if fill.input else ([], None)


def words(tables: Iterable[Table]) -> list[bytes]:
    """Some of the strings that tables know."""
    found: list[bytes] = []
    for table in tables:
        if table.held is not None and table.held[0].dtype == object:
            keys = table.held[0].reshape(-1)
            found += keys[:: max(1, keys.size // _WORDS)][:_WORDS].tolist()
    return found


def _keeps_state(operation: str) -> bool:
    """Whether an operation gives out a resource, or a variable as such, that outlives a run."""
    from tensorflow.core.framework import types_pb2
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(operation)
    if definition is None or operation.startswith(_ENDURING):
        return False
    gives = [given for given in definition.output_arg if given.type == types_pb2.DT_RESOURCE or given.is_ref]
    takes = [taken for taken in definition.input_arg if taken.type == types_pb2.DT_RESOURCE or taken.is_ref]
    return bool(gives) and not takes


def name_of(node: Any) -> Name:
    """Container and name that the resource of a table goes by."""
    return tuple(node.attr[key].s if key in node.attr else b"" for key in ("container", "shared_name"))


def _newer(node: Any) -> bool:
    return bool(node.op.endswith("V2"))


def _packed(name: str, value: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """A constant of one string, and what unpacks it: of many strings the graph would keep several copies each."""
    import tensorflow as tf
    from tensorflow.core.framework import node_def_pb2

    tensor = tf.make_tensor_proto(value)
    packed = node_def_pb2.NodeDef(op="Const", name=f"{name}/packed")
    packed.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(tensor.SerializeToString()))
    packed.attr["dtype"].type = packed.attr["value"].tensor.dtype
    made = node_def_pb2.NodeDef(op="ParseTensor", name=name, input=[packed.name])
    made.attr["out_type"].type = tensor.dtype
    return packed, made
