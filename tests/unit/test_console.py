"""The console's files as they are served, and what its actions take from whom."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Any, cast

import pytest

from tfpool.client.aio import AsyncClient
from tfpool.errors import InvalidArgument
from tfpool.gateway.console.actions import VERBS, Actions
from tfpool.gateway.console.pages import Pages
from tfpool.gateway.http import Access, HttpError, Request, Response

STATIC = {file.name: file.read_text() for file in files("tfpool.gateway.console").joinpath("static").iterdir()}
JSON = (b"content-type", b"application/json")


def request(body: bytes = b"", *headers: tuple[bytes, bytes]) -> Request:
    return Request("GET", "/console", b"", headers, body, Access.ADMIN)


def served(name: str, *headers: tuple[bytes, bytes]) -> Response:
    return asyncio.run(Pages().file(request(b"", *headers), name))


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STATIC))
def test_every_file_is_served_with_its_kind(name: str) -> None:
    answer, headers = served(name), dict(served(name).headers)
    assert answer.body == STATIC[name].encode()
    kinds = {"html": b"text/html", "css": b"text/css", "js": b"text/javascript", "svg": b"image/svg+xml"}
    assert headers[b"content-type"].startswith(kinds[name.rpartition(".")[2]])
    assert headers[b"x-content-type-options"] == b"nosniff"
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_what_has_not_changed_is_not_sent_again() -> None:
    tag = dict(served("main.js").headers)[b"etag"]
    for known in (tag, b"W/" + tag, b'"other", ' + tag):
        answer = served("main.js", (b"if-none-match", known))
        assert (answer.status, answer.body) == (304, b"")
    assert served("main.js", (b"if-none-match", b'"other"')).status == 200


@pytest.mark.parametrize("name", ["nothing.js", "pages.py", "..", "__init__.py"])
def test_nothing_else_is_served(name: str) -> None:
    with pytest.raises(HttpError, match="no file"):
        served(name)


def test_the_page_keeps_to_its_own_policy() -> None:
    page = STATIC["index.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", page)
    for name, text in STATIC.items():
        assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg))|url\((?!\"icon)|@import", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name


def test_every_part_of_the_page_is_there_and_used() -> None:
    named = set(re.findall(r'"console/([\w.]+)"', STATIC["index.html"]))
    for name, text in STATIC.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.]+)"', text))
            imports = re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', text)
            for names, source in imports:
                for one in names.split(","):
                    assert re.search(rf"export (async )?(function|const|class) {one.strip()}\b", STATIC[source]), one
        assert len(text.splitlines()) <= 350
    assert named == set(STATIC) - {"index.html"}
    for used in re.findall(r'byId\("(\w+)"\)', "".join(STATIC.values())):
        assert f'id="{used}"' in STATIC["index.html"]


# -- actions -------------------------------------------------------------------------------------------------------


class Client:
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    async def admin(self, verb: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        self.told.append((verb, arguments))
        return {"verb": verb}


def act(verb: str, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[Response, list[tuple[str, dict[str, Any]]]]:
    client = Client()
    actions = Actions(cast(AsyncClient, client))
    return asyncio.run(actions.act(request(body, *(headers or (JSON,))), verb)), client.told


@pytest.mark.parametrize(
    ("verb", "body", "arguments"),
    [
        ("load", b'{"model": "m"}', {"model": "m"}),
        ("load", b'{"model": "m", "version": null}', {"model": "m"}),
        ("unload", b'{"model": "m", "version": 3}', {"model": "m", "version": 3}),
        ("migrate", b'{"model": "m", "to": "cpu1", "source": "cpu0"}', {"model": "m", "to": "cpu1", "source": "cpu0"}),
        ("label", b'{"model": "m", "labels": {"a": null}}', {"model": "m", "labels": {"a": None}}),
        ("drain", b'{"worker": "cpu0"}', {"worker": "cpu0"}),
        ("restart", b'{"worker": "cpu0"}', {"worker": "cpu0"}),
    ],
)
def test_actions(verb: str, body: bytes, arguments: dict[str, Any]) -> None:
    answer, told = act(verb, body)
    assert told == [(verb, arguments)]
    assert answer.body == b'{"done":{"verb":"%s"}}' % verb.encode()


def test_every_action_is_an_admin_verb_of_the_client() -> None:
    assert all(callable(getattr(AsyncClient, verb)) for verb in VERBS)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"[]", "got a list, expected an object"),
        (b"{}", "'model' is missing"),
        (b'{"model": null}', "'model' is missing"),
        (b'{"model": 3}', "load, model: got a whole number, expected text"),
        (b'{"model": "m", "version": "3"}', "load, version: got text, expected a whole number"),
        (b'{"model": "m", "version": true}', "load, version: got a bool, expected a whole number"),
        (b'{"model": "m", "timeout": 1}', "got 'timeout', expected model, version"),
    ],
)
def test_actions_that_say_something_else(body: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(says)):
        act("load", body)


@pytest.mark.parametrize("verb", ["shutdown", "record", "add", "admin", "close"])
def test_the_page_can_do_nothing_else(verb: str) -> None:
    with pytest.raises(HttpError, match="the console knows no"):
        act(verb, b"{}")


@pytest.mark.parametrize(
    "headers",
    [
        ((b"content-type", b"text/plain"),),
        ((b"content-type", b"application/x-www-form-urlencoded"),),
        ((b"host", b"pool:80"),),
    ],
)
def test_other_pages_can_do_nothing(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(HttpError):
        act("load", b'{"model": "m"}', *headers)


def test_the_own_page_can() -> None:
    kind = (b"content-type", b"application/json; charset=utf-8")
    _, told = act("load", b'{"model": "m"}', kind, (b"host", b"Pool:80"), (b"origin", b"https://pool:80"))
    assert told
