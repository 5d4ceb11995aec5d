"""What versions of a model lie on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from tfpool.errors import NotFound, PermissionDenied
from tfpool.settings import Settings

GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_MAX_VERSION = 1 << 63


def scan(base_path: str) -> dict[int, str]:
    """Versions of a model and their directories, oldest first.

    ``base_path`` holds numeric version directories (``00000123`` is 123; other names are ignored, and so are
    directories without a graph, which are still being written), or is itself a SavedModel: then {1: base_path}.
    Raises NotFound when it does not exist, cannot be read or holds no version that can be.
    """
    try:
        names = sorted(os.listdir(base_path))
    except FileNotFoundError:
        raise NotFound(f"{base_path}: no such directory") from None
    except NotADirectoryError:
        raise NotFound(f"{base_path}: got a file, expected a directory of versions or a SavedModel") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise NotFound(f"{base_path}: cannot be read: {_reason(error)}") from None
    if any(name in names and _unready(base_path, name) is None for name in GRAPHS):
        return {1: base_path}
    found: dict[int, str] = {}
    unready: dict[str, str] = {}
    for name in names:
        number = version_of(name)
        if number is None:
            continue
        directory = os.path.join(base_path, name)
        problem = _unready(directory)
        if problem is None:
            found.setdefault(number, directory)
        elif problem:
            unready[name] = problem
    if found:
        return dict(sorted(found.items()))
    if unready:
        raise NotFound(f"{base_path}: {_some([f'{problem} {name}' for name, problem in unready.items()])}")
    seen = f"found {_some(names)}" if names else "it is empty"
    raise NotFound(f"{base_path}: expected version directories (1, 2, ...) or saved_model.pb; {seen}")


def trusted_roots(settings: Settings) -> tuple[str, ...]:
    """Where a version's files may lie when base paths are confined (empty: anywhere): also where the configuration
    itself says that models are."""
    server = settings.server
    if not server.allowed_roots:
        return ()
    named = [model.base_path for model in settings.models] + ([server.models_root] if server.models_root else [])
    return (*server.allowed_roots, *named)


def check_inside(path: str, roots: Sequence[str]) -> None:
    """Raises PermissionDenied where ``path``, its links followed, lies in none of ``roots``."""
    real = os.path.realpath(path)
    for root in map(os.path.realpath, roots):
        if real == root or real.startswith(root.rstrip(os.sep) + os.sep):
            return
    leads = "" if real == path else f" leads to {real}, which"
    raise PermissionDenied(f"{path}{leads} is outside of allowed_roots")


def version_of(name: str) -> int | None:
    """The version a directory's name says; 0 is none, for requests say it when they mean the newest."""
    if not (name.isascii() and name.isdecimal()) or len(name) > 64:
        return None
    version = int(name)
    return version if 0 < version < _MAX_VERSION else None


def _unready(directory: str, *names: str) -> str | None:
    """Why ``directory`` holds no graph of one of ``names``; None when it does, "" when it is no directory at all."""
    for name in names or GRAPHS:
        try:
            if stat.S_ISREG(os.stat(os.path.join(directory, name)).st_mode):
                return None
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            return ""
        except OSError as error:
            return f"{_reason(error)}:"
    return "no saved_model.pb in" if os.path.isdir(directory) else ""


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
