"""A signature of a loaded SavedModel -> one graph without variables, optimized once.

Freezing and optimizing are TensorFlow's own: ``convert_variables_to_constants_from_session_graph`` and grappler. The
former does not see through all that functions do with variables, so that grappler dissolves these before.
"""

from __future__ import annotations

from typing import Any

from tfpool.errors import FailedPrecondition
from tfpool.worker.restore import brief

_LARGEST_GRAPH = 1 << 31  # a protobuf message cannot be larger
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
    except FailedPrecondition:
        raise
    except Exception as error:  # of many kinds: what it meets in graphs that it was not made for
        raise FailedPrecondition(f"signature {name!r} cannot be frozen: {brief(error)}") from None
    return frozen


def optimize(frozen: Any, definition: Any, name: str) -> Any:
    """The frozen GraphDef as grappler leaves it. Raises FailedPrecondition."""
    try:
        optimized = _grappled(frozen, definition, name, [])
    except Exception as error:  # anything that its passes may raise
        raise FailedPrecondition(f"signature {name!r} cannot be optimized: {brief(error)}") from None
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

    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph)
    meta.signature_def[name].CopyFrom(definition)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.optimizers.extend(passes)
    return tf_optimizer.OptimizeGraph(config, meta, verbose=False)


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
