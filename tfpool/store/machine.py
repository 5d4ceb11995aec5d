"""What a compiled model depends on besides its files: TensorFlow and its switches, the processor, and the compiler."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib import metadata
from typing import NamedTuple

COMPILER = 1  # rises whenever what is compiled from the same files changes
_DISTRIBUTIONS = ("tensorflow-cpu", "tensorflow", "tensorflow-intel", "tensorflow-aarch64", "tf-nightly")
_SWITCHES = (  # they choose kernels, and what graphs are made into
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DISABLE_MKL",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)


class Toolchain(NamedTuple):
    """``tensorflow`` is its version (empty: there is none), ``cpu`` a hash of the processor's features, and of what
    else decides how TensorFlow uses them: which distribution it is, and its switches in the environment."""

    tensorflow: str
    cpu: str
    compiler: int


@cache
def toolchain() -> Toolchain:
    """That of this machine and environment; TensorFlow is not imported."""
    name, version = _tensorflow()
    decides = "\n".join((name, _features(), *_switches()))
    return Toolchain(version, hashlib.sha256(decides.encode(errors="surrogateescape")).hexdigest()[:12], COMPILER)


def _tensorflow() -> tuple[str, str]:
    """The distribution and its version; both empty where there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


def _switches() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in _SWITCHES if os.environ.get(name)]


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
