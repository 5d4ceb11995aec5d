"""What to do when a child ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
MAX_FAILED_STARTS = 8
DEATHS_AT_ONCE = 40
SECONDS_PER_DEATH = 0.75


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again in ``delay`` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Halt:
    """Give it up."""

    why: str


@dataclass(slots=True)
class History:
    """The lives of one child: whether this one has become ``ready``, and how many in a row never did.

    ``credit`` deaths cost no delay; there is one more of them every ``SECONDS_PER_DEATH`` since ``counted`` (monotonic
    seconds), up to ``DEATHS_AT_ONCE``.
    """

    ready: bool = False
    failed_starts: int = 0
    credit: float = DEATHS_AT_ONCE
    counted: float = 0.0

    def became_ready(self) -> None:
        """It can do its work: starting it is no problem."""
        self.ready, self.failed_starts = True, 0

    def ended(self, status: int, now: float) -> Restart | Halt:
        """Decide for a child that ended with ``status`` (negative: a signal).

        One that was asked to end is replaced at once, and so is one that had become ready, as long as that does not
        happen all the time. One that never did is started again after a delay that doubles, and at last given up.
        """
        was_ready, self.ready = self.ready, False
        if status == 0:
            return Restart(0.0)
        if was_ready:
            return Restart(self._charge(now))
        self.failed_starts += 1
        if self.failed_starts > MAX_FAILED_STARTS:
            return Halt(f"it died {self.failed_starts} times in a row before it was ready")
        if self.failed_starts == 1:
            return Restart(0.0)
        return Restart(min(FIRST_DELAY * 2 ** (self.failed_starts - 2), LONGEST_DELAY))

    def _charge(self, now: float) -> float:
        """One more death; seconds until that is paid for."""
        earned = max(0.0, now - self.counted) / SECONDS_PER_DEATH
        self.credit, self.counted = min(DEATHS_AT_ONCE, self.credit + earned) - 1, now
        return min(max(0.0, -self.credit * SECONDS_PER_DEATH), LONGEST_DELAY)


def describe(status: int) -> str:
    """``exit 3`` or ``signal 9``."""
    return f"signal {-status}" if status < 0 else f"exit {status}"
