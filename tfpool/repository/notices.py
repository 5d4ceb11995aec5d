"""What the kernel tells of directories that change, by way of ``watchfiles``.

A watch of ``watchfiles`` cannot grow, and setting one up stops all other threads for about 10 us a directory. So there
are two: a large one, and a small one for what came since, which is all that is set up anew for a few directories more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping

from tfpool.repository.look import Identity
from tfpool.telemetry import log

_SMALL = 64
_DEBOUNCE_MS = 100
_STEP_MS = 50
_SETTLED_MS = 500
_TRIES = 5
_SILENT = (
    "nfs",
    "cifs",
    "smb",
    "fuse",
    "9p",
    "ceph",
    "lustre",
    "gluster",
    "virtiofs",
    "vboxsf",
    "gpfs",
    "afs",
    "prl_fs",
)


class Notices:
    """``changed`` is told, from other threads, of directories in which something has changed, or may have."""

    def __init__(self, changed: Callable[[set[str]], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._large: _Watch | None = None
        self._small: _Watch | None = None
        self._retired: list[_Watch] = []
        self._silent = silent_devices()
        self._log = log.get("watcher")
        self.works = _installed()

    def cover(self, directories: Mapping[str, Identity]) -> None:
        """Watch ``directories``, where their file systems tell of changes. What is watched already costs nothing."""
        with self._lock:
            self._silent = silent_devices()
            wanted = {path: identity for path, identity in directories.items() if identity[0] not in self._silent}
            missing = {path: identity for path, identity in wanted.items() if not self._holds(path, identity)}
            if not missing or not self.works:
                return
            recent = self._small.directories | missing if self._small else missing
            if self._large is None or len(recent) > _SMALL:
                self._retire(self._large, self._small)
                self._large, self._small = self._start(wanted), None
            else:
                self._retire(self._small)
                self._small = self._start(recent)

    def covers(self, directories: Mapping[str, Identity]) -> bool:
        """Whether all of them are being watched now."""
        with self._lock:
            return self.works and all(self._holds(path, identity, True) for path, identity in directories.items())

    def lacks(self, directories: Mapping[str, Identity]) -> bool:
        """Whether :meth:`cover` has anything to do for them."""
        with self._lock:
            loud = ((path, identity) for path, identity in directories.items() if identity[0] not in self._silent)
            return self.works and not all(self._holds(path, identity) for path, identity in loud)

    def close(self, deadline: float) -> None:
        """Ends the watches, or leaves them behind at ``deadline`` (of time.monotonic)."""
        with self._lock:
            self.works = False
            watches = [watch for watch in (self._large, self._small, *self._retired) if watch]
        for watch in watches:
            watch.stopped.set()
        for watch in watches:
            watch.thread.join(max(0.0, deadline - time.monotonic()))

    def _holds(self, path: str, identity: Identity, settled: bool = False) -> bool:
        watches = (watch for watch in (self._large, self._small) if watch and (watch.settled or not settled))
        return any(watch.directories.get(path) == identity for watch in watches)

    def _start(self, directories: dict[str, Identity]) -> _Watch:
        watch = _Watch(directories, self._hear, self._fail)
        watch.thread.start()
        return watch

    def _retire(self, *watches: _Watch | None) -> None:
        """They go on until what follows them has settled, so that nothing is missed between."""
        self._retired += [watch for watch in watches if watch]

    def _hear(self, watch: _Watch, touched: set[str], replaced: set[str]) -> None:
        with self._lock:
            for path in replaced:  # a directory that comes again is another, even if its inode is used again
                for current in (self._large, self._small):
                    if current:
                        current.directories.pop(path, None)
            if not watch.settled:
                watch.settled = True
                touched = touched | watch.directories.keys()  # of what came before, nobody has told
                if all(current is None or current.settled for current in (self._large, self._small)):
                    for retired in self._retired:
                        retired.stopped.set()
                    self._retired = [retired for retired in self._retired if retired.thread.is_alive()]
        self._changed(touched)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self.works:
                self._log.warning("watcher.polls", why=error)
            self.works = False
            watches = [watch for watch in (self._large, self._small, *self._retired) if watch]
            watched = {path for watch in watches for path in watch.directories}
        for watch in watches:
            watch.stopped.set()
        self._changed(watched)


class _Watch:
    def __init__(
        self,
        directories: dict[str, Identity],
        hear: Callable[[_Watch, set[str], set[str]], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.directories = directories
        self._paths = list(directories)  # directories loses those that are replaced, while this is being set up
        self.settled = False
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(hear, fail), name="tfpool-notices", daemon=True)

    def _run(self, hear: Callable[[_Watch, set[str], set[str]], None], fail: Callable[[Exception], None]) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                self._hear(hear)
                return
            except FileNotFoundError as error:  # one of them went between the check and the watch
                if attempt == _TRIES:
                    fail(error)
            except Exception as error:
                fail(error)
                return

    def _hear(self, hear: Callable[[_Watch, set[str], set[str]], None]) -> None:
        from watchfiles import Change, watch

        found = watch(
            *filter(os.path.isdir, self._paths),
            watch_filter=None,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            stop_event=self.stopped,
            rust_timeout=_SETTLED_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            force_polling=False,
            recursive=False,
            ignore_permission_denied=True,
        )
        for changes in found:
            touched = {path for _, path in changes} | {os.path.dirname(path) for _, path in changes}
            if touched or not self.settled:
                hear(self, touched, {path for change, path in changes if change is not Change.modified})


def silent_devices(mountinfo: str = "/proc/self/mountinfo") -> frozenset[int]:
    """Device numbers of the mounts that tell nothing of what others change: network file systems and the like."""
    found = set()
    try:
        with open(mountinfo, errors="surrogateescape") as file:
            for line in file:
                front, _, back = line.partition(" - ")
                if back.startswith(_SILENT):
                    major, _, minor = front.split()[2].partition(":")
                    found.add(os.makedev(int(major), int(minor)))
    except OSError:
        pass
    return frozenset(found)


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("watchfiles") is not None
