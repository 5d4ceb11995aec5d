"""The store's directory: entries appear whole or not at all, and only what this user wrote is believed.

::

    DIRECTORY/                0700, this user's
      entries/KEY/            a compiled model: manifest.json, graph.pb, weights.bin; or a manifest that says why not
      index/STAMP             the content's hash of files that the kernel describes so
      locks/KEY               held by who compiles that entry
      drafts/                 entries that are being written, or thrown away

KEY is a hash of the content, TensorFlow's version, the processor's features and the compiler's version. A draft is
renamed to its place when all of it is on disk. What is removed while workers map it stays theirs until they let go.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from tfpool.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TfpoolError
from tfpool.store import checking, files, identity
from tfpool.store.machine import Toolchain, toolchain
from tfpool.store.manifest import GRAPH, MANIFEST, WEIGHTS, Manifest

ENTRIES, INDEX, LOCKS, DRAFTS = "entries", "index", "locks", "drafts"
DRAFT, GONE = "draft-", "gone-"
KEY = re.compile(r"[0-9a-f]{32}")
STAMP = re.compile(r"[0-9a-f]{64}")
_CHECKED = "checked"
_MOST_MANIFEST = 64 << 20
_DAY = 86_400.0
_TRIES = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the store, whose manifest has been read; nothing else of it has been checked."""

    key: str
    path: str
    manifest: Manifest

    @property
    def graph(self) -> str:
        return os.path.join(self.path, GRAPH)

    @property
    def weights(self) -> str:
        return os.path.join(self.path, WEIGHTS)


class Files(NamedTuple):
    """Descriptors of an entry's files; ``weights`` is None where there are none."""

    graph: int
    weights: int | None


class Shelf:
    """The store in ``directory``. Methods may be called from any thread, and by several processes at a time."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)

    # -- looking -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises PermissionDenied where others than this user could write to the store, or put another in its place,
        FailedPrecondition where it is no directory. One that is not there yet is fine."""
        files.check_parents(self.directory)
        if files.check_directory(self.directory):
            for name in (ENTRIES, INDEX, LOCKS, DRAFTS):
                files.check_directory(self._path(name))

    def find(self, model: str) -> Entry | None:
        """The entry for the files in ``model``, as they are now; None where there is none that can be read.

        Raises NotFound or FailedPrecondition where the model's files cannot be looked at, and as :meth:`check` does.
        """
        self.check()
        content = self._content(identity.mark(model).stamp)
        return self.entry(key_of(content, toolchain())) if content else None

    def entry(self, key: str) -> Entry | None:
        """The entry of a key; None where :meth:`read` would raise."""
        with suppress(TfpoolError):
            return self.read(key)
        return None

    def read(self, key: str) -> Entry:
        """The entry of a key. Raises NotFound where there is none, PermissionDenied for one that another user could
        have written, FailedPrecondition or InvalidArgument for one that is corrupt."""
        path = self._place(key)
        with files.opened(path, os.O_DIRECTORY) as directory:
            manifest = Manifest.from_bytes(files.read(os.path.join(path, MANIFEST), _MOST_MANIFEST, directory))
        if _key(manifest) != key:
            raise InvalidArgument(f"{path}: got the manifest of {_key(manifest)}, expected its own")
        return Entry(key, path, manifest)

    def keys(self) -> list[str]:
        """Of all entries, also of those that cannot be read. Raises FailedPrecondition."""
        try:
            return sorted(name for name in os.listdir(self._path(ENTRIES)) if KEY.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FailedPrecondition(f"{self._path(ENTRIES)}: cannot be read: {error.strerror}") from None

    def has(self, key: str) -> bool:
        """Whether there is something in the place of an entry."""
        return os.path.lexists(self._place(key))

    def touch(self, key: str) -> None:
        """An entry is in use: it goes later than those that are not."""
        with suppress(OSError):
            os.utime(os.path.join(self._place(key), MANIFEST), follow_symlinks=False)

    def used(self, key: str) -> float:
        """When an entry was last in use (seconds of the epoch; 0: it is gone, or cannot be read)."""
        with suppress(OSError):
            return os.lstat(os.path.join(self._place(key), MANIFEST)).st_mtime
        return 0.0

    def size(self, key: str) -> int:
        """Bytes of an entry's files."""
        path, total = self._place(key), 0
        with suppress(OSError):
            for name in os.listdir(path):
                with suppress(OSError):
                    total += os.lstat(os.path.join(path, name)).st_size
        return total

    def _content(self, stamp: str) -> str:
        """The content's hash that is noted for a stamp; empty where there is none."""
        path = self._path(INDEX, stamp)
        with suppress(TfpoolError, OSError):
            content = files.read(path, 128).decode(errors="replace")
            if STAMP.fullmatch(content):
                if os.lstat(path).st_mtime < time.time() - _DAY:
                    os.utime(path, follow_symlinks=False)  # notes that are read stay
                return content
        return ""

    # -- checking ----------------------------------------------------------------------------------------------

    @contextmanager
    def open(self, entry: Entry) -> Iterator[Files]:
        """The files of an entry, checked: they are what the manifest speaks of, and stay so for as long as the block
        lasts, even when the entry is replaced or removed meanwhile.

        They are read and checked against their digests, unless that was done since this machine started and the
        kernel tells of no change since. Raises FailedPrecondition, NotFound or PermissionDenied where they are not
        what they should be.
        """
        with self._opened(entry) as found:
            mark, newest = checking.mark(entry.manifest.digests, found)
            if mark != self._checked(entry):
                checking.check(entry.path, entry.manifest.digests, found)
                if newest < time.time() - identity.SETTLED_SECONDS:  # else a later change might bear the same time
                    with suppress(OSError):
                        files.write(os.path.join(entry.path, _CHECKED), mark.encode())
            yield Files(found[GRAPH], found.get(WEIGHTS))

    def trust(self, entry: Entry) -> None:
        """Check the files of an entry as :meth:`open` does."""
        with self.open(entry):
            pass

    def verify(self, entry: Entry) -> None:
        """Check the files of an entry against their digests, by reading all of them. Raises as :meth:`open` does."""
        if not entry.manifest.refusal:
            with self._opened(entry) as found:
                checking.check(entry.path, entry.manifest.digests, found)

    def look(self, entry: Entry) -> None:
        """Check that the files of an entry are there and this user's, and read none. Raises as :meth:`open` does."""
        if not entry.manifest.refusal:
            with self._opened(entry):
                pass

    def _opened(self, entry: Entry) -> AbstractContextManager[dict[str, int]]:
        if entry.manifest.refusal:
            raise FailedPrecondition(f"{entry.path}: it is not compiled: {entry.manifest.refusal}")
        return checking.opened(entry.path, entry.manifest.digests)

    def _checked(self, entry: Entry) -> str:
        with suppress(TfpoolError):
            return files.read(os.path.join(entry.path, _CHECKED), 128).decode(errors="replace")
        return ""

    # -- writing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories. Raises PermissionDenied as :meth:`check` does, FailedPrecondition where they cannot
        be made or written to, ResourceExhausted where the disk is full."""
        files.check_parents(self.directory)
        try:
            for name in ("", ENTRIES, INDEX, LOCKS, DRAFTS):
                files.make_directory(self._path(name).rstrip(os.sep))
        except OSError as error:
            raise _unwritable(error.filename or self.directory, error) from None
        self.check()
        with self.draft():
            pass

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Whether this process may write the entry of ``key`` for as long as the block lasts; another does if not.

        Raises FailedPrecondition where there can be no lock, ResourceExhausted where the disk is full.
        """
        path = self._path(LOCKS, _checked_key(key))
        try:
            held = files.take(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            yield held is not None
        finally:
            if held is not None:
                os.close(held)

    @contextmanager
    def draft(self) -> Iterator[str]:
        """A directory to write an entry to. It is thrown away at the end, unless it was published.

        Raises FailedPrecondition where there can be none; ResourceExhausted where the disk is full, also when it turns
        out to be so within the block.
        """
        path, held = self._new_draft()
        try:
            yield path
        except OSError as error:
            if error.errno in _FULL:
                raise _unwritable(self.directory, error) from error
            raise
        finally:
            files.remove_tree(path)
            os.close(held)

    def _new_draft(self) -> tuple[str, int]:
        """A new directory, and a descriptor that holds its lock: who cleans up sees that somebody is at it."""
        try:
            for _ in range(_TRIES):
                path = tempfile.mkdtemp(prefix=DRAFT, dir=self._path(DRAFTS))
                held = files.take(path, os.O_RDONLY | os.O_DIRECTORY)
                if held is not None:  # else somebody cleaned up at this moment
                    return path, held
        except OSError as error:
            raise _unwritable(self.directory, error) from None
        raise FailedPrecondition(f"{self._path(DRAFTS)}: what is made there is taken away at once")

    def publish(self, draft: str, manifest: Manifest, stamp: str) -> Entry:
        """Make a draft the entry of its content, in place of one that is there, and note that the files which the
        kernel describes by ``stamp`` have that content. The draft's files are those that ``manifest`` has digests of.

        Raises OSError, and InvalidArgument for a manifest that is none, or of other files.
        """
        data = manifest.to_bytes()
        Manifest.from_bytes(data)
        found = set(os.listdir(draft)) - {_CHECKED}
        if found != manifest.digests.keys():
            raise InvalidArgument(f"{draft}: got {sorted(found)}, expected {sorted(manifest.digests)}")
        files.write(os.path.join(draft, MANIFEST), data)
        for name in (*os.listdir(draft), ""):
            files.settle(os.path.join(draft, name))
        key = _key(manifest)
        self._replace(key, draft)
        self.note(stamp, manifest.content)
        return Entry(key, self._place(key), manifest)

    def _replace(self, key: str, draft: str) -> None:
        for _ in range(_TRIES):
            try:
                os.rename(draft, self._place(key))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                self.remove(key)
            else:
                files.settle(self._path(ENTRIES))
                return
        raise FailedPrecondition(f"{self._place(key)}: it cannot be replaced")

    def note(self, stamp: str, content: str) -> None:
        """Files that the kernel describes by ``stamp`` have this content. Raises OSError."""
        files.write(self._path(INDEX, stamp), content.encode())

    def remove(self, key: str) -> bool:
        """Remove an entry; whether there was one. Who has it mapped keeps it until the end. Raises FailedPrecondition
        where it cannot be removed."""
        place = self._place(key)
        aside = self._path(DRAFTS, f"{GONE}{key}-{os.getpid()}-{time.monotonic_ns()}")  # takes no room on a full disk
        try:
            os.rename(place, aside)
        except OSError as error:
            if not os.path.lexists(place):
                return False
            raise FailedPrecondition(f"{place}: cannot be removed: {error.strerror}") from None
        if os.path.isdir(aside) and not os.path.islink(aside):
            files.remove_tree(aside)
        else:
            with suppress(OSError):
                os.unlink(aside)
        return True

    def _path(self, *names: str) -> str:
        return os.path.join(self.directory, *names)

    def _place(self, key: str) -> str:
        return self._path(ENTRIES, _checked_key(key))


def key_of(content: str, tools: Toolchain) -> str:
    """The name of the entry for files of this content."""
    text = f"{content}\n{tools.tensorflow}\n{tools.cpu}\n{tools.compiler}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _key(manifest: Manifest) -> str:
    return key_of(manifest.content, Toolchain(manifest.tensorflow, manifest.cpu, manifest.compiler))


def _checked_key(key: str) -> str:
    if not KEY.fullmatch(key):
        raise InvalidArgument(f"got key {key[:40]!r}, expected 32 hexadecimal digits")
    return key


def _unwritable(path: str, error: OSError) -> TfpoolError:
    kind = ResourceExhausted if error.errno in _FULL else FailedPrecondition
    return kind(f"{path}: cannot be written to: {error.strerror}")
