"""Answers of HTTP/1.1 as bytes, and what a request's target names. Pure."""

from __future__ import annotations

import re
from http import HTTPStatus

from tfpool.gateway.http import HttpError, Response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST = b"0\r\n\r\n"
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus} | {499: b"Client Closed Request"}
_KEPT = 1024
_heads: dict[tuple[int, tuple[tuple[bytes, bytes], ...]], bytes] = {}


def head(response: Response, keep: bool) -> bytes:
    """The status line and headers; a body that is complete tells its length, another one is in pieces where ``keep``.

    Raises ValueError for a header that would be read as something else.
    """
    said = (response.status, tuple(response.headers))
    known = _heads.get(said)
    if known is None:
        if len(_heads) >= _KEPT:
            _heads.clear()
        known = _heads[said] = _encoded(*said)
    end = b"\r\n" if keep else b"connection: close\r\n\r\n"
    if response.status in (204, 304):
        return known + end
    if isinstance(response.body, bytes):
        return b"%bcontent-length: %d\r\n%b" % (known, len(response.body), end)
    return (known + b"transfer-encoding: chunked\r\n" if keep else known) + end


def chunk(piece: bytes) -> bytes:
    """A piece of a body; :data:`LAST` goes after all."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def target(url: bytes) -> tuple[bytes, bytes]:
    """The path and the query of a request line. Raises HttpError."""
    if not url.startswith(b"/"):
        said = _ABSOLUTE.match(url)
        if said is not None:
            url = url[said.end() :]
            url = url if url.startswith(b"/") else b"/" + url
        elif url != b"*":
            raise HttpError(400, f"got target {_text(url)!r}, expected a path")
    if b"#" in url:
        raise HttpError(400, f"got target {_text(url)!r}, expected one without '#'")
    path, _, query = url.partition(b"?")
    return path, query


def _encoded(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))]
    for name, value in headers:
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ValueError(f"header {_text(name)!r}: {_text(value)!r}")
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def _text(data: bytes) -> str:
    return data[:80].decode("latin-1")
