"""A pool's memo on disk: read at the start, written by a thread of its own.

The file is JSON with one entry a line. It is always whole: a new one is written beside it and takes its place.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from tfpool.config_toml import show
from tfpool.errors import InvalidArgument
from tfpool.repository.memo import Memo
from tfpool.telemetry import log

_VERSION = 1
_FLUSH_SECONDS = 2.0


class StateFile:
    """The memo at ``path``. Nobody else writes there."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._log = log.get("state")
        self._changed = threading.Condition()
        self._waiting: Memo | None = None
        self._closing = False
        self._failing = False
        self._writer: threading.Thread | None = None

    def load(self) -> Memo:
        """What is remembered; nothing where there is no file.

        A corrupt file is moved to PATH.corrupt and logged, and nothing is remembered. Raises InvalidArgument for a
        file that cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return Memo()
        except OSError as error:
            raise InvalidArgument(f"{self._path}: cannot be read: {error.strerror}") from None
        try:
            return _read(data)
        except InvalidArgument as error:
            self._set_aside(error)
            return Memo()

    def save(self, memo: Memo) -> None:
        """Have ``memo``, as it is now, written soon. It does not wait; of several the latest is written.

        What cannot be written is logged once, and tried again at the next save.
        """
        with self._changed:
            self._waiting = memo.copy()
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="tfpool-state", daemon=True)
                self._writer.start()
            self._changed.notify()

    def close(self) -> None:
        """Write what waits; a disk that hangs is given up after 2 seconds. Nothing can be saved afterwards."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join(_FLUSH_SECONDS)

    def _set_aside(self, error: InvalidArgument) -> None:
        aside = f"{self._path}.corrupt"
        try:
            os.replace(self._path, aside)
        except OSError as failed:
            aside = f"not moved: {failed.strerror}"
        self._log.warning("state.corrupt", path=self._path, moved_to=aside, error=error)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    if self._closing:
                        return
                    self._changed.wait()
                memo, self._waiting = self._waiting, None
            try:
                _replace(self._path, _text(memo))
                self._failing = False
            except (OSError, TypeError, ValueError) as error:
                if not self._failing:
                    self._log.error("state.unsaved", path=self._path, error=error)
                self._failing = True


def _read(data: bytes) -> Memo:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}") from None
    if not isinstance(fields, dict) or (version := fields.pop("version", None)) is None:
        raise InvalidArgument(f"got {show(fields)}, expected a table with a version")
    if version != _VERSION:
        raise InvalidArgument(f"got version {show(version)}, expected {_VERSION}")
    return Memo.from_fields(fields)


def _text(memo: Memo) -> str:
    """One entry a line: the indentation of ``json`` is slow enough to be felt by the other threads."""
    sections = [f'  "version": {_VERSION}']
    sections += [f"  {json.dumps(name)}: {_section(value)}" for name, value in memo.to_fields().items()]
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _section(value: Any) -> str:
    if not value:
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n  }"
    return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"


def _replace(path: str, content: str) -> None:
    """Write ``content`` to ``path`` so that it, or what was there before, survives a crash. Raises OSError."""
    draft = f"{path}.tmp"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        _remove(draft)
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
