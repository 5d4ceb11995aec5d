"""Files that workers map: each counts once a host, in equal parts for the workers that map it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _File:
    nbytes: int
    by: dict[str, set[int]] = field(default_factory=dict)  # workers, and the models that map it there


class Pages:
    """Which workers map which files; workers go by name, models by handle, files by key."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._of: dict[tuple[str, int], str] = {}
        self._shares: dict[str, int] = {}

    def map(self, worker: str, handle: int, key: str, nbytes: int) -> None:
        """A model maps a file of ``nbytes``; it maps no other."""
        file = self._files.setdefault(key, _File(nbytes))
        self._of[worker, handle] = key
        self._change(file, worker, file.by.get(worker, set()) | {handle})

    def unmap(self, worker: str, handle: int) -> None:
        """A model is gone, or maps nothing any more."""
        key = self._of.pop((worker, handle), None)
        if key is not None:
            file = self._files[key]
            self._change(file, worker, file.by[worker] - {handle})
            if not file.by:
                del self._files[key]

    def lost(self, worker: str) -> None:
        """A worker is gone."""
        for name, handle in list(self._of):
            if name == worker:
                self.unmap(name, handle)

    def share(self, worker: str) -> int:
        """The worker's part of all that it maps, in bytes."""
        return self._shares.get(worker, 0)

    def adds(self, worker: str, key: str, nbytes: int) -> int:
        """What would be added to a worker's part if it mapped a file."""
        file = self._files.get(key)
        if file is None:
            return nbytes
        return 0 if worker in file.by else file.nbytes // (len(file.by) + 1)

    def frees(self, worker: str, handle: int) -> int:
        """What would leave a worker's part with a model: nothing where another one there maps the same file."""
        key = self._of.get((worker, handle))
        return self.each(key) if key is not None and self._files[key].by[worker] == {handle} else 0

    def each(self, key: str) -> int:
        """The part of a file that each worker has which maps it; 0 where none does."""
        file = self._files.get(key)
        return file.nbytes // len(file.by) if file is not None else 0

    def _change(self, file: _File, worker: str, handles: set[int]) -> None:
        for name in file.by:
            self._shares[name] -= file.nbytes // len(file.by)
        if handles:
            file.by[worker] = handles
        else:
            file.by.pop(worker, None)
        for name in file.by:
            self._shares[name] = self._shares.get(name, 0) + file.nbytes // len(file.by)
