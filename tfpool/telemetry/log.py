"""A structured log on stderr: an event and its fields, one line each.

As text, values quoted only where they need it::

    2026-01-02T03:04:05.678Z INFO  broker  model.loaded model=mnist version=3 seconds=0.12

or as JSON, one object a line. It rests on the logger ``tfpool`` of the standard library: a program that embeds tfpool
and never calls :func:`configure` keeps its own handlers. A stderr that is gone or full costs lines, never an error.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from math import isfinite

_STDERR = 2
_PLAIN = re.compile(r"[^\s\"'=\\{}]+")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SHORT = {"WARNING": "WARN"}


class Log:
    """Where one part of tfpool writes its events. Fields are keyword arguments, an exception reads as its text."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, /, **fields: object) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, /, **fields: object) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, /, **fields: object) -> None:
        self._logger.error(event, extra={"fields": fields})


def get(name: str) -> Log:
    """The log of a part of tfpool; it follows :func:`configure` whenever that is called."""
    return Log(logging.getLogger(f"tfpool.{name}"))


def configure(process: str, level: str = "info", fmt: str = "text") -> None:
    """Send this process's log to stderr from ``level`` on, as ``text`` or ``json``. Later calls replace earlier ones.

    Raises KeyError for an unknown level.
    """
    logger = logging.getLogger("tfpool")
    logger.setLevel(_LEVELS[level])
    logger.handlers[:] = [_Stderr(process, fmt)]
    logger.propagate = False


class _Stderr(logging.Handler):
    def __init__(self, process: str, fmt: str) -> None:
        super().__init__()
        self.process = process
        self.line = _json_line if fmt == "json" else _text_line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.line(self.process, record, getattr(record, "fields", {}))
            os.write(_STDERR, line.encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            pass  # a log must not take its process down, and there is nowhere left to say so


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _text_line(process: str, record: logging.LogRecord, fields: Mapping[str, object]) -> str:
    level = _SHORT.get(record.levelname, record.levelname)
    words = [f"{_time(record)} {level:5} {process:7} {_quoted(record.getMessage(), ' ')}"]
    words += [f"{name}={_quoted(_readable(value))}" for name, value in fields.items()]
    return " ".join(words)


def _json_line(process: str, record: logging.LogRecord, fields: Mapping[str, object]) -> str:
    fixed = {
        "time": _time(record),
        "level": record.levelname.lower(),
        "process": process,
        "event": record.getMessage(),
    }
    try:
        return json.dumps({**fixed, **fields, **fixed}, default=_readable, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # nan is no JSON, nor is a key that is no text
        return json.dumps({**fixed, **{name: _readable(value) for name, value in fields.items()}, **fixed})


def _readable(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, float) and isfinite(value):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_readable, value))}]"
    return str(value)


def _quoted(text: str, also: str = "") -> str:
    if text.isprintable() and _PLAIN.fullmatch(text.replace(also, "") if also else text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
