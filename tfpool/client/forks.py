"""Whether this process is a fork of the one that it was: without a system call, as that is asked at every request."""

from __future__ import annotations

import os
from itertools import count

_lives = count()
_now = next(_lives)


def life() -> int:
    """The same number for as long as this process is no child of a fork that was made later."""
    return _now


def _begin() -> None:
    global _now
    _now = next(_lives)


os.register_at_fork(after_in_child=_begin)
