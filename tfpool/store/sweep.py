"""Keep the store within its size: what was used longest ago goes first, with what interrupted writers left."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from typing import NamedTuple

from tfpool.store.shelf import Shelf

_UNUSED_DAYS = 30
_DAY = 86_400.0


class Swept(NamedTuple):
    """What went: entries by key, their bytes, and drafts of writers that are gone. ``kept`` are bytes that are left."""

    entries: tuple[str, ...]
    nbytes: int
    drafts: int
    kept: int


def sweep(shelf: Shelf, budget: int, keep: str = "") -> Swept:
    """Remove entries, the one used longest ago first, until at most ``budget`` bytes are left; ``keep`` stays.

    Two that sweep at a time do no harm: each removes what is there.
    """
    drafts = _drafts(shelf)
    by_age = sorted((shelf.used(key), key, shelf.size(key)) for key in shelf.keys())
    kept = sum(size for _, _, size in by_age)
    gone: list[str] = []
    freed = 0
    for _, key, size in by_age:
        if kept <= budget:
            break
        if key != keep and shelf.remove(key):
            gone.append(key)
            kept, freed = kept - size, freed + size
    _index(shelf)
    return Swept(tuple(gone), freed, drafts, kept)


def _drafts(shelf: Shelf) -> int:
    """Remove drafts whose writers no longer hold them."""
    place = os.path.join(shelf.directory, "drafts")
    removed = 0
    with suppress(OSError):
        for name in os.listdir(place):
            path = os.path.join(place, name)
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                    removed += 1
                finally:
                    os.close(fd)
    return removed


def _index(shelf: Shelf) -> None:
    """Remove notes of files that have not been seen for a month."""
    place = os.path.join(shelf.directory, "index")
    with suppress(OSError):
        for name in os.listdir(place):
            path = os.path.join(place, name)
            with suppress(OSError):
                if os.stat(path).st_mtime < time.time() - _UNUSED_DAYS * _DAY:
                    os.unlink(path)
