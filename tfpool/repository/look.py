"""One look at the disk: a model's versions and the marks of their files, or the models of a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from tfpool.errors import InvalidArgument, NotFound, TfpoolError
from tfpool.repository.scan import GRAPHS, scan, version_of
from tfpool.settings import check_model_name

Identity = tuple[int, int]
"""A directory itself, whatever its name: device and inode."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of one model, or, as ``names``, of a directory of models.

    ``marks`` change when a version's files do. ``directories`` are those whose changes may change any of this.
    ``restless`` is what can change without them: behind a symbolic link, or below a directory that may become a model.
    """

    versions: dict[int, str] = field(default_factory=dict)
    marks: dict[int, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    error: TfpoolError | None = None
    directories: dict[str, Identity] = field(default_factory=dict)
    restless: bool = False

    def told(self) -> tuple[object, ...]:
        """What a user of this is told; when it differs there is news."""
        return self.versions, self.marks, self.names, self.error and self.error.message


def look(base_path: str) -> Look:
    """Look at a model. It raises nothing: what is wrong is its error, and then nothing is known of its versions."""
    try:
        versions, error = scan(base_path), None
    except NotFound as problem:
        versions, error = {}, problem
    homes = list(dict.fromkeys([base_path, *_numbered(base_path), *versions.values()]))
    variables = [os.path.join(home, "variables") for home in versions.values()]
    directories = {path: identity for path in homes + variables if (identity := _identity(path))}
    linked = not _direct(base_path) or any(map(os.path.islink, directories))
    marks = {version: _mark(home) for version, home in versions.items()}
    return Look(versions, marks, {}, error, directories, linked)


def look_below(root: str, known: Mapping[str, str]) -> Look:
    """Look for directories of ``root`` that hold a model, by name; of those ``known`` it is enough that they exist.

    One that cannot be read counts: the look at it says why. When ``root`` cannot be read, those known remain.
    """
    try:
        with os.scandir(root) as entries:
            paths = {entry.name: entry.path for entry in entries if _is_model_name(entry.name) and entry.is_dir()}
    except OSError as error:
        problem = NotFound(f"{root}: cannot be read: {error.strerror}")
        return Look(names=dict(known), error=problem, restless=True)
    names = {name: path for name, path in sorted(paths.items()) if name in known or _holds_model(path)}
    identity = _identity(root)
    restless = len(names) < len(paths) or not _direct(root)
    return Look(names=names, directories={root: identity} if identity else {}, restless=restless)


def _is_model_name(name: str) -> bool:
    try:
        check_model_name(name)
    except InvalidArgument:
        return False
    return not name.startswith(".")


def _holds_model(path: str) -> bool:
    try:
        os.listdir(path)
        scan(path)
    except OSError:
        return True
    except NotFound:
        return False
    return True


def _identity(path: str) -> Identity | None:
    """None for what is no directory."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _direct(path: str) -> bool:
    """Whether no link is on the way."""
    try:
        return os.path.realpath(path) == os.path.abspath(path)
    except (OSError, ValueError):
        return False


def _numbered(base_path: str) -> list[str]:
    try:
        return [os.path.join(base_path, name) for name in os.listdir(base_path) if version_of(name) is not None]
    except (OSError, ValueError):
        return []


def _mark(directory: str) -> str:
    """A digest of inodes, sizes and times: of the directory, its graph and its variables."""
    digest = blake2b(digest_size=8)
    graphs = [os.path.join(directory, name) for name in GRAPHS]
    for path in (directory, *graphs, *_files(os.path.join(directory, "variables"))):
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(b"%d %d %d\n" % (status.st_ino, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
    except OSError:
        return []
