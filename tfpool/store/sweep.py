"""Keep the store within its size: what was used longest ago goes first, with what interrupted writers left."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from tfpool.store import files
from tfpool.store.shelf import DRAFT, DRAFTS, GONE, INDEX, KEY, LOCKS, STAMP, Shelf

_UNUSED_SECONDS = 30 * 86_400.0
_UNFINISHED_SECONDS = 3600.0


class Swept(NamedTuple):
    """What went: entries by key, their bytes, and drafts of writers that are gone. ``kept`` are bytes that are left."""

    entries: tuple[str, ...]
    nbytes: int
    drafts: int
    kept: int


def sweep(shelf: Shelf, budget: int, keep: str = "") -> Swept:
    """Remove entries, the one used longest ago first, until at most ``budget`` bytes are left; ``keep`` stays.

    Two that sweep at a time do no harm: neither takes for its own what the other removed. Raises as
    :meth:`Shelf.check` does, and FailedPrecondition where something cannot be removed.
    """
    shelf.check()
    drafts = _drafts(shelf)
    keys = shelf.keys()
    by_age = sorted((shelf.used(key), key, shelf.size(key)) for key in keys)
    kept = sum(size for _, _, size in by_age)
    gone: list[str] = []
    freed = 0
    for used, key, size in by_age:
        if kept <= budget:
            break
        if key == keep or shelf.used(key) > used:
            continue
        if shelf.remove(key):
            gone.append(key)
            freed += size
        kept -= size
    _notes(shelf)
    _locks(shelf)
    return Swept(tuple(gone), freed, drafts, kept)


def _drafts(shelf: Shelf) -> int:
    """Remove what writers left that no longer hold it."""
    removed = 0
    for name, path, _ in _in(shelf, DRAFTS):
        if name.startswith((DRAFT, GONE)):
            with suppress(OSError):
                held = files.take(path, os.O_RDONLY | os.O_DIRECTORY)
                if held is not None:
                    files.remove_tree(path)
                    os.close(held)
                    removed += 1
    return removed


def _notes(shelf: Shelf) -> None:
    """Remove notes of files that have not been seen for a month, and those that were never finished."""
    for name, path, idle in _in(shelf, INDEX):
        if STAMP.match(name) and idle > (_UNUSED_SECONDS if STAMP.fullmatch(name) else _UNFINISHED_SECONDS):
            with suppress(OSError):
                os.unlink(path)


def _locks(shelf: Shelf) -> None:
    """Remove locks of a month ago that nobody holds."""
    for name, path, idle in _in(shelf, LOCKS):
        if KEY.fullmatch(name) and idle > _UNUSED_SECONDS:
            with suppress(OSError):
                held = files.take(path, os.O_RDWR)
                if held is not None:
                    os.unlink(path)
                    os.close(held)


def _in(shelf: Shelf, name: str) -> Iterator[tuple[str, str, float]]:
    """Names in one of the store's directories, their paths, and seconds since they changed; links are left alone."""
    place, now = os.path.join(shelf.directory, name), time.time()
    with suppress(OSError):
        for inner in os.listdir(place):
            path = os.path.join(place, inner)
            with suppress(OSError):
                found = os.lstat(path)
                if not stat.S_ISLNK(found.st_mode):
                    yield inner, path, now - found.st_mtime
