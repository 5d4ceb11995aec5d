"""Messages of TensorFlow Serving's gRPC as bytes, written out by hand from the field numbers of its protos."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.grpc_line import Line
from tfpool.gateway.rpc.asked import Spec
from tfpool.gateway.rpc.requests import Asked, parse, scan
from tfpool.gateway.rpc.responses import PredictWriter

# PredictRequest{model_spec{name: "m" version{value: 3} signature_name: "s"}
#   inputs{"x": TensorProto{dtype: DT_FLOAT tensor_shape{dim{size: 2}} tensor_content: 1.0 -2.0}} output_filter: "y"}
PREDICT = bytes.fromhex(
    "0a 0a  0a 01 6d  12 02 08 03  1a 01 73"  # model_spec = 1: name = 1, version = 2 {value = 1}, signature_name = 3
    "12 17"  # inputs = 2
    "0a 01 78"  # key = 1
    "12 12"  # value = 2
    "08 01"  # dtype = 1
    "12 04 12 02 08 02"  # tensor_shape = 2: dim = 2 {size = 1}
    "22 08 0000803f 000000c0"  # tensor_content = 4
    "1a 01 79"  # output_filter = 3
)
# The same with float_val in place of tensor_content, and a label in place of the version.
PREDICT_AS_LIST = bytes.fromhex(
    "0a 06  0a 01 6d  22 01 6c"  # version_label = 4
    "12 17  0a 01 78  12 12  08 01  12 04 12 02 08 02  2a 08 0000803f 000000c0"  # float_val = 5, packed
)
# PredictResponse{outputs{"y": TensorProto{dtype: DT_FLOAT tensor_shape{dim{size: 1} dim{size: 2}} float_val: 0.5 2.0}}
#   model_spec{name: "m" version{value: 300} signature_name: "serving_default"}}
PREDICTED = bytes.fromhex(
    "0a 1b"  # outputs = 1
    "0a 01 79  12 16"
    "08 01"
    "12 08 12 02 08 01 12 02 08 02"
    "2a 08 0000003f 00000040"  # float_val = 5
    "12 19"  # model_spec = 2
    "0a 01 6d  12 03 08 ac 02  1a 0f"
) + (b"serving_default")

EXAMPLE = bytes.fromhex("0a 0c  0a 0a  0a 01 6e  12 05 1a 03 0a 01 07")  # features{feature{"n": int64_list{value: 7}}}
# {model_spec{name: "features"} input{example_list{examples{...}}}}
ON_EXAMPLES = b"\x0a\x0a\x0a\x08features" + b"\x12\x12\x0a\x10\x0a\x0e" + EXAMPLE
REGRESS = b"\x0a\x13\x0a\x08features\x1a\x07regress" + ON_EXAMPLES[12:]
SPEC = b"\x0a\x08features" + bytes.fromhex("12 02 08 03") + b"\x1a\x0fserving_default"


@pytest.fixture(scope="module")
def line() -> Line:
    return Line()


def test_a_request_for_predict() -> None:
    for read in (lambda data: (scan(data).meaning, scan(data).arrays(data)), parse):  # type: ignore[union-attr]
        asked, inputs = read(PREDICT)
        assert asked == Asked(Spec("m", 3, "", "s"), ("y",))
        assert inputs["x"].tolist() == [1.0, -2.0]
        asked, inputs = read(PREDICT_AS_LIST)
        assert asked == Asked(Spec("m", None, "l", ""), ())
        assert inputs["x"].tolist() == [1.0, -2.0]


def test_an_answer_to_predict() -> None:
    writer = PredictWriter()
    for _ in range(2):
        assert writer.write({"y": np.float32([[0.5, 2.0]])}, (), "m", 300, "") == PREDICTED


def test_whole_numbers_and_strings() -> None:
    writer = PredictWriter()
    made = writer.write({"n": np.int64([1, 300]), "s": np.array([b"ab", b""], object)}, (), "m", 1, "s")
    assert made == bytes.fromhex(
        "0a 12  0a 01 6e  12 0d  08 09  12 04 12 02 08 02  52 03 01 ac 02"  # DT_INT64, int64_val = 10
        "0a 13  0a 01 73  12 0e  08 07  12 04 12 02 08 02  42 02 6162  42 00"  # DT_STRING, string_val = 8
        "12 0a  0a 01 6d  12 02 08 01  1a 01 73"
    )


def test_classify(line: Line) -> None:
    row = bytes.fromhex("0a 03 0a 01 78  0a 08 0a 01 6e 15 0000e040  0a 00")  # "x" with 0, "n" with 7.0, "" with 0
    result = b"\x0a" + bytes([len(row) + 2]) + b"\x0a" + bytes([len(row)]) + row
    assert line.ask("PredictionService/Classify", ON_EXAMPLES) == result + b"\x12" + bytes([len(SPEC)]) + SPEC


def test_regress(line: Line) -> None:
    result = bytes.fromhex("0a 07  0a 05 0d 0000e040")  # result = 1 {regressions = 1 {value = 1: 7.0}}
    spec = SPEC[:14] + b"\x1a\x07regress"
    assert line.ask("PredictionService/Regress", REGRESS) == result + b"\x12" + bytes([len(spec)]) + spec


def test_multi_inference(line: Line) -> None:
    tasks = b"".join(
        b"\x0a" + bytes([len(task)]) + task
        for task in (
            b"\x0a\x0a\x0a\x08features\x12\x1btensorflow/serving/classify",
            b"\x0a\x13\x0a\x08features\x1a\x07regress\x12\x1atensorflow/serving/regress",
        )
    )
    spec = SPEC[:14] + b"\x1a\x07regress"
    regressed = b"\x0a" + bytes([len(spec)]) + spec + bytes.fromhex("1a 07  0a 05 0d 0000e040")  # regression_result = 3
    row = bytes.fromhex("0a 03 0a 01 78  0a 08 0a 01 6e 15 0000e040  0a 00")
    result = b"\x12" + bytes([len(row) + 2]) + b"\x0a" + bytes([len(row)]) + row  # classification_result = 2
    classified = b"\x0a" + bytes([len(SPEC)]) + SPEC + result
    expected = b"".join(b"\x0a" + bytes([len(one)]) + one for one in (classified, regressed))
    assert line.ask("PredictionService/MultiInference", tasks + ON_EXAMPLES[12:]) == expected


def test_metadata(line: Line) -> None:
    url = b"type.googleapis.com/tensorflow.serving.SignatureDefMap"
    x = bytes.fromhex("0a 01 78  12 14  0a 01 78  10 01  1a 0d  12 0b 08 ff ff ff ff ff ff ff ff ff 01")  # dim: -1
    y = x.replace(b"x", b"y")
    signature = b"".join((b"\x0a", bytes([len(x)]), x, b"\x12", bytes([len(y)]), y, b"\x1a\x07predict"))
    entry = b"\x0a\x0fserving_default\x12" + bytes([len(signature)]) + signature
    packed = b"\x0a" + bytes([len(entry)]) + entry
    held = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(packed)]) + packed
    # key = 1, value = 2: an Any of more than 127 bytes
    metadata = b"\x0a\x0dsignature_def\x12" + bytes([len(held) & 0x7F | 0x80, len(held) >> 7]) + held
    answer = b"\x0a\x0a\x0a\x04half\x12\x02\x08\x02" + b"\x12"
    answer += bytes([len(metadata) & 0x7F | 0x80, len(metadata) >> 7]) + metadata
    assert line.ask("PredictionService/GetModelMetadata", b"\x0a\x06\x0a\x04half\x12\x0dsignature_def") == answer


def test_status(line: Line) -> None:
    assert line.ask("ModelService/GetModelStatus", b"\x0a\x06\x0a\x04half") == bytes.fromhex(
        "0a 06  08 02  10 1e  1a 00"  # version = 1, state = 2: AVAILABLE is 30, status = 3
        "0a 06  08 01  10 1e  1a 00"
    )
