"""Where the figures come from: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from bench.children import ROOT

_PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "pyzmq": ("pyzmq",),
    "numpy": ("numpy",),
    "msgpack": ("msgpack",),
}


def machine() -> dict[str, Any]:
    """CPU, cores that this process may use, memory, kernel, and the load before the run."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """Python and the packages that matter; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        found[name] = next((known for d in distributions if (known := _version(d))), None)
    return found


def commit() -> dict[str, Any]:
    """The commit of the working tree, and whether files differ from it; empty outside of git."""
    revision = _git("rev-parse", "HEAD")
    return {"revision": revision, "dirty": bool(_git("status", "--porcelain"))} if revision else {}


def _cpu() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
