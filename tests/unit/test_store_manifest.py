from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.settings import Form
from tfpool.store.machine import toolchain
from tfpool.store.manifest import GRAPH, WEIGHTS, Compiled, Cost, Feature, Manifest, Start, Weight
from tfpool.types import DType, SignatureSpec, TensorSpec

X, Y, Z = (TensorSpec(name, DType.FLOAT, (-1, 4)) for name in "xyz")
SPEC = SignatureSpec("serving_default", "tensorflow/serving/predict", (X,), (Y, Z), True, False, "")
CURVES = (((1, 0.001), (8, 0.004)),)
HASH = "a" * 64


def manifest(**changes: Any) -> Manifest:
    """One that has everything; its digests are of no file."""
    made = Manifest(
        HASH,
        "/models/m/1",
        *toolchain(),
        created=1.7e9,
        signatures=(
            Compiled(SPEC, ("s0/x:0",), ("s0/y:0",), (0, 0), 16, (Feature("x", 1, 4),)),
            Compiled(replace(SPEC, name="any", inputs=(replace(X, shape=None),)), ("a:0",), ("b:0", "c:0"), (1, 0)),
        ),
        skipped={"train": "it has no inputs"},
        weights=(Weight(1, (32, 32), 0, 4096), Weight(14, (3, 1024), 4096, 6144), Weight(9, (), 10240, 8)),
        digests={GRAPH: "b" * 64, WEIGHTS: "c" * 64},
        costs={
            Form.PLAIN: Cost(320 << 20, 400 << 20, 0.85, 2, CURVES),
            Form.MAPPED: Cost(3 << 20, 4 << 20, 0.024, 2, CURVES),
            Form.INLINED: Cost(20 << 20, 40 << 20, 0.05, 2, ()),
        },
        gain=1.17,
        difference=1e-6,
        start=Start("s0/init"),
    )
    return replace(made, **changes)


def refused(**changes: Any) -> Manifest:
    """One of a model that cannot be compiled."""
    tools = toolchain()
    return replace(Manifest(HASH, "/models/m/1", *tools, created=1.7e9, refusal="it assigns variables"), **changes)


def signed(body: bytes) -> bytes:
    """A body with the checksum that belongs to it."""
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'",' + body[1:]


def edited(**changes: Any) -> bytes:
    """The bytes of a manifest that says something else, with a good checksum."""
    told = json.loads(manifest().to_bytes())
    del told["sha256"]
    return signed(json.dumps(told | changes).encode())


@pytest.mark.parametrize("made", [manifest(), refused(), manifest(start=None, weights=(), digests={GRAPH: HASH})])
def test_what_is_written_is_read(made: Manifest) -> None:
    assert Manifest.from_bytes(made.to_bytes()) == made


def test_it_is_json() -> None:
    assert json.loads(manifest().to_bytes())["source"] == "/models/m/1"


def test_the_weights_file_ends_with_the_last_weight() -> None:
    assert manifest().shared == 10248
    assert refused().shared == 0


def test_a_path_may_be_of_any_bytes() -> None:
    made = manifest(source="/models/\udcff\u20ac")
    assert Manifest.from_bytes(made.to_bytes()) == made


@given(st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_is_noticed(at: int, bit: int) -> None:
    data = bytearray(manifest().to_bytes())
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(InvalidArgument, match=r"corrupt manifest: got .*, expected its own SHA-256"):
        Manifest.from_bytes(bytes(data))


@given(st.integers(0, 3000))
def test_one_that_is_cut_off_is_noticed(count: int) -> None:
    data = manifest().to_bytes()
    with pytest.raises(InvalidArgument, match="corrupt"):
        Manifest.from_bytes(data[: min(count, len(data) - 1)])


WEIGHT = {"dtype": 1, "shape": [32, 32], "offset": 0, "nbytes": 4096}
COST = {"nbytes": 1, "peak": 1, "load_seconds": 0.1, "threads": 1, "curves": []}
SIGNATURE = json.loads(manifest().to_bytes())["signatures"][0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "a manifest of version 2, expected 1"),
        ({"more": 1}, r"keys: got \['more'\]"),
        ({"content": "../../etc"}, "digest: got '../../etc', expected a SHA-256"),
        ({"content": None}, "not a manifest"),
        ({"compiler": True}, "got true, expected a whole number"),
        ({"created": "now"}, "got 'now', expected a number"),
        ({"gain": -1}, "got -1, expected a number from 0"),
        ({"difference": None}, "expected a number"),
        ({"signatures": {}}, "got {}, expected a list"),
        ({"signatures": []}, "signatures: got 0, expected none, nor weights, with a refusal, and else at least one"),
        ({"signatures": [SIGNATURE | {"fetch_of": [0, 1]}]}, r"fetch_of: got \(0, 1\), expected 2 numbers below 1"),
        ({"signatures": [SIGNATURE | {"fetch_of": [0]}]}, r"fetch_of: got \(0,\)"),
        ({"signatures": [SIGNATURE | {"fetch_of": [0, -1]}]}, "got -1, expected a whole number"),
        ({"signatures": [SIGNATURE | {"fetches": []}]}, "fetch_of"),
        ({"signatures": [SIGNATURE | {"feeds": [1]}]}, "got 1, expected a text"),
        ({"signatures": [SIGNATURE | {"spec": []}]}, "not a manifest"),
        ({"signatures": [{}]}, "not a manifest: KeyError"),
        ({"skipped": []}, "not a manifest"),
        ({"weights": [WEIGHT | {"offset": 32}]}, "offset: got 32, expected a multiple of 64"),
        ({"weights": [WEIGHT | {"offset": -64}]}, "weight: got"),
        ({"weights": [WEIGHT | {"offset": 1 << 62}]}, "weight: got"),
        ({"weights": [WEIGHT | {"nbytes": 4095}]}, r"nbytes: got 4095, expected those of shape \[32, 32\] and dtype 1"),
        ({"weights": [WEIGHT | {"nbytes": 4096.0}]}, "weight: got"),
        ({"weights": [WEIGHT | {"shape": [-32, -32]}]}, "weight: got"),
        ({"weights": [WEIGHT | {"dtype": 7}]}, "KeyError"),
        ({"weights": [WEIGHT | {"dtype": 1.0}]}, "nbytes"),
        ({"digests": {GRAPH: HASH}}, r"digests: got \['graph.pb'\], expected \['graph.pb', 'weights.bin'\]"),
        ({"digests": {}}, "digests"),
        ({"digests": {GRAPH: HASH, WEIGHTS: HASH, "../x": HASH}}, "digests"),
        ({"digests": {GRAPH: HASH, WEIGHTS: HASH.upper()}}, "expected a SHA-256"),
        ({"refusal": "no"}, "digests"),
        ({"refusal": "no", "digests": {}}, "signatures"),
        ({"refusal": "no", "digests": {}, "signatures": []}, "signatures"),
        ({"costs": {"fast": COST}}, "'fast' is not a valid Form"),
        ({"costs": {"plain": COST | {"load_seconds": -1}}}, "expected a number from 0"),
        ({"costs": {"plain": COST | {"threads": 0}}}, "got 0, expected a whole number"),
        ({"costs": {"plain": COST | {"curves": [[[0, 1.0]]]}}}, "got 0, expected a whole number"),
        ({"costs": {"plain": COST | {"curves": [[[1, 2, 3]]]}}}, "not a manifest: ValueError"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidArgument, match=expected):
        Manifest.from_bytes(edited(**changes))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400, "1" * 5000])
def test_numbers_are_finite(number: str) -> None:
    told = json.loads(manifest().to_bytes())
    del told["sha256"]
    body = json.dumps(told | {"gain": 0.125}).replace("0.125", number).encode()
    with pytest.raises(InvalidArgument, match="not a manifest"):
        Manifest.from_bytes(signed(body))


@pytest.mark.parametrize("body", [b"{", b"{}", b"[]", b"{\xff}", b'{"version":' + b"[" * 100_000, b'{"version":1}'])
def test_any_body_with_a_good_checksum_is_survived(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Manifest.from_bytes(signed(body))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.data())
def test_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    told = json.loads(edited())
    del told["sha256"]
    inner, chosen = told, ""
    while True:
        places = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        chosen = data.draw(st.sampled_from(places))
        if not isinstance(inner[chosen], dict | list) or not inner[chosen] or data.draw(st.booleans()):
            break
        inner = inner[chosen]
    inner[chosen] = data.draw(ODD)
    try:
        made = Manifest.from_bytes(signed(json.dumps(told).encode()))
    except InvalidArgument:
        return
    assert Manifest.from_bytes(made.to_bytes()) == made


def test_one_with_many_weights_is_read_in_a_moment() -> None:
    """It is read at every load, which is to take some milliseconds."""
    weights = tuple(Weight(1, (3, 3, 64, 64), n * 147456, 147456) for n in range(500))
    data = manifest(weights=weights).to_bytes()

    def seconds() -> float:
        begun = time.process_time()
        Manifest.from_bytes(data)
        return time.process_time() - begun

    assert min(seconds() for _ in range(20)) < 0.01
