"""The sockets of one endpoint: a new DEALER for every connection, so that nothing sent over one reaches the next."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from typing import Any

import zmq

from tfpool.errors import Unavailable
from tfpool.keys import ClientKeys
from tfpool.wire.tensors import Buffer

HEARTBEAT_MS = 5_000
SILENCE_MS = 15_000
_NEVER_MS = 3_600_000  # not -1: the answers that came before the end would go with it
_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
# as plain numbers: arithmetic on pyzmq's enums costs microseconds a message
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = _NOBLOCK | int(zmq.SNDMORE)


class Change(IntEnum):
    """What has become of a connection. The last four are handshakes that failed."""

    UP = 1
    ENDED = 2
    MISMATCH = 3
    DENIED = 4
    GARBLED = 5
    BROKEN_OFF = 6


_CHANGES = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): Change.UP,
    int(zmq.EVENT_DISCONNECTED): Change.ENDED,
    int(zmq.EVENT_CLOSED): Change.ENDED,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): Change.DENIED,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): Change.GARBLED,
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): Change.BROKEN_OFF,
}


class Link:
    """At most one connection at a time. ``changed`` is whether the last wait found :meth:`changes` to hear of."""

    def __init__(
        self, endpoint: str, keys: ClientKeys | None = None, watch: Callable[[int, bool, bool], None] | None = None
    ) -> None:
        """``keys`` are for tcp, and not used otherwise. ``watch`` is told of each descriptor that brings news, with
        False when it does no more, and whether they are :meth:`changes`."""
        self.endpoint = endpoint
        self.keys = keys if endpoint.startswith("tcp://") else None
        self.is_open = False
        self.changed = False
        self._context = zmq.Context()
        self._watch = watch
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._socket: Any = None
        self._monitor: Any = None
        self._poller = self._watching()
        self._opened = 0
        self._held: list[Any] = []
        self._forgotten = weakref.finalize(self, _release, self._context, self._held, self._wake)
        self._forgotten.atexit = False

    def open(self) -> None:
        """Begin to connect; :meth:`changes` tells of the outcome, but not for hosts that have no address.

        Raises Unavailable where the system has no socket left.
        """
        sock = monitor = None
        try:
            sock = self._context.socket(zmq.DEALER)
            options = {zmq.LINGER: 0, zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.RECONNECT_IVL: _NEVER_MS}
            if self.endpoint.startswith("tcp://"):
                options |= {zmq.HEARTBEAT_IVL: HEARTBEAT_MS, zmq.HEARTBEAT_TIMEOUT: SILENCE_MS}
            for option, value in options.items():
                sock.setsockopt(option, value)
            if self.keys is not None:
                sock.curve_serverkey = self.keys.server
                sock.curve_publickey, sock.curve_secretkey = self.keys.public, self.keys.secret
            self._opened += 1
            monitor = sock.get_monitor_socket(sum(_CHANGES), f"inproc://monitor-{self._opened}")
            sock.connect(self.endpoint)
        except zmq.ZMQError as error:
            if monitor is not None:
                monitor.close(0)
            if sock is not None:
                sock.close(0)
            raise Unavailable(f"cannot connect to {self.endpoint}: {error}") from None
        self._socket, self._monitor = sock, monitor
        self._held[:] = [monitor, sock]
        self.is_open = True
        self._poller = self._watching()
        self._tell(True)

    def shut(self, linger_ms: int = 0) -> None:
        """End the connection, and with it what has not been sent within ``linger_ms`` or not been received."""
        if self.is_open:
            self.is_open = False
            self._tell(False)
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(linger_ms)
            self._socket = self._monitor = None
            self._held.clear()
            self._poller = self._watching()

    def close(self) -> None:
        self._forgotten.detach()
        self._context.term()
        os.close(self._wake)

    def _watching(self) -> zmq.Poller:
        poller = zmq.Poller()
        for watched in (self._socket, self._monitor, self._wake):
            if watched is not None:
                poller.register(watched, zmq.POLLIN)
        return poller

    def _tell(self, watched: bool) -> None:
        if self._watch is not None:
            for sock in (self._socket, self._monitor):
                self._watch(sock.getsockopt(zmq.FD), watched, sock is self._monitor)

    def ring(self) -> None:
        """Have :meth:`wait` return; from any thread."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> bool:
        """Return when something has come, somebody rings, or after ``seconds``; whether there are :meth:`messages`."""
        messages = self.changed = False
        for watched, _ in self._poller.poll(math.ceil(max(0.0, seconds) * 1000)):
            if watched is self._socket:
                messages = True
            elif watched is self._monitor:
                self.changed = True
            else:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
        return messages

    def changes(self) -> list[Change]:
        """What has become of the connection since the last call."""
        from zmq.utils.monitor import recv_monitor_message

        heard: list[Change] = []
        with suppress(zmq.Again):
            while True:
                event: Any = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                change = _CHANGES[int(event["event"])]
                mismatch = change == Change.GARBLED and int(event["value"]) == _MISMATCH
                heard.append(Change.MISMATCH if mismatch else change)
        return heard

    def send(self, frames: list[Buffer]) -> None:
        """Queue a message on the open connection."""
        send = self._socket.send
        for frame in frames[:-1]:
            send(frame, _MORE)
        send(frames[-1], _NOBLOCK)

    def messages(self) -> Iterator[list[bytes]]:
        """What has been received."""
        sock = self._socket
        while sock.getsockopt(_EVENTS) & _POLLIN:
            yield sock.recv_multipart(_NOBLOCK)


def _release(context: zmq.Context[Any], held: list[Any], wake: int) -> None:
    """Nobody has closed a client, and it is collected. The collector has the context forget its sockets first, and then
    it would wait for them for ever."""
    for sock in held:
        sock.close(0)
    context.term()
    os.close(wake)
