"""``/openapi.json``: what the gateway answers over HTTP, as an OpenAPI document.

One table says it; a test holds it against the routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tfpool.gateway.http import Access, Request, Response, Route, route
from tfpool.gateway.schemas import SCHEMAS, TEXT, Schema, array, choice, ref
from tfpool.version import __version__

Content = Mapping[str, Any]
"""Schemas by media type."""
_JSON, _BINARY, _PLAIN = "application/json", "application/octet-stream", "text/plain"
_BYTES: Content = {_BINARY: {}}
_METRICS: Content = {_PLAIN: {"schema": TEXT}, "application/openmetrics-text": {"schema": TEXT}}
_SAID = {
    400: "The request is wrong; the message says what was got and what was expected.",
    401: "It takes a token of this server.",
    403: "The caller's token does not allow this, or the page that asks may not.",
    404: "There is no such thing.",
    408: "The request did not arrive in time.",
    409: "Something else is under way with it.",
    413: "The body is too long.",
    414: "The URL is too long.",
    415: "The body is of a kind, or in an encoding, that is not understood.",
    417: "What the caller expects is not to be had.",
    429: "Something is full; later may work: see Retry-After.",
    431: "The headers are too long, or too many.",
    499: "The request was cancelled.",
    500: "A bug, or TensorFlow failed while running the model.",
    501: "This server does not do that.",
    503: "Nobody can do it now; later may work.",
    504: "The deadline passed.",
}
_ALWAYS = (400, 408, 414, 429, 431, 500, 503)
_PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "model": ("The model's name.", {"type": "string", "minLength": 1}),
    "version": ("Its version, a number.", {"type": "string", "pattern": "^[0-9]+$"}),
    "label": ("A label of its versions.", {"type": "string", "minLength": 1}),
    "kind": ("Whose memory.", choice("system", "cuda")),
    "region": ("A region of it.", {"type": "string", "minLength": 1}),
    "file": ("A file of the page.", {"type": "string", "pattern": "^[a-z]+[.][a-z]+$"}),
    "verb": ("What to do.", choice("load", "unload", "migrate", "label", "drain", "restart")),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """``paths`` are those it is found at, ``takes`` and ``gives`` bodies (None: there is none, or no good answer),
    ``query`` is a parameter of the query, ``fails`` are statuses beside those that every operation may answer with."""

    method: str
    paths: tuple[str, ...]
    name: str
    access: Access
    summary: str
    gives: Content | None
    takes: Content | None = None
    fails: tuple[int, ...] = ()
    status: int = 200
    query: str = ""


def _json(schema: str) -> Content:
    return {_JSON: {"schema": ref(schema)}}


def _models(end: str = "") -> tuple[str, ...]:
    stem = "/v1/models/{model}"
    return tuple(f"{stem}{which}{end}" for which in ("", "/versions/{version}", "/labels/{label}"))


def _models_v2(end: str = "") -> tuple[str, ...]:
    return (f"/v2/models/{{model}}{end}", f"/v2/models/{{model}}/versions/{{version}}{end}")


_TAGS = {"v1": "TensorFlow Serving", "v2": "Open Inference Protocol", "console": "console"}
_O, _M, _P, _A = Access.OPEN, Access.MONITOR, Access.PREDICT, Access.ADMIN
_RUN = (499, 501, 504)
_TALK = (504,)
_ADMIN = (409, 501, 504)
_SETTINGS = tuple(f"/v2/{of}{what}" for of in ("", "models/{model}/") for what in ("trace/setting", "logging"))
_INFER: Content = {**_json("InferRequestV2"), **_BYTES}
_INFERRED: Content = {**_json("InferResponseV2"), **_BYTES}
_PAGE: Content = {"text/html": {}, "text/css": {}, "text/javascript": {}, "image/svg+xml": {}}
_REPOSITORY, _MEMORY = "/v2/repository", "/v2/{kind}sharedmemory"


def _op(method: str, paths: str | tuple[str, ...], name: str, access: Access, summary: str, **more: Any) -> Operation:
    return Operation(method, (paths,) if isinstance(paths, str) else paths, name, access, summary, **more)


def _run(name: str, takes: str, gives: str, summary: str) -> Operation:
    return _op(*("POST", _models(f":{name}"), name, _P, summary), takes=_json(takes), gives=_json(gives), fails=_RUN)


def _look(paths: str | tuple[str, ...], name: str, gives: str, summary: str, **more: Any) -> Operation:
    return _op("GET", paths, name, _M, summary, gives=_json(gives), fails=_TALK, **more)


OPERATIONS: tuple[Operation, ...] = (
    # TensorFlow Serving
    _run("predict", "PredictRequest", "PredictResponse", "Run a model, by rows or by columns."),
    _run("classify", "ExamplesRequest", "ClassifyResponse", "Run a model that classifies examples."),
    _run("regress", "ExamplesRequest", "RegressResponse", "Run a model that gives each example a number."),
    _look(_models(), "status", "ModelStatus", "The versions of a model and their states."),
    _look(_models("/metadata"), "metadata", "ModelMetadata", "The signatures of a model."),
    _op("GET", "/v1/models", "noModel", _M, "There is no list here: see /v2/repository/index.", gives=None),
    # the Open Inference Protocol
    _op("POST", _models_v2("/infer"), "infer", _P, "Run a model.", takes=_INFER, gives=_INFERRED, fails=_RUN),
    _look("/v2", "server", "ServerV2", "What this server is."),
    _op("GET", "/v2/health/live", "live", _O, "This process answers.", gives=_json("LiveV2")),
    _op("GET", "/v2/health/ready", "ready", _O, "Whether every model serves.", gives=_json("ReadyV2"), fails=_TALK),
    _look(_models_v2(), "model", "MetadataV2", "The tensors of a model.", query="signature"),
    _look(_models_v2("/ready"), "modelReady", "ReadyV2", "Whether a worker serves the model now."),
    _look(_models_v2("/config"), "config", "ConfigV2", "How requests share batches.", query="signature"),
    _look(_models_v2("/stats"), "statistics", "StatisticsV2", "What was counted for a model."),
    _look("/v2/models/stats", "allStatistics", "StatisticsV2", "What was counted for all models."),
    _op(
        *("POST", f"{_REPOSITORY}/index", "index", _M, "Every version of every model."),
        takes=_json("IndexRequestV2"),
        gives=_json("IndexV2"),
        fails=_TALK,
    ),
    _op(
        *("POST", f"{_REPOSITORY}/models/{{model}}/load", "load", _A, "Load the newest version."),
        takes=_json("RepositoryRequestV2"),
        gives={},
        fails=_ADMIN,
    ),
    _op(
        *("POST", f"{_REPOSITORY}/models/{{model}}/unload", "unload", _A, "Unload all versions."),
        takes=_json("RepositoryRequestV2"),
        gives={},
        fails=_ADMIN,
    ),
    _op("GET", f"{_MEMORY}/status", "regions", _M, "No region is ever registered.", gives={_JSON: {"schema": array()}}),
    _op("GET", f"{_MEMORY}/region/{{region}}/status", "region", _M, "There is none.", gives=None, fails=_TALK),
    _op("POST", f"{_MEMORY}/region/{{region}}/register", "register", _A, "It cannot be.", gives=None, fails=(501,)),
    _op("POST", f"{_MEMORY}/unregister", "unregisterAll", _A, "Nothing is to be done.", gives={}),
    _op("POST", f"{_MEMORY}/region/{{region}}/unregister", "unregister", _A, "Nothing is to be done.", gives={}),
    _op("GET", _SETTINGS, "settings", _M, "They cannot be read here.", gives=None, fails=(501,)),
    _op("POST", _SETTINGS, "set", _A, "They cannot be changed here.", gives=None, fails=(501,)),
    # health, metrics, the console
    _op("GET", "/healthz", "healthz", _O, "This process answers.", gives=_json("Live")),
    _op(
        "GET", "/readyz", "readyz", _O, "Whether every model serves; 503 where not.", gives=_json("Ready"), fails=_TALK
    ),
    _look(
        tuple(f"/readyz/{{model}}{which}" for which in ("", "/versions/{version}", "/labels/{label}")),
        *("readyzModel", "Ready", "Whether a worker serves the model now; 503 where not."),
    ),
    _op("GET", "/metrics", "metrics", _M, "Metrics, for Prometheus.", gives=_METRICS, fails=_TALK),
    _op(
        *("GET", "/monitoring/prometheus/metrics", "servingMetrics", _M, "Metrics by TensorFlow Serving's names."),
        gives=_METRICS,
        fails=_TALK,
    ),
    _op("GET", "/console", "console", _O, "A page for people.", gives={"text/html": {}}),
    _op("GET", "/console/", "consoleMoved", _O, "The page is at /console.", gives={}, status=308),
    _op("GET", "/console/{file}", "consoleFile", _O, "A file of the page.", gives=_PAGE),
    _op("GET", "/console/events", "events", _M, "What the page shows, as it changes.", gives={"text/event-stream": {}}),
    _look("/console/api/whoami", "whoAmI", "WhoAmI", "What the caller may do."),
    _op(
        *("GET", "/console/api/models/{model}", "consoleModel", _M, "All that is known of a model."),
        gives={_JSON: {}},
        fails=_TALK,
    ),
    _op(
        *("POST", "/console/api/{verb}", "act", _A, "Change the pool."),
        takes=_json("Act"),
        gives=_json("Done"),
        fails=_ADMIN,
    ),
    _op("GET", "/openapi.json", "openapi", _O, "This document.", gives={_JSON: {}}),
)


class OpenApi:
    """The handler of ``/openapi.json``. Everybody may read it: it tells what is in the source, and nothing of this
    pool."""

    def __init__(self) -> None:
        self._body = orjson.dumps(document())

    def routes(self) -> tuple[Route, ...]:
        return (route("GET", "/openapi.json", self.document, Access.OPEN),)

    async def document(self, request: Request) -> Response:
        """The document, as JSON."""
        return Response(self._body)


def document() -> dict[str, Any]:
    """The OpenAPI document of all routes."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for number, path in enumerate(operation.paths):
            paths.setdefault(path, {})[operation.method.lower()] = _described(operation, path, number)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tfpool",
            "version": __version__,
            "description": "TensorFlow Serving's REST, the Open Inference Protocol, health, metrics and the console.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "responses": {_name(status): _failure(text) for status, text in _SAID.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, path: str, number: int) -> dict[str, Any]:
    open_to_all = operation.access is Access.OPEN
    said: dict[str, Any] = {
        "operationId": f"{operation.name}{number + 1}" if number else operation.name,
        "tags": [_TAGS.get(path.split("/")[1], "pool")],
        "summary": operation.summary,
        "parameters": [_parameter(name) for name in re.findall(r"\{(\w+)\}", path)],
        "responses": {str(status): answer for status, answer in _answers(operation, path)},
        "security": [] if open_to_all else [{"token": []}],
    }
    if not open_to_all:
        said["description"] = f"Where the server has tokens, it takes the role {operation.access.name.lower()}."
    if operation.query:
        said["parameters"].append({"name": operation.query, "in": "query", "schema": TEXT})
    if operation.takes is not None:
        said["requestBody"] = {"content": operation.takes}
    return said


def _parameter(name: str) -> dict[str, Any]:
    description, schema = _PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _answers(operation: Operation, path: str) -> Iterator[tuple[int, Schema]]:
    """What an operation may answer, by status."""
    if operation.gives is not None:
        yield operation.status, {"description": "It is done.", "content": operation.gives}
    statuses = {*_ALWAYS, *operation.fails}
    if "{" in path:
        statuses.add(404)
    if operation.access is not Access.OPEN:
        statuses |= {401, 403}
    if operation.method == "POST":
        statuses |= {413, 415, 417}
    for status in sorted(statuses):
        yield status, {"$ref": f"#/components/responses/{_name(status)}"}


def _name(status: int) -> str:
    return f"Error{status}"


def _failure(text: str) -> Schema:
    return {"description": text, "content": _json("Error")}
