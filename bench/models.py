"""Models that only the bench needs: one that is slow to load, ballast, which has weight and computes nothing, and one
that computes much on next to no bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.architectures import MAKERS as ARCHITECTURES
from tfpool.testing.models import MAKERS as SAMPLES
from tfpool.testing.models import make_identity

BALLAST = {"ballast_5mb": 5_000_000, "ballast_100mb": 100_000_000}
_WIDTH, _LAYERS = 1024, 8
_UNITS, _POSITIONS, _STEPS = 512, 64, 5


def make_ballast(name: str, directory: str) -> str:
    """y = x + 1 on x [?], where the 1 is the first of as many float32 as ``name`` says."""
    import tensorflow as tf

    weights = tf.Variable(tf.ones(BALLAST[name] // 4))
    base = os.path.join(directory, name)
    _save(base, lambda x: {"y": x + tf.gather(weights, 0)}, tf.TensorSpec((None,), tf.float32, "x"), weights)
    return base


def make_deep(directory: str) -> str:
    """x [?] -> y [?]: eight layers of 1024 units; a row takes a core about a millisecond, each more much less."""
    import tensorflow as tf

    stretch = tf.Variable(tf.random.stateless_normal((1, _WIDTH), (7, 0)))
    scale = (2 / _WIDTH) ** 0.5
    layers = [tf.Variable(scale * tf.random.stateless_normal((_WIDTH, _WIDTH), (7, n))) for n in range(1, _LAYERS + 1)]

    def run(x: Any) -> dict[str, Any]:
        hidden = x[:, tf.newaxis] * stretch
        for layer in layers:
            hidden = tf.nn.relu(hidden @ layer)
        return {"y": tf.reduce_mean(hidden, 1)}

    base = os.path.join(directory, "deep")
    _save(base, run, tf.TensorSpec((None,), tf.float32, "x"), [stretch, *layers])
    return base


def make_patches(directory: str) -> str:
    """x [?] -> y [?]: five layers of 512 units at 64 positions, 5 MB; each row of a batch takes a core about a
    millisecond."""
    import tensorflow as tf

    stretch = tf.Variable(tf.random.stateless_normal((1, _POSITIONS, _UNITS), (7, 0)))
    scale = (2 / _UNITS) ** 0.5
    layers = [tf.Variable(scale * tf.random.stateless_normal((_UNITS, _UNITS), (7, n))) for n in range(1, _STEPS + 1)]

    def run(x: Any) -> dict[str, Any]:
        hidden = tf.reshape(x[:, tf.newaxis, tf.newaxis] * stretch, (-1, _UNITS))
        for layer in layers:
            hidden = tf.nn.relu(hidden @ layer)
        return {"y": tf.reduce_mean(tf.reshape(hidden, (-1, _POSITIONS * _UNITS)), 1)}

    base = os.path.join(directory, "patches")
    _save(base, run, tf.TensorSpec((None,), tf.float32, "x"), [stretch, *layers])
    return base


def _save(base: str, run: Callable[[Any], Any], spec: Any, tracked: object) -> None:
    """Version 1; ``base`` appears when all of it is there."""
    import tensorflow as tf

    module = tf.Module()
    module.tracked = tracked
    apart = f"{base}.{os.getpid()}"
    function = tf.function(run, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, os.path.join(apart, "1"), signatures={"serving_default": function})
    os.rename(apart, base)


MAKERS: Mapping[str, Callable[[str], str]] = {
    **SAMPLES,
    **ARCHITECTURES,
    "identity": partial(make_identity, row_shape=(None,)),
    "deep": make_deep,
    "patches": make_patches,
    **{name: partial(make_ballast, name) for name in BALLAST},
}
