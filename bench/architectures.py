"""Models of many kinds, for what the store does with them: the small members of keras.applications' families, and
others that real repositories have.

They take a while to make, so that they are kept in the directory that the environment names, if it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tfpool.errors import NotFound

CACHE = "TFPOOL_BENCH_CACHE"
_APPLICATIONS = {
    "mobilenet": ("MobileNet", 224),
    "mobilenet_v2": ("MobileNetV2", 224),
    "mobilenet_v3_small": ("MobileNetV3Small", 224),
    "nasnet_mobile": ("NASNetMobile", 224),
    "efficientnet_b0": ("EfficientNetB0", 224),
    "efficientnet_v2_b0": ("EfficientNetV2B0", 224),
    "densenet121": ("DenseNet121", 224),
    "resnet50": ("ResNet50", 224),
    "resnet50_v2": ("ResNet50V2", 224),
    "inception_v3": ("InceptionV3", 299),
    "xception": ("Xception", 299),
    "convnext_tiny": ("ConvNeXtTiny", 224),
    "vgg16": ("VGG16", 224),
}
_VOCABULARY = 20_000
_WORDS = [f"word{n}" for n in range(_VOCABULARY)]
_STEPS = 64


def make_application(name: str, directory: str) -> str:
    """One of keras.applications with random weights: image [?, side, side, 3] -> probabilities [?, 1000]."""

    def write(path: str) -> None:
        from tensorflow import keras

        kind, side = _APPLICATIONS[name]
        keras.utils.set_random_seed(7)
        model = getattr(keras.applications, kind)(weights=None)
        _randomize(model)
        _save(path, lambda image: {"probabilities": model(image, training=False)}, (side, side, 3), model)

    return _kept(name, directory, write)


def make_recurrent(name: str, directory: str) -> str:
    """Two layers of 128 LSTM or GRU units: x [?, 64, 32] -> y [?, 10]."""

    def write(path: str) -> None:
        from tensorflow import keras

        keras.utils.set_random_seed(7)
        layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[name]
        model = keras.Sequential(
            [
                keras.Input((_STEPS, 32)),
                layer(128, return_sequences=True),
                layer(128),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        _save(path, lambda x: {"y": model(x, training=False)}, (_STEPS, 32), model)

    return _kept(name, directory, write)


def make_transformer(directory: str) -> str:
    """Four encoder blocks of width 256, 8 heads: tokens [?, 64] of 20,000 -> y [?, 10]. As Keras exports it."""

    def write(path: str) -> None:
        from tensorflow import keras
        from tensorflow.keras import layers

        keras.utils.set_random_seed(7)
        tokens = keras.Input((_STEPS,), dtype="int32", name="tokens")
        x = layers.Embedding(_VOCABULARY, 256)(tokens)
        for _ in range(4):
            attended = layers.MultiHeadAttention(8, 32)(x, x)
            x = layers.LayerNormalization()(x + attended)
            hidden = layers.Dense(256)(layers.Dense(1024, activation="gelu")(x))
            x = layers.LayerNormalization()(x + hidden)
        y = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling1D()(x))
        keras.Model(tokens, y).export(path, verbose=False)

    return _kept("transformer", directory, write)


def make_text(directory: str) -> str:
    """Strings text [?] -> y [?, 4]: words by a table of 20,000, their embeddings' mean, two layers."""

    def write(path: str) -> None:
        import tensorflow as tf
        from tensorflow import keras

        keras.utils.set_random_seed(7)
        words = keras.layers.TextVectorization(vocabulary=_WORDS, output_sequence_length=_STEPS)
        embedding = tf.Variable(tf.random.stateless_normal((_VOCABULARY + 2, 64), (7, 0)))
        first = tf.Variable(tf.random.stateless_normal((64, 128), (7, 1), stddev=0.2))
        second = tf.Variable(tf.random.stateless_normal((128, 4), (7, 2), stddev=0.2))

        def run(text: Any) -> dict[str, Any]:
            mean = tf.reduce_mean(tf.gather(embedding, words(text)), 1)
            return {"y": tf.nn.softmax(tf.nn.relu(mean @ first) @ second)}

        _save(path, run, (), [words, embedding, first, second], "string")

    return _kept("text", directory, write)


def make_estimator(directory: str) -> str:
    """A classifier of tf.Examples as TensorFlow 1 wrote it: variables that are tensors, a table filled from an asset
    by the legacy operation, three signatures. Examples with word and x [16] -> classes and scores [?, 8]."""

    def write(path: str) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        vocabulary = f"{path}.txt"
        with open(vocabulary, "w") as file:
            file.write("\n".join(_WORDS))
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(7)
            examples = v1.placeholder(tf.string, (None,), "examples")
            parsed = v1.parse_example(
                examples,
                {"word": tf.io.FixedLenFeature([], tf.string, "word1"), "x": tf.io.FixedLenFeature([16], tf.float32)},
            )
            made = tf.lookup.TextFileInitializer(
                vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            table = tf.lookup.StaticVocabularyTable(made, 8)

            def variable(name: str, *shape: int) -> Any:
                start = v1.random_normal_initializer(stddev=0.1)
                return v1.get_variable(name, shape, initializer=start, use_resource=False)

            embedded = v1.nn.embedding_lookup(variable("embedding", _VOCABULARY + 8, 64), table.lookup(parsed["word"]))
            hidden = tf.nn.relu(tf.concat([embedded, parsed["x"]], 1) @ variable("first", 80, 128))
            scores = tf.nn.softmax(hidden @ variable("second", 128, 8))
            labels = tf.constant([f"class {n}" for n in range(8)])
            classes = tf.tile(labels[tf.newaxis], (tf.shape(scores)[0], 1))
            session.run(v1.global_variables_initializer())
            utils = v1.saved_model.signature_def_utils
            builder = v1.saved_model.Builder(path)
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {
                    "serving_default": utils.classification_signature_def(examples, classes, scores),
                    "predict": utils.predict_signature_def({"examples": examples}, {"scores": scores}),
                    "regression": utils.regression_signature_def(examples, scores[:, :1]),
                },
                assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
                legacy_init_op=v1.tables_initializer(),
            )
            builder.save()
        os.unlink(vocabulary)

    return _kept("estimator", directory, write)


def find_basic_pitch(directory: str) -> str:
    """The published model of that name, which cannot be made: it has to lie in the cache already. Raises NotFound."""
    base = os.path.join(os.environ.get(CACHE) or directory, "basic_pitch")
    if not os.path.isdir(base):
        raise NotFound(f"{base}: no such directory; put the published model there, and name its parent in {CACHE}")
    return base


def _randomize(model: Any) -> None:
    """Statistics of normalization as if it had been trained: folding them is no work otherwise."""
    import numpy as np

    random = np.random.default_rng(7)
    for variable in model.variables:
        if "moving" in variable.path or variable.path.endswith(("gamma", "beta")):
            near = 0.0 if variable.path.endswith(("mean", "beta")) else 1.0
            variable.assign(near + 0.1 * random.random(variable.shape, np.float32))


def _kept(name: str, directory: str, write: Callable[[str], None]) -> str:
    """Version 1; the base appears when all of it is there."""
    base = os.path.join(os.environ.get(CACHE) or directory, name)
    if not os.path.exists(base):
        apart = f"{base}.{os.getpid()}"
        os.makedirs(apart)
        write(os.path.join(apart, "1"))
        os.rename(apart, base)
    return base


def _save(path: str, run: Callable[[Any], Any], row: Sequence[int], tracked: Any, dtype: str = "float32") -> None:
    """``run`` as the only signature, on one input of such rows. A Keras model is kept by its variables."""
    import tensorflow as tf

    module = tf.Module()
    module.tracked = [variable.value for variable in tracked.variables] if hasattr(tracked, "variables") else tracked
    spec = tf.TensorSpec((None, *row), tf.dtypes.as_dtype(dtype), "image" if len(row) == 3 else "x")
    function = tf.function(run, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, path, signatures={"serving_default": function})


MAKERS: Mapping[str, Callable[[str], str]] = {
    **{name: partial(make_application, name) for name in _APPLICATIONS},
    **{name: partial(make_recurrent, name) for name in ("lstm", "gru")},
    "transformer": make_transformer,
    "text": make_text,
    "estimator": make_estimator,
    "basic_pitch": find_basic_pitch,
}
