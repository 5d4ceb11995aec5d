"""The wire as bytes, written out by hand from the MessagePack specification.

Whoever changes one of these breaks every client that is already installed: raise ``VERSION`` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfpool.errors import InvalidArgument
from tfpool.types import DType
from tfpool.wire import keys, messages, tensors
from tfpool.wire.keys import OutputKey, RequestKey, Tensor
from tfpool.wire.messages import Answer, Bell, Call, Error, Flag, Gauge, Group, Hello, Piece, Region, Verb


def same(body: Any) -> Any:
    return body


MESSAGES: list[tuple[str, Verb, object, Callable[[Any], object], str]] = [
    ("hello without an arena", Verb.HELLO, None, messages.decode_hello, "01 01 c0"),
    (
        "hello",
        Verb.HELLO,
        Hello(pid=0x1234, fd=7, nbytes=1 << 20, nonce=bytes(range(16))),
        messages.decode_hello,
        "01 01  94  cd 1234  07  ce 00100000  c4 10 000102030405060708090a0b0c0d0e0f",
    ),
    ("welcome", Verb.WELCOME, [True], same, "01 02  91  c3"),
    (
        "predict, tensors in frames",
        Verb.PREDICT,
        [Group(b"\xaa\xbb", first=1, count=3, rows=2, budget_ms=30_000, priority=-1, regions=None, reply=None)],
        messages.decode_groups,
        "01 03  91  99  c4 02 aabb  01  03  02  cd 7530  ff  c0  c0  00",
    ),
    (
        "predict, tensors in the arena",
        Verb.PREDICT,
        [
            Group(
                b"",
                first=1 << 32,
                count=1,
                rows=0,
                budget_ms=500,
                priority=5,
                regions=(Region(4096, 64), Region(8192, 300)),
                reply=Region(65536, 256),
                flags=Flag.SOFT | Flag.AGAIN,
            )
        ],
        messages.decode_groups,
        "01 03  91  99  c4 00  cf 0000000100000000  01  00  cd 01f4  05"
        "  92  92 cd 1000 40  92 cd 2000 cd 012c  92 ce 00010000 cd 0100  03",
    ),
    (
        "predict, two groups",
        Verb.PREDICT,
        [Group(b"k", 0, 1, 1, 0, 0, None, None), Group(b"k", 1, 2, 127, 128, -100, None, Region(0, 0))],
        messages.decode_groups,
        "01 03  92  99  c4 01 6b  00  01  01  00  00  c0  c0  00"
        "  99  c4 01 6b  01  02  7f  cc 80  d0 9c  c0  92 00 00  00",
    ),
    ("cancel", Verb.CANCEL, [(1, 3), (300, 1)], messages.decode_cancel, "01 04  92  92 01 03  92 cd 012c 01"),
    (
        "answer in frames",
        Verb.ANSWER,
        Answer(b"\x01\x02", [Piece(1, 3, 2)], (150, 70_000, 6), None, 300),
        messages.decode_answer,
        "01 05  95  c4 02 0102  91 93 01 03 02  93 cc 96 ce 00011170 06  c0  cd 012c",
    ),
    (
        "answer in the arena",
        Verb.ANSWER,
        Answer(b"", [Piece(9, 1, 0)], (0, 0, 1), (Region(0, 128),), 1),
        messages.decode_answer,
        "01 05  95  c4 00  91 93 09 01 00  93 00 00 01  91 92 00 cc 80  01",
    ),
    (
        "error",
        Verb.ERROR,
        Error([(1, 3)], 8, "full", retry_ms=250),
        messages.decode_error,
        "01 06  94  91 92 01 03  08  a4 66756c6c  cc fa",
    ),
    (
        "call",
        Verb.CALL,
        Call(7, "load", {"model": "m", "version": 3}, 5000),
        messages.decode_call,
        "01 07  94  07  a4 6c6f6164  82 a5 6d6f64656c a1 6d a7 76657273696f6e 03  cd 1388",
    ),
    ("result", Verb.RESULT, [7, True], same, "01 08  92  07  c3"),
    ("bye", Verb.BYE, None, same, "01 09  c0"),
]


@pytest.mark.parametrize(
    ("verb", "message", "decoder", "golden"), [case[1:] for case in MESSAGES], ids=[case[0] for case in MESSAGES]
)
def test_messages(verb: Verb, message: object, decoder: Callable[[Any], object], golden: str) -> None:
    header = bytes.fromhex(golden)
    assert messages.encode(verb, message) == header
    got, body = messages.decode(header)
    assert got == verb
    assert decoder(body) == message


def test_every_verb_has_its_bytes() -> None:
    assert {case[1] for case in MESSAGES} == set(Verb)


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (
            [Bell.GAUGE, Gauge(rss=0x12345678, unique=0x1000, pss=0x2345, gpu=None)],
            "92  27  94 ce 12345678 cd 1000 cd 2345 c0",
        ),
        (
            [Bell.UNLOADED, -1, Gauge(rss=1, unique=0, pss=1, gpu=0x123456789)],
            "93  24  ff  94 01 00 01 cf 0000000123456789",
        ),
        (
            [Bell.READY, 0x1234, Gauge(3, 2, 1), Gauge(1, 1, 1), []],
            "95  20  cd 1234  94 03 02 01 c0  94 01 01 01 c0  90",
        ),
    ],
)
def test_what_a_worker_tells_of_its_memory(message: list[Any], golden: str) -> None:
    packet = bytes.fromhex(golden)
    assert messages.pack(message) == packet
    gauges = [tuple(one) for one in messages.unpack(packet) if isinstance(one, list) and one]
    assert gauges == [one for one in message if isinstance(one, Gauge)]
    assert [messages.decode_gauge(list(one)) for one in gauges] == gauges


@pytest.mark.parametrize(
    "told", [None, 5, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, None, 4], [-1, 2, 3, 4], [1, 2, 3, -4], [1, 2, 3, "4"]]
)
def test_what_is_no_gauge(told: Any) -> None:
    with pytest.raises(InvalidArgument):
        messages.decode_gauge(told)


def test_request_key() -> None:
    key = RequestKey("mnist", 3, "", "serve", (Tensor("x", 1, (28, 28)), Tensor("s", 7, ())), by_rows=True)
    golden = bytes.fromhex("96  a5 6d6e697374  03  a0  a5 7365727665  92  93 a1 78 01 92 1c 1c  93 a1 73 07 90  c3")
    assert keys.pack_request_key(key) == golden
    assert keys.unpack_request_key(golden) == key


def test_output_key() -> None:
    key = OutputKey((Tensor("y", 14, (1000,)),), by_rows=False)
    golden = bytes.fromhex("92  91  93 a1 79 0e 91 cd 03e8  c2")
    assert keys.pack_output_key(key) == golden
    assert keys.unpack_output_key(golden) == key


def test_dense_tensor() -> None:
    golden = bytes.fromhex("0000803f 00000040")
    array = np.array([1.0, 2.0], "float32")
    assert [bytes(buffer) for buffer in tensors.to_buffers(array)] == [golden]
    assert tensors.take_array(DType.FLOAT, (2,), [golden]).tolist() == [1.0, 2.0]


def test_string_tensor() -> None:
    golden = [bytes.fromhex("02000000 00000000 01000000"), b"\xc3\xa9\x00"]
    array = np.array(["é", b"", b"\x00"], object)
    assert [bytes(buffer) for buffer in tensors.to_buffers(array)] == golden
    assert tensors.take_array(DType.STRING, (3,), golden).tolist() == ["é".encode(), b"", b"\x00"]


def test_dtypes_are_tensorflows() -> None:
    assert {dtype.label: int(dtype) for dtype in DType} == {
        "float32": 1,
        "float64": 2,
        "int32": 3,
        "uint8": 4,
        "int16": 5,
        "int8": 6,
        "string": 7,
        "complex64": 8,
        "int64": 9,
        "bool": 10,
        "bfloat16": 14,
        "uint16": 17,
        "complex128": 18,
        "float16": 19,
        "uint32": 22,
        "uint64": 23,
        "float8_e5m2": 24,
        "float8_e4m3fn": 25,
    }
