"""Do what the scheduler asks for: ring workers, answer clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tfpool.broker.clients import Clients
from tfpool.broker.deliver import Courier, Send
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.gather import Outputs, gather, input_fields
from tfpool.broker.meters import Meters
from tfpool.broker.shadow import SHADOW
from tfpool.errors import TfpoolError
from tfpool.scheduler import events as ev
from tfpool.scheduler.work import Batch, Segment
from tfpool.shm.arena import Arena
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, encode_error

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
        send: Send,
    ) -> None:
        self._arena = arena
        self._fleet = fleet
        self._clients = clients
        self._meters = meters
        self._send = send
        self._log = log.get("broker")
        self._courier = Courier(clients, meters, send, self.refuse)

    def perform(self, actions: Iterable[ev.Action], results: Sequence[Outputs] = (), run: float = 0.0) -> None:
        """Do all actions in order; ``results`` and ``run`` (seconds) belong to a Deliver."""
        for action in actions:
            if type(action) is ev.Dispatch:
                self._dispatch(action.batch)
            elif type(action) is ev.Deliver:
                self._courier.deliver(action.batch, results, run)
                self._fleet.links[action.batch.worker].ran(action.batch.spec.servable.life, action.batch.rows, run)
            elif type(action) is ev.Refuse:
                for segment in action.segments:
                    if segment.twin is not None:
                        segment.twin.refused(segment)
                        if segment.client == SHADOW:
                            continue
                    pieces = [(segment.first, segment.count)]
                    self.refuse(segment.client, pieces, action.error, action.spec.servable.name)

    def refuse(self, client: bytes, pieces: list[tuple[int, int]], error: TfpoolError, model: str = "") -> None:
        """Answer requests with an error."""
        if model:
            self._meters.model(model).failed(error.code, sum(count for _, count in pieces))
        self._log.debug("requests.refused", client=client.hex(), ids=pieces, model=model, error=error.message)
        self._send([client, encode_error(pieces, error)])

    def _dispatch(self, batch: Batch) -> None:
        link = self._fleet.links[batch.worker]
        spec = batch.spec
        if batch.alone:
            items = [self._in_place(link, batch, piece) for piece in batch.pieces]
        else:
            gather(batch, self._arena.view)
            out = (POOL_ARENA, batch.out_offset, batch.out_bytes)
            items = [[batch.rows, batch.padded, POOL_ARENA, input_fields(batch, spec), out]]
        link.ring(Bell.RUN, batch.id, spec.servable.life, spec.signature, spec.by_rows, batch.start_by, items)

    def _in_place(self, link: Link, batch: Batch, piece: Segment) -> list[Any]:
        """A request that runs on its client's own memory; without room there for outputs, these go to the lease."""
        peer = self._clients.peers.get(piece.client)
        source = peer.id if peer else NOWHERE  # the worker fails a run on memory that is gone
        if peer is not None and source not in link.arenas:
            link.arenas.add(source)
            link.ring(Bell.MAP, source, peer.arena.nbytes, fds=(peer.arena.fd,))
        out = (NOWHERE, 0, 0)
        if piece.reply is not None:
            out = (source, piece.reply.offset, piece.reply.nbytes)
        elif batch.lease is not None:
            out = (POOL_ARENA, batch.out_offset, batch.out_bytes)
        shapes = [item.shape for item in batch.spec.inputs]
        inputs = [[region.offset, shape, 0, 0] for region, shape in zip(piece.regions or (), shapes, strict=True)]
        return [piece.rows, piece.rows, source, inputs, out]
