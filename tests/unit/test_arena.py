from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tfpool.client.arena import ClientArena
from tfpool.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from tfpool.shm.arena import CLIENT_NAME, HEADER_BYTES, Arena, open_peer

NONCE = bytes(range(1, 17))


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(8192, CLIENT_NAME)
    made.view[:16] = NONCE
    yield made
    made.close()


def test_both_sides_see_the_same_bytes(arena: Arena) -> None:
    other = Arena.attach(os.dup(arena.fd), 8192)
    arena.view[100:103] = b"abc"
    assert bytes(other.view[100:103]) == b"abc"
    other.view[200:202] = b"yz"
    assert bytes(arena.view[200:202]) == b"yz"
    other.close()


def test_an_arena_cannot_shrink_nor_grow(arena: Arena) -> None:
    for size in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_unsealed_memory_is_refused() -> None:
    fd = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    with pytest.raises(InvalidArgument, match="sealed against shrinking"):
        Arena.attach(fd, 8192)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("nbytes", [0, -1, 8193, 1 << 40])
def test_a_wrong_length_is_refused(arena: Arena, nbytes: int) -> None:
    with pytest.raises(InvalidArgument, match=f"8192 bytes was offered as {nbytes}"):
        Arena.attach(os.dup(arena.fd), nbytes)


@pytest.mark.parametrize("kind", ["file", "socket", "pipe", "directory"])
def test_foreign_descriptors_are_refused_and_closed(kind: str, tmp_path: Path) -> None:
    others: list[int] = []
    if kind == "file":
        (tmp_path / "f").write_bytes(bytes(8192))
        fd = os.open(tmp_path / "f", os.O_RDWR)
    elif kind == "directory":
        fd = os.open(tmp_path, os.O_RDONLY)
    elif kind == "pipe":
        fd, other = os.pipe()
        others.append(other)
    else:
        fd = socket.socket(socket.AF_UNIX).detach()
    with pytest.raises(InvalidArgument):
        Arena.attach(fd, 4096)
    for other in others:
        os.close(other)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match=r"Bad file|not an arena"):
        Arena.attach(fd, 4096)


@pytest.mark.parametrize(
    ("offset", "nbytes", "alignment"), [(-1, 1, 1), (0, -1, 1), (0, 8193, 1), (8192, 1, 1), (8191, 2, 1), (1, 1, 64)]
)
def test_ranges_outside_are_refused(arena: Arena, offset: int, nbytes: int, alignment: int) -> None:
    with pytest.raises(InvalidArgument, match="are not in an arena of 8192 bytes"):
        arena.check(offset, nbytes, alignment)


def test_ranges_inside_are_taken(arena: Arena) -> None:
    arena.check(0, 8192)
    arena.check(8192, 0, 64)
    arena.check(64, 64, 64)


def test_views_outlive_a_closed_arena() -> None:
    arena = Arena.create(4096)
    kept = np.frombuffer(arena.view, np.uint8)
    arena.view[5] = 7
    arena.close()
    assert kept[5] == 7
    arena.close()


def test_a_full_tmpfs_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceExhausted, match="wanted 8192 bytes, No space left"):
        Arena.create(8192)


def test_a_peer_is_found_by_its_nonce(arena: Arena) -> None:
    peer = open_peer(os.getpid(), arena.fd, 8192, NONCE)
    peer.view[4096] = 9
    assert arena.view[4096] == 9
    peer.close()


def test_a_wrong_nonce_is_refused(arena: Arena) -> None:
    with pytest.raises(PermissionDenied, match="does not hold its nonce"):
        open_peer(os.getpid(), arena.fd, 8192, bytes(16))


@pytest.mark.parametrize(("pid", "fd"), [(1 << 30, 3), (os.getpid(), 1 << 20)], ids=["no process", "no descriptor"])
def test_a_peer_that_is_not_there_is_refused(pid: int, fd: int) -> None:
    with pytest.raises(PermissionDenied, match="cannot be opened"):
        open_peer(pid, fd, 8192, NONCE)


def test_a_peer_of_another_kind_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w+b") as file, pytest.raises(PermissionDenied, match="no client's arena"):
        open_peer(os.getpid(), file.fileno(), 4096, NONCE)


def test_a_pool_is_not_talked_into_mapping_its_own_arena() -> None:
    """Its first bytes are zeros at first: the nonce alone would not tell it."""
    mine = Arena.create(8192, "tfpool-arena")
    with pytest.raises(PermissionDenied, match="no client's arena"):
        open_peer(os.getpid(), mine.fd, 8192, bytes(16))
    mine.close()


# -- the client's arena --------------------------------------------------------------------------------------------


@pytest.fixture
def mine() -> Iterator[ClientArena]:
    made = ClientArena(HEADER_BYTES + (1 << 16))
    made.accepted = True
    yield made
    made.close()


def test_nothing_is_put_before_the_broker_accepts() -> None:
    made = ClientArena(HEADER_BYTES + 4096)
    assert made.put([b"x"], 0) is None
    made.close()


def test_tensors_are_put_aligned_and_apart(mine: ClientArena) -> None:
    placed = mine.put([b"a" * 100, b"b" * 64, b"c"], 1000)
    assert placed is not None
    regions, room, leases = placed
    assert [r.nbytes for r in regions] == [100, 64, 1]
    assert all(r.offset % 64 == 0 and r.offset >= HEADER_BYTES for r in regions)
    pid, fd, nbytes, nonce = mine.offer()
    peer = open_peer(pid, fd, nbytes, nonce)
    assert [bytes(peer.view[o : o + n]) for o, n in regions] == [b"a" * 100, b"b" * 64, b"c"]
    assert room is not None
    assert room.nbytes >= 1000
    assert len(leases) == 2
    peer.close()


def test_a_full_arena_says_so_and_recovers(mine: ClientArena) -> None:
    placed = mine.put([bytes(1 << 16)], 0)
    assert placed is not None
    assert mine.put([b"x"], 0) is None
    mine.free(placed[2])
    assert mine.put([bytes(1 << 16)], 0) is not None


def test_outputs_that_are_kept_hold_their_lease(mine: ClientArena) -> None:
    placed = mine.put([b"x"], 1 << 14)
    assert placed is not None
    _, room, leases = placed
    assert room is not None
    array = np.frombuffer(mine.take(room, leases[-1]), np.float32)
    part = array[10:20]
    mine.free(leases)
    del array
    assert mine.put([bytes(1 << 16)], 0) is None
    del part
    assert mine.put([bytes(1 << 16)], 0) is not None


def test_a_dead_arena_maps_nothing() -> None:
    arena = Arena.create(4096)
    arena.close()
    assert arena.fd == -1
    with pytest.raises((ValueError, mmap.error)):
        arena.view[0] = 1
