"""Clients on this host that hand tensors over in arenas of their own."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass

from tfpool.errors import InvalidArgument
from tfpool.shm.arena import HEADER_BYTES, Arena, open_peer
from tfpool.shm.layout import ALIGN
from tfpool.wire.messages import Hello, Region

MAX_ARENA = 1 << 36


@dataclass(slots=True)
class Peer:
    """A client's arena, known to workers by ``id``; ``process`` is a pidfd that tells of the client's death."""

    id: int
    arena: Arena
    process: int

    def close(self) -> None:
        self.arena.close()
        os.close(self.process)


class Clients:
    """Arenas by client identity."""

    def __init__(self) -> None:
        self.peers: dict[bytes, Peer] = {}
        self._next = 1

    def offer(self, client: bytes, hello: Hello) -> Peer:
        """Map a client's arena; an earlier one of the same client is given up.

        Raises PermissionDenied or InvalidArgument where it cannot be had.
        """
        if hello.nbytes > MAX_ARENA:
            raise InvalidArgument(f"arena of {hello.nbytes} bytes, expected at most {MAX_ARENA}")
        arena = open_peer(hello.pid, hello.fd, hello.nbytes, hello.nonce)
        try:
            process = os.pidfd_open(hello.pid)
        except OSError as error:
            arena.close()
            raise InvalidArgument(f"client process {hello.pid}: {error.strerror}") from None
        self._next += 1
        peer = self.peers[client] = Peer(self._next, arena, process)
        return peer

    def drop(self, client: bytes) -> int | None:
        """Forget a client; the id of its arena."""
        peer = self.peers.pop(client, None)
        if peer is None:
            return None
        peer.close()
        return peer.id

    def dead(self) -> list[bytes]:
        """Clients whose process has ended."""
        if not self.peers:
            return []
        poller = select.poll()
        owners: dict[int, bytes] = {}
        for client, peer in self.peers.items():
            owners[peer.process] = client
            poller.register(peer.process, select.POLLIN)
        return [owners[fd] for fd, _ in poller.poll(0)]

    def buffers(self, client: bytes, regions: tuple[Region, ...]) -> list[memoryview]:
        """Views of referenced tensors. Raises InvalidArgument for what is not inside the client's arena."""
        arena = self._arena(client)
        for region in regions:
            self._check(arena, region)
        return [arena.view[r.offset : r.offset + r.nbytes] for r in regions]

    def check_reply(self, client: bytes, region: Region) -> None:
        """Raises InvalidArgument."""
        self._check(self._arena(client), region)

    def _arena(self, client: bytes) -> Arena:
        peer = self.peers.get(client)
        if peer is None:
            raise InvalidArgument("a tensor by reference, but this client has offered no arena")
        return peer.arena

    @staticmethod
    def _check(arena: Arena, region: Region) -> None:
        arena.check(region.offset, region.nbytes, ALIGN)
        if region.offset < HEADER_BYTES:
            raise InvalidArgument(f"region at {region.offset} lies in the arena's header")
