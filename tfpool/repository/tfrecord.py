"""TFRecord files: length, checksum of the length, data, checksum of the data, and so on to the end."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import IO

from tfpool.errors import InvalidArgument

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def read(path: str) -> Iterator[bytes]:
    """The records of a file.

    Raises InvalidArgument, with path and record number (from 1), where it cannot be read, ends within a record or
    fails a checksum.
    """
    try:
        with open(path, "rb") as file:
            yield from _records(file, path)
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None


def write(file: IO[bytes], records: Iterable[bytes]) -> None:
    """Append records to an open file."""
    for record in records:
        length = struct.pack("<Q", len(record))
        file.write(length + _FOOTER.pack(_masked_crc(length)))
        file.write(record + _FOOTER.pack(_masked_crc(record)))


def _records(file: IO[bytes], path: str) -> Iterator[bytes]:
    left = os.fstat(file.fileno()).st_size
    number = 0
    while header := file.read(_HEADER.size):
        number += 1
        if len(header) < _HEADER.size:
            raise InvalidArgument(f"{path}, record {number}: truncated: got {len(header)} bytes of its header")
        length, crc = _HEADER.unpack(header)
        if crc != _masked_crc(header[:8]):
            raise InvalidArgument(f"{path}, record {number}: corrupt: the checksum of its length is wrong")
        left -= len(header) + length + _FOOTER.size
        if left < 0:
            raise InvalidArgument(f"{path}, record {number}: truncated: {-left} of its bytes are missing")
        data, footer = file.read(length), file.read(_FOOTER.size)
        if len(footer) < _FOOTER.size or footer != _FOOTER.pack(_masked_crc(data)):
            raise InvalidArgument(f"{path}, record {number}: corrupt: the checksum of its data is wrong")
        yield data


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
