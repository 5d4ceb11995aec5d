"""The OpenAPI document says what the routes do: no more, no less."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tfpool.gateway import main
from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.board import Board, Post
from tfpool.gateway.http import Access, Request, Route
from tfpool.gateway.meters import Meters
from tfpool.gateway.openapi import OPERATIONS, OpenApi, document
from tfpool.gateway.serving import Gateway
from tfpool.settings import PoolSettings, ServerSettings, Settings

EXAMPLES = {"model": "m", "version": "3", "label": "stable", "kind": "system", "region": "r", "file": "a.js"}
VERBS = ("load", "unload", "migrate", "label", "drain", "restart")


@pytest.fixture(scope="module")
def routes() -> tuple[Route, ...]:
    """Those of a gateway."""
    settings = Settings(ServerSettings(("ipc:///nowhere",), "ipc:///nowhere.admin"), PoolSettings(1), ())
    gateway = Gateway(settings, None)  # type: ignore[arg-type]
    app: App = main._http(gateway, Keeper(settings.gateway), Post(Board.create(1), 0, Meters())).app
    return app.routes


def said() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    for path, item in document()["paths"].items():
        for method, described in item.items():
            yield method.upper(), path, described


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: EXAMPLES.get(found[1], VERBS[0]), path)


def leads(one: Route, method: str, path: str) -> bool:
    return one.method == method and one.match(path) is not None


def test_every_operation_has_its_route(routes: tuple[Route, ...]) -> None:
    for operation in OPERATIONS:
        for path in operation.paths:
            found = next((one for one in routes if leads(one, operation.method, filled(path))), None)
            assert found is not None, path
            assert found.access is operation.access, path


def test_every_route_has_its_operations(routes: tuple[Route, ...]) -> None:
    paths = [(method, filled(path)) for method, path, _ in said()]
    for one in routes:
        found = {path for method, path in paths if leads(one, method, path)}
        assert found, one.pattern.pattern
        # each way to leave a part out is said
        optional = len(re.findall(r"\)\?", one.pattern.pattern))
        assert len(found) >= 1 + optional, one.pattern.pattern


def test_the_document_holds_together() -> None:
    made = document()
    names = [described["operationId"] for _, _, described in said()]
    assert len(names) == len(set(names))
    refs = set(re.findall(rb'"\$ref":"#/components/([^"]+)"', orjson.dumps(made)))
    for kind, name in (ref.decode().split("/") for ref in refs):
        assert name in made["components"][kind]
    used = {ref.decode() for ref in refs}
    for kind in ("schemas", "responses"):
        assert {f"{kind}/{name}" for name in made["components"][kind]} <= used
    for _, path, described in said():
        parameters = {one["name"] for one in described["parameters"] if one["in"] == "path"}
        assert parameters == set(re.findall(r"\{(\w+)\}", path))


def test_who_may_is_said() -> None:
    for operation in OPERATIONS:
        described = document()["paths"][operation.paths[0]][operation.method.lower()]
        needs_token = operation.access is not Access.OPEN
        assert (described["security"] == [{"token": []}]) is needs_token
        assert ("401" in described["responses"]) is needs_token


def test_everybody_may_read_it() -> None:
    (one,) = OpenApi().routes()
    assert one.access is Access.OPEN
    answer = asyncio.run(one.handler(Request("GET", "/openapi.json", b"", (), b"", Access.OPEN)))
    assert isinstance(answer.body, bytes)
    assert orjson.loads(answer.body)["openapi"] == "3.1.0"
