"""TFRecord framing and warm-up files: what is read, what is refused, and how a file is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.protos import inference_pb2
from tfpool.repository import tfrecord, warmup_file
from tfpool.repository.warmup_file import MAX_RECORDS, Sample


def written(path: Path, records: list[bytes]) -> str:
    with open(path, "wb") as file:
        tfrecord.write(file, records)
    return str(path)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_records_there_and_back(tmp_path: Path, records: list[bytes]) -> None:
    assert list(tfrecord.read(written(tmp_path / "file", records))) == records


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "file", [b"first", b"second"])
    data, end_of_first = Path(path).read_bytes(), 16 + 5
    for size in range(1, len(data)):
        os.truncate(path, size)
        if size != end_of_first:
            with pytest.raises(InvalidArgument, match=f"file, record {1 if size < end_of_first else 2}: truncated"):
                list(tfrecord.read(path))
        Path(path).write_bytes(data)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "file", [b"only"])
    data = Path(path).read_bytes()
    for at in range(len(data) * 8):
        harmed = bytearray(data)
        harmed[at // 8] ^= 1 << at % 8
        Path(path).write_bytes(harmed)
        with pytest.raises(InvalidArgument, match="file, record 1: corrupt"):
            list(tfrecord.read(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere: cannot be read: No such file"):
        list(tfrecord.read(str(tmp_path / "nowhere")))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        list(tfrecord.read(str(tmp_path)))


def test_requests_there_and_back(tmp_path: Path) -> None:
    path = warmup_file.path_in(str(tmp_path))
    samples = [
        Sample("", {"a": np.ones((2, 3), np.float32), "s": np.array([b"\xff", b""], object)}),
        Sample("other", {"n": np.int64(7)[np.newaxis][0:1]}),
    ]
    assert warmup_file.write(path, "m", 2, samples) == 2
    assert path == str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
    got = [sample for (sample,) in warmup_file.read(path)]
    assert [sample.signature for sample in got] == ["", "other"]
    assert got[0].inputs["s"].tolist() == [b"\xff", b""]
    assert np.array_equal(got[0].inputs["a"], samples[0].inputs["a"])
    assert os.listdir(tmp_path / "assets.extra") == ["tf_serving_warmup_requests"]
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    warmup_file.write(path, "m", 1, [Sample("s")])
    before = Path(path).read_bytes()
    with pytest.raises(InvalidArgument, match="text or bytes"):
        warmup_file.write(path, "m", 1, [Sample("s", {"x": np.array([object()], object)})])
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(InvalidArgument, match="file/more/f: cannot be written"):
        warmup_file.write(path + "/more/f", "m", 1, [])


def log(**fields: object) -> bytes:
    data: bytes = inference_pb2.PredictionLog(**fields).SerializeToString()
    return data


def test_regress_and_several_signatures_on_the_same_examples(tmp_path: Path) -> None:
    example = inference_pb2.Input()
    example.example_list.examples.add().features.feature["n"].int64_list.value.append(1)
    spec = inference_pb2.ModelSpec(signature_name="r")
    regress = inference_pb2.RegressLog(
        request=inference_pb2.RegressionRequest(model_spec=spec, input=example),
    )
    tasks = [
        inference_pb2.InferenceTask(model_spec=inference_pb2.ModelSpec(signature_name=name)) for name in ("a", "b")
    ]
    many = inference_pb2.MultiInferenceLog(
        request=inference_pb2.MultiInferenceRequest(tasks=tasks, input=example),
    )
    path = written(tmp_path / "file", [log(regress_log=regress), log(multi_inference_log=many)])
    first, second = warmup_file.read(path)
    assert [sample.signature for sample in first] == ["r"]
    assert [sample.signature for sample in second] == ["a", "b"]
    serialized = example.example_list.examples[0].SerializeToString()
    for sample in (*first, *second):
        assert sample.examples is not None
        assert sample.examples.tolist() == [serialized]


def test_what_is_no_request(tmp_path: Path) -> None:
    good = log(predict_log=inference_pb2.PredictLog())
    empty = log(classify_log=inference_pb2.ClassifyLog())
    other = log(session_run_log=inference_pb2.SessionRunLog())
    for bad, match in (
        (b"\xff\xff", "record 2: got 2 bytes that are no PredictionLog"),
        (b"", "record 2: got no known kind of request"),
        (other, "record 2: got session_run_log, expected predict_log"),
        (empty, "record 2: got no example"),
    ):
        path = written(tmp_path / "file", [good, bad])
        with pytest.raises(InvalidArgument, match=f"file, {match}"):
            list(warmup_file.read(path))


def test_no_more_than_a_thousand(tmp_path: Path) -> None:
    good = log(predict_log=inference_pb2.PredictLog())
    assert len(list(warmup_file.read(written(tmp_path / "file", [good] * MAX_RECORDS)))) == MAX_RECORDS
    with pytest.raises(InvalidArgument, match="got more than 1000 records"):
        list(warmup_file.read(written(tmp_path / "file", [good] * (MAX_RECORDS + 1))))
