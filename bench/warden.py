"""A process that runs a command, and leaves nothing of it: when it ends, all that the command has started ends too.

Peers start processes of their own, in sessions of their own, some of which outlive who started them. The warden is
the parent that the kernel gives to such orphans (a child subreaper), so that it finds them all.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from types import TracebackType

from bench.processes import family

_ROOT = Path(__file__).parents[1]
_PR_SET_CHILD_SUBREAPER = 36
_TERM_SECONDS = 5.0
_KILL_SECONDS = 5.0
_STOP_SECONDS = _TERM_SECONDS + _KILL_SECONDS + 5.0
_STEP_SECONDS = 0.05
_TAIL_BYTES = 2000

# -- the bench's side ----------------------------------------------------------------------------------------------


class Guarded:
    """A command that runs under a warden, without the bench's own PYTHONPATH, its output in a file that has no name.

    ``leaves`` are patterns of paths that go when it has ended.
    """

    def __init__(
        self, words: Sequence[str], environ: Mapping[str, str], directory: str | None = None, leaves: Sequence[str] = ()
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        # The warden needs the bench's path, the command its own: the words after env(1) are the command's.
        inner = ["env", "-u", "PYTHONPATH", *(f"{name}={value}" for name, value in environ.items()), *words]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the command
        try:
            self._warden = subprocess.Popen(
                [sys.executable, "-m", "bench.warden", json.dumps(list(leaves)), *inner],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                cwd=directory,
                env={**kept, "PYTHONPATH": str(_ROOT)},
                start_new_session=True,  # Ctrl-C is for the bench, which then ends it in order
            )
        except BaseException:
            self._log.close()
            raise

    def status(self, seconds: float = 0.0) -> int | None:
        """The exit status, if it has ended or does so within ``seconds``; all of it is gone then."""
        try:
            return self._warden.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def pids(self) -> dict[int, str]:
        """Its processes now, with their names."""
        found = family(self._warden.pid)
        found.pop(self._warden.pid, None)
        return found

    def written(self) -> str:
        """The end of its output."""
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        return os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()

    def close(self) -> None:
        """End it, and wait until nothing of it is left."""
        assert self._warden.stdin is not None
        with suppress(BrokenPipeError):
            self._warden.stdin.close()
        if self.status(_STOP_SECONDS) is None:
            self._warden.kill()
            self._warden.wait()
        self._log.close()

    def __enter__(self) -> Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -- the warden ----------------------------------------------------------------------------------------------------


class _Stop(Exception):
    """The bench wants it to end, or is gone."""


def main() -> None:
    """Arguments: patterns of paths to remove (JSON), the command's words. Standard input is the bench's hand: when it
    lets go, all ends."""
    leaves, *words = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        nothing = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        code = _watch(os.posix_spawnp(words[0], words, os.environ, file_actions=nothing))
    except _Stop:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all()
        for pattern in json.loads(leaves):
            _remove(pattern)
    sys.exit(code)


def _stop(*_: object) -> None:
    raise _Stop


def _watch(child: int) -> int:
    """Until the command has ended: its exit status, negative for a signal. Raises _Stop when the bench lets go."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0 and select.select([0], [], [], _STEP_SECONDS)[0] and not os.read(0, 1):
            raise _Stop


def end_all() -> None:
    """Ask all descendants to end, wait, and kill those that have not."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        give_up = time.monotonic() + seconds
        asked: set[int] = set()
        while time.monotonic() < give_up:
            if not _any_left():
                return
            left = set(family(os.getpid())) - {os.getpid()}
            for pid in left - asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            asked |= left
            time.sleep(_STEP_SECONDS)


def _any_left() -> bool:
    """Whether there are descendants: as long as one lives, one is our own child, and the kernel says whether we have
    any."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _remove(pattern: str) -> None:
    for path in glob(pattern):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    main()
