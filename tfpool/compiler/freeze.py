"""A signature of a loaded SavedModel -> one graph without variables, optimized once.

Freezing and optimizing are TensorFlow's own: ``convert_variables_to_constants_from_session_graph`` and grappler. The
former does not see through all that functions do with variables, so that grappler dissolves these before.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from tfpool.compiler import fuse
from tfpool.errors import FailedPrecondition
from tfpool.worker.restore import brief

_LARGEST_GRAPH = 1 << 31  # a protobuf message cannot be larger
_HIDDEN_BYTES = 16 << 20
_DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"  # nothing is fused where grappler does not know it
_VARIABLES = {
    *("VarHandleOp", "Variable", "VariableV2", "VariableShape", "ReadVariableOp"),
    *("ResourceGather", "ResourceGatherNd"),
}


def freeze(session: Any, graph: Any, definition: Any, name: str) -> Any:
    """The GraphDef of one signature: its variables are constants, what it does not reach is gone.

    ``graph`` is the SavedModel's GraphDef, ``definition`` the SignatureDef. Raises FailedPrecondition where that
    cannot be done, with the reason.
    """
    from tensorflow.python.framework import convert_to_constants, graph_util

    outputs = list(dict.fromkeys(info.name.partition(":")[0] for info in definition.outputs.values()))
    try:
        flat = _grappled(graph_util.extract_sub_graph(graph, outputs), definition, name, ["function"])
        nbytes = _readable(session, flat)
        if nbytes >= _LARGEST_GRAPH:
            raise FailedPrecondition(f"signature {name!r} has {nbytes} bytes of weights, expected less than 2 GiB")
        frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(session, flat, outputs)
        if frozen.ByteSize() >= _LARGEST_GRAPH:
            raise FailedPrecondition(f"signature {name!r} has a graph of more than 2 GiB")
        _mend_gathers(flat, frozen)
    except FailedPrecondition:
        raise
    except Exception as error:  # of many kinds: what it meets in graphs that it was not made for
        raise FailedPrecondition(f"signature {name!r} cannot be frozen: {brief(error)}") from None
    return frozen


def optimize(frozen: Any, definition: Any, name: str) -> Any:
    """The frozen GraphDef as grappler leaves it. Raises FailedPrecondition."""
    ends = {info.name.partition(":")[0] for infos in (definition.inputs, definition.outputs) for info in infos.values()}
    hidden = _hide(frozen, ends)
    try:
        optimized = _grappled(frozen, definition, name, [])
        if fuse.fold_scales(optimized, ends) + fuse.name_biases(optimized, ends):
            optimized = _grappled(optimized, definition, name, ["remap"])
    except Exception as error:  # anything that its passes may raise
        raise FailedPrecondition(f"signature {name!r} cannot be optimized: {brief(error)}") from None
    for node in optimized.node:
        if node.name in hidden:
            node.CopyFrom(hidden[node.name])
    _add_unused(optimized, definition)
    left = sorted({node.op for node in nodes(optimized)} & _VARIABLES)
    if left:
        raise FailedPrecondition(f"signature {name!r} cannot be frozen: it keeps variables ({', '.join(left)})")
    return optimized


def nodes(graph: Any) -> list[Any]:
    """All nodes of a GraphDef, its functions' too."""
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def _grappled(graph: Any, definition: Any, name: str, passes: list[str]) -> Any:
    """What grappler makes of a graph with these passes; with its usual ones where there are none."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer

    _add_unused(graph, definition)
    for node in graph.node:
        node.device = node.device or _DEVICE
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph)
    meta.signature_def[name].CopyFrom(definition)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.optimizers.extend(passes)
    return tf_optimizer.OptimizeGraph(config, meta, verbose=False)


def _add_unused(graph: Any, definition: Any) -> None:
    """Inputs that no output depends on are fed all the same."""
    there = {node.name for node in graph.node}
    for info in definition.inputs.values():
        node, _, port = info.name.partition(":")
        if node in there:
            continue
        if port not in ("", "0"):
            raise FailedPrecondition(f"input {info.name!r} is unused, and not the only result of its operation")
        there.add(node)
        made = graph.node.add(op="Placeholder", name=node)
        made.attr["dtype"].type = info.dtype
        made.attr["shape"].shape.CopyFrom(info.tensor_shape)


def _mend_gathers(flat: Any, frozen: Any) -> None:
    """The converter gives what was a ResourceGather an axis that is in no loop, also where the operation is in one."""
    were = {node.name for node in flat.node if node.op == "ResourceGather"}
    nodes = {node.name: node for node in frozen.node}
    for name in were & nodes.keys():
        _, indices, axis = nodes[name].input
        nodes[axis].input.append("^" + indices.partition(":")[0])


def _hide(graph: Any, fetched: Container[str]) -> dict[str, Any]:
    """Put placeholders where the largest constants are, and give these: grappler copies a graph dozens of times, and
    gains nothing from them."""
    from tensorflow.core.framework import node_def_pb2

    hidden = {}
    for node in graph.node:
        if node.op == "Const" and not node.input and node.name not in fetched and node.ByteSize() >= _HIDDEN_BYTES:
            constant = hidden[node.name] = node_def_pb2.NodeDef()
            constant.CopyFrom(node)
            node.Clear()
            node.op, node.name = "Placeholder", constant.name
            node.attr["dtype"].type = constant.attr["dtype"].type
            node.attr["shape"].shape.CopyFrom(constant.attr["value"].tensor.tensor_shape)
    return hidden


def _readable(session: Any, graph: Any) -> int:
    """Have the session's graph read every variable, as it is going to be asked to; the bytes of all of them."""
    import tensorflow as tf
    from tensorflow.python.framework import dtypes, tensor_shape

    nbytes = 0
    with session.graph.as_default():
        known = {operation.name for operation in session.graph.get_operations()}
        for node in graph.node:
            if node.op not in ("VarHandleOp", "Variable", "VariableV2"):
                continue
            dtype = dtypes.as_dtype(node.attr["dtype"].type)
            nbytes += (tensor_shape.TensorShape(node.attr["shape"].shape).num_elements() or 0) * dtype.size
            read = f"{node.name}/Read/ReadVariableOp"
            if node.op == "VarHandleOp" and node.name in known and read not in known:
                tf.raw_ops.ReadVariableOp(
                    resource=session.graph.get_tensor_by_name(f"{node.name}:0"), dtype=dtype, name=read
                )
    return nbytes
