"""An arena: nameless shared memory (a sealed memfd) mapped into this process.

The kernel frees it with its last descriptor or mapping, so nothing is left behind whoever is killed. Bytes are
allocated before they are used, so that a full tmpfs is an error then and not a SIGBUS later; it is sealed against
shrinking for the same reason, and a peer's arena is refused unless it is sealed.

A client's arena begins with a page that holds its nonce; see :func:`open_peer`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from tfpool.errors import InvalidArgument, PermissionDenied, ResourceExhausted

HEADER_BYTES: Final = 4096
CLIENT_NAME: Final = "tfpool-client"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Arena:
    """``nbytes`` of shared memory; ``view`` is writable and spans all of it."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, nbytes: int, name: str = "tfpool", commit: int | None = None) -> Arena:
        """Make an arena, and allocate its first ``commit`` bytes (all of them, if not given); see :meth:`commit`.

        Raises ResourceExhausted where the memory is not to be had.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, nbytes)
            os.posix_fallocate(fd, 0, nbytes if commit is None else commit)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, nbytes)
        except OSError as error:
            os.close(fd)
            raise ResourceExhausted(f"no shared memory: wanted {nbytes} bytes, {error.strerror}") from None

    @classmethod
    def attach(cls, fd: int, nbytes: int) -> Arena:
        """Map an arena that another process made; the descriptor becomes the arena's own.

        Raises InvalidArgument where ``fd`` is no sealed memory of at least ``nbytes``.
        """
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
                raise InvalidArgument("an arena must be sealed against shrinking")
            size = os.fstat(fd).st_size
            if not 0 < nbytes <= size:
                raise InvalidArgument(f"an arena of {size} bytes was offered as {nbytes}")
            return cls(fd, nbytes)
        except OSError as error:
            os.close(fd)
            raise InvalidArgument(f"not an arena: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise

    def commit(self, offset: int, nbytes: int) -> None:
        """Allocate bytes that were left out at first: they must not be touched before.

        Raises ResourceExhausted where the memory is not to be had.
        """
        try:
            os.posix_fallocate(self.fd, offset, nbytes)
        except OSError as error:
            raise ResourceExhausted(f"no shared memory: wanted {nbytes} bytes more, {error.strerror}") from None

    def check(self, offset: int, nbytes: int, alignment: int = 1) -> None:
        """Raises InvalidArgument for a range that is not inside the arena."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes or offset % alignment:
            raise InvalidArgument(f"bytes {offset} to {offset + nbytes} are not in an arena of {self.nbytes} bytes")

    def close(self) -> None:
        """Close the descriptor; the memory is unmapped when the last view of it goes."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            pass  # an array still views it; its last reference unmaps


def open_peer(pid: int, fd: int, nbytes: int, nonce: bytes) -> Arena:
    """The arena that process ``pid`` of the same user holds as ``fd``.

    Its name tells it from other memory, a pool's own arena above all, and the nonce at its beginning proves that the
    offer comes from whoever made it.

    Raises PermissionDenied where it cannot be opened (another user, container or host), or is not what it should be.
    """
    try:
        if os.readlink(f"/proc/{pid}/fd/{fd}").split(" ")[0] != f"/memfd:{CLIENT_NAME}":
            raise PermissionDenied(f"descriptor {fd} of process {pid} is no client's arena")
        mine = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PermissionDenied(f"the client's arena cannot be opened: {error.strerror}") from None
    arena = Arena.attach(mine, nbytes)
    if bytes(arena.view[: len(nonce)]) != nonce:
        arena.close()
        raise PermissionDenied("the client's arena does not hold its nonce")
    return arena
