"""What a compiled model depends on besides its files: TensorFlow, the processor, and the compiler itself."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from typing import NamedTuple

COMPILER = 1  # rises whenever what is compiled from the same files changes
_DISTRIBUTIONS = ("tensorflow-cpu", "tensorflow", "tensorflow-intel", "tensorflow-aarch64", "tf-nightly")


class Toolchain(NamedTuple):
    """``tensorflow`` is its version (empty: there is none), ``cpu`` a hash of the processor's features."""

    tensorflow: str
    cpu: str
    compiler: int


@cache
def toolchain() -> Toolchain:
    """That of this machine and environment; TensorFlow is not imported."""
    return Toolchain(_tensorflow(), hashlib.sha256(_features().encode()).hexdigest()[:12], COMPILER)


def _tensorflow() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _features() -> str:
    """The processor's instruction sets: graphs, and what runs measured, hold for these."""
    words = [platform.machine()]
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    words += sorted(value.split())
                    break
    except OSError:
        pass
    return " ".join(words)
