"""A doorbell: a Unix SEQPACKET pair that carries small packets, and now and then a descriptor.

One packet is one message; the end of file tells of the peer's death at once. Packets with descriptors, and those
too long for a packet (these go as a memfd), are announced by a marker packet, so that the common path is one plain
``recv``.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque

MAX_PACKET = 1 << 17
MAX_FDS = 32
_MARKER = b"\x00fds"
_LONG = b"\x00long"


class Doorbell:
    """One end. ``ring`` may be called from several threads, ``hear`` from one."""

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        sock.setblocking(blocking)
        self._socket = sock
        self._buffer = bytearray(MAX_PACKET + 64)
        self._view = memoryview(self._buffer)
        self._lock = threading.Lock()
        self._backlog: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._announced: bytes | None = None

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Both ends, not inheritable."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether packets wait for the peer to make room; call :meth:`flush` when the socket is writable."""
        return bool(self._backlog)

    def ring(self, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send one packet; ``fds`` are duplicated for the peer and stay the caller's.

        Raises BrokenPipeError or ConnectionResetError when the peer is gone.
        """
        with self._lock:
            if not fds and not self._backlog and len(packet) <= MAX_PACKET:
                try:
                    self._socket.send(packet)
                except BlockingIOError:
                    self._backlog.append((packet, ()))
                return
            self._queue(packet, fds)
            self._flush()

    def flush(self) -> None:
        """Send what waits, as far as the peer has room."""
        with self._lock:
            self._flush()

    def hear(self) -> tuple[memoryview, list[int]] | None:
        """The next packet, valid until the next call, and its descriptors, now the caller's.

        None where nothing waits (non-blocking). Raises EOFError when the peer is gone.
        """
        try:
            if self._announced is None:
                n = self._socket.recv_into(self._buffer)
                if n == 0:
                    raise EOFError("the peer closed")
                if self._buffer[0] != 0:
                    return self._view[:n], []
                self._announced = bytes(self._view[:n])
            packet, fds, _, _ = socket.recv_fds(self._socket, MAX_PACKET, MAX_FDS)
        except BlockingIOError:
            return None
        except (ConnectionResetError, BrokenPipeError):
            raise EOFError("the peer closed") from None
        marker, self._announced = self._announced, None
        if not packet:
            raise EOFError("the peer closed")
        if marker == _LONG:
            with open(fds.pop(), "rb") as file:
                file.seek(0)
                packet = file.read()
        return memoryview(packet), fds

    def close(self) -> None:
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()
        self._socket.close()

    def _queue(self, packet: bytes, fds: tuple[int, ...]) -> None:
        kept = tuple(os.dup(fd) for fd in fds)
        marker = _MARKER
        if len(packet) > MAX_PACKET:
            long = os.memfd_create("tfpool-packet", os.MFD_CLOEXEC)
            with open(os.dup(long), "wb") as file:
                file.write(packet)
            packet, kept, marker = b"long", (*kept, long), _LONG
        if kept:
            self._backlog.append((marker, ()))
        self._backlog.append((packet, kept))

    def _flush(self) -> None:
        while self._backlog:
            packet, fds = self._backlog[0]
            try:
                if fds:
                    socket.send_fds(self._socket, [packet], list(fds))
                else:
                    self._socket.send(packet)
            except BlockingIOError:
                return
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)
