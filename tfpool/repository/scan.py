"""What versions of a model lie on disk."""

from __future__ import annotations

import os

from tfpool.errors import NotFound

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_MAX_VERSION = 1 << 63


def scan(base_path: str) -> dict[int, str]:
    """Versions of a model and their directories, oldest first.

    ``base_path`` holds numeric version directories (``00000123`` is 123; other names are ignored, and so are
    directories without a graph, which are still being written), or is itself a SavedModel: then {1: base_path}.
    Raises NotFound when it does not exist or holds no version.
    """
    try:
        names = sorted(os.listdir(base_path))
    except FileNotFoundError:
        raise NotFound(f"{base_path}: no such directory") from None
    except NotADirectoryError:
        raise NotFound(f"{base_path}: got a file, expected a directory of versions or a SavedModel") from None
    except OSError as error:
        raise NotFound(f"{base_path}: cannot be read: {error.strerror}") from None
    if _holds_graph(base_path):
        return {1: base_path}
    found: dict[int, str] = {}
    unready = []
    for name in names:
        version = _version(name)
        directory = os.path.join(base_path, name)
        if version is None or not os.path.isdir(directory):
            continue
        if _holds_graph(directory):
            found.setdefault(version, directory)
        else:
            unready.append(name)
    if found:
        return dict(sorted(found.items()))
    if unready:
        raise NotFound(f"{base_path}: no saved_model.pb in {_some(unready)}")
    seen = f"found {_some(names)}" if names else "it is empty"
    raise NotFound(f"{base_path}: expected version directories (1, 2, ...) or saved_model.pb; {seen}")


def _version(name: str) -> int | None:
    """The version a directory's name says; 0 is none, for requests say it when they mean the newest."""
    if not (name.isascii() and name.isdecimal()) or len(name) > 64:
        return None
    version = int(name)
    return version if 0 < version < _MAX_VERSION else None


def _holds_graph(directory: str) -> bool:
    return any(os.path.isfile(os.path.join(directory, name)) for name in _GRAPHS)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
