"""How a request finds its handler, what refusals read as, other origins, packed answers, and lines of HTTP."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping

import orjson
import pytest

from tfpool.errors import InvalidArgument, ResourceExhausted, TfpoolError
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import COMPRESSED_FROM, App, Budget
from tfpool.gateway.http import Access, HttpError, Request, Response, json_response, route
from tfpool.gateway.lines import chunk, head, target
from tfpool.settings import GatewaySettings
from tfpool.testing.fronts import Answer

TEXT = ((b"content-type", b"text/plain; charset=utf-8"),)


class Room:
    def routes(self) -> tuple[object, ...]:
        return (
            route("GET", "/things/([^/]+)(?:/parts/([^/]+))?", self.thing, Access.MONITOR),
            route("POST", "/things/([^/]+)", self.thing, Access.PREDICT),
            route("GET", "/v1/models/([^/]+)", self.thing, Access.MONITOR),
            route("GET", "/long", self.long, Access.OPEN),
            route("GET", "/kept", self.kept, Access.OPEN),
            route("GET", "/fails/(.*)", self.fails, Access.OPEN),
        )

    async def thing(self, request: Request, name: str, part: str | None = None) -> Response:
        return json_response([request.method, name, part, request.query.decode(), request.body.decode()])

    async def long(self, request: Request) -> Response:
        return Response(bytes(int(request.query)), headers=TEXT)

    def __init__(self) -> None:
        self.one = Response(b"kept", headers=TEXT)

    async def kept(self, request: Request) -> Response:
        return self.one

    async def fails(self, request: Request, how: str) -> Response:
        raise {"bug": KeyError("oh"), "full": ResourceExhausted("full", 1.5), "http": HttpError(418, "tea")}[how]


def app(**settings: object) -> App:
    chosen = GatewaySettings(**settings)  # type: ignore[arg-type]
    return App(chosen, Keeper(chosen), Room().routes())  # type: ignore[arg-type]


def ask(made: App, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
    where, _, query = path.encode().partition(b"?")
    sent = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    try:
        found = made.admit(method, where, sent)
    except (TfpoolError, HttpError) as error:
        response = made.refused(error, sent)
    else:
        response = asyncio.run(made.respond(Request(method, where.decode(), query, sent, body, found[2]), found))
    assert isinstance(response.body, bytes)
    return Answer(response.status, {k.decode(): v.decode() for k, v in response.headers}, response.body)


# -- routes --------------------------------------------------------------------------------------------------------


def test_names_in_a_path_are_decoded() -> None:
    made = app()
    for path, names in (
        ("/things/a", ["a", None]),
        ("/things/a/parts/b", ["a", "b"]),
        ("/things/a%2Fb%20%C3%A9", ["a/b é", None]),
        ("/things/%zz", ["%zz", None]),
        ("/things/a/parts/%FF", ["a", "\ufffd"]),
    ):
        for _ in range(2):  # the second time it is known
            assert ask(made, "GET", f"{path}?q=%2F").json == ["GET", *names, "q=%2F", ""]
    assert ask(made, "HEAD", "/things/a").json[0] == "HEAD"
    assert ask(made, "POST", "/things/a", body=b"x").json == ["POST", "a", None, "", "x"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "there is nothing at /nothing; see /openapi.json"),
        ("GET", "/things/a/", 404, "there is nothing at /things/a/; see /openapi.json"),
        ("GET", "*", 404, "there is nothing at *; see /openapi.json"),
        ("DELETE", "/things/a", 405, "/things/a: got DELETE, expected GET, POST"),
        ("HEAD", "/things", 404, "there is nothing at /things; see /openapi.json"),
        ("POST", "/v1/models/m", 400, "Malformed request: POST /v1/models/m"),
        ("GET", "/v1/", 400, "Malformed request: GET /v1/"),
        ("GET", "/fails/bug", 500, "KeyError: 'oh'"),
        ("GET", "/fails/full", 429, "full"),
        ("GET", "/fails/http", 418, "tea"),
    ],
)
def test_refusals(method: str, path: str, status: int, message: str) -> None:
    answer = ask(app(), method, path)
    assert (answer.status, answer.json) == (status, {"error": message})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("allow") == ("GET, POST" if status == 405 else None)
    assert answer.headers.get("retry-after") == ("2" if status == 429 else None)


def test_known_paths_are_few_and_short() -> None:
    made = app()
    for i in range(10_000):
        made.admit("GET", b"/things/%d" % i, ())
        made.admit("GET", b"/things/" + b"a" * 300, ())
    assert 0 < len(made._known) <= 8192
    assert max(len(path) for _, path in made._known) < 300


# -- other origins -------------------------------------------------------------------------------------------------

PAGE = {"origin": "https://pages.example"}


def test_pages_of_other_origins() -> None:
    for origins, origin in ((("https://pages.example",), PAGE), (("*",), {"origin": "null"})):
        made = app(cors_origins=origins)
        for method, path in (
            ("GET", "/things/a"),
            ("GET", "/nothing"),
            ("GET", "/fails/bug"),
            ("OPTIONS", "/things/a"),
        ):
            headers = ask(made, method, path, origin).headers
            assert headers["access-control-allow-origin"] == origin["origin"]
            assert headers["vary"] == "origin"
        asked = ask(made, "OPTIONS", "/things/a", {**origin, "access-control-request-method": "POST"})
        assert (asked.status, asked.headers["access-control-allow-methods"]) == (204, "GET, POST")
        assert "authorization" in asked.headers["access-control-allow-headers"]


def test_pages_that_may_not_call() -> None:
    for made in (app(), app(cors_origins=("https://other.example",))):
        assert "access-control-allow-origin" not in ask(made, "GET", "/things/a", PAGE).headers
        assert ask(made, "OPTIONS", "/things/a", PAGE).status == 403
        assert ask(made, "OPTIONS", "/things/a").headers["allow"] == "GET, POST"
        assert ask(made, "OPTIONS", "/nothing").status == 404


def test_an_answer_that_a_handler_keeps_is_not_changed() -> None:
    made = app(cors_origins=("*",))
    for _ in range(2):
        assert list(ask(made, "GET", "/kept", PAGE).headers) == [
            *("content-type", "access-control-allow-origin", "access-control-expose-headers", "vary")
        ]


# -- packed answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepts", "packs"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("GZIP ; q=1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("x-gzipped", False),
        ("identity", False),
        ("", False),
    ],
)
def test_long_answers_are_packed_for_who_takes_that(accepts: str, packs: bool) -> None:
    made = app()
    for nbytes in (COMPRESSED_FROM, 1 << 20):
        answer = ask(made, "GET", f"/long?{nbytes}", {"accept-encoding": accepts})
        assert answer.headers.get("content-encoding") == ("gzip" if packs else None)
        assert (gzip.decompress(answer.body) if packs else answer.body) == bytes(nbytes)
    short = ask(made, "GET", f"/long?{COMPRESSED_FROM - 1}", {"accept-encoding": accepts})
    assert "content-encoding" not in short.headers


# -- memory --------------------------------------------------------------------------------------------------------


def test_a_budget() -> None:
    budget = Budget(10)
    budget.take(10)
    with pytest.raises(ResourceExhausted, match="requests hold 10 bytes of memory already") as caught:
        budget.take(1)
    assert caught.value.retry_after == 1.0
    budget.hold(5)  # an answer is there, room or not
    budget.give(15)
    budget.take(1)
    assert budget.held == 1


# -- lines ---------------------------------------------------------------------------------------------------------


def test_heads() -> None:
    json = Response(b"{}", 200)
    assert head(json, True) == b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    assert head(json, False).endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")
    assert head(Response(b"", 499, ()), True) == b"HTTP/1.1 499 Client Closed Request\r\ncontent-length: 0\r\n\r\n"
    assert head(Response(b"", 204, ()), True) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert head(Response(b"", 599, [(b"A", b"b\xe9\t")]), True).startswith(b"HTTP/1.1 599 \r\nA: b\xe9\t\r\n")  # type: ignore[arg-type]
    for number in range(3000):
        assert b"x: %d\r\n" % number in head(Response(b"", 200, ((b"x", b"%d" % number),)), True)
    assert chunk(b"abc" * 10) == b"1e\r\n" + b"abc" * 10 + b"\r\n"


@pytest.mark.parametrize(
    "header", [(b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"\0"), (b"x:", b"a"), (b"", b"a"), (b"x y", b"a")]
)
def test_a_header_that_would_be_read_as_more_is_not_written(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header "):
        head(Response(b"", 200, (header,)), True)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (b"/", (b"/", b"")),
        (b"/a?b?c", (b"/a", b"b?c")),
        (b"//a", (b"//a", b"")),
        (b"*", (b"*", b"")),
        (b"http://a", (b"/", b"")),
        (b"HTTPS://u:p@a:1/b?c", (b"/b", b"c")),
        (b"http://a?b", (b"/", b"b")),
    ],
)
def test_targets(url: bytes, found: tuple[bytes, bytes]) -> None:
    assert target(url) == found


@pytest.mark.parametrize("url", [b"", b"a/b", b"/a#b", b"ftp://a/b", b"a:1"])
def test_what_is_no_target(url: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        target(url)
    assert caught.value.status == 400


def test_json_bodies() -> None:
    request = Request("POST", "/", b"", (), b'{"a": 1}', Access.OPEN)
    assert request.json() == {"a": 1}
    request.body = b"{"
    with pytest.raises(InvalidArgument, match="the body is no JSON"):
        request.json()
    assert orjson.loads(json_response({"a": 1}).body) == {"a": 1}  # type: ignore[arg-type]
