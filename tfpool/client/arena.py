"""A client's own arena: large tensors are put here once, and run where they lie."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Iterable

import numpy as np

from tfpool.errors import ResourceExhausted
from tfpool.shm.arena import CLIENT_NAME, HEADER_BYTES, Arena
from tfpool.shm.layout import Layout, Lease, align
from tfpool.wire.messages import Region
from tfpool.wire.tensors import Buffer

DEFAULT_BYTES = 512 << 20
COMMIT_BYTES = 4 << 20
NONCE_BYTES = 16


class ClientArena:
    """Leases over an arena that the broker maps. Outputs that the user keeps hold their lease.

    Its memory is allocated as it is first used, in steps; ``nbytes`` is only the most it may come to.
    """

    def __init__(self, nbytes: int = DEFAULT_BYTES) -> None:
        """Raises ResourceExhausted where the memory is not to be had."""
        self._arena = Arena.create(nbytes, CLIENT_NAME, commit=HEADER_BYTES)
        self._committed: set[int] = set()
        self._layout = Layout(nbytes - HEADER_BYTES, HEADER_BYTES)
        self._lock = threading.Lock()
        self._freed: deque[Lease] = deque()
        self._users: dict[Lease, int] = {}
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self._arena.view[:NONCE_BYTES] = self.nonce
        self.accepted = False

    def offer(self) -> tuple[int, int, int, bytes]:
        """What HELLO says: pid, descriptor, bytes, nonce."""
        return os.getpid(), self._arena.fd, self._arena.nbytes, self.nonce

    def put(self, buffers: list[Buffer], reply_bytes: int) -> tuple[list[Region], Region | None, list[Lease]] | None:
        """Copy tensors in, and keep ``reply_bytes`` for outputs, whose lease then comes last; None where the arena is
        full or the broker has not accepted it."""
        if not self.accepted:
            return None
        with self._lock:
            self._collect()
            lease = self._lease(sum(align(len(buffer)) for buffer in buffers))
            if lease is None:
                return None
            leases = [lease]
            room = None
            if reply_bytes and self._layout.leased_bytes < self._layout.capacity // 2:
                reply = self._lease(reply_bytes)
                if reply is not None:
                    leases.append(reply)
                    room = Region(reply.offset, reply.nbytes)
        regions = []
        at = lease.offset
        view = self._arena.view
        for buffer in buffers:
            view[at : at + len(buffer)] = buffer
            regions.append(Region(at, len(buffer)))
            at += align(len(buffer))
        return regions, room, leases

    def read(self, regions: Iterable[Region]) -> list[Buffer]:
        """What was put there."""
        return [self._arena.view[region.offset : region.offset + region.nbytes] for region in regions]

    def take(self, region: Region, lease: Lease) -> Buffer:
        """Outputs in a region of ``lease``, which lasts until the last user of these bytes has gone."""
        buffer = np.frombuffer(self._arena.view[region.offset : region.offset + region.nbytes], np.uint8)
        with self._lock:
            self._users[lease] = self._users.get(lease, 1) + 1
        weakref.finalize(buffer, self._freed.append, lease).atexit = False
        return buffer.data

    def free(self, leases: Iterable[Lease]) -> None:
        """End leases; it may be called from anywhere, finalizers included."""
        self._freed.extend(leases)

    def retire(self) -> None:
        """No broker shares it any more: its memory stays for those only who still have something there."""
        with self._lock:
            self.accepted = False
            fd, self._arena.fd = self._arena.fd, -1
        os.close(fd)

    def close(self) -> None:
        """Nobody may use it any more, but for the outputs that were taken."""
        self._arena.close()

    def _lease(self, nbytes: int) -> Lease | None:
        """Bytes that are there to be used, or None."""
        lease = self._layout.lease(nbytes)
        if lease is None:
            return None
        steps = range(lease.offset // COMMIT_BYTES, (lease.offset + lease.nbytes - 1) // COMMIT_BYTES + 1)
        try:
            for step in steps:
                if step not in self._committed:
                    begin = step * COMMIT_BYTES
                    self._arena.commit(begin, min(COMMIT_BYTES, self._arena.nbytes - begin))
                    self._committed.add(step)
        except ResourceExhausted:
            self._layout.free(lease)
            return None
        return lease

    def _collect(self) -> None:
        while self._freed:
            lease = self._freed.popleft()
            users = self._users.get(lease, 1) - 1
            if users:
                self._users[lease] = users
            else:
                self._users.pop(lease, None)
                self._layout.free(lease)
