"""SavedModel -> a session with one cached callable a signature.

A session loads every SavedModel, also those that ``tf.saved_model.load`` cannot. A callable made with
``inter_op_thread_pool = -1`` runs in the thread that calls it: no hand-over to a pool, no copy of aligned feeds.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError, from_code
from tfpool.repository.describe import signature_spec
from tfpool.types import SignatureSpec
from tfpool.worker import restore
from tfpool.worker.parsing import Feature, features

TAGS = ("serve",)
_MUTATING = (
    "Assign",
    "ResourceApply",
    "ResourceScatter",
    "ResourceSparseApply",
    "ScatterAdd",
    "ScatterDiv",
    "ScatterMax",
    "ScatterMin",
    "ScatterMul",
    "ScatterSub",
    "ScatterUpdate",
    "ScatterNdUpdate",
    "ScatterNdAdd",
    "LookupTableInsert",
    "LookupTableRemove",
    "CountUpTo",
    "StatefulRandom",
    "StatefulUniform",
    "StatefulStandardNormal",
    "RngSkip",
    "RngReadAndSkip",
    "QueueEnqueue",
    "QueueDequeue",
    "StackPush",
    "Accumulator",
    "MapStage",
    "WriteFile",
    "Save",
)


@dataclass(slots=True)
class Signature:
    """A callable signature; ``fetch_of[i]`` is the callable's result that is output ``i``.

    ``features`` are those that its graph parses tf.Examples for; ``inner`` is a size that its open inner dimensions
    are known to accept, or 0.
    """

    spec: SignatureSpec
    call: Any
    feed_types: tuple[Any, ...]
    fetch_of: tuple[int, ...]
    features: tuple[Feature, ...] = ()
    inner: int = 0


@dataclass(slots=True)
class Loaded:
    """A loaded SavedModel. ``skipped`` tells, by signature, why it cannot be served."""

    session: Any
    signatures: list[Signature]
    skipped: dict[str, str]

    def close(self) -> None:
        """Give the session's memory back, as far as the allocator can."""
        self.signatures.clear()
        self.session.close()
        self.session = None
        gc.collect()
        let_go()


def let_go() -> None:
    """Feed TensorFlow a number: only then does it let go of the arrays, and mapped files, that it was fed before."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        fed = tf.compat.v1.placeholder(tf.int32, ())
        session.run(tf.identity(fed), {fed: 0})


def session_config(threads: int, gpu_memory: int | None) -> Any:
    """One worker's session: ``threads`` within an operation, operations in the caller's thread."""
    from tensorflow.core.protobuf import config_pb2

    config = config_pb2.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    config.allow_soft_placement = True
    config.gpu_options.allow_growth = True
    if gpu_memory is not None:
        limits = config.gpu_options.experimental.virtual_devices.add()
        limits.memory_limit_mb.append(gpu_memory / (1 << 20))
    return config


def start_runtime(config: Any) -> None:
    """Have TensorFlow start its threads and devices now, so that no load pays for them or is charged with them."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        session.run(tf.constant(0))


def load(path: str, config: Any, stateful: Iterable[str] = (), tags: Sequence[str] = TAGS) -> Loaded:
    """Load ``path`` (a directory with saved_model.pb).

    Raises a TfpoolError that names the directory, and the operation or signature, where it cannot be loaded.
    """
    import tensorflow as tf

    session = None
    try:
        meta = restore.read_meta_graph(path, tags)
        session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        restore.fill(session, meta, path)
        return _signatures(session, meta, frozenset(stateful), path)
    except BaseException as error:
        if session is not None:
            session.close()
        if not isinstance(error, Exception):
            raise
        if session is not None and not os.path.isdir(path):
            raise NotFound(f"{path}: it was removed while it was loading") from error
        raise explain(error, path) from error


def explain(error: Exception, what: str) -> TfpoolError:
    """A TensorFlow exception as one of ours, with where it happened."""
    if isinstance(error, TfpoolError):
        return error
    import tensorflow as tf

    text = restore.brief(error)
    if isinstance(error, tf.errors.OpError):
        operation = f" (operation {error.op.name}, a {error.op.type})" if error.op is not None else ""
        return from_code(error.error_code, f"{what}{operation}: {text}")
    if isinstance(error, MemoryError):
        return from_code(8, f"{what}: out of memory: {text}")
    if isinstance(error, (ValueError, TypeError)):
        return InvalidArgument(f"{what}: {text}")
    return FailedPrecondition(f"{what}: {type(error).__name__}: {text}")


def _signatures(session: Any, meta: Any, stateful: frozenset[str], path: str) -> Loaded:
    mutating, parsed = _Mutations(meta.graph_def), features(meta.graph_def)
    found: list[Signature] = []
    skipped: dict[str, str] = {}
    for name in sorted(meta.signature_def):
        if name.startswith("__"):
            continue
        try:
            found.append(_signature(session, name, meta.signature_def[name], mutating, name in stateful, parsed))
        except TfpoolError as error:
            skipped[name] = error.message
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "it has no signature"
        raise FailedPrecondition(f"{path}: nothing to serve: {reasons}")
    unknown = stateful - {s.spec.name for s in found}
    if unknown:
        names = ", ".join(s.spec.name for s in found)
        raise InvalidArgument(
            f"{path}: stateful names no signature: got {', '.join(sorted(unknown))}, expected {names}"
        )
    return Loaded(session, found, skipped)


def _signature(
    session: Any, name: str, definition: Any, mutating: _Mutations, stateful: bool, parsed: tuple[Feature, ...]
) -> Signature:
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.framework import dtypes

    found = signature_spec(name, definition)
    inputs, outputs = found.inputs, found.outputs
    feeds = [definition.inputs[spec.name].name for spec in inputs]
    names = [definition.outputs[spec.name].name for spec in outputs]
    fetches = list(dict.fromkeys(names))
    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
    options.run_options.inter_op_thread_pool = -1
    mutates = stateful or mutating.reached(names)
    spec = replace(found, mutates=mutates, reason="")
    types = tuple(dtypes.as_dtype(int(item.dtype)).as_numpy_dtype for item in inputs)
    call = session._make_callable_from_options(options)
    return Signature(spec, call, types, tuple(fetches.index(n) for n in names), parsed)


class _Mutations:
    """Which operations a signature reaches that change state, through functions too."""

    def __init__(self, graph: Any) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._functions = {f.signature.name: f.node_def for f in graph.library.function}
        self._known: dict[str, bool] = {}

    def reached(self, fetches: Iterable[str]) -> bool:
        seen: set[str] = set()
        stack = [fetch.split(":")[0] for fetch in fetches]
        while stack:
            name = stack.pop()
            node = self._nodes.get(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            if self._mutates(node):
                return True
            stack.extend(source.lstrip("^").split(":")[0] for source in node.input)
        return False

    def _mutates(self, node: Any) -> bool:
        return node.op.startswith(_MUTATING) or any(self._function(name) for name in called_by(node))

    def _function(self, name: str) -> bool:
        found = self._known.get(name)
        if found is None:
            self._known[name] = False  # a recursive function adds nothing by calling itself
            found = self._known[name] = any(self._mutates(node) for node in self._functions.get(name, ()))
        return found


def called_by(node: Any) -> Iterable[str]:
    """Names of the functions that a node calls, if they are any: its operation may be one."""
    yield node.op
    for value in node.attr.values():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
        elif kind == "list":
            for function in value.list.func:
                yield function.name


def with_batching(signature: Signature, reason: str) -> None:
    """Set what the proof found: an empty reason means that rows may share a batch."""
    signature.spec = replace(signature.spec, batchable=not reason, reason=reason)
