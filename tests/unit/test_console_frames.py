"""What viewers of the console are sent: everything once, then what changed, whatever they have missed."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tfpool.gateway.console.frames import KEPT_REVISIONS, Frames

Rows = dict[str, dict[str, Any]]
rows = st.dictionaries(st.sampled_from("abcd"), st.fixed_dictionaries({"n": st.integers(0, 2)}))


class Viewer:
    """Does with frames what the page does."""

    def __init__(self) -> None:
        self.revision = 0
        self.rows: Rows = {}
        self.head: Any = None

    def read(self, frames: Frames) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(frames.since(self.revision))
        if frame["whole"]:
            self.rows = {}
        for key in frame["drop"].get("models", []):
            self.rows.pop(key, None)  # it may have come and gone meanwhile
        self.rows |= frame["put"]["models"]
        self.revision, self.head = frame["revision"], frame["head"]
        return frame


@given(st.lists(st.tuples(rows, st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_who_reads_now_and_then_knows_what_who_reads_always_knows(polls: list[tuple[Rows, bool, bool]]) -> None:
    frames, eager, lazy = Frames(), Viewer(), Viewer()
    for number, (models, heard, fails) in enumerate(polls):
        frames.put({"at": number}, None if fails and number else {"models": models})
        eager.read(frames)
        if heard:
            lazy.read(frames)
            assert (lazy.rows, lazy.head) == (eager.rows, {"at": number})
    lazy.read(frames)
    assert lazy.rows == eager.rows
    if not polls[-1][2]:
        assert eager.rows == polls[-1][0]


def test_what_stays_the_same_is_sent_once() -> None:
    frames, viewer = Frames(), Viewer()
    frames.put({}, {"models": {"a": {"n": 1}, "b": {"n": 1}}}, story=[{"at": 0}])
    first = viewer.read(frames)
    assert (first["whole"], first["story"]) == (True, [{"at": 0}])
    frames.put({}, {"models": {"a": {"n": 1}, "b": {"n": 2}}}, story=[{"at": 0}, {"at": 1}])
    second = viewer.read(frames)
    assert (second["whole"], second["put"]["models"]) == (False, {"b": {"n": 2}})
    assert "story" not in second


def test_who_was_away_too_long_is_sent_everything() -> None:
    frames, viewer = Frames(), Viewer()
    frames.put({}, {"models": {"a": {}}})
    viewer.read(frames)
    for number in range(KEPT_REVISIONS + 1):
        frames.put({}, {"models": {f"n{number}": {}}})
    assert viewer.read(frames)["whole"]
    assert list(viewer.rows) == [f"n{KEPT_REVISIONS}"]


def test_viewers_of_the_same_frame_share_its_bytes() -> None:
    frames = Frames()
    frames.put({}, {"models": {"a": {}}})
    assert frames.since(0) is frames.since(0)
    assert frames.since(0) is not frames.since(1)
