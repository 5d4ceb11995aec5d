"""Do what the scheduler asks for: ring workers, answer clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tfpool.broker.clients import Clients
from tfpool.broker.fleet import Fleet
from tfpool.broker.gather import Outputs, gather, input_fields, spans
from tfpool.broker.meters import Meters
from tfpool.errors import TfpoolError
from tfpool.scheduler import events as ev
from tfpool.scheduler.work import Batch, Segment
from tfpool.shm.arena import Arena
from tfpool.shm.layout import align
from tfpool.types import ModelKey
from tfpool.wire.messages import Bell, Piece, Region, Verb, encode
from tfpool.wire.tensors import Buffer

Send = Callable[[list[Buffer]], None]
POOL_ARENA = 0
NOWHERE = -1


class Effects:
    """``send`` takes the frames of one message to a client, its identity first."""

    def __init__(
        self,
        arena: Arena,
        fleet: Fleet,
        clients: Clients,
        meters: Meters,
        handles: Callable[[ModelKey], int],
        send: Send,
    ) -> None:
        self._arena = arena
        self._fleet = fleet
        self._clients = clients
        self._meters = meters
        self._handles = handles
        self._send = send

    def perform(self, actions: Iterable[ev.Action], outputs: Outputs | None = None, run: float = 0.0) -> None:
        """Do all actions in order; ``outputs`` and ``run`` (seconds) belong to a Deliver."""
        for action in actions:
            if type(action) is ev.Dispatch:
                self._dispatch(action.batch)
            elif type(action) is ev.Deliver:
                assert outputs is not None  # only a Completed is answered by a Deliver
                self._deliver(action.batch, outputs, run)
            elif type(action) is ev.Refuse:
                for segment in action.segments:
                    self.refuse(
                        segment.client,
                        [(segment.first, segment.count)],
                        action.error,
                        action.spec.servable.name,
                    )

    def refuse(self, client: bytes, pieces: list[tuple[int, int]], error: TfpoolError, model: str = "") -> None:
        """Answer requests with an error."""
        if model:
            self._meters.model(model).failed(error.code, sum(count for _, count in pieces))
        self._send([client, encode(Verb.ERROR, [pieces, int(error.code), error.message])])

    def _dispatch(self, batch: Batch) -> None:
        link = self._fleet.links[batch.worker]
        spec = batch.spec
        source, out = POOL_ARENA, (POOL_ARENA, batch.out_offset, batch.out_bytes)
        if batch.alone:
            piece = batch.pieces[0]
            peer = self._clients.peers.get(piece.client)
            source = peer.id if peer else NOWHERE
            if peer is not None and source not in link.arenas:
                link.arenas.add(source)
                link.ring(Bell.MAP, source, peer.arena.nbytes, fds=(peer.arena.fd,))
            if piece.reply is not None:
                out = (source, piece.reply.offset, piece.reply.nbytes)
            elif batch.lease is None:
                out = (NOWHERE, 0, 0)
        else:
            gather(batch, self._arena.view)
        link.ring(
            Bell.RUN,
            batch.id,
            self._handles(spec.servable),
            spec.signature,
            spec.by_rows,
            batch.rows,
            batch.padded,
            source,
            input_fields(batch, spec),
            out,
        )

    def _deliver(self, batch: Batch, outputs: Outputs, run: float) -> None:
        meter = self._meters.model(batch.spec.servable.name)
        waited = int((batch.sent - batch.pieces[0].arrived) * 1e6)
        meter.batches += 1
        meter.rows += batch.rows
        meter.run_us.add(run * 1e6)
        meter.batch_rows.add(batch.rows)
        timing = (waited, int(run * 1e6), batch.rows)
        mine: dict[bytes, list[tuple[Segment, int, int]]] = {}
        for span in spans(batch):
            piece = span[0]
            meter.queue_us.add((batch.sent - piece.arrived) * 1e6, piece.count)
            if piece.join is not None:
                self._part(batch, piece, span[1], outputs, timing)
            elif piece.reply is not None:
                self._by_reference(batch, span, outputs, timing)
            else:
                mine.setdefault(piece.client, []).append(span)
                meter.requests += piece.count
        for client, found in mine.items():
            self._answer(client, batch, found, outputs, timing)
        self._fleet.links[batch.worker].busy += run

    def _answer(
        self,
        client: bytes,
        batch: Batch,
        found: list[tuple[Segment, int, int]],
        outputs: Outputs,
        timing: tuple[int, int, int],
    ) -> None:
        by_rows = outputs.key.by_rows
        pieces = [Piece(piece.first, piece.count, piece.rows if by_rows else 0) for piece, _, _ in found]
        if by_rows:
            ranges = [found[0][1:]]
            for _, begin, end in found[1:]:
                if begin == ranges[-1][1]:
                    ranges[-1] = (ranges[-1][0], end)
                else:
                    ranges.append((begin, end))
            buffers = outputs.rows(ranges)
        else:
            buffers = outputs.whole()
        self._send([client, encode(Verb.ANSWER, [outputs.packed, pieces, timing, None]), *buffers])

    def _by_reference(
        self, batch: Batch, span: tuple[Segment, int, int], outputs: Outputs, timing: tuple[int, int, int]
    ) -> None:
        piece, begin, end = span
        self._meters.model(batch.spec.servable.name).requests += 1
        peer = self._clients.peers.get(piece.client)
        buffers = outputs.rows([(begin, end)]) if outputs.key.by_rows else outputs.whole()
        total = sum(align(len(buffer)) for buffer in buffers)
        if peer is None or total > piece.reply.nbytes:
            self._answer(piece.client, batch, [span], outputs, timing)
            return
        regions = []
        at = piece.reply.offset
        in_place = outputs.view is peer.arena.view
        for (offset, _), buffer in zip(outputs.places, buffers, strict=True):
            if in_place:
                at = offset
            else:
                peer.arena.view[at : at + len(buffer)] = buffer
            regions.append(Region(at, len(buffer)))
            at += align(len(buffer))
        pieces = [Piece(piece.first, 1, piece.rows if outputs.key.by_rows else 0)]
        self._send([piece.client, encode(Verb.ANSWER, [outputs.packed, pieces, timing, regions])])

    def _part(
        self, batch: Batch, piece: Segment, begin: int, outputs: Outputs, timing: tuple[int, int, int]
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
        self._meters.model(batch.spec.servable.name).requests += 1
        parts = [join.parts[first] for first in sorted(join.parts)]
        if len({packed for packed, _ in parts}) > 1:
            error = TfpoolError("the parts of a request larger than max_batch_size have outputs of different shapes")
            self.refuse(piece.client, [(join.request, 1)], error, batch.spec.servable.name)
            return
        joined = [b"".join(column) for column in zip(*(buffers for _, buffers in parts), strict=True)]
        answer = [outputs.packed, [Piece(join.request, 1, join.rows)], timing, None]
        self._send([piece.client, encode(Verb.ANSWER, answer), *joined])
        join.parts.clear()
