"""Those who look at requests as they pass: the recorder, and the shadow, which sends copies to another version."""

from __future__ import annotations

from tfpool.broker.recorder import Recorder
from tfpool.broker.resolve import Resolved
from tfpool.broker.shadow import Shadows
from tfpool.scheduler.events import Submit
from tfpool.scheduler.work import Segment


class Taps:
    """``models`` are the names of those somebody looks at; requests of others pay nothing."""

    def __init__(self, recorder: Recorder, shadows: Shadows) -> None:
        self.models: set[str] = set()
        self._recorder = recorder
        self._shadows = shadows

    def refresh(self) -> None:
        """Somebody has begun to look, or does no longer."""
        self.models = self._recorder.models() | self._shadows.models()

    def pass_by(self, found: Resolved, segment: Segment) -> list[Submit]:
        """The segment, and what goes beside it."""
        self._recorder.note(found, segment)
        return self._shadows.double(found, segment)
