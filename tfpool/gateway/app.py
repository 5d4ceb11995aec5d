"""A request's way to its handler and back: its route is found by its path, the caller known by its token, its body
unpacked within its limits, its answer packed where the caller takes that."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable

from tfpool.errors import ResourceExhausted, TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.http import Access, Headers, HttpError, Request, Response, Route, first, refusal, route
from tfpool.settings import GatewaySettings
from tfpool.telemetry import log

COMPRESSED_FROM = 16 << 10
ASIDE_FROM = 256 << 10
"""Bytes that are packed and unpacked in a thread, for the loop has others to serve."""
_KEPT_PATHS, _KEPT_BYTES = 8192, 256
_UNPACKED_AT_ONCE = 4 << 20
_SHOWN = (
    (b"access-control-expose-headers", b"inference-header-content-length, retry-after"),
    (b"vary", b"origin"),
)
Found = tuple[Route, tuple[str | None, ...], Access]
"""The route of a request, the names in its path, and what its caller may do."""


class Budget:
    """Bytes of requests, and of answers that nobody takes, in memory at a time: at most ``most``."""

    __slots__ = ("held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, nbytes: int) -> None:
        """Raises ResourceExhausted where there is no room for them."""
        if self.held + nbytes > self.most:
            raise ResourceExhausted(f"requests hold {self.most} bytes of memory already", 1.0)
        self.held += nbytes

    def hold(self, nbytes: int) -> None:
        """Count what is there anyway."""
        self.held += nbytes

    def give(self, nbytes: int) -> None:
        """They are gone."""
        self.held -= nbytes


class App:
    """Answers HTTP by ``routes``, of which the first that matches counts."""

    def __init__(self, settings: GatewaySettings, keeper: Keeper, routes: Iterable[Route]) -> None:
        self.settings = settings
        self.routes = tuple(routes)
        self.budget = Budget(max(1 << 30, settings.max_body))
        self._keeper = keeper
        self._known: dict[tuple[str, bytes], tuple[Route, tuple[str | None, ...]]] = {}
        self._options = route("OPTIONS", "", self._preflight, Access.OPEN)
        self._log = log.get("gateway")

    def admit(self, method: str, path: bytes, headers: Headers) -> Found:
        """Whether a request may go on, by its head. Raises HttpError, Unauthenticated or PermissionDenied."""
        known = self._known.get((method, path))
        if known is None:
            known = self._find(method, path)
            if len(path) <= _KEPT_BYTES:
                if len(self._known) >= _KEPT_PATHS:
                    self._known.clear()
                self._known[(method, path)] = known
        found, names = known
        return found, names, self._keeper.check(headers, found.access)

    async def respond(self, request: Request, found: Found, packed: bytes = b"") -> Response:
        """The answer to a request that was admitted; ``packed`` is the encoding of its body."""
        asked, names, _ = found
        taken = 0
        try:
            if packed and request.body and packed.lower() != b"identity":
                request.body = await self._unpacked(request.body, packed)
                taken = len(request.body)
            response = await asked.handler(request, *names)
            return await self._finished(response, request.headers)
        except (TfpoolError, HttpError) as error:
            return self.refused(error, request.headers)
        except Exception as error:
            self._log.error("request.failed", method=request.method, path=request.path[:200], error=error)
            return self.refused(HttpError(500, f"{type(error).__name__}: {error}"), request.headers)
        finally:
            self.budget.give(taken)

    def refused(self, error: TfpoolError | HttpError, headers: Headers) -> Response:
        """The answer that an error reads as."""
        response = refusal(error)
        response.headers = (*response.headers, *self._cors(headers))
        return response

    def _find(self, method: str, raw: bytes) -> tuple[Route, tuple[str | None, ...]]:
        """Raises HttpError for a path that is not there, or not with this method."""
        path = raw.decode("latin-1")
        wanted = "GET" if method == "HEAD" else method
        others = set()
        for known in self.routes:
            names = known.match(path)
            if names is not None:
                if known.method == wanted:
                    return known, names
                others.add(known.method)
        allowed = ", ".join(sorted(others))
        if others and method == "OPTIONS":
            return self._options, (allowed,)
        if path.startswith("/v1/"):
            raise HttpError(400, f"Malformed request: {method} {path}")
        if others:
            raise HttpError(405, f"{path}: got {method}, expected {allowed}", ((b"allow", allowed.encode()),))
        raise HttpError(404, f"there is nothing at {path}; see /openapi.json")

    # -- other origins -----------------------------------------------------------------------------------------

    def _cors(self, headers: Headers) -> Headers:
        origins = self.settings.cors_origins
        if origins:
            origin = first(headers, b"origin")
            if origin and ("*" in origins or origin.decode("latin-1") in origins):
                return ((b"access-control-allow-origin", origin), *_SHOWN)
        return ()

    async def _preflight(self, request: Request, allowed: str) -> Response:
        """What a browser asks before it lets a page call us."""
        if request.header(b"origin") and not self._cors(request.headers):
            raise HttpError(403, "pages of other origins may not call this server: see cors_origins")
        return Response(
            status=204,
            headers=(
                (b"allow", allowed.encode()),
                (b"access-control-allow-methods", allowed.encode()),
                (b"access-control-allow-headers", b"authorization, content-type, inference-header-content-length"),
                (b"access-control-max-age", b"600"),
            ),
        )

    # -- gzip --------------------------------------------------------------------------------------------------

    async def _finished(self, response: Response, asked: Headers) -> Response:
        body, headers = response.body, response.headers
        more = self._cors(asked) if self.settings.cors_origins else ()
        if isinstance(body, bytes) and len(body) >= COMPRESSED_FROM and _takes_gzip(asked) and _is_text(headers):
            body = _packed(body) if len(body) < ASIDE_FROM else await asyncio.to_thread(_packed, body)
            more = (*more, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))
        return Response(body, response.status, (*headers, *more)) if more else response

    async def _unpacked(self, body: bytes, encoding: bytes) -> bytes:
        """Raises HttpError for another encoding, a body that is broken, or too long. What it gives is in the budget."""
        if encoding.lower() not in (b"gzip", b"x-gzip", b"deflate"):
            said = encoding[:40].decode("latin-1")
            raise HttpError(415, f"content-encoding: got {said!r}, expected gzip, deflate or none")
        pieces: list[bytes] = []
        size, most = 0, self.settings.max_body
        try:
            async for piece in _pieces(body):
                if size + len(piece) > most:
                    raise too_long(size + len(piece), most)
                self.budget.take(len(piece))
                size += len(piece)
                pieces.append(piece)
        except BaseException:
            self.budget.give(size)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body of gzip or zlib, unpacked; the first piece at once, others in a thread. Raises HttpError."""
    unpacker = zlib.decompressobj(47)  # either kind, by its header
    try:
        piece = unpacker.decompress(body, ASIDE_FROM)
        while piece or unpacker.unconsumed_tail:
            yield piece
            if unpacker.eof:
                break
            piece = await asyncio.to_thread(unpacker.decompress, unpacker.unconsumed_tail, _UNPACKED_AT_ONCE)
    except zlib.error as error:
        raise HttpError(400, f"the body is not what its content-encoding says: {error}") from None
    if not unpacker.eof:
        raise HttpError(400, "the body is cut off: its compressed data do not end")
    if unpacker.unused_data:
        raise HttpError(400, f"got {len(unpacker.unused_data)} bytes after the compressed body, expected none")


def _packed(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def _takes_gzip(asked: Headers) -> bool:
    for said in first(asked, b"accept-encoding").split(b","):
        name, _, weight = said.partition(b";")
        if name.strip().lower() == b"gzip":
            return not weight or weight.partition(b"=")[2].strip(b" 0.") != b""
    return False


def _is_text(headers: Headers) -> bool:
    return first(headers, b"content-type").startswith((b"application/json", b"text/"))


def too_long(size: int, most: int) -> HttpError:
    """A body of ``size`` bytes, or more."""
    return HttpError(413, f"the body is too long: got {size} bytes or more, expected at most {most}")
