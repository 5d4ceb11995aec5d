"""Whether the files of an entry are those that its manifest has digests of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from tfpool.errors import FailedPrecondition
from tfpool.store import files, identity


@contextmanager
def opened(path: str, names: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Descriptors of the files ``names`` in the directory ``path``. Raises as :func:`files.opened` does."""
    with ExitStack() as stack:
        directory = stack.enter_context(files.opened(path, os.O_DIRECTORY))
        yield {name: stack.enter_context(files.opened(os.path.join(path, name), directory=directory)) for name in names}


def mark(digests: Mapping[str, str], found: Mapping[str, int]) -> tuple[str, float]:
    """What the kernel tells of open files in this run of the machine, with what is expected of them; and when they
    last changed (seconds of the epoch)."""
    boot, newest = "", 0.0
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read()
    parts = [boot]
    for name, fd in sorted(found.items()):
        told = os.fstat(fd)
        newest = max(newest, told.st_ctime)
        parts.append(f"{name} {digests[name]} {told.st_ino} {told.st_size} {told.st_mtime_ns} {told.st_ctime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest(), newest


def check(path: str, digests: Mapping[str, str], found: Mapping[str, int]) -> None:
    """Raises FailedPrecondition where an open file of the directory ``path`` is not of its digest. They are left at
    their start."""
    for name, fd in found.items():
        file = os.path.join(path, name)
        try:
            digest = identity.digest(fd)
            os.lseek(fd, 0, os.SEEK_SET)
        except OSError as error:
            raise FailedPrecondition(f"{file}: cannot be read: {error.strerror}") from None
        if digest != digests[name]:
            raise FailedPrecondition(f"{file}: corrupt: got SHA-256 {digest[:16]}, expected {digests[name][:16]}")
