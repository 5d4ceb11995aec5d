"""The files of the page, as they lie in the package."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from tfpool.gateway.http import Headers, HttpError, Request, Response

_KINDS = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDS: Headers = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Pages:
    """Every file is read once and has a tag: a browser asks each time, and is told that nothing has changed."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, Headers, bytes]] = {}
        for file in files(__package__).joinpath("static").iterdir():
            kind = _KINDS.get(file.name.rpartition(".")[2])
            if kind is not None:
                content = file.read_bytes()
                tag = b'"%s"' % sha256(content).hexdigest()[:20].encode()
                headers = ((b"content-type", kind), (b"etag", tag), (b"cache-control", b"no-cache"), *_GUARDS)
                self._files[file.name] = content, headers, tag

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return self._answer(request, "index.html")

    async def moved(self, request: Request) -> Response:
        """The page is beside its directory; links in it are relative, so that it may lie anywhere."""
        return Response(status=308, headers=((b"location", b"../console"),))

    async def file(self, request: Request, name: str) -> Response:
        """One of its files. Raises HttpError."""
        return self._answer(request, name)

    def _answer(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise HttpError(404, f"the console has no file {name!r}")
        content, headers, tag = found
        known = request.header(b"if-none-match").replace(b"W/", b"").split(b",")
        if tag in (one.strip() for one in known):
            return Response(status=304, headers=headers)
        return Response(content, headers=headers)
