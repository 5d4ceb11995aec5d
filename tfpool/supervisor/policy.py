"""What to do when a child ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass

HEALTHY_SECONDS = 10.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
MAX_QUICK_DEATHS = 8


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
    """The recent life of one child: when it was started (monotonic seconds), how often it died young in a row."""

    started: float = 0.0
    quick_deaths: int = 0

    def ended(self, status: int, now: float) -> Restart | Halt:
        """Decide for a child that ended with ``status`` (negative: a signal).

        One that was asked to end, or had lived for long, is replaced at once; others after a delay that doubles.
        """
        if status == 0:
            return Restart(0.0)
        if now - self.started >= HEALTHY_SECONDS:
            self.quick_deaths = 0
            return Restart(0.0)
        self.quick_deaths += 1
        if self.quick_deaths > MAX_QUICK_DEATHS:
            return Halt(f"it died {self.quick_deaths} times within {HEALTHY_SECONDS:g} s of its start")
        if self.quick_deaths == 1:
            return Restart(0.0)
        return Restart(min(FIRST_DELAY * 2 ** (self.quick_deaths - 2), LONGEST_DELAY))


def describe(status: int) -> str:
    """``exit 3`` or ``signal 9``."""
    return f"signal {-status}" if status < 0 else f"exit {status}"
