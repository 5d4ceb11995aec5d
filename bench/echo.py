"""The floors: a raw pyzmq echo over ipc, one message a request, and a SEQPACKET socket pair between two processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from bench import fleet
from bench.children import Channel, Child
from bench.fleet import Fleet, Loop, Tally, Window
from bench.points import quantile
from bench.processes import cpu_seconds
from bench.scenario import Settings
from tfpool.worker.boot import die_with_parent

HEADER_BYTES = 30
BODY_BYTES = 4
_PACKET_BYTES = 64
_PATIENCE_MS = 30_000


class Echo:
    """A ROUTER that sends every message back, in a process of its own."""

    def __init__(self, settings: Settings, name: str = "echo") -> None:
        self.endpoint = f"ipc://{settings.directory}/{name}"
        self._child = Child(serve, self.endpoint)
        try:
            self._child.hear()
        except BaseException:
            self._child.close()
            raise

    def clients(self, clients: int = 1) -> Fleet:
        """A fleet on it."""
        return Fleet("raw zmq echo", lambda: {"echo": cpu_seconds(self._child.pid)}, load, self.endpoint, clients)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def serve(channel: Channel, endpoint: str) -> None:
    """The echo's child."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.sndhwm = router.rcvhwm = 0
    router.bind(endpoint)
    channel.say("bound")
    while True:
        router.send_multipart(router.recv_multipart())


def load(channel: Channel, endpoint: str, clients: int) -> None:
    """A fleet's child: each client keeps messages of a header and a body under way."""

    @contextmanager
    def prepare(index: int) -> Iterator[Loop]:
        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.sndhwm = dealer.rcvhwm = dealer.linger = 0
        dealer.rcvtimeo = _PATIENCE_MS
        dealer.connect(endpoint)
        yield lambda window: _loop(dealer, index, window)

    fleet.run(channel, clients, prepare)


def _loop(dealer: Any, index: int, window: Window) -> Tally:
    header = index.to_bytes(4, "little") * (HEADER_BYTES // 4) + b"\0" * (HEADER_BYTES % 4)
    message = [header, os.urandom(window.nbytes or BODY_BYTES)]
    alone = window.in_flight == 1
    latencies: list[float] = []
    count = 0
    for _ in range(window.in_flight):
        dealer.send_multipart(message)
    begun = now = time.monotonic()
    cpu = time.process_time()
    while now < window.end:
        sent = now
        answer = dealer.recv_multipart()
        now = time.monotonic()
        dealer.send_multipart(message)
        if sent < window.begin:
            begun, cpu = now, time.process_time()
            continue
        count += 1
        if alone:
            latencies.append(now - sent)
    seconds, cpu = now - begun, time.process_time() - cpu
    for _ in range(window.in_flight):
        answer = dealer.recv_multipart()
    return Tally(count, seconds, cpu, latencies, 1, int(answer != message))


def seqpacket(channel: Channel) -> None:
    """A child that measures round trips of a small packet to a process that it forks; answers with p50 and p99.

    Both stay on cores of their own, where there are two: on one core a round trip takes a tenth of the time, but then
    nothing runs beside anything.
    """
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent, cores = os.getpid(), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    if os.fork() == 0:
        die_with_parent(parent)
        os.sched_setaffinity(0, cores[-1:])
        mine.close()
        with suppress(OSError):
            while packet := theirs.recv(_PACKET_BYTES):
                theirs.send(packet)
        os._exit(0)
    theirs.close()
    packet = os.urandom(_PACKET_BYTES)
    while (seconds := channel.hear()) is not None:
        latencies = []
        now = time.monotonic()
        end = now + seconds
        while now < end:
            sent = now
            mine.send(packet)
            mine.recv(_PACKET_BYTES)
            now = time.monotonic()
            latencies.append(now - sent)
        latencies.sort()
        channel.say({"p50_us": quantile(latencies, 0.5) * 1e6, "p99_us": quantile(latencies, 0.99) * 1e6})
