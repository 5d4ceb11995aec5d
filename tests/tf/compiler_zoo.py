"""Models that are awkward to compile; each maker writes one to ``path``. ``python compiler_zoo.py DIR`` makes all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
WORDS = [f"word{n}" for n in range(40)]


def normal(*shape: int, seed: int = 0) -> Any:
    return tf.Variable(tf.random.stateless_normal(shape, (7, seed)))


def function(run: Callable[..., Any], **inputs: tuple[Any, Any]) -> Any:
    specs = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()]
    return tf.function(run, input_signature=specs, autograph=False)


def save(path: str, tracked: object, **signatures: Any) -> None:
    module = tf.Module()
    module.tracked = tracked
    tf.saved_model.save(module, path, signatures=signatures)


X = ((None, 64), tf.float32)


def shared_weights(path: str) -> None:
    """One weight in two signatures, and once more in its own shape."""
    w = normal(64, 64)
    save(
        path,
        [w],
        first=function(lambda x: {"y": x @ w}, x=X),
        second=function(lambda x: {"y": tf.nn.relu(x @ w), "z": x @ tf.reshape(w, (64, 64))}, x=X),
    )


def ends(path: str) -> None:
    """Outputs that are an input, a large weight, and two on one tensor; an input that is of no use."""
    w = normal(64, 64)

    def run(x: Any, unused: Any) -> dict[str, Any]:
        y = x @ w
        return {"same": x, "weight": w.read_value(), "y": y, "y2": y}

    save(path, [w], serving_default=function(run, x=X, unused=X))


def sizes(path: str) -> None:
    """Weights of no elements, scalars, one value repeated, and large tables of integers used as rows and as shape."""
    none, scalar, zeros = tf.Variable(tf.zeros((0, 64))), tf.Variable(2.0), tf.Variable(tf.zeros((64, 64)))
    table = tf.Variable(tf.range(5000, dtype=tf.int64) % 7 + 1)
    shape = tf.Variable([-1, 64])

    def run(x: Any) -> dict[str, Any]:
        padded = tf.concat([x, none], 0) * scalar + x @ zeros
        ids = tf.gather(table, tf.cast(tf.abs(x[:, 0]) * 100, tf.int32) % 5000)
        return {"y": tf.reshape(padded, shape), "ids": ids, "wide": x[:, :1] * tf.fill([table[0] * 8], 1.0)}

    save(path, [none, scalar, zeros, table, shape], serving_default=function(run, x=X))


def dtypes(path: str) -> None:
    """Large weights of many types."""
    kinds = (tf.bfloat16, tf.float16, tf.float64, tf.complex64, tf.int8, tf.uint8, tf.int64, tf.bool)
    weights = [tf.Variable(tf.cast(tf.reshape(tf.range(128 * 64) % 5, (128, 64)), kind)) for kind in kinds]

    def run(n: Any) -> dict[str, Any]:
        return {f"y_{w.dtype.name}": tf.gather(w, n % 128) for w in weights}

    save(path, weights, serving_default=function(run, n=((None,), tf.int32)))


def control_flow(path: str) -> None:
    """While, cond, switch_case and map_fn with weights inside; an embedding that only a function reads."""
    w, table = normal(64, 64), normal(500, 16, seed=1)

    def run(x: Any) -> dict[str, Any]:
        _, looped = tf.while_loop(lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(h @ w)), (0, x))
        chosen = tf.cond(tf.constant(3) > tf.shape(x)[1], lambda: x @ w, lambda: x @ w + 1.0)
        switched = tf.switch_case(tf.shape(x)[1] % 2, [lambda: x @ w, lambda: x])
        mapped = tf.map_fn(lambda row: tf.nn.embedding_lookup(table, tf.cast(row[:2] * 9, tf.int32) % 500), x)
        return {"looped": looped, "chosen": chosen, "switched": switched, "mapped": mapped}

    save(path, [w, table], serving_default=function(run, x=X))


def old_control_flow(path: str) -> None:
    """The same as TensorFlow 1 wrote it: loops and branches of single operations, large constants within them."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_control_flow_v2()
        x = v1.placeholder(tf.float32, (None, 64), "x")
        w = v1.get_variable("w", (64, 64), initializer=v1.random_normal_initializer(seed=1), use_resource=False)
        inside = np.random.default_rng(7).standard_normal((64, 64)).astype(np.float32)
        _, looped = v1.while_loop(
            lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(h @ w + h @ tf.constant(inside))), (0, x)
        )
        chosen = v1.cond(tf.shape(x)[1] > 3, lambda: x @ tf.constant(inside), lambda: x @ w)
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"x": x}, {"looped": looped, "chosen": chosen})
        builder = v1.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
        v1.enable_control_flow_v2()


def old_start(path: str) -> None:
    """Variables that what runs at the start changes, a table from a file, and another that is private to its node."""
    vocabulary = f"{path}.txt"
    with open(vocabulary, "w") as file:
        file.write("\n".join(WORDS))
    with tf.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(tf.string, (None,), "text")
        w = v1.get_variable("w", (50, 64), initializer=v1.random_normal_initializer(seed=1), use_resource=False)
        factor = v1.get_variable("factor", (), initializer=v1.ones_initializer(), use_resource=True)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            8,
        )
        rows = tf.gather(w, table.lookup(text)) * factor
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"text": text}, {"rows": rows})
        builder = v1.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.group(v1.tables_initializer(), factor.assign_add(1.0, read_value=False)),
        )
        builder.save()
    os.unlink(vocabulary)


def text(path: str) -> None:
    """Keras' words to numbers, ragged in between, and their embeddings; a table from number to word."""
    import keras

    words = keras.layers.TextVectorization(vocabulary=WORDS, output_sequence_length=4)
    table = normal(len(WORDS) + 2, 32)
    back = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.range(40, dtype=tf.int64), tf.constant(WORDS)), "nothing"
    )

    def run(text: Any) -> dict[str, Any]:
        numbers = words(text)
        return {"y": tf.reduce_mean(tf.gather(table, numbers), 1), "first": back.lookup(numbers[:, 0])}

    save(path, [words, table, back], serving_default=function(run, text=((None,), tf.string)))


def mutable_table(path: str) -> None:
    """A table that comes out of the checkpoint."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    table.insert(tf.constant(WORDS), tf.range(40, dtype=tf.int64))
    save(path, [table], serving_default=function(lambda text: {"y": table.lookup(text)}, text=((None,), tf.string)))


def dense_table(path: str) -> None:
    """A table of a kind that is not carried over."""
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, -1.0, empty_key=-1, deleted_key=-2)
    table.insert(tf.range(40, dtype=tf.int64), tf.random.stateless_normal((40,), (1, 2)))
    save(path, [table], serving_default=function(lambda n: {"y": table.lookup(n)}, n=((None,), tf.int64)))


def counting_table(path: str) -> None:
    """A table that requests put words into."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)

    def run(text: Any) -> dict[str, Any]:
        with tf.control_dependencies([table.insert(text, table.lookup(text) + 1)]):
            return {"count": table.lookup(text)}

    save(path, [table], serving_default=function(run, text=((None,), tf.string)))


def random(path: str) -> None:
    save(path, None, serving_default=function(lambda x: {"y": x + tf.random.uniform(tf.shape(x))}, x=X))


def quantized(path: str) -> None:
    """int8 weights, fake quantization by channel, and quantized operations."""
    w = tf.Variable(tf.cast(tf.reshape(tf.range(64 * 128) % 50 - 25, (64, 128)), tf.int8))
    low, high = tf.Variable(-tf.ones(128) * 60), tf.Variable(tf.ones(128) * 60)

    def run(x: Any) -> dict[str, Any]:
        y = x @ (tf.cast(w, tf.float32) * 0.02)
        faked = tf.quantization.fake_quant_with_min_max_vars_per_channel(y, low, high)
        q, a, b = tf.quantization.quantize(x, -4.0, 4.0, tf.quint8)
        return {"y": faked, "z": tf.quantization.dequantize(q, a, b)}

    save(path, [w, low, high], serving_default=function(run, x=X))


def jitted(path: str) -> None:
    w = normal(64, 64)
    inner = tf.function(lambda x: tf.nn.softmax(x @ w), jit_compile=True, autograph=False)
    save(path, [w], serving_default=function(lambda x: {"y": inner(x)}, x=X))


def effects(path: str) -> None:
    """Control dependencies on a weight, an assertion that may fail, a gradient inside."""
    w = normal(64, 64)

    def run(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([w.read_value(), tf.debugging.assert_less(x, 1000.0)]):
            y = tf.identity(x) @ w
        return {"y": y, "slope": tf.gradients(tf.reduce_sum(tf.tanh(y)), x)[0]}

    save(path, [w], serving_default=function(run, x=X))


def fixed(path: str) -> None:
    """No dimension is open, no input at all, and a scalar."""
    w = normal(64, 64)
    save(
        path,
        [w],
        fixed=function(lambda x: {"y": x @ w}, x=((2, 64), tf.float32)),
        nothing=function(lambda: {"y": tf.reduce_sum(w)}),
        scalar=function(lambda x: {"y": x * tf.reduce_sum(w)}, x=((), tf.float32)),
    )


def exported(path: str) -> None:
    """As Keras exports it: two inputs and outputs, a recurrent layer, attention, ``serve`` beside the default."""
    import keras
    from keras import layers

    a, b = keras.Input((8, 16), name="a"), keras.Input((16,), name="b")
    h = layers.LSTM(16)(a)
    g = layers.GRU(16)(layers.MultiHeadAttention(2, 8)(a, a))
    n = layers.BatchNormalization()(layers.Dense(64)(layers.Concatenate()([h, g, b])))
    keras.Model([a, b], [layers.Dense(4, name="p")(n), layers.Dense(64, name="q")(n)]).export(path, verbose=False)


MAKERS: Mapping[str, Callable[[str], None]] = {
    make.__name__: make
    for make in (
        *(shared_weights, ends, sizes, dtypes, control_flow, old_control_flow, old_start, text, mutable_table),
        *(dense_table,),
        *(counting_table, random, quantized, jitted, effects, fixed, exported),
    )
}

if __name__ == "__main__":
    tf.keras.utils.set_random_seed(7)
    for name, make in MAKERS.items():
        os.makedirs(os.path.join(sys.argv[1], name))
        make(os.path.join(sys.argv[1], name, "1"))
