"""A SavedModel's directory -> its graph in a session, with the variables restored and the initializers run.

TensorFlow's own loader parses the file twice and runs these on threads of its own. Here all of it happens on the thread
that loads, whose low priority leaves the CPU to what is served.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound

_INIT_SIGNATURE = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")


def read_meta_graph(path: str, tags: Sequence[str]) -> Any:
    """The MetaGraphDef of exactly these tags, from saved_model.pb or saved_model.pbtxt in the directory ``path``.

    Raises NotFound, FailedPrecondition or InvalidArgument, with the file's path, where there is none that can be read.
    """
    if not os.path.isdir(path):
        raise NotFound(f"{path}: no such directory")
    file = next((f for end in ("pb", "pbtxt") if os.path.isfile(f := os.path.join(path, f"saved_model.{end}"))), None)
    if file is None:
        raise NotFound(f"{path}: no saved_model.pb in it; found {', '.join(sorted(os.listdir(path))[:8]) or 'nothing'}")
    saved = _parsed(file)
    found = next((m for m in saved.meta_graphs if set(m.meta_info_def.tags) == set(tags)), None)
    if found is None:
        have = "; ".join(", ".join(m.meta_info_def.tags) or "none" for m in saved.meta_graphs) or "no graph at all"
        raise InvalidArgument(f"{file}: got graphs tagged {have}, expected {', '.join(tags)}")
    return found


def fill(session: Any, meta: Any, path: str) -> None:
    """Import the graph, restore its variables and run its initializers.

    Raises NotFound where the variables are missing, and what TensorFlow raises.
    """
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    stripped = meta.meta_info_def.stripped_op_list if meta.meta_info_def.HasField("stripped_op_list") else None
    with session.graph.as_default():
        tf.import_graph_def(meta.graph_def, name="", producer_op_list=stripped)
    saver = meta.saver_def
    if saver.restore_op_name:
        prefix = os.path.join(path, "variables", "variables")
        if not os.path.isfile(prefix + ".index"):
            raise NotFound(f"{path}: its variables are missing: no file variables/variables.index")
        _run(session, saver.restore_op_name, {saver.filename_tensor_name: prefix}, f"{prefix}: cannot be restored")
    operation = initializer(meta)
    if operation:
        assets = loader_impl.get_asset_tensors(path, meta)
        _run(session, operation, assets, f"{path}: its initializers failed")


def brief(error: Exception) -> str:
    """What TensorFlow says, without the graph's node names and stack that follow in its messages."""
    text = str(getattr(error, "message", "") or error)
    for end in ("\n\t [[", "\n\nOriginal stack", "\nDetected at node"):
        text = text.partition(end)[0]
    return " ".join(text.split())[:1500]


def _parsed(file: str) -> Any:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise FailedPrecondition(f"{file}: cannot be read: {error.strerror}") from None
    saved = saved_model_pb2.SavedModel()
    try:
        if file.endswith(".pbtxt"):
            text_format.Parse(data, saved)
        else:
            saved.ParseFromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError):
        raise InvalidArgument(f"{file}: got {len(data)} bytes that are no SavedModel: truncated or corrupt") from None
    return saved


def initializer(meta: Any) -> str | None:
    """The operation that has to run before the first request; None where there is none."""
    if _INIT_SIGNATURE in meta.signature_def:
        name: str = meta.signature_def[_INIT_SIGNATURE].outputs[_INIT_SIGNATURE].name
        return name.partition(":")[0]
    for collection in _INIT_COLLECTIONS:
        nodes = meta.collection_def[collection].node_list.value if collection in meta.collection_def else ()
        if nodes:
            return str(nodes[0]).partition(":")[0]
    return None


def _run(session: Any, operation: str, feeds: Mapping[str, str | bytes], what: str) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(feed=list(feeds), target=[operation])
    options.run_options.inter_op_thread_pool = -1
    values = [np.array(os.fsencode(value), object) for value in feeds.values()]
    try:
        session._make_callable_from_options(options)(*values)
    except tf.errors.OpError as error:
        raise FailedPrecondition(f"{what}: {brief(error)}") from None
