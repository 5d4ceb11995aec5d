"""The callable that every peer has inside: the one that tfpool's own workers use, without tfpool around it.

A v1 session loads the SavedModel; a callable made with ``inter_op_thread_pool = -1`` runs in the caller's thread, on
aligned input without a copy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from bench.peers.peer import Array, Task

_ALIGNMENT = 64


class Model:
    """A loaded model of a :class:`~bench.peers.peer.Task`; not for several threads at once."""

    def __init__(self, task: Task) -> None:
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
        import tensorflow as tf
        from tensorflow.core.protobuf import config_pb2

        v1 = tf.compat.v1
        config = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf.Graph().as_default():
            self._session = v1.Session(config=config)
            meta = v1.saved_model.loader.load(self._session, ["serve"], task.saved_model)
        signature = meta.signature_def["serving_default"]
        options = config_pb2.CallableOptions()
        options.feed.append(signature.inputs[task.input].name)
        options.fetch.append(signature.outputs[task.output].name)
        options.run_options.inter_op_thread_pool = -1
        self._call = self._session._make_callable_from_options(options)
        self._rows = _aligned((max(1, task.batching.max_rows), *task.row_shape))
        for count in range(1, len(self._rows) + 1):  # a first run of a size is slow, and none shall be measured
            if count & (count - 1) == 0 or count == len(self._rows):
                self._call(self._rows[:count])

    def __call__(self, rows: Sequence[Array]) -> Array:
        """Rows of ``row_shape`` -> [len(rows), ``*answer_shape``]."""
        for index, row in enumerate(rows):
            self._rows[index] = row
        (answers,) = self._call(self._rows[: len(rows)])
        found: Array = answers
        return found

    def batch(self, rows: Array) -> Array:
        """[n, ``*row_shape``] -> [n, ``*answer_shape``]."""
        self._rows[: len(rows)] = rows
        (answers,) = self._call(self._rows[: len(rows)])
        found: Array = answers
        return found


def _aligned(shape: tuple[int, ...]) -> Array:
    nbytes = int(np.prod(shape)) * 4
    raw = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(np.float32).reshape(shape)
