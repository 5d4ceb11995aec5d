from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tfpool.shm.doorbell import MAX_PACKET, Doorbell

Pair = tuple[Doorbell, Doorbell]


@pytest.fixture
def bells() -> Iterator[Pair]:
    a, b = Doorbell.pair()
    pair = Doorbell(a, blocking=False), Doorbell(b, blocking=False)
    yield pair
    for bell in pair:
        bell.close()


def hear(bell: Doorbell) -> bytes:
    heard = bell.hear()
    assert heard is not None
    assert heard[1] == []
    return bytes(heard[0])


def test_a_packet_is_one_message(bells: Pair) -> None:
    here, there = bells
    here.ring(b"\x91one")
    here.ring(b"\x91two")
    assert [hear(there), hear(there)] == [b"\x91one", b"\x91two"]
    assert there.hear() is None
    there.ring(b"\x91back")
    assert hear(here) == b"\x91back"


def test_descriptors_cross_as_duplicates(bells: Pair) -> None:
    here, there = bells
    r, w = os.pipe()
    here.ring(b"\x91fds", (r, w))
    os.close(r)
    heard = there.hear()
    assert heard is not None
    packet, (theirs_r, theirs_w) = heard
    assert bytes(packet) == b"\x91fds"
    os.write(w, b"x")
    os.close(w)
    os.close(theirs_w)
    assert os.read(theirs_r, 10) == b"x"
    os.close(theirs_r)


@pytest.mark.parametrize("size", [1, MAX_PACKET - 1, MAX_PACKET, MAX_PACKET + 1, 5 * MAX_PACKET + 3])
@pytest.mark.parametrize("with_fd", [False, True])
def test_any_size_crosses_in_order(bells: Pair, size: int, with_fd: bool) -> None:
    here, there = bells
    packet = b"\x91" + random.Random(size).randbytes(size - 1)
    before = set(os.listdir("/proc/self/fd"))
    here.ring(packet, (0,) if with_fd else ())
    here.ring(b"\x91after")
    heard = there.hear()
    assert heard is not None
    assert bytes(heard[0]) == packet
    assert len(heard[1]) == with_fd
    for fd in heard[1]:
        os.close(fd)
    assert hear(there) == b"\x91after"
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_end_of_file_is_told(bells: Pair) -> None:
    here, there = bells
    here.ring(b"\x91last")
    here.close()
    assert hear(there) == b"\x91last"
    with pytest.raises(EOFError):
        there.hear()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        there.ring(b"\x91anyone?")


def test_the_end_of_file_after_an_announcement(bells: Pair) -> None:
    here, there = bells
    here._socket.send(b"\x00fds")
    here.close()
    with pytest.raises(EOFError):
        there.hear()


def test_what_the_peer_has_no_room_for_waits_in_order(bells: Pair) -> None:
    here, there = bells
    packets = []
    while not here.waiting:
        packets.append(b"\x91%06d" % len(packets) + bytes(1000))
        here.ring(packets[-1])
    long = b"\x91" + bytes(2 * MAX_PACKET)
    extra = [b"\x91first", long, b"\x91third"]
    here.ring(extra[0])
    here.ring(extra[1])
    here.ring(extra[2], (0,))
    packets += extra
    got: list[bytes] = []
    while len(got) < len(packets):
        heard = there.hear()
        if heard is None:
            here.flush()
            continue
        got.append(bytes(heard[0]))
        for fd in heard[1]:
            os.close(fd)
    assert got == packets
    assert not here.waiting
    assert there.hear() is None


def test_a_closed_bell_frees_what_waits(bells: Pair) -> None:
    here, _ = bells
    while not here.waiting:
        here.ring(b"\x91" + bytes(1000))
    before = len(os.listdir("/proc/self/fd"))
    here.ring(b"\x91fd", (0,))
    here.ring(b"\x91" + bytes(2 * MAX_PACKET))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    here.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_blocking_bell_waits_for_its_peer() -> None:
    a, b = Doorbell.pair()
    here, there = Doorbell(a, blocking=True), Doorbell(b, blocking=True)
    got: list[bytes] = []

    def listen() -> None:
        try:
            while (heard := there.hear()) is not None:
                got.append(bytes(heard[0]))
        except EOFError:
            pass

    listener = threading.Thread(target=listen)
    listener.start()
    packets = [b"\x91%d" % i + bytes(5000) for i in range(300)]
    for packet in packets:
        here.ring(packet)
    here.close()
    listener.join(10)
    assert got == packets
    there.close()


def test_many_threads_may_ring_one_bell(bells: Pair) -> None:
    here, there = bells
    ringers = [
        threading.Thread(target=lambda n=n: [here.ring(b"\x91%d %d" % (n, i) + bytes(300)) for i in range(200)])
        for n in range(4)
    ]
    for ringer in ringers:
        ringer.start()
    got: list[tuple[int, int]] = []
    while len(got) < 800:
        heard = there.hear()
        if heard is None:
            here.flush()
            continue
        thread, number = bytes(heard[0])[1:].rstrip(b"\0").split()
        got.append((int(thread), int(number)))
    for ringer in ringers:
        ringer.join()
    for n in range(4):
        assert [i for thread, i in got if thread == n] == list(range(200))


def test_ends_are_not_inheritable() -> None:
    a, b = Doorbell.pair()
    assert not a.get_inheritable()
    assert not b.get_inheritable()
    assert a.type == socket.SOCK_SEQPACKET
    a.close()
    b.close()
