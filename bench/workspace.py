"""Where a run keeps what it needs for itself: models, sockets, requests. Gone with the run, or with the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

_PREFIX = "tfpool-bench-"


def workspace() -> tempfile.TemporaryDirectory[str]:
    """A directory of this run; those of runs that were killed are removed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and _ours(path):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")


def _ours(path: Path) -> bool:
    try:
        return not path.is_symlink() and path.lstat().st_uid == os.getuid()
    except OSError:
        return False
