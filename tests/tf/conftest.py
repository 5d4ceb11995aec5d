"""Sample models, made once a session in a process of their own: tests here need not import TensorFlow themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tfpool
from tfpool.testing.fronts import await_front, free_address

_MAKE = """
import sys
from tfpool.testing import models
for name in sys.argv[2:]:
    models.MAKERS[name](sys.argv[1])
if "half_plus_two" in sys.argv[2:]:
    models.make_half_plus_two(sys.argv[1], version=2, offset=3.0)
"""


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., dict[str, str]]:
    """Makes samples by name below a directory; their base paths."""

    def make(directory: Path, *names: str) -> dict[str, str]:
        made = subprocess.run(
            [sys.executable, "-c", _MAKE, str(directory), *names], capture_output=True, text=True, timeout=90
        )
        assert made.returncode == 0, made.stderr[-2000:]
        return {name: os.path.join(directory, name) for name in names}

    return make


@pytest.fixture(scope="session")
def sample_models(
    tmp_path_factory: pytest.TempPathFactory, make_samples: Callable[..., dict[str, str]]
) -> dict[str, str]:
    """Base paths by name; half_plus_two has versions 1 (y = x/2 + 2) and 2 (y = x/2 + 3)."""
    names = ("half_plus_two", "string_length", "two_signatures", "truncated")
    return make_samples(tmp_path_factory.mktemp("models"), *names)


@dataclass(frozen=True)
class Front:
    """A pool with gateways: its addresses, and the base paths of its models."""

    http: str
    grpc: str
    paths: dict[str, str]


@pytest.fixture(scope="session")
def front(
    sample_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory, make_samples: Callable[..., dict[str, str]]
) -> Iterator[Front]:
    """A pool that all tests of protocols share; nothing in it is changed."""
    paths = {name: sample_models[name] for name in ("half_plus_two", "string_length")}
    paths |= make_samples(tmp_path_factory.mktemp("front"), "mlp", "examples")
    http, grpc = free_address(), free_address()
    with tfpool.Pool(paths, workers=1, http=http, grpc=grpc):
        await_front(http)
        await_front(grpc)
        yield Front(http, grpc, paths)


@pytest.fixture(scope="session")
def session_members() -> Callable[[int], list[int]]:
    """Processes that belong to the session a process leads: all of a pool's that was started in one of its own."""

    def members(leader: int) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        state, _, _, session = file.read().rpartition(b")")[2].split()[:4]
                except OSError:
                    continue
                if int(session) == leader and state != b"Z":
                    found.append(int(name))
        return found

    return members
