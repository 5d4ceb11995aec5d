"""TensorFlow Serving's REST as bodies written by hand: what is sent, and the bytes that come back."""

from __future__ import annotations

import pytest

from tests.contract.serving_desk import Desk
from tests.contract.tfs_models import make_desk


@pytest.fixture(scope="module")
def desk() -> Desk:
    return make_desk()


PREDICTED = [
    # -- half: rows and columns, versions and labels
    ("half", '{"instances": [1.0, 2.0, 5.0]}', '{"predictions":[3.5,4.0,5.5]}'),
    ("half", '{"instances": [1]}', '{"predictions":[3.5]}'),
    ("half", '{"instances": [{"x": 1.0}, {"x": 2.0}]}', '{"predictions":[3.5,4.0]}'),
    ("half", '{"inputs": [1.0, 2.0]}', '{"outputs":[3.5,4.0]}'),
    ("half", '{"inputs": {"x": [1.0, 2.0]}}', '{"outputs":[3.5,4.0]}'),
    ("half", '{"inputs": {"x": [1.0], "more": "ignored"}}', '{"outputs":[3.5]}'),
    ("half", '{"signature_name": "serving_default", "instances": [1e0]}', '{"predictions":[3.5]}'),
    ("half", '{"signature_name": "", "instances": [10E-1]}', '{"predictions":[3.5]}'),
    ("half", ' {"instances"\n:\t[ 1.0 ]\r} ', '{"predictions":[3.5]}'),
    ("half", '{"instances": [1.0], "id": 7, "parameters": {}}', '{"predictions":[3.5]}'),
    ("half", '{"instances": [9.0], "instances": [1.0]}', '{"predictions":[3.5]}'),
    ("half/versions/1", '{"instances": [1.0]}', '{"predictions":[2.5]}'),
    ("half/versions/2", '{"instances": [1.0]}', '{"predictions":[3.5]}'),
    ("half/versions/00001", '{"instances": [1.0]}', '{"predictions":[2.5]}'),
    ("half/labels/stable", '{"instances": [1.0]}', '{"predictions":[2.5]}'),
    ("half/labels/new%2Fest", '{"instances": [1.0]}', '{"predictions":[3.5]}'),
    ("a%2Fb%3A%20%C3%BC", '{"instances": [1.0]}', '{"predictions":[7.5]}'),
    ("half", '{"instances": [NaN, Infinity, -Infinity]}', '{"predictions":[NaN,Infinity,-Infinity]}'),
    # -- several inputs and outputs
    (
        "several",
        '{"instances": [{"a": [1, 2], "b": [0.5]}, {"a": [3, 4], "b": [1]}]}',
        '{"predictions":[{"first":1.0,"total":[1.5,2.5]},{"first":3.0,"total":[4.0,5.0]}]}',
    ),
    (
        "several",
        '{"inputs": {"a": [[1, 2], [3, 4]], "b": [[0.5], [1]]}}',
        '{"outputs":{"first":[1.0,3.0],"total":[[1.5,2.5],[4.0,5.0]]}}',
    ),
    (
        "several",
        '{"instances": [{"b": [0], "a": [NaN, 2]}, {"a": [-1, 4], "b": [-Infinity]}]}',
        '{"predictions":[{"first":NaN,"total":[NaN,2.0]},{"first":-1.0,"total":[-Infinity,-Infinity]}]}',
    ),
    (
        "several",
        '{"inputs": {"a": [[1, 2]], "b": [[NaN]]}}',
        '{"outputs":{"first":[1.0],"total":[[NaN,NaN]]}}',
    ),
    ("several", '{"signature_name": "one", "instances": [[1, 2], [3, 4]]}', '{"predictions":[[1.0,2.0],[3.0,4.0]]}'),
    ("several", '{"signature_name": "one", "inputs": [[1, 2]]}', '{"outputs":[[1.0,2.0]]}'),
    (
        "several",
        '{"signature_name": "uneven", "inputs": {"a": [[1, 2], [3, 4]], "b": [[0], [0]]}}',
        '{"outputs":{"first":[1.0],"total":[[1.0,2.0],[3.0,4.0]]}}',
    ),
    (
        "several",
        '{"signature_name": "scalar", "inputs": {"a": [[1, 2]], "b": [[0]]}}',
        '{"outputs":{"first":1.0,"total":[[1.0,2.0]]}}',
    ),
    # -- shapes without rows
    ("scalar", '{"inputs": 1.5}', '{"outputs":3.0}'),
    ("scalar", '{"inputs": {"x": -0.5}}', '{"outputs":-1.0}'),
    ("scalar", '{"inputs": Infinity}', '{"outputs":Infinity}'),
    ("scalar", '{"inputs": NaN}', '{"outputs":NaN}'),
    (
        "matrix",
        '{"inputs": [[1, 2, 3], [4, 5, 6], [7, 8, 9.5]]}',
        '{"outputs":{"diagonal":[1.0,5.0,9.5],"trace":15.5}}',
    ),
    # -- strings and bytes
    (
        "texts",
        '{"instances": ["abc", "\\u00e9", ""]}',
        '{"predictions":[{"length":3,"raw_bytes":{"b64":"YWJj"},"upper":"ABC"},'
        '{"length":2,"raw_bytes":{"b64":"w6k="},"upper":"é"},{"length":0,"raw_bytes":{"b64":""},"upper":""}]}',
    ),
    (
        "texts",
        '{"inputs": ["a", {"b64": "Yg=="}]}',
        '{"outputs":{"length":[1,1],"raw_bytes":[{"b64":"YQ=="},{"b64":"Yg=="}],"upper":["A","B"]}}',
    ),
    ("texts", '{"signature_name": "text", "instances": [{"b64": "aGk="}]}', '{"predictions":["hi"]}'),
    ("texts", '{"signature_name": "text", "instances": [{"s": {"b64": "aGk="}}]}', '{"predictions":["hi"]}'),
    ("texts", '{"signature_name": "text", "instances": [{"b64": "aGk"}]}', '{"predictions":["hi"]}'),
    ("texts", '{"signature_name": "text", "instances": [{"b64": "aG\\nk=\\n"}]}', '{"predictions":["hi"]}'),
    ("texts", '{"signature_name": "text", "instances": [{"b64": "/w=="}]}', '{"predictions":[{"b64":"/w=="}]}'),
    ("texts", '{"signature_name": "bytes", "instances": ["hi", ""]}', '{"predictions":[{"b64":"aGk="},{"b64":""}]}'),
    ("texts", '{"signature_name": "bytes", "inputs": {"s": ["hi"]}}', '{"outputs":[{"b64":"aGk="}]}'),
    ("texts", '{"signature_name": "text", "instances": ["\\u0000\\ud83d\\ude00"]}', '{"predictions":["\\u0000😀"]}'),
    ("texts", '{"signature_name": "text", "instances": ["NaN", "null"]}', '{"predictions":["NaN","null"]}'),
    # -- dtypes, in and out
    (
        "echo",
        '{"signature_name": "float32", "instances": [0.1, 16777217, -0.0]}',
        '{"predictions":[0.1,16777216.0,-0.0]}',
    ),
    ("echo", '{"signature_name": "float32", "instances": [3.4028235e38]}', '{"predictions":[3.4028235e+38]}'),
    ("echo", '{"signature_name": "float32", "instances": [1e-46]}', '{"predictions":[0.0]}'),
    ("echo", '{"signature_name": "float64", "instances": [0.1, 1e308]}', '{"predictions":[0.1,1e+308]}'),
    ("echo", '{"signature_name": "float64", "instances": [9007199254740993]}', '{"predictions":[9007199254740992.0]}'),
    ("echo", '{"signature_name": "int8", "instances": [-128, 127]}', '{"predictions":[-128,127]}'),
    ("echo", '{"signature_name": "int16", "instances": [-32768, 32767]}', '{"predictions":[-32768,32767]}'),
    (
        "echo",
        '{"signature_name": "int32", "instances": [-2147483648, 2147483647]}',
        '{"predictions":[-2147483648,2147483647]}',
    ),
    (
        "echo",
        '{"signature_name": "int64", "instances": [-9223372036854775808, 9223372036854775807]}',
        '{"predictions":[-9223372036854775808,9223372036854775807]}',
    ),
    ("echo", '{"signature_name": "uint8", "instances": [0, 255]}', '{"predictions":[0,255]}'),
    ("echo", '{"signature_name": "uint32", "instances": [0, 4294967295]}', '{"predictions":[0,4294967295]}'),
    (
        "echo",
        '{"signature_name": "uint64", "instances": [0, 18446744073709551615]}',
        '{"predictions":[0,18446744073709551615]}',
    ),
    ("echo", '{"signature_name": "bool", "instances": [true, false]}', '{"predictions":[true,false]}'),
    ("echo", '{"signature_name": "bool", "instances": [[true], [false]]}', '{"predictions":[[true],[false]]}'),
    (
        "echo",
        '{"signature_name": "string", "instances": [["a", "b"], ["c", "d"]]}',
        '{"predictions":[["a","b"],["c","d"]]}',
    ),
    ("echo", '{"signature_name": "int32", "inputs": 7}', '{"outputs":7}'),
    ("echo", '{"signature_name": "bool", "inputs": true}', '{"outputs":true}'),
    ("echo", '{"signature_name": "string", "inputs": "x"}', '{"outputs":"x"}'),
    ("echo", '{"signature_name": "string", "inputs": {"b64": "eA=="}}', '{"outputs":"x"}'),
    ("echo", '{"signature_name": "int32", "inputs": []}', '{"outputs":[]}'),
    ("echo", '{"signature_name": "int32", "inputs": [[], []]}', '{"outputs":[[],[]]}'),
    ("echo", '{"signature_name": "int32", "instances": [[[[1]]], [[[2]]]]}', '{"predictions":[[[[1]]],[[[2]]]]}'),
    # -- what models give
    ("gives", '{"signature_name": "third", "instances": [0]}', '{"predictions":[0.33333334,0.6666667]}'),
    ("gives", '{"signature_name": "tenths", "instances": [0]}', '{"predictions":[0.1,0.2,0.7]}'),
    ("gives", '{"signature_name": "whole", "instances": [0]}', '{"predictions":[0.0,-0.0,1.0,16777216.0,1e+16]}'),
    (
        "gives",
        '{"signature_name": "extremes", "instances": [0]}',
        '{"predictions":[3.4028235e+38,-3.4028235e+38,1.1754944e-38,1e-45]}',
    ),
    ("gives", '{"signature_name": "doubles", "inputs": [0]}', '{"outputs":[0.1,0.3333333333333333,1e+300,5e-324]}'),
    ("gives", '{"signature_name": "nan", "instances": [0]}', '{"predictions":[NaN,1.0,Infinity,-Infinity]}'),
    ("gives", '{"signature_name": "nan64", "inputs": [0]}', '{"outputs":[[NaN,0.1],[1.0,2.0]]}'),
    (
        "gives",
        '{"signature_name": "int64", "instances": [0]}',
        '{"predictions":[-9223372036854775808,9223372036854775807]}',
    ),
    ("gives", '{"signature_name": "uint64", "instances": [0]}', '{"predictions":[0,18446744073709551615]}'),
    ("gives", '{"signature_name": "uint16", "instances": [0]}', '{"predictions":[0,65535]}'),
    ("gives", '{"signature_name": "flags", "instances": [0]}', '{"predictions":[true,false]}'),
    ("gives", '{"signature_name": "half", "instances": [0]}', '{"predictions":[0.5,Infinity]}'),
    ("gives", '{"signature_name": "empty", "instances": [0]}', '{"predictions":[]}'),
    ("gives", '{"signature_name": "hollow", "instances": [0]}', '{"predictions":[[],[]]}'),
    (
        "gives",
        '{"signature_name": "words", "instances": [0]}',
        '{"predictions":["null","é \\"\\\\\\n","",{"b64":"/w=="}]}',
    ),
    ("gives", '{"signature_name": "grid", "inputs": [0]}', '{"outputs":[["a","b"],["c","null"]]}'),
]


@pytest.mark.parametrize(("path", "body", "answer"), PREDICTED)
def test_predict(desk: Desk, path: str, body: str, answer: str) -> None:
    got = desk.ask("POST", f"/v1/models/{path}:predict", body)
    assert (got.status, got.body.decode()) == (200, answer)
    assert got.headers["content-type"] == "application/json"


RESULTS = [
    (
        "features:classify",
        '{"examples": [{"x": [1.5, 2.0], "n": 3, "w": "abc"}, {"x": 0.1}]}',
        '{"results":[[["x",3.5],["n",3.0],["abc",3.0]],[["x",0.1],["n",0.0],["",0.0]]]}',
    ),
    (
        "features/versions/3:classify",
        '{"signature_name": "scores", "examples": [{"x": [1.0], "n": [1, 2]}]}',
        '{"results":[[["",1.0],["",3.0],["",0.0]]]}',
    ),
    (
        "features:classify",
        '{"signature_name": "labels", "examples": [{"w": ["a", {"b64": "Yg=="}]}]}',
        '{"results":[[["x",0.0],["n",0.0],["ab",0.0]]]}',
    ),
    (
        "features:classify",
        '{"context": {"w": "all", "n": 5}, "examples": [{"x": [1.0]}, {"n": 7}]}',
        '{"results":[[["x",1.0],["n",5.0],["all",3.0]],[["x",0.0],["n",7.0],["all",3.0]]]}',
    ),
    (
        "features:classify",
        '{"examples": [{"x": [NaN]}, {"x": Infinity}, {"x": [-Infinity]}]}',
        '{"results":[[["x",NaN],["n",0.0],["",0.0]],[["x",Infinity],["n",0.0],["",0.0]],'
        '[["x",-Infinity],["n",0.0],["",0.0]]]}',
    ),
    ("features:classify", '{"examples": [{"n": true}]}', '{"results":[[["x",0.0],["n",1.0],["",0.0]]]}'),
    ("features:classify", '{"examples": [{}]}', '{"results":[[["x",0.0],["n",0.0],["",0.0]]]}'),
    (
        "features:regress",
        '{"signature_name": "regress", "examples": [{"x": [0.1], "n": []}, {"n": [false, 2]}, {"x": 16777216.0}]}',
        '{"results":[0.1,2.0,16777216.0]}',
    ),
    (
        "features:regress",
        '{"signature_name": "regress", "context": {"n": 1}, "examples": [{"x": [-Infinity]}, {"x": NaN}, {}]}',
        '{"results":[-Infinity,NaN,1.0]}',
    ),
    ("features:regress", '{"signature_name": "regress", "examples": [{"x": {"b64": "AA=="}}]}', '{"results":[0.0]}'),
]


@pytest.mark.parametrize(("path", "body", "answer"), RESULTS)
def test_classify_and_regress(desk: Desk, path: str, body: str, answer: str) -> None:
    got = desk.ask("POST", f"/v1/models/{path}", body)
    assert (got.status, got.body.decode()) == (200, answer)


FLOATS = '{"dtype":"DT_FLOAT","tensor_shape":{"dim":[{"size":"-1","name":""}],"unknown_rank":false},"name":"%s"}'
HALF_METADATA = (
    '{"model_spec":{"name":"half","signature_name":"","version":"%d"},"metadata":{"signature_def":{"signature_def":'
    f'{{"serving_default":{{"inputs":{{"x":{FLOATS % "x"}}},"outputs":{{"y":{FLOATS % "y"}}},'
    '"method_name":"predict"}}}}}'
)
VERSION = '{"version":"%d","state":"AVAILABLE","status":{"error_code":"OK","error_message":""}}'
GOT = [
    ("half", f'{{"model_version_status":[{VERSION % 2},{VERSION % 1}]}}'),
    ("half/versions/1", f'{{"model_version_status":[{VERSION % 1}]}}'),
    ("half/labels/stable", f'{{"model_version_status":[{VERSION % 1}]}}'),
    ("half/labels/new%2Fest", f'{{"model_version_status":[{VERSION % 2}]}}'),
    ("a%2Fb%3A%20%C3%BC", f'{{"model_version_status":[{VERSION % 7}]}}'),
    ("half/metadata", HALF_METADATA % 2),
    ("half/versions/1/metadata", HALF_METADATA % 1),
    ("half/labels/stable/metadata", HALF_METADATA % 1),
    (
        "scalar/metadata",
        '{"model_spec":{"name":"scalar","signature_name":"","version":"1"},"metadata":{"signature_def":{"signature_def":'
        '{"serving_default":{"inputs":{"x":{"dtype":"DT_FLOAT","tensor_shape":{"dim":[],"unknown_rank":false},'
        '"name":"x"}},"outputs":{"y":{"dtype":"DT_FLOAT","tensor_shape":{"dim":[],"unknown_rank":false},"name":"y"}},'
        '"method_name":"predict"}}}}}',
    ),
]


@pytest.mark.parametrize(("path", "answer"), GOT)
def test_status_and_metadata(desk: Desk, path: str, answer: str) -> None:
    got = desk.ask("GET", f"/v1/models/{path}")
    assert (got.status, got.body.decode()) == (200, answer)


def test_the_dtypes_and_open_ranks_of_metadata(desk: Desk) -> None:
    found = desk.ask("GET", "/v1/models/echo/metadata").json["metadata"]["signature_def"]["signature_def"]
    assert {name: one["inputs"]["x"]["dtype"] for name, one in found.items()} == {
        **{"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF", "bfloat16": "DT_BFLOAT16"},
        **{"int8": "DT_INT8", "int16": "DT_INT16", "int32": "DT_INT32", "int64": "DT_INT64"},
        **{"uint8": "DT_UINT8", "uint16": "DT_UINT16", "uint32": "DT_UINT32", "uint64": "DT_UINT64"},
        **{"complex64": "DT_COMPLEX64", "complex128": "DT_COMPLEX128", "bool": "DT_BOOL", "string": "DT_STRING"},
        **{"float8_e5m2": "DT_FLOAT8_E5M2", "float8_e4m3fn": "DT_FLOAT8_E4M3FN"},
    }
    assert found["int8"]["outputs"]["y"]["tensor_shape"] == {"dim": [], "unknown_rank": True}
