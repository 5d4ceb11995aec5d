"""The board: shared memory where each gateway posts what it has counted, so that whoever is scraped tells of all.

The supervisor makes it before it forks the gateways, with a slot for each. What a slot holds outlives its gateway: the
successor goes on counting from there. One slot::

    0            sequence (u64), the number of times it was written
    4096         half 0: length (u32), CRC-32 (u32), that many bytes
    4096 + HALF  half 1

Its gateway writes the half that nobody is sent to, then raises the sequence, whose lowest bit says which half holds:
readers never wait, and a writer that dies midway leaves the last snapshot whole. A reader whose half was overtaken
while it read sees another sequence, or a CRC that is wrong, and reads again.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import Final

import orjson

from tfpool.errors import ResourceExhausted
from tfpool.gateway.meters import Meters, Snapshot
from tfpool.shm.arena import Arena
from tfpool.telemetry import log

HALF_BYTES: Final = 4 << 20
PERIOD_SECONDS: Final = 1.0
_HEADER_BYTES: Final = 4096
_SLOT_BYTES: Final = _HEADER_BYTES + 2 * HALF_BYTES
_FRAME: Final = struct.Struct("=II")
_TRIES: Final = 5


class Board:
    """``slots`` snapshots, each written by one process and read by all."""

    def __init__(self, arena: Arena, slots: int) -> None:
        self._arena = arena
        self.slots = slots
        self._sequences = [
            arena.view[at : at + 8].cast("Q") for at in range(0, slots * _SLOT_BYTES, _SLOT_BYTES)
        ]  # stored in one piece, unlike struct's

    @classmethod
    def create(cls, slots: int) -> Board:
        """An empty one, which forked processes share. Raises ResourceExhausted."""
        arena = Arena.create(slots * _SLOT_BYTES, "tfpool-board", commit=_HEADER_BYTES)
        for slot in range(1, slots):
            arena.commit(slot * _SLOT_BYTES, _HEADER_BYTES)
        return cls(arena, slots)

    def write(self, slot: int, content: bytes) -> None:
        """Replace what a slot holds. Raises ResourceExhausted for what is too long, or where there is no memory."""
        length = _FRAME.size + len(content)
        if length > HALF_BYTES:
            raise ResourceExhausted(f"a snapshot of {len(content)} bytes does not fit into {HALF_BYTES}")
        sequence = self._sequences[slot][0] + 1
        at = self._half(slot, sequence)
        self._arena.commit(at, length)
        _FRAME.pack_into(self._arena.view, at, len(content), zlib.crc32(content))
        self._arena.view[at + _FRAME.size : at + length] = content
        self._sequences[slot][0] = sequence

    def read(self, slot: int) -> bytes:
        """What a slot holds; empty where nobody has written yet."""
        for _ in range(_TRIES):
            sequence = self._sequences[slot][0]
            if not sequence:
                break
            at = self._half(slot, sequence)
            length, crc = _FRAME.unpack_from(self._arena.view, at)
            begin = at + _FRAME.size
            content = bytes(self._arena.view[begin : begin + min(length, HALF_BYTES)])
            if self._sequences[slot][0] == sequence and zlib.crc32(content) == crc:
                return content
        return b""

    def written(self, slot: int) -> int:
        """How often a slot was written: what lives goes on writing."""
        found: int = self._sequences[slot][0]
        return found

    def close(self) -> None:
        for sequence in self._sequences:
            sequence.release()
        self._arena.close()

    @staticmethod
    def _half(slot: int, sequence: int) -> int:
        return slot * _SLOT_BYTES + _HEADER_BYTES + (sequence & 1) * HALF_BYTES


class Post:
    """One gateway's place on the board, taken over from its predecessor with all that it had counted."""

    def __init__(self, board: Board, slot: int, meters: Meters) -> None:
        self._board = board
        self._slot = slot
        self._meters = meters
        self._log = log.get("gateway")
        held = board.read(slot)
        if held:
            meters.add(orjson.loads(held))

    def publish(self) -> None:
        """Post what has been counted. Raises ResourceExhausted."""
        self._board.write(self._slot, orjson.dumps(self._meters.snapshot()))

    def all(self) -> dict[int, Snapshot]:
        """What every gateway has counted, by slot; this one's own is of this moment.

        It is posted first: what somebody has been told never gets less, whomever he asks next.
        """
        self._try()
        held = {slot: self._board.read(slot) for slot in range(self._board.slots)}
        found = {slot: orjson.loads(content) for slot, content in held.items() if content}
        return {**found, self._slot: self._meters.snapshot()}

    async def run(self) -> None:
        """Publish again and again, until it is cancelled, and then once more."""
        try:
            while True:
                self._try()
                await asyncio.sleep(PERIOD_SECONDS)
        finally:
            self._try()

    def _try(self) -> None:
        try:
            self.publish()
        except ResourceExhausted as error:
            self._log.warning("gateway.unpublished", error=error)
