"""What TensorFlow Serving's REST refuses: the status and the words, and that the next request is served."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest

from tests.contract.serving_desk import Desk
from tests.contract.tfs_models import half, make_desk
from tfpool.errors import FailedPrecondition
from tfpool.gateway import http
from tfpool.gateway.tfs import decode
from tfpool.testing.fake_models import signature
from tfpool.types import DType

HALF = '{"instances": [1.0]}'


@pytest.fixture(scope="module")
def desk() -> Desk:
    return make_desk()


ABSENT = [
    ("POST", "none:predict", HALF, 404, "Servable not found for request: Latest(none)"),
    ("POST", "none:classify", '{"examples": [{}]}', 404, "Servable not found for request: Latest(none)"),
    ("POST", "none:regress", '{"examples": [{}]}', 404, "Servable not found for request: Latest(none)"),
    ("POST", "none/versions/3:predict", HALF, 404, "Servable not found for request: Specific(none, 3)"),
    ("POST", "half/versions/9:predict", HALF, 404, "Servable not found for request: Specific(half, 9)"),
    ("POST", "half/versions/0:predict", HALF, 404, "Servable not found for request: Specific(half, 0)"),
    ("POST", "half/versions/9223372036854775807:predict", HALF, 404, None),
    ("POST", "half/labels/x:predict", HALF, 400, "Unrecognized servable version label: x"),
    ("POST", "none/labels/x:predict", HALF, 400, "Unrecognized servable version label: x"),
    ("POST", "half/labels/%C3%BC:predict", HALF, 400, "Unrecognized servable version label: ü"),
    ("GET", "none", "", 404, "Could not find any versions of model none"),
    ("GET", "half/versions/9", "", 404, "Could not find version 9 of model half"),
    ("GET", "half/versions/0", "", 404, "Could not find version 0 of model half"),
    ("GET", "half/labels/x", "", 400, "Unrecognized servable version label: x"),
    ("GET", "none/labels/x", "", 400, "Unrecognized servable version label: x"),
    ("GET", "none/metadata", "", 404, "Servable not found for request: Latest(none)"),
    ("GET", "half/versions/9/metadata", "", 404, "Servable not found for request: Specific(half, 9)"),
    ("GET", "half/labels/x/metadata", "", 400, "Unrecognized servable version label: x"),
]
PATHS = [
    ("POST", "/v1/models/half/versions/9223372036854775808:predict", "Failed to convert version: 9223372036854775808"),
    ("GET", f"/v1/models/half/versions/{'9' * 5000}", "Failed to convert version: 9"),
    ("GET", "/v1/models", "Missing model name in request."),
    ("POST", "/v1/models/half/versions/-1:predict", "Malformed request: POST /v1/models/half/versions/-1:predict"),
    ("POST", "/v1/models/half/versions/one:predict", "Malformed request: POST /v1/models/half/versions/one:predict"),
    ("POST", "/v1/models/half/versions/1/labels/x:predict", "Malformed request: POST /v1/models/half/versions/1/"),
    ("POST", "/v1/models/half/labels/:predict", "Malformed request: POST"),
    ("POST", "/v1/models/half:multi", "Malformed request: POST /v1/models/half:multi"),
    ("POST", "/v1/models/half", "Malformed request: POST /v1/models/half"),
    ("POST", "/v1/models/:predict", "Malformed request: POST /v1/models/:predict"),
    ("POST", "/v1/models/a/b:predict", "Malformed request: POST /v1/models/a/b:predict"),
    ("GET", "/v1/models/half:predict", "Malformed request: GET /v1/models/half:predict"),
    ("GET", "/v1/models/half/more", "Malformed request: GET /v1/models/half/more"),
    ("DELETE", "/v1/models/half", "Malformed request: DELETE /v1/models/half"),
    ("GET", "/v1/", "Malformed request: GET /v1/"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), ABSENT)
def test_what_is_not_there(desk: Desk, method: str, path: str, body: str, status: int, words: str | None) -> None:
    got = desk.ask(method, f"/v1/models/{path}", body)
    assert got.status == status
    assert got.json == {"error": words or "Servable not found for request: Specific(half, 9223372036854775807)"}


@pytest.mark.parametrize(("method", "path", "words"), PATHS)
def test_paths_that_mean_nothing(desk: Desk, method: str, path: str, words: str) -> None:
    got = desk.ask(method, path, HALF)
    assert got.status == 400
    assert got.json["error"].startswith(words)


BODIES = [
    # -- no JSON, or not an object
    ("half", "", "JSON Parse error: "),
    ("half", "{", "JSON Parse error: "),
    ("half", "nan", "JSON Parse error: "),
    ("half", '{"instances": [1.0]} x', "JSON Parse error: "),
    ("half", '{"instances": [1.0,]}', "JSON Parse error: "),
    ("half", '{"instances": [NaN,]}', "JSON Parse error: "),
    ("half", '{"instances": [-NaN]}', "JSON Parse error: "),
    ("half", '{"instances": [1e400]}', "JSON Parse error: "),
    ("half", "\ufeff" + HALF, "JSON Parse error: "),
    ("half", '{"instances": ' + "[" * 100_000, "JSON Parse error: "),
    ("half", '{"instances": [NaN, ' + "[" * 100_000, "JSON Parse error: it is nested too deeply"),
    ("half", '{"instances": [NaN, ' + "9" * 5000 + "]}", "JSON Parse error: "),
    ("half", "[1.0]", "the body: got a list of 1, expected an object"),
    ("half", "null", "the body: got null, expected an object"),
    ("half", "NaN", "the body: got NaN, expected an object"),
    ("half", '"instances"', 'the body: got "instances", expected an object'),
    # -- the keys
    ("half", "{}", "Missing 'inputs' or 'instances' key"),
    ("half", '{"examples": [{}]}', "Missing 'inputs' or 'instances' key"),
    ("half", '{"instances": [1], "inputs": [1]}', "got both 'inputs' and 'instances', expecting only one of them"),
    ("half", '{"instance": [1]}', "got an unknown key \"instance\"; did you mean 'instances'?"),
    ("half", '{"input": [1]}', "got an unknown key \"input\"; did you mean 'inputs'?"),
    ("half", '{"Inputs": [1]}', "got an unknown key \"Inputs\"; did you mean 'inputs'?"),
    (
        "half",
        '{"instances": [1], "signature": "x"}',
        "got an unknown key \"signature\"; did you mean 'signature_name'?",
    ),
    ("half", '{"instances": [1], "signature_name": 3}', "'signature_name' key must be a string value: got 3"),
    ("half", '{"instances": [1], "signature_name": null}', "'signature_name' key must be a string value: got null"),
    (
        "half",
        '{"instances": [1], "signature_name": "no"}',
        "model 'half' has no signature 'no'; it has serving_default",
    ),
    ("echo", '{"instances": [1]}', "model 'echo' has no signature 'serving_default'; it has float32, "),
    # -- the outer form
    ("half", '{"instances": []}', "instances: got a list of 0, expected a list of one or more"),
    ("half", '{"instances": 1.0}', "instances: got 1.0, expected a list of one or more"),
    ("half", '{"instances": {"x": [1]}}', 'instances: got an object with "x", expected a list of one or more'),
    ("half", '{"instances": [{"y": 1}]}', 'instances[0]: got keys "y", must be equal to "x"'),
    ("half", '{"instances": [{"x": 1}, {}]}', 'instances[1]: got keys none, must be equal to "x"'),
    ("half", '{"instances": [{"x": 1, "y": 2}]}', 'instances[0]: got keys "x", "y", must be equal to "x"'),
    ("half", '{"instances": [{"x": 1}, 2]}', "instances[1]: got 2, expected an object as before it"),
    ("half", '{"instances": [1, {"x": 2}]}', "input 'x', at [1]: got an object with \"x\", expected float32"),
    ("half", '{"inputs": {}}', "Missing named input: x in 'inputs'; got none"),
    ("half", '{"inputs": {"y": [1]}}', "Missing named input: x in 'inputs'; got \"y\""),
    ("several", '{"inputs": {"a": [[1, 2]]}}', "Missing named input: b in 'inputs'; got \"a\""),
    ("several", '{"instances": [[1, 2]]}', 'instances: got values without a name, expected objects with "a", "b"'),
    ("several", '{"inputs": [[1, 2]]}', 'inputs: got values without a name, expected objects with "a", "b"'),
    ("several", '{"instances": [{"a": [1, 2], "b": [1]}, {"a": [1], "b": [1]}]}', "input 'a', at [1]: got a list of 1"),
    # -- elements
    ("half", '{"instances": ["1.0"]}', "input 'x', at [0]: got \"1.0\", expected float32"),
    ("half", '{"instances": [1.0, null]}', "input 'x', at [1]: got null, expected float32"),
    ("half", '{"instances": [1.0, true]}', "input 'x', at [1]: got true, expected float32"),
    ("half", '{"instances": [{"b64": "AAAA"}]}', "input 'x', at [0]: got an object with \"b64\", expected float32"),
    ("half", '{"instances": [1.0, 1e39]}', "input 'x', at [1]: got 1e+39, expected float32, which cannot hold it"),
    ("half", '{"instances": [1.0, [2.0]]}', "input 'x', at [1]: got a list of 1, expected float32"),
    ("half", '{"instances": [[1.0], 2.0]}', "input 'x', at [1]: got 2.0, expected a list of 1 as before it"),
    ("half", '{"instances": [[1.0], "a"]}', "input 'x', at [1]: got \"a\", expected a list of 1 as before it"),
    (
        "half",
        '{"instances": [[[1], [2]], [[3], [4, 5]]]}',
        "input 'x', at [1, 1]: got a list of 2, expected a list of 1",
    ),
    (
        "half",
        '{"instances": [NaN, 1' + "0" * 400 + "]}",
        "input 'x', at [1]: got a number of 1329 bits, expected float32",
    ),
    ("half", '{"inputs": null}', "input 'x': got null, expected float32"),
    ("half", '{"inputs": ' + "[" * 40 + "]" * 40 + "}", "input 'x': got lists nested more than 32 deep"),
    (
        "half",
        '{"instances": [[1.0]]}',
        "half:2, signature 'serving_default', input 'x': got shape [?, 1], expected [?]",
    ),
    ("half", '{"inputs": 1.0}', "half:2, signature 'serving_default', input 'x': got shape [], expected [?]"),
    ("echo int8", "[1, 128]", "input 'x', at [1]: got 128, expected int8, which cannot hold it"),
    ("echo uint8", "[-1]", "input 'x', at [0]: got -1, expected uint8, which cannot hold it"),
    ("echo int32", "[1.0]", "input 'x', at [0]: got 1.0, expected int32"),
    ("echo int32", "[[1, 2], [3, true]]", "input 'x', at [1, 1]: got true, expected int32"),
    ("echo int32", "[2147483648]", "input 'x', at [0]: got 2147483648, expected int32, which cannot hold it"),
    ("echo int64", "[0, 9223372036854775808]", "input 'x', at [1]: got 9223372036854775808, expected int64, which"),
    ("echo int64", "[1, NaN, 9223372036854775808]", "input 'x', at [1]: got NaN, expected int64"),
    ("echo uint32", "[4294967296]", "input 'x', at [0]: got 4294967296, expected uint32, which cannot hold it"),
    ("echo uint64", "[18446744073709551615, -1]", "input 'x', at [1]: got -1, expected uint64, which cannot hold it"),
    ("echo uint64", "[18446744073709551616]", "input 'x', at [0]: got 1.8446744073709552e+19, expected uint64"),
    ("echo bool", "[true, 1]", "input 'x', at [1]: got 1, expected bool"),
    ("echo bool", '["true"]', "input 'x', at [0]: got \"true\", expected bool"),
    ("echo string", "[1]", "input 'x', at [0]: got 1, expected string"),
    ("echo string", '["a", null]', "input 'x', at [1]: got null, expected string"),
    ("echo string", '[{"b64": "AA=="}, {"b64": 1}]', "input 'x', at [1]: got an object with \"b64\", expected text or"),
    ("echo string", '["a", {"b64": "!!!!"}]', "input 'x', at [1]: "),
    ("echo string", '["a", {"b64": "A"}]', "input 'x', at [1]: "),
    ("echo string", '["\\ud800"]', "JSON Parse error: "),
    ("echo string", '["\\ud800", "NaN"]', "input 'x', at [0]: 'utf-8' codec can't encode character"),
    # -- the answer
    ("scalar", '{"instances": [1.0]}', "scalar:1, signature 'serving_default', input 'x': got shape [?], expected []"),
    (
        "several uneven",
        '[{"a": [1, 2], "b": [0]}, {"a": [1, 2], "b": [0]}]',
        "Tensor name: total has inconsistent batch",
    ),
    ("several scalar", '[{"a": [1, 2], "b": [0]}]', "Tensor name: first has no shape information"),
    ("matrix", '{"instances": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}', "Tensor name: trace has no shape information"),
]


@pytest.mark.parametrize(("path", "body", "words"), BODIES)
def test_bodies_that_are_wrong(desk: Desk, path: str, body: str, words: str) -> None:
    model, _, name = path.partition(" ")
    sent = f'{{"signature_name": "{name}", "instances": {body}}}' if name else body
    got = desk.ask("POST", f"/v1/models/{model}:predict", sent)
    assert got.status == 400
    assert got.json["error"].startswith(words)
    assert desk.ask("POST", "/v1/models/half:predict", HALF).body == b'{"predictions":[3.5]}'


def test_bytes_that_are_no_text(desk: Desk) -> None:
    for body in (b'{"instances": ["\xff"]}', b'{"instances": [NaN, "\xff"]}', '{"instances": [1.0]}'.encode("utf-16")):
        got = desk.ask("POST", "/v1/models/half:predict", body)
        assert got.status == 400
        assert got.json["error"].startswith("JSON Parse error: ")


EXAMPLES = [
    ("{}", "Missing 'examples' key"),
    ('{"instances": [1]}', "Missing 'examples' key"),
    ('{"example": [{}]}', "got an unknown key \"example\"; did you mean 'examples'?"),
    ('{"examples": []}', "examples: got a list of 0, expected a list of one or more objects"),
    ('{"examples": {"x": 1}}', 'examples: got an object with "x", expected a list of one or more objects'),
    ('{"examples": [{}, 3]}', "example 1: got 3, expected an object with features by name"),
    ('{"examples": [{}], "context": []}', "context: got a list of 0, expected an object with features by name"),
    ('{"examples": [{"x": null}]}', "example 0, feature 'x': got values of NoneType"),
    ('{"examples": [{"x": [[1.0]]}]}', "example 0, feature 'x': got values of list"),
    ('{"examples": [{"x": [1.0, "a"]}]}', "example 0, feature 'x': got values of float, str"),
    ('{"examples": [{"x": {"b64": "!"}}]}', 'example 0, feature "x": '),
    ('{"examples": [{"x": {"y": 1}}]}', 'example 0, feature "x": got an object with "y", expected text or {"b64"'),
    ('{"examples": [{"n": 9223372036854775808}]}', "example 0, feature 'n': "),
    ('{"examples": [{"\\ud800": NaN}]}', "example 0, feature '\\ud800': "),
    ('{"examples": [{"x": "\\ud800"}, {"x": NaN}]}', "example 0, feature 'x': "),
    ('{"examples": [{}], "signature_name": "no"}', "model 'features' has no signature 'no'; it has serving_default"),
    (
        '{"examples": [{}], "signature_name": "regress"}',
        "model 'features', signature 'regress' does not classify: got ",
    ),
]


@pytest.mark.parametrize(("body", "words"), EXAMPLES)
def test_examples_that_are_wrong(desk: Desk, body: str, words: str) -> None:
    got = desk.ask("POST", "/v1/models/features:classify", body)
    assert got.status == 400
    assert got.json["error"].startswith(words)


def test_a_signature_that_does_not_regress(desk: Desk) -> None:
    got = desk.ask("POST", "/v1/models/features:regress", '{"examples": [{}]}')
    assert got.status == 400
    assert "'serving_default' does not regress: got inputs inputs: string" in got.json["error"]
    odd = desk.ask("POST", "/v1/models/features:regress", '{"examples": [{}, {}], "signature_name": "odd"}')
    assert (odd.status, odd.json) == (400, {"error": "outputs: got shape [2, 2], expected [2] or [2, 1]"})


UNSAYABLE = ("complex64", "complex128", "float16", "bfloat16", "uint16", "float8_e5m2", "float8_e4m3fn")


@pytest.mark.parametrize("name", UNSAYABLE)
def test_dtypes_that_json_cannot_say(desk: Desk, name: str) -> None:
    got = desk.ask("POST", "/v1/models/echo:predict", f'{{"signature_name": "{name}", "instances": [1]}}')
    assert (got.status, got.json) == (
        501,
        {"error": f"input 'x' is of {name}, which has no form in JSON; gRPC takes it"},
    )


def test_an_output_that_json_cannot_say(desk: Desk) -> None:
    got = desk.ask("POST", "/v1/models/gives:predict", '{"signature_name": "complex", "inputs": [1]}')
    assert (got.status, got.json["error"][:26]) == (501, "output 'y' is of complex64")


STATUSES = {1: 499, 3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 12: 501, 13: 500, 14: 503, 16: 401, 2: 500}


@pytest.mark.parametrize(("code", "status"), STATUSES.items())
def test_every_error_has_its_status(desk: Desk, code: int, status: int) -> None:
    got = desk.ask("POST", "/v1/models/fails:predict", f'{{"instances": [{code}]}}')
    assert (got.status, got.body) == (status, b'{"error":"told so"}')
    assert got.headers.get("retry-after") == ("3" if code == 8 else None)


def test_a_compressed_body(desk: Desk) -> None:
    packed = gzip.compress(HALF.encode())
    got = desk.ask("POST", "/v1/models/half:predict", packed, {"content-encoding": "gzip"})
    assert got.body == b'{"predictions":[3.5]}'


# -- what the gateway knew is out of date ------------------------------------------------------------------------


def test_a_version_with_another_signature_is_asked_for_again(desk: Desk) -> None:
    desk = make_desk()
    assert desk.ask("POST", "/v1/models/half:predict", HALF).body == b'{"predictions":[3.5]}'
    desk.serve("half", 3, [signature(lambda z: (z + 1,), {"z": (DType.INT32, (-1,))}, {"y": (DType.INT32, (-1,))})])
    newer = desk.ask("POST", "/v1/models/half:predict", '{"instances": [{"z": 1}]}')
    assert newer.body == b'{"predictions":[2]}'
    desk.serve("half", 4, half(4.0))
    older = desk.ask("POST", "/v1/models/half:predict", HALF)
    assert older.body == b'{"predictions":[4.5]}'
    assert desk.client.asked.count("metadata") == 3


def test_what_is_known_is_not_asked_for_again() -> None:
    desk = make_desk()
    for _ in range(3):
        assert desk.ask("POST", "/v1/models/half:predict", HALF).status == 200
        assert desk.ask("POST", "/v1/models/features:classify", '{"examples": [{}]}').status == 200
    assert desk.client.asked.count("metadata") == 2


def test_a_newer_version_that_classifies_no_more() -> None:
    desk = make_desk()
    assert desk.ask("POST", "/v1/models/features:classify", '{"examples": [{}]}').status == 200
    take = {"inputs": (DType.STRING, (-1,))}
    desk.serve("features", 4, [signature(lambda inputs: (np.zeros(1),), take, {"y": (DType.DOUBLE, (-1,))})])
    got = desk.ask("POST", "/v1/models/features:classify", '{"examples": [{}]}')
    assert got.status == 400
    assert re.search(r"'serving_default' does not classify: got .*outputs y: float64", got.json["error"])
    desk.serve("features", 5, list(desk.client.served[desk.client.registry.models["features"].versions[3].handle]))
    assert desk.ask("POST", "/v1/models/features:classify", '{"examples": [{}]}').status == 200


def test_the_status_of_versions_that_do_not_serve() -> None:
    desk = make_desk()
    version = desk.client.registry.models["half"].versions[1]
    version.on.clear()
    version.error = FailedPrecondition("torn")
    got = desk.ask("GET", "/v1/models/half/versions/1")
    assert got.body == (
        b'{"model_version_status":[{"version":"1","state":"END",'
        b'"status":{"error_code":"FAILED_PRECONDITION","error_message":"torn"}}]}'
    )
    refused = desk.ask("POST", "/v1/models/half/versions/1:predict", HALF)
    assert (refused.status, refused.json) == (400, {"error": "half:1 failed to load: torn"})


def test_json_that_would_keep_everybody_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_JSON", 40)
    got = desk.ask("POST", "/v1/models/half:predict", json.dumps({"instances": [1.0] * 20}))
    assert got.status == 413
    assert got.json["error"].startswith("got 115 bytes of JSON, expected at most 40: send tensors as binary data")
    assert desk.ask("POST", "/v1/models/half:predict", HALF).status == 200


def test_rows_that_would_keep_everybody_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_ROWS", 3)
    got = desk.ask("POST", "/v1/models/half:predict", json.dumps({"instances": [{"x": 1.0}] * 4}))
    assert (got.status, got.json) == (400, {"error": "instances: got 4 rows, expected at most 3 of named inputs"})
