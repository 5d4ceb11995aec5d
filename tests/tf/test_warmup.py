"""Warm-up files against TensorFlow: its messages and ours are the same bytes, and its models run what is recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.examples import encode
from tfpool.errors import InvalidArgument
from tfpool.protos import example_pb2, inference_pb2, tensor_pb2
from tfpool.repository import tfrecord, warmup_file
from tfpool.repository.warmup_file import Sample
from tfpool.types import DType, numpy_dtype
from tfpool.wire.tensor_proto import set_tensor, to_array
from tfpool.worker import loader, parsing, warmup

pytestmark = pytest.mark.tf
MB = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    make = "import sys\nfrom tfpool.testing import models\nfor n in sys.argv[2:]: models.MAKERS[n](sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", make, str(directory), "examples", "half_plus_two", "large"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture(scope="module")
def examples(made: Path) -> Iterator[loader.Loaded]:
    loaded = loader.load(str(made / "examples" / "1"), loader.session_config(1, None))
    yield loaded
    loaded.close()


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [d for d in DType if not d.label.startswith("float8")])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_tensors_are_tensorflows(dtype: DType, shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    if dtype is DType.STRING:
        array = np.empty(shape, object)
        array[...] = b"\xfftext"
    else:
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(numpy_dtype(dtype))
    theirs = tf.make_tensor_proto(array, dtype=tf.dtypes.as_dtype(int(dtype)))
    got = to_array(tensor_pb2.Tensor.FromString(theirs.SerializeToString()))
    ours = tensor_pb2.Tensor()
    set_tensor(ours, array)
    back = tf.make_ndarray(type(theirs).FromString(ours.SerializeToString()))
    for found in (got, back):
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tolist() == array.tolist()


def test_examples_are_tensorflows() -> None:
    import tensorflow as tf

    (data,) = encode([{"x": [0.5, 1.0], "n": -7, "s": ["ü", b"\xff"]}]).tolist()
    theirs = tf.train.Example.FromString(data)
    assert list(theirs.features.feature["x"].float_list.value) == [0.5, 1.0]
    assert list(theirs.features.feature["n"].int64_list.value) == [-7]
    assert list(theirs.features.feature["s"].bytes_list.value) == ["ü".encode(), b"\xff"]
    ours = example_pb2.Example.FromString(theirs.SerializeToString())
    assert ours == example_pb2.Example.FromString(data)


def test_records_are_tensorflows(tmp_path: Path) -> None:
    import tensorflow as tf

    records = [b"", b"one", bytes(range(256)) * 300]
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    with open(ours, "wb") as file:
        tfrecord.write(file, records)
    with tf.io.TFRecordWriter(theirs) as writer:
        for record in records:
            writer.write(record)
    assert Path(ours).read_bytes() == Path(theirs).read_bytes()
    assert list(tfrecord.read(theirs)) == records


# -- replays -------------------------------------------------------------------------------------------------------


def log_of(kind: str, signature: str, *examples: dict[str, Any], context: dict[str, Any] | None = None) -> bytes:
    """A PredictionLog of classify or regress."""
    log = inference_pb2.PredictionLog()
    request = getattr(log, f"{kind}_log").request
    request.model_spec.signature_name = signature
    given = request.input.example_list if context is None else request.input.example_list_with_context
    for data in encode(examples):
        given.examples.add().MergeFromString(data)
    if context is not None:
        given.context.MergeFromString(encode([context])[0])
    return bytes(log.SerializeToString())


def write(directory: Path, records: list[bytes]) -> str:
    path = Path(warmup_file.path_in(str(directory)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        tfrecord.write(file, records)
    return str(path)


def test_classify_and_regress(examples: loader.Loaded, tmp_path: Path) -> None:
    assert not warmup.replay(examples, str(tmp_path))
    good = {"x": [1.0, 2.0, 3.0], "n": 1}
    records = [
        log_of("classify", "", good, {"x": [0.0] * 3}),
        log_of("regress", "regress", good),
        log_of("classify", "scores", {"n": 2}, context={"x": [1.0] * 3}),
    ]
    write(tmp_path, records)
    assert warmup.replay(examples, str(tmp_path))
    path = write(tmp_path, [*records, log_of("classify", "scores", {"n": 2})])
    with pytest.raises(InvalidArgument, match=r"record 4: signature 'scores': .*[xX]") as caught:
        warmup.replay(examples, str(tmp_path))
    assert caught.value.message.startswith(path)
    assert "\n" not in caught.value.message
    assert "{{node" not in caught.value.message


def test_examples_for_a_signature_that_takes_none(made: Path, tmp_path: Path) -> None:
    loaded = loader.load(str(made / "half_plus_two" / "1"), loader.session_config(1, None))
    write(tmp_path, [log_of("classify", "", {"x": 1.0})])
    with pytest.raises(InvalidArgument, match=r"record 1: signature 'serving_default' takes x: float32 \[\?\]; for tf"):
        warmup.replay(loaded, str(tmp_path))
    warmup_file.write(warmup_file.path_in(str(tmp_path)), "m", 1, [Sample("", {"x": np.float32([1, 2])})])
    assert warmup.replay(loaded, str(tmp_path))
    loaded.close()


def test_models_of_examples_share_batches(examples: loader.Loaded) -> None:
    """Made-up tf.Examples have what the graph parses, and differ, or they would prove nothing."""
    warmup.warm(examples, (1, 4))
    assert [(s.spec.name, s.spec.batchable, s.spec.reason) for s in examples.signatures] == [
        (name, True, "") for name in ("classes", "predict", "regress", "regress_flat", "scores", "serving_default")
    ]
    (signature,) = (s for s in examples.signatures if s.spec.name == "scores")
    rows = parsing.made_up(signature.features, 3, np.random.default_rng(7))
    scores = signature.call(rows)[0]
    assert len({tuple(row) for row in scores.tolist()}) == 3


def test_features_of_every_kind() -> None:
    import tensorflow as tf

    wanted = {
        "fixed": tf.io.FixedLenFeature([2, 3], tf.float32),
        "sequence": tf.io.FixedLenSequenceFeature([2], tf.int64, allow_missing=True),
        "various": tf.io.VarLenFeature(tf.string),
        "ragged": tf.io.RaggedFeature(tf.int64),
    }

    def run(inputs: Any) -> Any:
        parsed = tf.io.parse_example(inputs, wanted)
        return parsed["fixed"], parsed["sequence"], parsed["various"].values, parsed["ragged"].values

    concrete = tf.function(run, input_signature=[tf.TensorSpec((None,), tf.string)]).get_concrete_function()
    found = parsing.features(concrete.graph.as_graph_def())
    assert {(f.name, f.dtype, f.count) for f in found} == {
        ("fixed", DType.FLOAT, 6),
        ("sequence", DType.INT64, 2),
        ("various", DType.STRING, 2),
        ("ragged", DType.INT64, 2),
    }
    results = concrete(tf.constant(parsing.made_up(found, 3, np.random.default_rng(7)).tolist()))
    assert [tuple(result.shape) for result in results] == [(3, 2, 3), (3, 1, 2), (6,), (6,)]
    with tf.Graph().as_default() as graph:
        old = tf.raw_ops.ParseExample(
            serialized=tf.constant([b""]),
            names=[],
            sparse_keys=[tf.constant("s")],
            dense_keys=[tf.constant("a"), tf.constant("b")],
            dense_defaults=[tf.constant([0.5]), tf.constant([b""])],
            sparse_types=[tf.int64],
            dense_shapes=[[1], [1]],
        )
        assert old
    assert {(f.name, f.dtype, f.count) for f in parsing.features(graph.as_graph_def())} == {
        ("s", DType.INT64, 2),
        ("a", DType.FLOAT, 1),
        ("b", DType.STRING, 1),
    }


# -- memory --------------------------------------------------------------------------------------------------------

CYCLES = 8
_CYCLES = """
import sys
from tfpool.worker.boot import Boot, pin
pin(Boot("cycles"))
from tfpool.supervisor.zygote import import_tensorflow
import_tensorflow()
from tfpool.worker import loader, memory, warmup
config = loader.session_config(1, None)
loader.start_runtime(config)
meter = memory.Meter()
for _ in range(int(sys.argv[2])):
    begun = meter.begin()
    loaded = loader.load(sys.argv[1], config)
    warmup.warm(loaded, (1, 4))
    took = meter.end(begun)
    loaded.close()
    memory.trim()
    print(took.unique, took.resident, memory.unique())
"""


def test_unloading_gives_the_memory_back(made: Path) -> None:
    """In a process of its own, prepared as a worker is."""
    command = [sys.executable, "-c", _CYCLES, str(made / "large" / "1"), str(CYCLES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for stays, peak, _ in rows:
        assert 100_000_000 <= stays <= 120_000_000
        assert stays <= peak <= 140_000_000
    assert rows[-1][2] <= rows[0][2] + 5 * MB
