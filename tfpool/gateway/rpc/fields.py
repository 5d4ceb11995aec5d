"""Protobuf's wire format: the fields of a message where they lie, without a copy. Pure.

What is read here may still be refused by protobuf itself (names that are no UTF-8, say); what is malformed for this
reader is either malformed for protobuf too, or uses a group, which nobody does.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_VARINT_BITS = 64
_MAX_TAG = 1 << 32


class Malformed(ValueError):
    """Bytes that are no message, or one that this reader leaves to protobuf."""


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message ``data[at:end]``: tag (number << 3 | kind), and where their bytes begin and end. A
    varint gives its value as the beginning.

    Raises Malformed.
    """
    while at < end:
        tag, at = varint(data, at, end)
        kind = tag & 7
        if not 8 <= tag < _MAX_TAG:
            raise Malformed(f"tag {tag}")
        if kind == VARINT:
            value, at = varint(data, at, end)
            yield tag, value, at
            continue
        if kind == LENGTH:
            size, at = varint(data, at, end)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise Malformed(f"kind {kind} of a field")
        stop = at + size
        if stop > end:
            raise Malformed(f"a field of {size} bytes where {end - at} are left")
        yield tag, at, stop
        at = stop


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The unsigned number that begins at ``at``, and where it ends. Raises Malformed."""
    value = shift = 0
    while at < end and shift < _VARINT_BITS:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> _VARINT_BITS:
                raise Malformed("a number of more than 64 bits")
            return value, at
        shift += 7
    raise Malformed("a number without an end")


def pack_varint(value: int) -> bytes:
    """An unsigned number as it is written."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack_bytes(number: int, *parts: bytes) -> bytes:
    """Field ``number`` with these bytes, one after the other, as its content."""
    content = b"".join(parts)
    return pack_varint(number << 3 | LENGTH) + pack_varint(len(content)) + content
