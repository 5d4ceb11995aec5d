"""What is sent to those who look: all rows once, then only those that changed. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

Row = Mapping[str, Any]
Sections = Mapping[str, Mapping[str, Row]]

KEPT_REVISIONS = 64


class Frames:
    """Rows by section and key, each with the revision in which it changed last.

    What somebody has not seen yet is worked out when it is sent, so who reads slowly costs no memory: the frames in
    between are left out.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._head: Row = {}
        self._story: Sequence[Row] = ()
        self._rows: dict[str, dict[str, tuple[int, Row]]] = {}
        self._dropped: deque[tuple[int, str, str]] = deque()
        self._oldest = 0
        self._made: dict[int, bytes] = {}

    def put(self, head: Row, sections: Sections | None = None, story: Sequence[Row] = ()) -> None:
        """A new revision: ``head`` is sent every time, ``story`` with everything; without ``sections`` the rows stay as
        they are."""
        self.revision += 1
        self._head, self._story = head, story
        self._made.clear()
        for name, rows in (sections or {}).items():
            self._replace(name, self._rows.get(name, {}), rows)
        self._oldest = max(self._oldest, self.revision - KEPT_REVISIONS)
        while self._dropped and self._dropped[0][0] <= self._oldest:
            self._dropped.popleft()

    def _replace(self, section: str, old: dict[str, tuple[int, Row]], rows: Mapping[str, Row]) -> None:
        fresh = {}
        for key, row in rows.items():
            known = old.get(key)
            fresh[key] = known if known is not None and known[1] == row else (self.revision, row)
        self._dropped.extend((self.revision, section, key) for key in old if key not in fresh)
        self._rows[section] = fresh

    def since(self, revision: int) -> bytes:
        """JSON of what has changed since a revision; of everything (``"whole": true``) for 0, and for one that is too
        long ago.

        ``{"revision": n, "whole": false, "head": {...}, "put": {section: {key: row}}, "drop": {section: [key]}}``, and
        ``story`` with everything.
        """
        whole = revision < max(1, self._oldest)
        known = 0 if whole else revision
        made = self._made.get(known)
        if made is None:
            put = {
                section: {key: row for key, (changed, row) in rows.items() if changed > known}
                for section, rows in self._rows.items()
            }
            drop: dict[str, list[str]] = {}
            for changed, section, key in self._dropped:
                if changed > known and not whole and key not in self._rows[section]:
                    drop.setdefault(section, []).append(key)
            frame: dict[str, Any] = {
                "revision": self.revision,
                "whole": whole,
                "head": self._head,
                "put": put,
                "drop": drop,
            }
            if whole:
                frame["story"] = self._story
            made = self._made[known] = orjson.dumps(frame)
        return made
