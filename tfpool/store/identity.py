"""Which files a model directory holds: by what the kernel tells of them (quick), and by their content (certain).

A time of modification can be set to anything, and images of containers set all to the same; a time of change cannot.
So the quick mark takes in device, inode and change time, and stands for a content that was hashed under that mark.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from tfpool.errors import FailedPrecondition, NotFound

SETTLED_SECONDS = 0.1  # change times are told in steps of some milliseconds
_CHUNK = 1 << 20
_MOST_FILES = 100_000


class Mark(NamedTuple):
    """``stamp`` changes with any file; ``newest`` is the latest change (seconds of the epoch), ``nbytes`` are all."""

    stamp: str
    newest: float
    nbytes: int


def mark(directory: str) -> Mark:
    """What the kernel tells of all files below ``directory``, links followed. Raises NotFound, FailedPrecondition."""
    lines: list[str] = []
    newest, nbytes = 0.0, 0
    for inner, path in _files(directory):
        try:
            found = os.stat(path)
        except OSError as error:
            raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None
        lines.append(
            f"{inner}\0{found.st_dev}\0{found.st_ino}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"
        )
        newest, nbytes = max(newest, found.st_ctime), nbytes + found.st_size
    return Mark(hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest(), newest, nbytes)


def content(directory: str) -> tuple[Mark, str]:
    """The mark of a directory and the hash of its files' names and bytes.

    It waits until nothing has changed for a moment, so that the one stands for the other. Raises NotFound where it
    is gone, FailedPrecondition where it cannot be read or goes on changing.
    """
    for _ in range(20):
        before = mark(directory)
        age = time.time() - before.newest
        if -SETTLED_SECONDS <= age < SETTLED_SECONDS:
            time.sleep(SETTLED_SECONDS)
            continue
        whole = hashlib.sha256()
        for inner, path in _files(directory):
            whole.update(os.fsencode(inner) + b"\0" + _digest(path))
        if mark(directory) == before:
            return before, whole.hexdigest()
    raise FailedPrecondition(f"{directory}: its files go on changing")


def digest(file: str | int) -> str:
    """The SHA-256 of a file, in hex; a descriptor is read from where it stands. Raises OSError."""
    found = hashlib.sha256()
    with open(file, "rb", buffering=0, closefd=isinstance(file, str)) as opened:
        while chunk := opened.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _digest(path: str) -> bytes:
    try:
        return digest(path).encode()
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None


def _files(directory: str) -> Iterator[tuple[str, str]]:
    """Every file below ``directory``: its path there and its path, in the order of the former."""
    if not os.path.isdir(directory):
        raise NotFound(f"{directory}: no such directory")
    found: list[tuple[str, str]] = []
    seen = 0
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(directory),))]
    while stack:
        inner, chain = stack.pop()
        place = os.path.join(directory, inner)
        try:
            names = os.listdir(place)
        except OSError as error:
            raise FailedPrecondition(f"{place}: cannot be read: {error.strerror}") from None
        seen += len(names)
        if seen > _MOST_FILES:
            raise FailedPrecondition(
                f"{directory}: got more than {_MOST_FILES} files and directories, expected a model"
            )
        for name in names:
            path = os.path.join(place, name)
            if os.path.isdir(path):
                real = os.path.realpath(path)
                if real in chain:
                    raise FailedPrecondition(f"{path}: a symbolic link that leads back to itself")
                stack.append((os.path.join(inner, name), (*chain, real)))
            elif _regular(path):
                found.append((os.path.join(inner, name), path))
    return iter(sorted(found))


def _regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # a link to nothing
