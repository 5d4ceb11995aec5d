"""Environments of peers: made on demand, kept from run to run, one a peer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.errors import PeerAbsent
from bench.peers.peer import Environment, Peer

CACHE = "TFPOOL_BENCH_CACHE"
_MARKER = "installed.json"
_TAIL_LINES = 15
_INSTALL_SECONDS = 1800.0


def home() -> Path:
    """Where environments lie: below ``TFPOOL_BENCH_CACHE``, or the user's cache."""
    kept = os.environ.get(CACHE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(kept) if kept else Path(cache, "tfpool-bench")) / "peers"


def find(peer: Peer) -> Environment:
    """The peer's environment. Raises PeerAbsent where there is none, or one of other versions."""
    environment = Environment(home() / peer.name)
    try:
        told = json.loads((environment.path / _MARKER).read_text())
    except (OSError, ValueError):
        raise PeerAbsent(f"not installed (python -m bench peers install {peer.name})") from None
    if told.get("failed"):
        raise PeerAbsent(f"could not be installed: {told['failed']}")
    if told["requirements"] != requirements(peer):
        raise PeerAbsent(f"installed with other versions (python -m bench peers install {peer.name})")
    return environment


def requirements(peer: Peer) -> list[str]:
    """For pip: the peer's, and the TensorFlow that the bench has itself."""
    return [*peer.requirements, tensorflow()]


def tensorflow() -> str:
    """The pinned requirement. Raises PeerAbsent where the bench has no TensorFlow."""
    for distribution in ("tensorflow-cpu", "tensorflow"):
        try:
            return f"{distribution}=={version(distribution)}"
        except PackageNotFoundError:
            continue
    raise PeerAbsent("the bench's own environment has no TensorFlow to install the same of")


def install(peer: Peer, say: Callable[[str], None]) -> Environment:
    """Make it anew. Raises PeerAbsent with the end of what pip said; the next run then tells that too."""
    environment = Environment(home() / peer.name)
    shutil.rmtree(environment.path, ignore_errors=True)
    environment.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        say("making a virtual environment")
        _run([sys.executable, "-m", "venv", str(environment.path)])
        say(f"pip install {' '.join(requirements(peer))}")
        _run([str(environment.python), "-m", "pip", "install", "-q", *requirements(peer)])
        peer.prepare(environment)
    except PeerAbsent as error:
        _mark(environment, peer, str(error))
        raise
    _mark(environment, peer, "")
    return environment


def remove(peer: Peer) -> None:
    """Take its environment away, if there is one."""
    shutil.rmtree(home() / peer.name, ignore_errors=True)


def _mark(environment: Environment, peer: Peer, failed: str) -> None:
    told = {"requirements": requirements(peer), "failed": failed}
    (environment.path / _MARKER).write_text(json.dumps(told) + "\n")


def _run(words: list[str]) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False, env=environ)
    except subprocess.TimeoutExpired:
        raise PeerAbsent(f"{' '.join(words)}: not done after {_INSTALL_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-_TAIL_LINES:]
        raise PeerAbsent(f"{' '.join(words)} failed:\n" + "\n".join(said))
