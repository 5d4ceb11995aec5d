"""Take outputs from where the worker wrote them to the clients: one message a client, each byte copied once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfpool.broker.clients import Clients, Peer
from tfpool.broker.gather import Outputs, spans
from tfpool.broker.meters import Meters, ModelMeter
from tfpool.broker.shadow import SHADOW
from tfpool.errors import Internal, TfpoolError
from tfpool.scheduler.work import Batch, Segment
from tfpool.shm.layout import align
from tfpool.types import ModelKey
from tfpool.wire.messages import Piece, Region, Verb, encode
from tfpool.wire.tensors import Buffer

Send = Callable[[list[Buffer]], None]
Refuse = Callable[[bytes, list[tuple[int, int]], TfpoolError, str], None]
Timing = tuple[int, int, int]


class Courier:
    """Answers the clients of a batch."""

    def __init__(self, clients: Clients, meters: Meters, send: Send, refuse: Refuse) -> None:
        self._clients = clients
        self._meters = meters
        self._send = send
        self._refuse = refuse

    def deliver(self, batch: Batch, results: Sequence[Outputs], run: float) -> None:
        """Answer every piece of a batch that took ``run`` seconds; in place, each piece has outputs of its own."""
        model, version, _ = batch.spec.servable
        meter = self._meters.model(model)
        begun = batch.begun or batch.sent
        waited = begun - batch.pieces[0].arrived
        timing = (int(waited * 1e6), int(run * 1e6), batch.rows)
        if begun > batch.start_by:
            meter.late_starts += sum(piece.count for piece in batch.pieces if piece.deadline < begun)
        meter.ran(batch.rows, run, waited, sum(piece.count for piece in batch.pieces), batch.padded)
        if batch.alone:
            for piece, outputs in zip(batch.pieces, results, strict=True):
                rows = (0, piece.rows)
                if piece.twin is not None:
                    piece.twin.delivered(piece, 0, outputs)
                if piece.reply is not None and piece.client not in self._clients.peers:
                    continue  # it is gone, and with it the memory that holds its outputs
                meter.requests += 1
                if not self._by_reference(piece, rows, outputs, timing, version):
                    self._answer(piece.client, [(piece, *rows)], outputs, timing, version)
            return
        outputs = results[0]
        mine: dict[bytes, list[tuple[Segment, int, int]]] = {}
        for piece, begin, end in spans(batch):
            if piece.twin is not None:
                piece.twin.delivered(piece, begin, outputs)
                if piece.client == SHADOW:
                    continue
            if piece.join is not None:
                self._part(piece, begin, outputs, timing, batch.spec.servable, meter)
                continue
            meter.requests += piece.count
            if piece.reply is None or not self._by_reference(piece, (begin, end), outputs, timing, version):
                mine.setdefault(piece.client, []).append((piece, begin, end))
        for client, found in mine.items():
            waited = begun - found[0][0].arrived
            self._answer(client, found, outputs, (int(waited * 1e6), *timing[1:]), version)

    def _answer(
        self, client: bytes, found: list[tuple[Segment, int, int]], outputs: Outputs, timing: Timing, version: int
    ) -> None:
        if outputs.key.by_rows:
            pieces = [Piece(piece.first, piece.count, piece.rows) for piece, _, _ in found]
            ranges = [found[0][1:]]
            for _, begin, end in found[1:]:
                if begin == ranges[-1][1]:
                    ranges[-1] = (ranges[-1][0], end)
                else:
                    ranges.append((begin, end))
            buffers = outputs.rows(ranges)
        else:
            pieces = [Piece(piece.first, piece.count, 0) for piece, _, _ in found]
            buffers = outputs.whole()
        self._send([client, encode(Verb.ANSWER, [outputs.packed, pieces, timing, None, version]), *buffers])

    def _by_reference(
        self, piece: Segment, rows: tuple[int, int], outputs: Outputs, timing: Timing, version: int
    ) -> bool:
        """Leave the outputs in the client's arena, in the room it keeps for them; False where there is none."""
        peer = self._clients.peers.get(piece.client)
        if piece.reply is None or peer is None:
            return False
        regions = self._leave(peer, piece.reply, rows, outputs)
        if regions is None:
            return False
        pieces = [Piece(piece.first, 1, piece.rows if outputs.key.by_rows else 0)]
        self._send([piece.client, encode(Verb.ANSWER, [outputs.packed, pieces, timing, regions, version])])
        return True

    @staticmethod
    def _leave(peer: Peer, room: Region, rows: tuple[int, int], outputs: Outputs) -> list[Region] | None:
        if outputs.view is peer.arena.view:  # the worker wrote them there
            return [Region(offset, nbytes) for offset, nbytes in outputs.places]
        buffers = outputs.rows([rows]) if outputs.key.by_rows else outputs.whole()
        if sum(align(len(buffer)) for buffer in buffers) > room.nbytes:
            return None
        regions = []
        at = room.offset
        for buffer in buffers:
            peer.arena.view[at : at + len(buffer)] = buffer
            regions.append(Region(at, len(buffer)))
            at += align(len(buffer))
        return regions

    def _part(
        self, piece: Segment, begin: int, outputs: Outputs, timing: Timing, servable: ModelKey, meter: ModelMeter
    ) -> None:
        """Keep a part of a large request; with the last one, answer it."""
        join = piece.join
        if join is None or join.failed:
            return
        buffers = [bytes(buffer) for buffer in outputs.rows([(begin, begin + piece.count)])]
        join.parts[piece.first] = (outputs.packed, buffers)
        join.answered += piece.count
        if join.answered < join.rows:
            return
        parts = [join.parts[first] for first in sorted(join.parts)]
        join.parts.clear()
        if len({packed for packed, _ in parts}) > 1:
            error = Internal("the parts of a request larger than max_batch_size have outputs of different shapes")
            self._refuse(piece.client, [(join.request, 1)], error, servable.name)
            return
        meter.requests += 1
        joined = [b"".join(column) for column in zip(*(buffers for _, buffers in parts), strict=True)]
        answer = [outputs.packed, [Piece(join.request, 1, join.rows)], timing, None, servable.version]
        self._send([piece.client, encode(Verb.ANSWER, answer), *joined])
