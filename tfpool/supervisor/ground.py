"""The ground a pool stands on: its private directory and its claim to the endpoints in it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress

from tfpool.addresses import check_exposure, default_directory
from tfpool.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from tfpool.keys import read_authorized, read_server_keys
from tfpool.settings import ServerSettings
from tfpool.telemetry import log


class Claim:
    """Holds the lock files of a pool's ipc endpoints."""

    def __init__(self, server: ServerSettings) -> None:
        """Make the directories, and claim the endpoints; a directory that others may write to is warned of.

        Raises FailedPrecondition where another pool serves one of them, PermissionDenied where the default directory is
        not this user's alone, InvalidArgument for an endpoint that would be exposed, and what is wrong with the keys.
        """
        self._locks: list[tuple[str, int]] = []
        self._scratch = ""
        _check_keys(server)
        try:
            for endpoint in (*server.listen, server.admin_listen):
                check_exposure(endpoint, server.insecure, server.curve_key is not None)
                if endpoint.startswith("ipc://"):
                    self._claim(endpoint.removeprefix("ipc://"))
        except BaseException:
            self.release()
            raise

    def scratch(self) -> str:
        """A path where the pool may note, for as long as it runs, what a new broker has to know of the one before."""
        directory = os.path.dirname(self._locks[0][0]) if self._locks else tempfile.gettempdir()
        self._scratch = os.path.join(directory, f"tfpool-{os.getpid()}.state")
        with suppress(OSError):
            os.unlink(self._scratch)
        return self._scratch

    def release(self) -> None:
        if self._scratch:
            with suppress(OSError):
                os.unlink(self._scratch)
        for lock, fd in self._locks:
            for path in (lock.removesuffix(".lock"), lock):  # ZeroMQ leaves its sockets behind
                with suppress(OSError):
                    os.unlink(path)
            os.close(fd)
        self._locks.clear()

    def _claim(self, path: str) -> None:
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            found = os.lstat(directory) if directory == default_directory() else os.stat(directory)
        except OSError as error:
            raise PermissionDenied(f"{directory}: {error.strerror}") from None
        mine = found.st_uid == os.getuid()
        if directory == default_directory() and (not mine or found.st_mode & 0o077):
            raise PermissionDenied(f"{directory} belongs to another user or is open to others, expected mode 0700")
        first = all(os.path.dirname(lock) != directory for lock, _ in self._locks)
        if first and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            note = "whoever may write there can put a socket of their own in the place of this pool's"
            log.get("supervisor").warning("endpoint.open", directory=directory, note=note)
        lock = path + ".lock"
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PermissionDenied(f"{lock}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise FailedPrecondition(f"another pool (pid {owner or 'unknown'}) serves ipc://{path}") from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._locks.append((lock, fd))


def _check_keys(server: ServerSettings) -> None:
    """Raises a TfpoolError where the keys for tcp are not complete, or cannot be read."""
    if (server.curve_key is None) != (server.authorized_keys is None):
        have, lack = ("curve_key", "authorized_keys") if server.curve_key else ("authorized_keys", "curve_key")
        raise InvalidArgument(f"got {have} without {lack}, expected both: 'tfpool keygen DIR' makes them")
    if server.curve_key is not None and server.authorized_keys is not None:
        read_server_keys(server.curve_key)
        read_authorized(server.authorized_keys)
