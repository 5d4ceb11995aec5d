"""A process that runs a command, and leaves nothing of it: when it ends, all that the command has started ends too.

Peers start processes of their own, in sessions of their own, some of which outlive who started them. The warden is
the parent that the kernel gives to such orphans (a child subreaper), so that it finds them all.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

from bench.processes import family

_PR_SET_CHILD_SUBREAPER = 36
_TERM_SECONDS = 5.0
_KILL_SECONDS = 5.0
_STEP_SECONDS = 0.05


class _Stop(Exception):
    """The bench wants it to end, or is gone."""


def main() -> None:
    """Arguments: the command's words. Standard input is the bench's hand: when it lets go, all ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
        code = _watch(child)
    except _Stop:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all()
    sys.exit(code)


def _stop(*_: object) -> None:
    raise _Stop


def _watch(child: subprocess.Popen[bytes]) -> int:
    """Until the command has ended: its exit status. Raises _Stop when the bench lets go."""
    while child.poll() is None:
        if select.select([0], [], [], _STEP_SECONDS)[0] and not os.read(0, 1):
            raise _Stop
    return child.returncode


def end_all() -> None:
    """Ask all descendants to end, wait, and kill those that have not."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        give_up = time.monotonic() + seconds
        asked: set[int] = set()
        while time.monotonic() < give_up:
            left = _descendants()
            if not left:
                return
            for pid in left - asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            asked |= left
            time.sleep(_STEP_SECONDS)


def _descendants() -> set[int]:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return set(family(os.getpid())) - {os.getpid()}


if __name__ == "__main__":
    main()
