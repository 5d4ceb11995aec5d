"""Warm-up files as bytes, written out by hand from the field numbers of TensorFlow Serving's messages."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tfpool.repository import tfrecord, warmup_file
from tfpool.repository.warmup_file import Sample

# PredictionLog{predict_log{request{model_spec{name: "m" version{value: 3} signature_name: "s"}
#   inputs{"x": Tensor{dtype: DT_FLOAT tensor_shape{dim{size: 2}} tensor_content: 1.0 -2.0}}}}}
PREDICT = bytes.fromhex(
    "32 27"  # predict_log = 6, 39 bytes
    "0a 25"  # request = 1, 37 bytes
    "0a 0a  0a 01 6d  12 02 08 03  1a 01 73"  # model_spec = 1: name = 1, version = 2 {value = 1}, signature_name = 3
    "12 17"  # inputs = 2, 23 bytes
    "0a 01 78"  # key = 1
    "12 12"  # value = 2, 18 bytes
    "08 01"  # dtype = 1
    "12 04 12 02 08 02"  # tensor_shape = 2: dim = 2 {size = 1}
    "22 08 0000803f 000000c0"  # tensor_content = 4
)
# PredictionLog{classify_log{request{model_spec{name: "m"} input{example_list_with_context{
#   examples{features{feature{"n": int64_list{value: 7}}}} context{features{feature{"w": bytes_list{value: "ab"}}}}}}}}}
EXAMPLE = bytes.fromhex("0a 0c  0a 0a  0a 01 6e  12 05 1a 03 0a 01 07")
CONTEXT = bytes.fromhex("0a 0d  0a 0b  0a 01 77  12 06 0a 04 0a 02 6162")
CLASSIFY = (
    bytes.fromhex("12 2c  0a 2a  0a 03 0a 01 6d  12 23  12 21  0a 0e") + EXAMPLE + bytes.fromhex("12 0f") + CONTEXT
)


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_frame_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        tfrecord.write(file, [b"123456789"])
    data = path.read_bytes()
    assert data[:8] == bytes.fromhex("0900000000000000")
    assert data[12:21] == b"123456789"
    assert struct.unpack("<I", data[21:])[0] == masked(0xE3069283)  # the known checksum of these nine digits
    assert list(tfrecord.read(str(path))) == [b"123456789"]


def test_predict_is_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert warmup_file.write(path, "m", 3, [Sample("s", {"x": np.float32([1, -2])})]) == 1
    assert list(tfrecord.read(path)) == [PREDICT]
    ((sample,),) = warmup_file.read(path)
    assert sample.signature == "s"
    assert sample.examples is None
    assert sample.inputs["x"].tolist() == [1.0, -2.0]
    assert sample.inputs["x"].dtype == np.float32


def test_classify_is_read_with_its_context(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        tfrecord.write(file, [CLASSIFY])
    ((sample,),) = warmup_file.read(str(path))
    assert sample.signature == ""
    assert sample.examples is not None
    assert sample.examples.tolist() == [CONTEXT + EXAMPLE]
