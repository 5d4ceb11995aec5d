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

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tfpool.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from tfpool.store import identity
from tfpool.store.machine import Toolchain, toolchain
from tfpool.store.manifest import GRAPH, MANIFEST, WEIGHTS, Manifest

_ENTRIES, _INDEX, _LOCKS, _DRAFTS = "entries", "index", "locks", "drafts"
_CHECKED = "checked"
_MOST_MANIFEST = 64 << 20


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


class Shelf:
    """The store in ``directory``. Methods may be called from any thread, and by several processes at a time."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    # -- looking -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises PermissionDenied where others than this user could write to the store, FailedPrecondition where it
        is no directory. One that is not there yet is fine."""
        for path in (self.directory, *(os.path.join(self.directory, name) for name in (_ENTRIES, _INDEX))):
            _check_own(path)

    def find(self, model: str) -> Entry | None:
        """The entry for the files in ``model``, as they are now; None where there is none that can be read.

        Raises NotFound or FailedPrecondition where the model's files cannot be looked at, PermissionDenied as
        :meth:`check` does.
        """
        self.check()
        content = self._content(identity.mark(model).stamp)
        return self.entry(key_of(content, toolchain())) if content else None

    def entry(self, key: str) -> Entry | None:
        """The entry of a key. One that another user could have written counts for none."""
        path = os.path.join(self.directory, _ENTRIES, key)
        try:
            _check_own(path)
            manifest = Manifest.from_bytes(_read(os.path.join(path, MANIFEST), _MOST_MANIFEST))
        except (OSError, InvalidArgument, PermissionDenied, FailedPrecondition):
            return None
        return Entry(key, path, manifest)

    def keys(self) -> list[str]:
        """Of all entries, also of those that cannot be read."""
        try:
            return sorted(os.listdir(os.path.join(self.directory, _ENTRIES)))
        except FileNotFoundError:
            return []

    def _content(self, stamp: str) -> str:
        with suppress(OSError):
            path = os.path.join(self.directory, _INDEX, stamp)
            _check_own(path)
            return _read(path, 128).decode(errors="replace")
        return ""

    # -- checking ----------------------------------------------------------------------------------------------

    def trust(self, entry: Entry) -> None:
        """Check the files of an entry against their digests, unless that was done since this machine started and
        the kernel tells of no change since. Raises FailedPrecondition where they are not what they should be."""
        mark = _files_mark(entry)
        path = os.path.join(entry.path, _CHECKED)
        with suppress(OSError):
            if _read(path, 256).decode(errors="replace") == mark:
                return
        self.verify(entry)
        with suppress(OSError):
            _write(path, mark.encode())

    def verify(self, entry: Entry) -> None:
        """Check the files of an entry against their digests, by reading all of them. Raises FailedPrecondition."""
        for name, expected in entry.manifest.digests.items():
            path = os.path.join(entry.path, name)
            try:
                _check_own(path)
                found = identity.digest(path)
            except OSError as error:
                raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from None
            if found != expected:
                raise FailedPrecondition(f"{path}: corrupt: got SHA-256 {found[:16]}, expected {expected[:16]}")

    def touch(self, key: str) -> None:
        """An entry is in use: it goes later than those that are not."""
        with suppress(OSError):
            os.utime(os.path.join(self.directory, _ENTRIES, key, MANIFEST))

    def used(self, key: str) -> float:
        """When an entry was last in use (seconds of the epoch; 0: it is gone, or cannot be read)."""
        with suppress(OSError):
            return os.stat(os.path.join(self.directory, _ENTRIES, key, MANIFEST)).st_mtime
        return 0.0

    def size(self, key: str) -> int:
        """Bytes of an entry's files."""
        path = os.path.join(self.directory, _ENTRIES, key)
        total = 0
        with suppress(OSError):
            for name in os.listdir(path):
                with suppress(OSError):
                    total += os.stat(os.path.join(path, name)).st_size
        return total

    # -- writing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories. Raises PermissionDenied as :meth:`check` does, FailedPrecondition where they cannot
        be made."""
        self.check()
        try:
            for name in ("", _ENTRIES, _INDEX, _LOCKS, _DRAFTS):
                os.makedirs(os.path.join(self.directory, name), mode=0o700, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(f"{error.filename}: cannot be made: {error.strerror}") from None
        self.check()

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Whether this process may write the entry of ``key`` for as long as the block lasts; another does if not."""
        path = os.path.join(self.directory, _LOCKS, key)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        try:
            yield mine
        finally:
            os.close(fd)

    @contextmanager
    def draft(self) -> Iterator[str]:
        """A directory to write an entry to. It is thrown away at the end, unless it was published."""
        path = tempfile.mkdtemp(dir=os.path.join(self.directory, _DRAFTS))
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)  # who cleans up sees that somebody is at it
        try:
            yield path
        finally:
            os.close(held)
            _remove(path)

    def publish(self, draft: str, manifest: Manifest, stamp: str) -> Entry:
        """Make a draft the entry of its content, in place of one that is there, and note that the files which the
        kernel describes by ``stamp`` have that content. The draft's files are those that ``manifest`` has digests of.

        Raises OSError.
        """
        key = key_of(manifest.content, Toolchain(manifest.tensorflow, manifest.cpu, manifest.compiler))
        _write(os.path.join(draft, MANIFEST), manifest.to_bytes())
        for name in os.listdir(draft):
            _sync(os.path.join(draft, name))
        place = os.path.join(self.directory, _ENTRIES, key)
        self.remove(key)
        os.rename(draft, place)
        _sync(os.path.dirname(place))
        _write(os.path.join(self.directory, _INDEX, stamp), manifest.content.encode())
        return Entry(key, place, manifest)

    def note(self, stamp: str, content: str) -> None:
        """Files that the kernel describes by ``stamp`` have this content. Raises OSError."""
        _write(os.path.join(self.directory, _INDEX, stamp), content.encode())

    def remove(self, key: str) -> bool:
        """Remove an entry; whether there was one. Who has it mapped keeps it until the end."""
        aside = tempfile.mkdtemp(dir=os.path.join(self.directory, _DRAFTS))
        try:
            os.rename(os.path.join(self.directory, _ENTRIES, key), os.path.join(aside, key))
            return True
        except FileNotFoundError:
            return False
        finally:
            _remove(aside)


def key_of(content: str, tools: Toolchain) -> str:
    """The name of the entry for files of this content."""
    text = f"{content}\n{tools.tensorflow}\n{tools.cpu}\n{tools.compiler}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _files_mark(entry: Entry) -> str:
    """What the kernel tells of an entry's files, in this run of the machine. Raises FailedPrecondition."""
    boot = ""
    with suppress(OSError):
        boot = _read("/proc/sys/kernel/random/boot_id", 64).decode().strip()
    parts = [boot]
    for name in sorted(entry.manifest.digests):
        path = os.path.join(entry.path, name)
        try:
            found = _check_own(path)
        except PermissionDenied as error:
            raise FailedPrecondition(error.message) from None
        if found is None:
            raise FailedPrecondition(f"{path}: no such file")
        parts.append(f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_own(path: str) -> os.stat_result | None:
    """Raises PermissionDenied for what another user owns, or can write to; FailedPrecondition for a link. None where
    there is nothing."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be looked at: {error.strerror}") from None
    if stat.S_ISLNK(found.st_mode):
        raise FailedPrecondition(f"{path}: a symbolic link, expected the store's own")
    if found.st_uid != os.geteuid():
        raise PermissionDenied(f"{path} belongs to user {found.st_uid}, expected {os.geteuid()}: it is not trusted")
    if found.st_mode & 0o022:
        raise PermissionDenied(f"{path}: others may write to it (mode {found.st_mode & 0o777:o}): it is not trusted")
    return found


def _read(path: str, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidArgument(f"{path}: more than {most} bytes")
    return data


def _write(path: str, data: bytes) -> None:
    """Whole or not at all."""
    draft = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
