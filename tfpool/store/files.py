"""Files and directories that nobody but this user could have written, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_own(path: str, found: os.stat_result) -> None:
    """Raises PermissionDenied for what another user owns, or can write to; FailedPrecondition for a link."""
    if stat.S_ISLNK(found.st_mode):
        raise FailedPrecondition(f"{path}: got a symbolic link, expected the store's own")
    if found.st_uid != os.geteuid():
        raise PermissionDenied(f"{path} belongs to user {found.st_uid}, expected {os.geteuid()}: it is not trusted")
    if found.st_mode & _OTHERS_WRITE:
        raise PermissionDenied(f"{path}: others may write to it (mode {found.st_mode & 0o7777:o}): it is not trusted")


def check_directory(path: str) -> bool:
    """Whether there is a directory; raises as :func:`check_own`, and FailedPrecondition for anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be looked at: {error.strerror}") from None
    check_own(path, found)
    if not stat.S_ISDIR(found.st_mode):
        raise FailedPrecondition(f"{path}: got a file, expected a directory")
    return True


def check_parents(path: str) -> None:
    """Raises PermissionDenied where another user than root could put something else in the place of ``path``.

    Where everybody may write, but only take away what is theirs (/tmp), nobody can; nor can a group that bears the
    number of its only user.
    """
    for parent in sorted({*_above(os.path.abspath(path)), *_above(os.path.realpath(path))}):
        try:
            found = os.stat(parent)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise FailedPrecondition(f"{parent}: cannot be looked at: {error.strerror}") from None
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionDenied(f"{parent} belongs to user {found.st_uid}, so {path} is not trusted")
        everybody = found.st_mode & stat.S_IWOTH
        group = found.st_mode & stat.S_IWGRP and found.st_gid != found.st_uid
        if (everybody or group) and not found.st_mode & stat.S_ISVTX:
            mode = f"{found.st_mode & 0o7777:o}"
            raise PermissionDenied(f"{parent}: others may write to it (mode {mode}), so {path} is not trusted")


def _above(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def make_directory(path: str) -> None:
    """Make a directory and those above it, for this user alone. One that is there and empty becomes so. Raises
    OSError."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not os.listdir(path):
            os.chmod(path, 0o700)


@contextmanager
def opened(path: str, flags: int = 0, directory: int | None = None) -> Iterator[int]:
    """A descriptor to read this user's own file (with O_DIRECTORY: directory) at ``path``; ``directory`` is the one it
    lies in, where that is open.

    Raises NotFound where there is none, FailedPrecondition for a link and for what cannot be read, PermissionDenied
    for what another user owns or can write to.
    """
    try:
        name = path if directory is None else os.path.basename(path)
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, dir_fd=directory)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        check_own(path, found)
        if not flags & os.O_DIRECTORY and not stat.S_ISREG(found.st_mode):
            raise FailedPrecondition(f"{path}: got something else, expected a file")
        yield fd
    finally:
        os.close(fd)


def read(path: str, most: int, directory: int | None = None) -> bytes:
    """This user's own file, of at most ``most`` bytes. Raises as :func:`opened`, and InvalidArgument for more."""
    with opened(path, directory=directory) as fd, open(fd, "rb", closefd=False) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise InvalidArgument(f"{path}: more than {most} bytes")
    return data


def write(path: str, data: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    draft = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise


def settle(path: str) -> None:
    """Have a file or directory on disk, and this user alone write to it. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_mode & _OTHERS_WRITE:
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) & ~_OTHERS_WRITE)
        os.fsync(fd)
    finally:
        os.close(fd)


def take(path: str, flags: int) -> int | None:
    """A descriptor that holds the lock of ``path``, to be closed; None where another has it, or it is gone.

    Raises OSError where there can be no lock.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):  # else who had it has removed it
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def remove_tree(path: str) -> None:
    """As far as it can be removed."""
    shutil.rmtree(path, ignore_errors=True)
