"""TensorFlow's own answer, in this process: what tests compare the pool's answers with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from tfpool.errors import InvalidArgument, NotFound
from tfpool.repository.scan import scan
from tfpool.wire.tensors import Array


class Reference:
    """A SavedModel loaded by the TensorFlow 1 loader into a session of its own.

    ``path`` is a version directory, or a base path whose newest version is taken. Raises NotFound.
    """

    def __init__(self, path: str) -> None:
        import tensorflow as tf

        self.path = max(scan(os.fspath(path)).items())[1]
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        meta = tf.compat.v1.saved_model.load(self._session, ["serve"], self.path)
        self._signatures = dict(meta.signature_def)

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of the signatures that can be run."""
        return tuple(name for name in self._signatures if not name.startswith("__"))

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, Array]:
        """All outputs of a signature.

        Raises NotFound for an unknown signature, InvalidArgument for inputs that are not the signature's, and what
        TensorFlow raises.
        """
        if signature not in self._signatures:
            raise NotFound(f"signature {signature!r}: expected one of {', '.join(self.signatures)}")
        spec = self._signatures[signature]
        if set(inputs) != set(spec.inputs):
            raise InvalidArgument(f"inputs: got {', '.join(sorted(inputs))}, expected {', '.join(sorted(spec.inputs))}")
        feeds = {spec.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in spec.outputs.items()}
        fetched = self._session.run(fetches, feeds)
        return {
            name: np.array(value, object) if isinstance(value, bytes) else np.asarray(value)
            for name, value in fetched.items()
        }

    def close(self) -> None:
        """Give the session back."""
        self._session.close()

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
