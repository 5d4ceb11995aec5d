"""What has been sent and is not answered yet, and how answers become results. Pure, like the core it belongs to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tfpool.client.reply import Reply
from tfpool.errors import DeadlineExceeded, TfpoolError, from_code
from tfpool.shm.layout import Lease
from tfpool.types import DType
from tfpool.wire.keys import OutputKey, unpack_output_key
from tfpool.wire.messages import Answer, Error, Flag, Region
from tfpool.wire.tensors import Array, Buffer, take_array

GRACE_SECONDS = 0.05
OVERFLOW = 24
MOST_LOSSES = 3
_KEYS_KEPT = 8192
_AGAIN = int(Flag.AGAIN)


class Store(Protocol):
    """Memory that is shared with the broker, for large tensors."""

    def put(self, buffers: list[Buffer], reply_bytes: int) -> tuple[list[Region], Region | None, list[Lease]] | None:
        """Copy tensors in, and keep room for outputs, whose lease then comes last; None where there is no room."""

    def read(self, regions: Iterable[Region]) -> list[Buffer]:
        """What was put there, even after the store was given up."""

    def take(self, region: Region, lease: Lease) -> Buffer:
        """The outputs in a region; the lease lasts while somebody uses them."""

    def free(self, leases: Iterable[Lease]) -> None:
        """End leases."""


class Ledger:
    """Requests in flight by id, and those ``held`` until there is a broker to send them to.

    ``outbox`` is where callbacks queue new ones; see ``overflow`` in Core.
    """

    def __init__(self, outbox: deque[Reply], overflow: Callable[[], None]) -> None:
        self.sent: dict[int, Reply] = {}
        self.calls: dict[int, Reply] = {}
        self.held: deque[Reply] = deque()
        self.expiry = float("inf")
        self.store: Store | None = None
        self._outbox = outbox
        self._overflow = overflow
        self._output_keys: dict[bytes, OutputKey] = {}

    def failed(self, failure: Error) -> None:
        for first, count in failure.pieces:
            for number in range(first, first + count):
                reply = self.sent.pop(number, None) or self.calls.pop(number, None)
                if reply is not None:
                    self.release(reply)
                    reply.resolve(None, from_code(failure.code, failure.message, failure.retry_ms / 1000 or None))

    def returned(self, number: int, value: Any) -> None:
        """A call of the control plane is answered."""
        reply = self.calls.pop(number, None)
        if reply is not None:
            reply.resolve(value)

    def answered(self, answer: Answer, frames: list[bytes]) -> None:
        """Resolve what one batch holds for this client; its results are views of one block."""
        spec, pieces, timing, regions, version = answer
        key = self._output_keys.get(spec)
        if key is None:
            if len(self._output_keys) >= _KEYS_KEPT:
                self._output_keys.clear()
            key = self._output_keys[spec] = unpack_output_key(spec)
        if regions is not None:
            self._by_reference(key, pieces[0].first, regions, timing, version)
            return
        rows = sum(piece.count * piece.rows for piece in pieces)
        blocks: list[tuple[str, Array]] = []
        at = 1
        for name, dtype, inner in key.outputs:
            shape = (rows, *inner) if key.by_rows else inner
            many = 2 if dtype == DType.STRING else 1
            buffers: list[Buffer] = [*frames[at : at + many]] if many == 2 else [bytearray(frames[at])]
            blocks.append((name, take_array(dtype, shape, buffers)))
            at += many
        if not key.by_rows:
            self._finish(pieces[0].first, dict(blocks), timing, version)
            return
        self._learn(pieces[0].first, key)
        sent, outbox = self.sent, self._outbox
        enough = max(OVERFLOW, len(sent) // 2)
        begin = 0
        name, block = blocks[0]
        single = len(blocks) == 1
        for first, count, each in pieces:
            for number in range(first, first + count):
                reply = sent.pop(number, None)
                end = begin + each
                if reply is not None:
                    outputs = {name: block[begin:end]} if single else {n: b[begin:end] for n, b in blocks}
                    if reply.squeeze:
                        outputs = {n: value[0] for n, value in outputs.items()}
                    if reply.leases:
                        self.release(reply)
                    reply.timing, reply.version = timing, version
                    reply.resolve(outputs)
                    if len(outbox) >= enough:
                        self._overflow()
                begin = end

    def _finish(self, number: int, outputs: dict[str, Array], timing: tuple[int, int, int], version: int) -> None:
        reply = self.sent.pop(number, None)
        if reply is not None:
            self.release(reply)
            if reply.squeeze:
                outputs = {name: v[0] if v.ndim and v.shape[0] == 1 else v for name, v in outputs.items()}
            reply.timing, reply.version = timing, version
            reply.resolve(outputs)

    def _learn(self, number: int, key: OutputKey) -> None:
        reply = self.sent.get(number)
        if reply is not None and reply.entry is not None:
            reply.entry.out_row_bytes = key.row_bytes

    def _by_reference(
        self, key: OutputKey, number: int, regions: tuple[Region, ...], timing: tuple[int, int, int], version: int
    ) -> None:
        reply = self.sent.pop(number, None)
        if reply is None or self.store is None:
            return
        *inputs, room = reply.leases
        reply.leases, reply.store = (), None
        self.store.free(inputs)
        outputs: dict[str, Array] = {}
        at = 0
        for name, dtype, inner in key.outputs:
            shape = (reply.rows, *inner) if key.by_rows else inner
            many = 2 if dtype == DType.STRING else 1
            buffers = [self.store.take(region, room) for region in regions[at : at + many]]
            outputs[name] = take_array(dtype, shape, buffers)
            at += many
        self.store.free([room])
        if reply.squeeze:
            outputs = {name: value[0] for name, value in outputs.items()}
        reply.timing, reply.version = timing, version
        reply.resolve(outputs)

    def release(self, reply: Reply) -> None:
        if reply.leases and self.store is reply.store is not None:
            reply.store.free(reply.leases)
        reply.leases, reply.store = (), None

    def expire(self, now: float, trouble: str) -> None:
        """Fail what has had no answer at its deadline. The broker is still owed the leases it may be using."""
        late = now - GRACE_SECONDS
        following = float("inf")
        for reply in (*self.sent.values(), *self.calls.values(), *self.held):
            if not reply.pending:
                continue
            if reply.deadline <= late:
                self.calls.pop(reply.id, None)
                what = f"model {reply.entry.key.model!r}" if reply.entry is not None else reply.buffers[0]
                why = f"{what}: no answer before the deadline" + (f": {trouble}" if trouble else "")
                reply.resolve(None, DeadlineExceeded(why))
            elif reply.deadline < following:
                following = reply.deadline
        self._sift(lambda reply: reply.pending)
        self.expiry = following

    # -- loss --------------------------------------------------------------------------------------------------

    def hold(self, reply: Reply) -> None:
        """Keep a request, with its deadline, until there is a broker to send it to."""
        self.held.append(reply)
        self.expiry = min(self.expiry, reply.deadline)

    def recall(self, error: TfpoolError) -> None:
        """The connection is gone: hold what was due, to be asked for again. What was lost too often fails: perhaps it
        is the reason."""
        for reply in self._taken():
            reply.losses += 1
            if reply.pending and reply.losses < MOST_LOSSES:
                reply.flags |= _AGAIN
                self.hold(reply)
            else:
                self.release(reply)
                reply.resolve(None, error)

    def lost(self, error: TfpoolError) -> None:
        """The connection is gone, and with it every answer that was due."""
        for reply in self._taken():
            self.release(reply)
            reply.resolve(None, error)

    def abandon(self, error: TfpoolError, resent_only: bool) -> None:
        """Fail what is held; perhaps only what had been sent before."""
        for reply in self._sift(lambda reply: resent_only and not reply.losses):
            reply.resolve(None, error)

    def _taken(self) -> list[Reply]:
        """Those that were sent, in that order."""
        gone = [*self.sent.values(), *self.calls.values()]
        self.sent.clear()
        self.calls.clear()
        gone.sort(key=lambda reply: reply.id)
        return gone

    def _sift(self, stays: Callable[[Reply], bool]) -> list[Reply]:
        """Hold no longer what does not stay."""
        held, self.held = self.held, deque()
        gone: list[Reply] = []
        for reply in held:
            (self.held if stays(reply) else gone).append(reply)
        for reply in gone:
            self.release(reply)
        return gone
