"""Scales and shifts after convolutions disappear into them, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.compiler import fuse
from tfpool.compiler.main import Outcome, compile_model
from tfpool.store.shelf import Shelf

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.process
CHANNELS = 8


def save(directory: Path, run: Any, *tracked: Any) -> str:
    module = tf.Module()
    module.tracked = tracked
    function = tf.function(run, input_signature=[tf.TensorSpec((None, 12, 12, 3), tf.float32, "x")], autograph=False)
    tf.saved_model.save(module, str(directory), signatures={"serving_default": function})
    return str(directory)


def weights(*shapes: tuple[int, ...]) -> list[Any]:
    random = np.random.default_rng(3)
    return [tf.Variable(random.normal(0.5, 1.0, shape).astype(np.float32)) for shape in shapes]


def operations(shelf: Shelf) -> Counter[str]:
    from tensorflow.core.framework import graph_pb2

    (key,) = shelf.keys()
    entry = shelf.entry(key)
    assert entry is not None
    with shelf.open(entry) as files, open(files.graph, "rb", closefd=False) as graph:
        return Counter(node.op for node in graph_pb2.GraphDef.FromString(graph.read()).node)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "store").mkdir(mode=0o700)
    return Shelf(str(tmp_path / "store"))


def test_normalized_convolutions_become_one_operation_each(tmp_path: Path, shelf: Shelf) -> None:
    filters, scale, shift, deep, deep_scale, deep_shift = weights(
        (3, 3, 3, CHANNELS), (CHANNELS,), (CHANNELS,), (3, 3, CHANNELS, 2), (2 * CHANNELS,), (1, 1, 1, 2 * CHANNELS)
    )

    def run(x: Any) -> dict[str, Any]:
        x = tf.nn.relu6(tf.nn.conv2d(x, filters, 1, "SAME") * scale + shift)
        x = tf.nn.depthwise_conv2d(x, deep, (1, 1, 1, 1), "SAME") * deep_scale + deep_shift
        return {"y": tf.nn.relu6(x)}

    path = save(tmp_path / "1", run, filters, scale, shift, deep, deep_scale, deep_shift)
    done = compile_model(path, shelf, 1, 1 << 30, say=lambda stage: None)
    assert done.outcome is Outcome.COMPILED, done.reason
    found = operations(shelf)
    assert found["_FusedConv2D"] == found["_FusedDepthwiseConv2dNative"] == 1
    assert not found.keys() & {"Mul", "AddV2", "BiasAdd", "Relu6"}


def test_what_others_use_or_varies_stays(tmp_path: Path, shelf: Shelf) -> None:
    filters, deep, scale, wide = weights((3, 3, 3, CHANNELS), (3, 3, CHANNELS, 1), (CHANNELS,), (12, 1, CHANNELS))

    def run(x: Any) -> dict[str, Any]:
        before = tf.nn.conv2d(x, filters, 1, "SAME")
        bare = tf.nn.depthwise_conv2d(before, deep, (1, 1, 1, 1), "SAME")
        alone = tf.nn.depthwise_conv2d(before, deep, (1, 1, 1, 1), "VALID")
        return {"bare": bare, "scaled": bare * scale, "by_row": before + wide, "varies": alone * tf.reduce_mean(x)}

    path = save(tmp_path / "1", run, filters, deep, scale, wide)
    done = compile_model(path, shelf, 1, 1 << 30, say=lambda stage: None)
    assert done.outcome is Outcome.COMPILED, done.reason
    found = operations(shelf)
    assert found["Mul"] >= 2
    assert found["AddV2"] == 1
    assert found["DepthwiseConv2dNative"] == 2


def test_an_output_keeps_its_name(tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, 4, 4, 2), "x")
        deep = tf.nn.depthwise_conv2d(x, tf.ones((1, 1, 2, 1)), (1, 1, 1, 1), "SAME", name="deep")
        tf.multiply(deep, tf.constant([2.0, 3.0]), name="scaled")
    definition = graph.as_graph_def()
    assert fuse.fold_scales(definition, {"deep"}) == 0, "somebody fetches what would be no more"
    assert fuse.fold_scales(definition, {"scaled"}) == 1
    with tf.Graph().as_default() as made, tf.compat.v1.Session() as session:
        tf.import_graph_def(definition, name="")
        got = session.run(made.get_tensor_by_name("scaled:0"), {"x:0": np.ones((1, 4, 4, 2), np.float32)})
    np.testing.assert_allclose(got, np.broadcast_to([2.0, 3.0], (1, 4, 4, 2)))
