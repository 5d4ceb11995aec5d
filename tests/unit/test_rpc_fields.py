"""Protobuf's wire format read field by field: what protobuf reads is read alike, what is broken is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.gateway.rpc.fields import Malformed, fields, pack_bytes, pack_varint, varint
from tfpool.protos import tensor_pb2


def every(data: bytes) -> list[tuple[int, int, int]]:
    return list(fields(data, 0, len(data)))


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3))
def test_varints_there_and_back(value: int, after: bytes) -> None:
    data = pack_varint(value)
    assert varint(data + after, 0, len(data + after)) == (value, len(data))
    assert data == tensor_pb2.Tensor(uint64_val=[value]).SerializeToString()[3:]


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10, b"\xff" * 9 + b"\x02", b"\x80" * 11 + b"\x01"]
)
def test_varints_without_an_end(data: bytes) -> None:
    with pytest.raises(Malformed):
        varint(data, 0, len(data))


def test_every_kind_of_field() -> None:
    data = b"\x08\x96\x01" + pack_bytes(2, b"ab", b"c") + b"\x1d1234" + b"\x2112345678" + pack_bytes(1000, b"")
    assert every(data) == [
        (0x08, 150, 3),
        (0x12, 5, 8),
        (0x1D, 9, 13),
        (0x21, 14, 22),
        (1000 << 3 | 2, 25, 25),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x05abcd",  # longer than the message
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # much longer
        b"\x1d123",
        b"\x21",
        b"\x00\x01",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0e\x00",
        b"\x80\x80\x80\x80\x80\x01\x00",  # a tag of more than 32 bits
        b"\x08",
    ],
)
def test_broken_fields(data: bytes) -> None:
    with pytest.raises(Malformed):
        every(data)


def test_a_part_of_a_message_ends_where_it_ends() -> None:
    with pytest.raises(Malformed):
        list(fields(b"\x12\x03abc", 0, 4))
    assert list(fields(b"??\x12\x03abc??", 2, 7)) == [(0x12, 4, 7)]
