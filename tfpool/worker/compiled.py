"""An entry of the store -> a session in milliseconds: no optimizer runs, and mapped weights are not even read.

A fed array that is 64-byte aligned and may be written to is taken without a copy, and a variable keeps the buffer that
it is assigned: so variables come to alias the pages of a file, which all processes that map it share. The mapping is
private: whatever wrote to it would write to pages of its own.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.settings import Form
from tfpool.store.manifest import Compiled, Weight
from tfpool.store.shelf import Entry, Shelf
from tfpool.types import DType, numpy_dtype
from tfpool.worker.loader import Loaded, Signature
from tfpool.worker.parsing import Feature

_MADV_POPULATE_READ = 22
_NO_OPTIMIZER = -1


def open_entry(shelf: Shelf, entry: Entry, form: Form, config: Any) -> Loaded:
    """Load a compiled model in MAPPED or INLINED form.

    Raises a TfpoolError where the entry is corrupt, gone, or cannot be loaded.
    """
    import tensorflow as tf

    session = None
    try:
        manifest = entry.manifest
        with shelf.open(entry) as files:
            graph = _read(files.graph)
            weights = _map(files.weights, manifest.shared) if files.weights is not None and manifest.weights else None
        if form is Form.INLINED and weights is not None:
            graph = _inlined(graph, manifest.weights, weights)
        session = tf.compat.v1.Session(graph=_imported(graph), config=_quick(config))
        del graph
        if form is Form.MAPPED and weights is not None:
            _alias(session, manifest.weights, weights)
        if manifest.start is not None:
            _callable(session, (), (), [manifest.start.operation])()
        signatures = [_signature(session, compiled) for compiled in manifest.signatures]
        return Loaded(session, signatures, dict(manifest.skipped))
    except BaseException as error:
        if session is not None:
            session.close()
        if isinstance(error, TfpoolError) or not isinstance(error, Exception):
            raise
        raise FailedPrecondition(f"{entry.path}: cannot be loaded: {' '.join(str(error).split())[:500]}") from error


def _read(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def _imported(data: bytes) -> Any:
    """A graph of a serialized GraphDef.

    ``tf.import_graph_def`` makes a Python object of every node, which takes longer than everything else together.
    """
    import tensorflow as tf
    from tensorflow.python.client import pywrap_tf_session as c_api
    from tensorflow.python.framework import c_api_util

    graph = tf.Graph()
    options = c_api_util.ScopedTFImportGraphDefOptions()
    buffer = c_api.TF_NewBufferFromString(data)
    try:
        with graph._c_graph.get() as made:
            results = c_api.TF_GraphImportGraphDefWithResults(made, buffer, options.options)
            c_api_util.ScopedTFImportGraphDefResults(results)  # frees them
    finally:
        c_api.TF_DeleteBuffer(buffer)
    return graph


def _map(fd: int, nbytes: int) -> mmap.mmap:
    """The weights' file in memory. Raises OSError, FailedPrecondition where it is too short."""
    size = os.fstat(fd).st_size
    if size < nbytes:
        raise FailedPrecondition(f"the weights are truncated: got {size} bytes, expected {nbytes}")
    mapped = mmap.mmap(fd, nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    with suppress(OSError, ValueError):
        mapped.madvise(_MADV_POPULATE_READ)
    return mapped


def _array(weights: mmap.mmap, weight: Weight) -> np.ndarray[Any, Any]:
    dtype = numpy_dtype(weight.dtype)
    count = weight.nbytes // dtype.itemsize
    return np.frombuffer(weights, dtype, count, weight.offset).reshape(weight.shape)


def _inlined(data: bytes, weights: Iterable[Weight], mapped: mmap.mmap) -> bytes:
    """The graph with constants in place of the variables that are read."""
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef.FromString(data)
    inlined = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    inlined.node.extend(node for node in graph.node if not node.name.startswith("w/"))
    for number, weight in enumerate(weights):
        node = inlined.node.add(op="Const", name=f"w/{number}")
        node.attr["dtype"].type = weight.dtype
        tensor = node.attr["value"].tensor
        tensor.dtype = weight.dtype
        for size in weight.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = mapped[weight.offset : weight.offset + weight.nbytes]
    made: bytes = inlined.SerializeToString()
    return made


def _quick(config: Any) -> Any:
    """No optimizer, and no copies of the graph that only one which grows, or is looked at, would need: only what a
    callable runs is placed, and not kept for others to read. That saves a quarter of what a mapped model takes."""
    from tensorflow.core.protobuf import config_pb2

    made = config_pb2.ConfigProto()
    made.CopyFrom(config)
    made.graph_options.rewrite_options.disable_meta_optimizer = True
    made.graph_options.optimizer_options.opt_level = _NO_OPTIMIZER
    made.graph_options.place_pruned_graph = True
    made.experimental.optimize_for_static_graph = True
    made.experimental.disable_output_partition_graphs = True
    return made


def _alias(session: Any, weights: tuple[Weight, ...], mapped: mmap.mmap) -> None:
    count = len(weights)
    assign = _callable(session, [f"w/{n}/source:0" for n in range(count)], (), [f"w/{n}/alias" for n in range(count)])
    assign(*(_array(mapped, weight) for weight in weights))


def _signature(session: Any, compiled: Compiled) -> Signature:
    from tensorflow.python.framework import dtypes

    types = tuple(dtypes.as_dtype(int(item.dtype)).as_numpy_dtype for item in compiled.spec.inputs)
    features = tuple(Feature(f.name, DType(f.dtype), f.count) for f in compiled.features)
    call = _callable(session, compiled.feeds, compiled.fetches, ())
    return Signature(compiled.spec, call, types, compiled.fetch_of, features, compiled.inner)


def _callable(session: Any, feeds: Iterable[str], fetches: Iterable[str], targets: Iterable[str]) -> Any:
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches, target=targets)
    options.run_options.inter_op_thread_pool = -1
    return session._make_callable_from_options(options)
