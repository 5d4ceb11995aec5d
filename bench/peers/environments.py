"""Environments of peers: made on demand, kept from run to run, one a peer."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.architectures import CACHE
from bench.errors import PeerAbsent
from bench.peers.peer import Environment, Peer
from bench.warden import Guarded

_MARKER = "installed.json"
_INSTALL_SECONDS = 1800.0
_SAY_SECONDS = 0.2

Say = Callable[[str], None]


def home() -> Path:
    """Where environments lie: below ``TFPOOL_BENCH_CACHE``, or the user's cache."""
    kept = os.environ.get(CACHE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(kept) if kept else Path(cache, "tfpool-bench")) / "peers"


def find(peer: Peer) -> Environment:
    """The peer's environment. Raises PeerAbsent where there is none, or another than would be made now."""
    environment, how = Environment(home() / peer.name), f"(python -m bench peers install {peer.name})"
    told = _marked(environment)
    if told is None:
        raise PeerAbsent(f"not installed {how}")
    if told.get("failed"):
        raise PeerAbsent(f"could not be installed: {told['failed']}")
    if told != _mark(peer) or not environment.python.exists():
        raise PeerAbsent(f"installed with other versions {how}")
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


def install(peer: Peer, say: Say) -> Environment:
    """Make it anew; where another process is about to, wait for that one.

    Raises PeerAbsent with the end of what pip said; :func:`find` then tells that too. One that is interrupted leaves
    nothing that :func:`find` would take for whole.
    """
    environment = Environment(home() / peer.name)
    try:
        with _locked(environment, say) as waited:
            if waited:
                with suppress(PeerAbsent):
                    return find(peer)
            _clear(environment)
            try:
                _make(environment, peer, say)
            except (PeerAbsent, OSError) as error:
                _clear(environment)
                _write(environment, _mark(peer, str(error)))
                raise
            _write(environment, _mark(peer))
    except OSError as error:
        raise PeerAbsent(str(error)) from None
    return environment


def remove(peer: Peer, say: Say) -> None:
    """Take its environment away, if there is one. Raises PeerAbsent where that cannot be done."""
    environment = Environment(home() / peer.name)
    try:
        with _locked(environment, say):
            _clear(environment)
    except OSError as error:
        raise PeerAbsent(str(error)) from None


def nbytes(peer: Peer) -> int:
    """What its environment takes on the disk."""
    root, taken = home() / peer.name, 0
    for directory, _, files in os.walk(root):
        for file in files:
            with suppress(OSError):  # it is being installed or removed
                taken += os.lstat(os.path.join(directory, file)).st_blocks * 512
    return taken


def _make(environment: Environment, peer: Peer, say: Say) -> None:
    say("making a virtual environment")
    _run([sys.executable, "-m", "venv", str(environment.path)], say)
    pip = [str(environment.python), "-m", "pip", "install", "--progress-bar", "off"]
    _run([*pip, *requirements(peer)], say)
    if peer.bare_requirements:
        _run([*pip, "--no-deps", *peer.bare_requirements], say)
    peer.prepare(environment)


def _run(words: Sequence[str], say: Say) -> None:
    """Until it has ended, whatever becomes of the bench; says the last line of its output. Raises PeerAbsent."""
    give_up, said = time.monotonic() + _INSTALL_SECONDS, ""
    with Guarded(words, {}) as guarded:
        while (status := guarded.status(_SAY_SECONDS)) is None:
            if time.monotonic() > give_up:
                raise PeerAbsent(f"{' '.join(words)}: not done after {_INSTALL_SECONDS:g} s")
            line = guarded.written().rpartition("\n")[2]
            if line not in ("", said):
                say(said := line)
        if status:
            raise PeerAbsent(f"{' '.join(words)} failed:\n{guarded.written()}")


@contextmanager
def _locked(environment: Environment, say: Say) -> Iterator[bool]:
    """Nobody else makes or removes it meanwhile. Whether it was waited for."""
    environment.path.parent.mkdir(parents=True, exist_ok=True)
    with open(environment.path.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except BlockingIOError:
            say("waiting for another process that installs it")
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        yield waited


def _clear(environment: Environment) -> None:
    """The marker goes first: half an environment shall not look whole."""
    (environment.path / _MARKER).unlink(missing_ok=True)
    if environment.path.exists():
        shutil.rmtree(environment.path)


def _mark(peer: Peer, failed: str = "") -> dict[str, Any]:
    """What is written beside an environment of today."""
    wanted = [*requirements(peer), *peer.bare_requirements]
    return {"requirements": wanted, "python": platform.python_version(), "failed": failed}


def _write(environment: Environment, told: Mapping[str, Any]) -> None:
    environment.path.mkdir(exist_ok=True)
    new = environment.path / f"{_MARKER}.new"
    new.write_text(json.dumps(told) + "\n")
    new.replace(environment.path / _MARKER)


def _marked(environment: Environment) -> Mapping[str, Any] | None:
    try:
        told = json.loads((environment.path / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
