"""Requests out of the bytes of a connection, within limits.

The parser (llhttp) refuses what could be read in two ways; what it lets pass and we do not is refused here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import httptools

from tfpool.errors import TfpoolError
from tfpool.gateway.app import Found, too_long
from tfpool.gateway.http import HttpError, Request, Response
from tfpool.gateway.lines import target

if TYPE_CHECKING:
    from tfpool.gateway.server import HttpServer

MAX_URL = 8 << 10
MAX_HEAD = 64 << 10
MAX_HEADERS = 100
_SKIPPED, _SMALL = 64 << 10, 4 << 10
_TOLD = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"))
_REFUSALS = (TfpoolError, HttpError)


class Turn(NamedTuple):
    """A request that is complete, or the answer to one that is refused. ``nbytes`` are held for it."""

    asked: Request | Response
    found: Found | None
    packed: bytes
    bodiless: bool
    keep: bool
    nbytes: int


class Reader(ABC):
    """Is given bytes, and gives turns. ``_deaf``: what comes is not for us any more. ``_raw``: the bytes of a body that
    the parser does not know of."""

    __slots__ = (
        "_barren", "_began", "_body", "_chunked", "_deaf", "_expects", "_fed", "_found", "_headers", "_held", "_hosts",
        "_keep", "_length", "_method", "_packed", "_parser", "_path", "_progress", "_query", "_raw", "_reading",
        "_refused", "_server", "_size", "_started", "_url",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[bytes, bytes]]
        self._raw: int | None
        self._refused: Response | None
        self._body: list[bytes | bytearray] = []
        self._deaf = False
        self._held = self._progress = self._barren = self._fed = 0
        self.on_message_begin()
        self._reading = False

    @abstractmethod
    def _queue(self, turn: Turn) -> None:
        """It is answered when those before it are."""

    @abstractmethod
    def _welcome(self) -> None:
        """Whoever has sent a head waits to be told to send the body."""

    def _read(self, data: bytes) -> None:
        """Take in what has come."""
        before, nbytes = self._progress, len(data)
        self._fed = nbytes
        rest: bytes | memoryview = data
        try:
            while rest and not self._deaf:
                rest = self._feed(rest)
        except httptools.HttpParserError as error:
            why = error.__context__
            self._refuse(why if isinstance(why, _REFUSALS) else HttpError(400, f"this is no HTTP/1.1: {error}"))
        except _REFUSALS as error:
            self._refuse(error)
        if self._progress != before:
            self._barren = 0
        else:
            self._barren += nbytes
            if self._barren > MAX_HEAD:
                self._refuse(_head_too_long())

    def _feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """What of it is left."""
        if self._raw is not None:
            return self._take_raw(data, self._raw)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = httptools.HttpRequestParser(self)
            return self._take_raw(memoryview(data)[upgrade.args[0] :], self._raw or 0)
        return b""

    def _take_raw(self, data: bytes | memoryview, wanted: int) -> bytes | memoryview:
        part = bytes(data[:wanted])
        self._raw = wanted - len(part)
        self.on_body(part)
        if not self._raw:
            self._raw = None
            self._complete()
        return data[len(part) :]

    # -- a request arrives: called by the parser ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._deaf:
            raise HttpError(400, "the connection is about to close")
        self._reading = True
        self._began = self._server.now
        self._url = self._expects = self._packed = b""
        self._method = ""
        self._headers = []
        self._hosts = self._length = self._size = 0
        self._chunked = self._started = False
        self._raw = None
        self._refused = None

    def on_url(self, part: bytes) -> None:
        self._url += part
        if len(self._url) > MAX_URL:
            raise HttpError(414, f"the URL is too long: expected at most {MAX_URL} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._started:
            return  # a trailer
        name = name.lower()
        headers = self._headers
        headers.append((name, value))
        if len(headers) > MAX_HEADERS:
            raise HttpError(431, f"got more than {MAX_HEADERS} headers")
        if name in _TOLD:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"host":
                self._hosts += 1
            elif name == b"content-encoding":
                self._packed = value.strip()
            elif name == b"expect":
                self._expects = value.strip().lower()
            elif value.strip().lower() == b"chunked":
                self._chunked = True
            else:
                said = value[:40].decode("latin-1")
                raise HttpError(501, f"transfer-encoding: got {said!r}, expected chunked or none")

    def on_headers_complete(self) -> None:
        self._progress += 1
        self._started = True
        version = self._check_head()
        server = self._server
        try:
            self._found = server.app.admit(self._method, self._path, self._headers)
            if self._length > server.settings.max_body:
                raise too_long(self._length, server.settings.max_body)
            if self._expects and self._expects != b"100-continue":
                raise HttpError(417, f"expect: got {self._expects[:40].decode('latin-1')!r}, expected 100-continue")
        except _REFUSALS as error:
            if self._chunked or self._expects or self._length > _SKIPPED:
                raise  # without waiting for a body that nobody wants
            self._refused = server.app.refused(error, self._headers)
        if self._expects and version == "1.1":
            self._welcome()

    def _check_head(self) -> str:
        """The version of HTTP. Raises HttpError for a head that no route could make good."""
        parser, headers = self._parser, self._headers
        if self._barren + self._fed > MAX_HEAD and sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEAD:
            raise _head_too_long()
        version: str = parser.get_http_version()
        self._method = parser.get_method().decode()
        self._keep = parser.should_keep_alive() and version == "1.1"
        if version != "1.1" and (version != "1.0" or self._chunked):
            raise HttpError(505, f"got HTTP/{version}, expected HTTP/1.1")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise HttpError(400, f"got {self._hosts} Host headers, expected one")
        if parser.should_upgrade():  # which the parser takes for granted; but we stay, and what follows is a body
            if self._method == "CONNECT" or self._chunked:
                raise HttpError(501, "got a request to change to another protocol, expected HTTP/1.1")
            self._raw = self._length
        self._path, self._query = target(self._url)
        return version

    def on_body(self, part: bytes) -> None:
        self._progress += 1
        if self._refused is None:
            size, most = self._size + len(part), self._server.settings.max_body
            if size > most:
                raise too_long(size, most)
            self._server.budget.take(len(part))
            self._held += len(part)
            self._size = size
            body = self._body
            if not body or len(part) >= _SMALL:
                body.append(part)
            elif type(body[-1]) is bytearray and len(body[-1]) < MAX_HEAD:
                body[-1] += part  # for a byte of its own takes forty
            else:
                body.append(bytearray(part))

    def on_message_complete(self) -> None:
        self._progress += 1
        if self._raw is None:
            self._complete()

    def _complete(self) -> None:
        parts = self._body
        body = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._reading = False
        self._deaf = not self._keep
        bodiless = self._method == "HEAD"
        if self._refused is not None:
            self._queue(Turn(self._refused, None, b"", bodiless, self._keep, self._size))
            return
        found = self._found
        request = Request(self._method, self._path.decode("latin-1"), self._query, self._headers, body, found[2])
        self._queue(Turn(request, found, self._packed, bodiless, self._keep, self._size))

    def _refuse(self, error: TfpoolError | HttpError) -> None:
        """Answer a request that cannot be read to its end."""
        if not self._deaf:
            self._deaf = True
            self._body.clear()
            refused = self._server.app.refused(error, self._headers)
            self._queue(Turn(refused, None, b"", self._method == "HEAD", False, self._size))


def _head_too_long() -> HttpError:
    return HttpError(431, f"the head is too long: expected at most {MAX_HEAD} bytes")
