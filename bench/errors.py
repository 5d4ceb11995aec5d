"""Why a scenario gives no figures."""

from __future__ import annotations


class BenchError(Exception):
    """A scenario failed; the message says why."""


class ChildFailed(BenchError):
    """A child ended, or did not answer in time; the message has the end of what it wrote."""


class WrongAnswer(BenchError):
    """An answer was not what it should be: no figure counts."""


class OutOfTime(BenchError):
    """A scenario took longer than it may."""


class PeerAbsent(BenchError):
    """A peer is not installed, or does not run on this machine."""
