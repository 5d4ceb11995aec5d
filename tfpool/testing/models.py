"""Small SavedModels, made on the spot: ``python -m tfpool.testing.models NAME DIR``.

Each maker writes version 1 of its model below ``DIR/NAME`` and returns that base path. TensorFlow is imported when a
model is made, not before.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any


def make_half_plus_two(directory: str, version: int = 1, offset: float = 2.0) -> str:
    """y = 0.5 x + ``offset`` on x [?]."""
    import tensorflow as tf

    half, plus = tf.Variable(0.5), tf.Variable(offset)
    function = _function(lambda x: {"y": half * x + plus}, x=((None,), tf.float32))
    return _save(directory, "half_plus_two", {"serving_default": function}, [half, plus], version)


def make_mlp(directory: str) -> str:
    """256 - 1024 - 1024 - 128 with relu, x [?, 256], seeded weights."""
    import tensorflow as tf

    sizes = (256, 1024, 1024, 128)
    weights = [
        tf.Variable(tf.random.stateless_normal((a, b), (7, i), stddev=(2 / a) ** 0.5))
        for i, (a, b) in enumerate(pairwise(sizes))
    ]

    def run(x: Any) -> dict[str, Any]:
        for weight in weights[:-1]:
            x = tf.nn.relu(tf.matmul(x, weight))
        return {"y": tf.matmul(x, weights[-1])}

    return _save(directory, "mlp", {"serving_default": _function(run, x=((None, 256), tf.float32))}, weights)


def make_identity(directory: str, row_shape: Sequence[int | None] = (4,), dtype: str = "float32") -> str:
    """y = x on x [?, *row_shape]."""
    import tensorflow as tf

    function = _function(lambda x: {"y": tf.identity(x)}, x=((None, *row_shape), tf.dtypes.as_dtype(dtype)))
    return _save(directory, "identity", {"serving_default": function})


def make_string_length(directory: str) -> str:
    """Strings text [?] -> their byte lengths (int32) and their upper case."""
    import tensorflow as tf

    def run(text: Any) -> dict[str, Any]:
        return {"length": tf.strings.length(text), "upper": tf.strings.upper(text)}

    return _save(directory, "string_length", {"serving_default": _function(run, text=((None,), tf.string))})


def make_two_signatures(directory: str) -> str:
    """``double``: y = 2 x on x [?, 4]; ``add``: sum = a + b on a [?, 3] and b [?, 1]. None is the default."""
    import tensorflow as tf

    double = _function(lambda x: {"y": x + x}, x=((None, 4), tf.float32))
    add = _function(lambda a, b: {"sum": a + b}, a=((None, 3), tf.float32), b=((None, 1), tf.float32))
    return _save(directory, "two_signatures", {"double": double, "add": add})


def make_no_batch(directory: str) -> str:
    """x [3, 3], no dimension open -> its trace (0-d) and its diagonal [3]."""
    import tensorflow as tf

    def run(x: Any) -> dict[str, Any]:
        return {"trace": tf.linalg.trace(x), "diagonal": tf.linalg.diag_part(x)}

    return _save(directory, "no_batch", {"serving_default": _function(run, x=((3, 3), tf.float32))})


def make_scalar(directory: str) -> str:
    """y = 2 x on a 0-d x."""
    import tensorflow as tf

    return _save(directory, "scalar", {"serving_default": _function(lambda x: {"y": 2.0 * x}, x=((), tf.float32))})


def make_counter(directory: str) -> str:
    """Adds the sum of x [?] to a variable at every run -> the ``total`` so far, once a row."""
    import tensorflow as tf

    total = tf.Variable(0.0)

    def run(x: Any) -> dict[str, Any]:
        return {"total": tf.fill(tf.shape(x), total.assign_add(tf.reduce_sum(x)))}

    return _save(directory, "counter", {"serving_default": _function(run, x=((None,), tf.float32))}, [total])


def make_mixes_rows(directory: str) -> str:
    """y = x - mean over the rows of x [?, 4]: looks batchable, and is not."""
    import tensorflow as tf

    function = _function(lambda x: {"y": x - tf.reduce_mean(x, axis=0)}, x=((None, 4), tf.float32))
    return _save(directory, "mixes_rows", {"serving_default": function})


def make_large(directory: str, nbytes: int = 100_000_000) -> str:
    """y = x + the sum of a weight's first elements (0) on x [?]; the weight takes ``nbytes``."""
    import tensorflow as tf

    weight = tf.Variable(tf.zeros(nbytes // 4))
    function = _function(lambda x: {"y": x + tf.reduce_sum(weight[:8])}, x=((None,), tf.float32))
    return _save(directory, "large", {"serving_default": function}, [weight])


DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128", "string"),
    *("float8_e5m2", "float8_e4m3fn"),
)


def make_dtypes(directory: str) -> str:
    """One signature a dtype, of its name: y = x on x [?, 2]."""
    import tensorflow as tf

    signatures = {
        name: _function(lambda x: {"y": tf.identity(x)}, x=((None, 2), tf.dtypes.as_dtype(name))) for name in DTYPES
    }
    return _save(directory, "dtypes", signatures)


BIT_DTYPES = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float64", "complex64", "string")


def make_bits(directory: str) -> str:
    """One signature a dtype, of its name: y = x [?, 16] with its columns the other way round."""
    import tensorflow as tf

    signatures = {
        name: _function(lambda x: {"y": x[:, ::-1]}, x=((None, 16), tf.dtypes.as_dtype(name))) for name in BIT_DTYPES
    }
    return _save(directory, "bits", signatures)


def make_ragged(directory: str) -> str:
    """tokens [?, ?] and weights [?, ?], which must be of one width -> total [?], mean [?], turned [?, ?]."""
    import tensorflow as tf

    def run(tokens: Any, weights: Any) -> dict[str, Any]:
        weighted = tf.cast(tokens, tf.float64) * weights
        return {"total": tf.reduce_sum(tokens, 1), "mean": tf.reduce_mean(weighted, 1), "turned": tokens[:, ::-1]}

    function = _function(run, tokens=((None, None), tf.int64), weights=((None, None), tf.float64))
    return _save(directory, "ragged", {"serving_default": function})


LOOKUP_ROWS = 64


def make_lookup(directory: str) -> str:
    """Row number id [?] of a table [64, 3], and tag [?, 1] as it is; a number out of range fails the batch."""
    import tensorflow as tf

    table = tf.Variable(tf.reshape(tf.range(LOOKUP_ROWS * 3, dtype=tf.float32), (LOOKUP_ROWS, 3)))

    def run(id: Any, tag: Any) -> dict[str, Any]:
        return {"row": tf.gather(table, id), "tag": tf.identity(tag)}

    function = _function(run, id=((None,), tf.int32), tag=((None, 1), tf.float64))
    return _save(directory, "lookup", {"serving_default": function}, [table])


def make_examples(directory: str) -> str:
    """Serialized tf.Examples ``inputs`` [?] with the features x [3] of floats, word (default "none") and n (default 0).

    ``serving_default``: classes ["sum", "n", word] and scores [sum of x, n, length of word], [?, 3] both; ``scores``
    and ``classes`` one of them. ``regress``: outputs [?, 1], sum of x and n; ``regress_flat``: the same as [?].
    ``predict``: the same as y [?], which is neither.
    """
    import tensorflow as tf

    features = {
        "x": tf.io.FixedLenFeature([3], tf.float32),
        "word": tf.io.FixedLenFeature([], tf.string, "none"),
        "n": tf.io.FixedLenFeature([], tf.int64, 0),
    }

    def parse(inputs: Any) -> tuple[Any, Any, Any]:
        parsed = tf.io.parse_example(inputs, features)
        return tf.reduce_sum(parsed["x"], axis=1), tf.cast(parsed["n"], tf.float32), parsed["word"]

    def classes(inputs: Any) -> Any:
        _, _, word = parse(inputs)
        return tf.stack([tf.fill(tf.shape(word), "sum"), tf.fill(tf.shape(word), "n"), word], axis=1)

    def scores(inputs: Any) -> Any:
        total, n, word = parse(inputs)
        return tf.stack([total, n, tf.cast(tf.strings.length(word), tf.float32)], axis=1)

    def value(inputs: Any) -> Any:
        total, n, _ = parse(inputs)
        return total + n

    runs: dict[str, Callable[[Any], dict[str, Any]]] = {
        "serving_default": lambda inputs: {"classes": classes(inputs), "scores": scores(inputs)},
        "scores": lambda inputs: {"scores": scores(inputs)},
        "classes": lambda inputs: {"classes": classes(inputs)},
        "regress": lambda inputs: {"outputs": value(inputs)[:, tf.newaxis]},
        "regress_flat": lambda inputs: {"outputs": value(inputs)},
        "predict": lambda inputs: {"y": value(inputs)},
    }
    signatures = {name: _function(run, inputs=((None,), tf.string)) for name, run in runs.items()}
    return _save(directory, "examples", signatures)


def make_slow(directory: str, seconds: float = 0.5) -> str:
    """y = x on x [?], after burning a CPU for ``seconds``, whatever the batch."""
    import tensorflow as tf

    def run(x: Any) -> dict[str, Any]:
        end = tf.timestamp() + seconds
        matrix = tf.eye(64)
        (burnt,) = tf.while_loop(lambda _: tf.timestamp() < end, lambda m: [tf.matmul(m, matrix)], [matrix])
        return {"y": x + 0.0 * burnt[0, 1]}

    return _save(directory, "slow", {"serving_default": _function(run, x=((None,), tf.float32))})


CRASH_VALUE = 13.0


def make_crash(directory: str) -> str:
    """y = x on x [?], but a row of 13 aborts the whole process."""
    import tensorflow as tf

    def abort() -> Any:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="a row of 13")]):
            return tf.constant(0.0)

    def run(x: Any) -> dict[str, Any]:
        return {"y": x + tf.cond(tf.reduce_any(tf.equal(x, CRASH_VALUE)), abort, lambda: tf.constant(0.0))}

    return _save(directory, "crash", {"serving_default": _function(run, x=((None,), tf.float32))})


def make_mobilenet_v2(directory: str) -> str:
    """MobileNetV2 with seeded random weights: image [?, 224, 224, 3] -> probabilities [?, 1000]."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(7)
    model = tf.keras.applications.MobileNetV2(weights=None)

    def run(image: Any) -> dict[str, Any]:
        return {"probabilities": model(image, training=False)}

    function = _function(run, image=((None, 224, 224, 3), tf.float32))
    variables = [variable.value for variable in model.variables]
    return _save(directory, "mobilenet_v2", {"serving_default": function}, variables)


def make_truncated(directory: str) -> str:
    """half_plus_two whose saved_model.pb ends in the middle."""
    base = _half_plus_two_as("truncated", directory)
    graph = os.path.join(base, "1", "saved_model.pb")
    os.truncate(graph, os.path.getsize(graph) // 2)
    return base


def make_missing_variables(directory: str) -> str:
    """half_plus_two without its variables."""
    base = _half_plus_two_as("missing_variables", directory)
    shutil.rmtree(os.path.join(base, "1", "variables"))
    return base


def make_empty(directory: str) -> str:
    """A version directory with nothing in it."""
    base = os.path.join(directory, "empty")
    os.makedirs(os.path.join(base, "1"), exist_ok=True)
    return base


def _half_plus_two_as(name: str, directory: str) -> str:
    target = os.path.join(directory, name)
    with tempfile.TemporaryDirectory() as apart:
        shutil.copytree(make_half_plus_two(apart), target, dirs_exist_ok=True)
    return target


def _function(run: Callable[..., Any], **inputs: tuple[Sequence[int | None], Any]) -> Any:
    import tensorflow as tf

    specs = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()]
    return tf.function(run, input_signature=specs, autograph=False)


def _save(directory: str, name: str, signatures: Mapping[str, Any], tracked: object = None, version: int = 1) -> str:
    import tensorflow as tf

    module = tf.Module()
    module.tracked = tracked
    base = os.path.join(directory, name)
    tf.saved_model.save(module, os.path.join(base, str(version)), signatures=dict(signatures))
    return base


MAKERS: dict[str, Callable[[str], str]] = {
    "half_plus_two": make_half_plus_two,
    "mlp": make_mlp,
    "identity": make_identity,
    "string_length": make_string_length,
    "two_signatures": make_two_signatures,
    "no_batch": make_no_batch,
    "scalar": make_scalar,
    "counter": make_counter,
    "mixes_rows": make_mixes_rows,
    "dtypes": make_dtypes,
    "bits": make_bits,
    "ragged": make_ragged,
    "lookup": make_lookup,
    "large": make_large,
    "examples": make_examples,
    "slow": make_slow,
    "crash": make_crash,
    "mobilenet_v2": make_mobilenet_v2,
    "truncated": make_truncated,
    "missing_variables": make_missing_variables,
    "empty": make_empty,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one model, say where it is; exit status 2 for bad usage."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if len(words) != 2 or words[0] not in MAKERS:
        print(f"usage: python -m tfpool.testing.models NAME DIR\nNAME: {', '.join(MAKERS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(MAKERS[words[0]](words[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
