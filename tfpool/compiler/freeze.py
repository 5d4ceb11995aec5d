"""A signature of a loaded SavedModel -> one graph without variables, optimized once.

Freezing and optimizing are TensorFlow's own: ``convert_variables_to_constants_from_session_graph`` and grappler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfpool.errors import FailedPrecondition
from tfpool.worker.restore import brief

_LARGEST_GRAPH = 1 << 31  # a protobuf message cannot be larger
_VARIABLES = ("VarHandleOp", "Variable", "VariableV2", "VariableShape", "ReadVariableOp", "ResourceGather")


def freeze(session: Any, graph: Any, definition: Any, name: str) -> Any:
    """The GraphDef of one signature: its variables are constants, what it does not reach is gone.

    ``graph`` is the SavedModel's GraphDef, ``definition`` the SignatureDef. Raises FailedPrecondition where that
    cannot be done, with the reason.
    """
    from tensorflow.python.framework import convert_to_constants

    outputs = list(dict.fromkeys(info.name.partition(":")[0] for info in definition.outputs.values()))
    try:
        frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(session, graph, outputs)
    except Exception as error:  # of many kinds: what it meets in graphs that it was not made for
        raise FailedPrecondition(f"signature {name!r} cannot be frozen: {brief(error)}") from None
    if frozen.ByteSize() >= _LARGEST_GRAPH:
        raise FailedPrecondition(
            f"signature {name!r} has {frozen.ByteSize()} bytes of weights, expected less than 2 GiB"
        )
    return frozen


def optimize(frozen: Any, definition: Any, name: str, kept: Sequence[str] = ()) -> Any:
    """The frozen GraphDef as grappler leaves it; ``kept`` are further nodes that stay. Raises FailedPrecondition."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta = meta_graph_pb2.MetaGraphDef(graph_def=frozen)
    meta.signature_def[name].CopyFrom(definition)
    if kept:
        meta.collection_def["train_op"].node_list.value.extend(kept)  # what grappler takes for fetched, too
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    try:
        optimized = tf_optimizer.OptimizeGraph(config, meta, verbose=False)
    except Exception as error:  # anything that its passes may raise
        raise FailedPrecondition(f"signature {name!r} cannot be optimized: {brief(error)}") from None
    left = sorted({node.op for node in nodes(optimized)} & set(_VARIABLES))
    if left:
        raise FailedPrecondition(f"signature {name!r} cannot be frozen: it keeps variables ({', '.join(left)})")
    return optimized


def nodes(graph: Any) -> list[Any]:
    """All nodes of a GraphDef, its functions' too."""
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
