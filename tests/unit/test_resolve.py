from __future__ import annotations

import re
from collections import Counter

import pytest

from tfpool.broker.registry import NotLoaded, Registry, State, Version
from tfpool.broker.resolve import Resolver, Split, batch_policy, check_inputs
from tfpool.errors import InvalidArgument, NotFound, TfpoolError, Unavailable
from tfpool.settings import BatchingSettings, ModelSettings
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key

A = TensorSpec("a", DType.FLOAT, (-1, 28, 28))
B = TensorSpec("b", DType.STRING, (-1,))
OPEN = TensorSpec("x", DType.INT64, None)
FIXED = TensorSpec("x", DType.INT64, (3, 3))
SCALAR = TensorSpec("x", DType.INT64, ())


def signature(*inputs: TensorSpec) -> SignatureSpec:
    return SignatureSpec("s", "predict", inputs, (A,), True)


def key(*inputs: Tensor, by_rows: bool = True) -> RequestKey:
    return RequestKey("m", 0, "", "", inputs, by_rows)


a, b = Tensor("a", DType.FLOAT, (28, 28)), Tensor("b", DType.STRING, ())


def whole(shape: tuple[int, ...], name: str = "x") -> Tensor:
    return Tensor(name, DType.INT64, shape)


@pytest.mark.parametrize(
    ("spec", "request_key", "got", "expected"),
    [
        (signature(A, B), key(a), "missing b; got inputs a,", "expected a, b"),
        (signature(A, B), key(), "missing a, b; got inputs none,", "expected a, b"),
        (signature(A), key(a, b), "unknown b; got inputs a, b,", "expected a"),
        (signature(A), key(b), "unknown b and missing a; got inputs b,", "expected a"),
        (signature(A, B), key(a._replace(name="")), "got one array without a name,", "expected inputs a, b"),
        (signature(), key(a._replace(name="")), "got one array without a name,", "expected inputs none"),
        (signature(A), key(a._replace(dtype=DType.DOUBLE)), "input 'a': got float64,", "expected float32"),
        (signature(A, B), key(a, b._replace(dtype=DType.BFLOAT16)), "input 'b': got bfloat16,", "expected string"),
        (signature(A), key(a._replace(name="", dtype=DType.BOOL)), "input 'a': got bool,", "expected float32"),
        (signature(A), key(a._replace(shape=(28,))), "input 'a': got shape [?, 28],", "expected [?, 28, 28]"),
        (signature(A), key(a._replace(shape=(28, 29))), "got shape [?, 28, 29],", "expected [?, 28, 28]"),
        (signature(A), key(a._replace(shape=(28, 28, 1))), "got shape [?, 28, 28, 1],", "expected [?, 28, 28]"),
        (signature(FIXED), key(whole((2, 3)), by_rows=False), "got shape [2, 3],", "expected [3, 3]"),
        (signature(FIXED), key(whole((4,))), "got shape [?, 4],", "expected [3, 3]"),
        (signature(SCALAR), key(whole((1,)), by_rows=False), "got shape [1],", "expected []"),
        (signature(SCALAR), key(whole(())), "got shape [?],", "expected []"),
        (signature(A), key(a._replace(shape=()), by_rows=False), "got shape [],", "expected [?, 28, 28]"),
    ],
)
def test_every_mismatch_says_what_was_got_and_what_was_expected(
    spec: SignatureSpec, request_key: RequestKey, got: str, expected: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"^m:1, signature.*{re.escape(got)} {re.escape(expected)}$"):
        check_inputs("m:1, signature 's'", spec, request_key)


@pytest.mark.parametrize(
    ("spec", "request_key", "fixed"),
    [
        (signature(A, B), key(a, b), None),
        (signature(A), key(a._replace(name="")), None),
        (signature(OPEN), key(whole((1, 2, 3))), None),
        (signature(OPEN), key(whole(()), by_rows=False), None),
        (signature(FIXED), key(whole((3,))), 3),
        (signature(FIXED), key(whole((3, 3)), by_rows=False), None),
        (signature(SCALAR), key(whole((), ""), by_rows=False), None),
        (signature(A), key(a._replace(shape=(0, 28, 28)), by_rows=False), None),
        (signature(), key(by_rows=False), None),
    ],
)
def test_what_suits_passes(spec: SignatureSpec, request_key: RequestKey, fixed: int | None) -> None:
    assert check_inputs("m:1", spec, request_key) == fixed


# -- the resolver --------------------------------------------------------------------------------------------------


def serving(batchable: bool = True, mutates: bool = False) -> tuple[Resolver, Registry, Version]:
    registry = Registry()
    settings = ModelSettings("m", "/m", batching=BatchingSettings(8, 2.0, (4, 8), 100, pad=False), weight=3.0)
    version = registry.add_version(registry.add_model(settings), 1, "/m/1")
    version.signatures = (SignatureSpec("serving_default", "predict", (A,), (A,), batchable, mutates),)
    version.on["w"] = State.AVAILABLE
    registry.epoch += 1
    return Resolver(registry), registry, version


def ask(resolver: Resolver, request_key: RequestKey) -> object:
    packed = pack_request_key(request_key)
    return resolver.resolve(packed, resolver.parse(packed))


def test_one_queue_for_all_that_may_share_a_batch() -> None:
    resolver, _, version = serving()
    first = resolver.resolve(b"1", key(a))
    assert first.spec.servable == version.key
    assert (first.spec.batchable, first.spec.retry, first.spec.by_rows) == (True, True, True)
    assert first.spec.policy == batch_policy(version.settings)
    assert first.spec.policy == (8, 0.002, (4, 8), False, 100, 3.0, 0.0, True, 0)
    assert resolver.resolve(b"2", key(a._replace(name=""))).spec is first.spec
    named = RequestKey("m", 1, "", "serving_default", (a,), True)
    assert resolver.resolve(b"3", named).spec is first.spec
    apart = RequestKey("m", 1, "", "", (a._replace(shape=(1, 28, 28)),), False)
    assert resolver.resolve(b"4", apart).spec is not first.spec
    assert not resolver.resolve(b"4", apart).spec.batchable


def test_a_signature_that_mutates_is_never_run_again() -> None:
    resolver, _, _ = serving(batchable=False, mutates=True)
    found = resolver.resolve(b"1", key(a))
    assert not found.spec.retry
    assert not found.spec.batchable


def test_answers_are_kept_until_the_registry_changes() -> None:
    resolver, registry, version = serving()
    packed = pack_request_key(key(a))
    parsed = resolver.parse(packed)
    assert resolver.parse(packed) is parsed
    assert resolver.resolve(packed, parsed) is resolver.resolve(packed, parsed)
    wrong = RequestKey("n", 0, "", "", (a,), True)
    for _ in range(2):
        with pytest.raises(NotFound, match="no model 'n'"):
            ask(resolver, wrong)
    model = registry.models["m"]
    model.sighted = True
    registry.retire(model, version)
    with pytest.raises(Unavailable, match="'m' has no version"):
        resolver.resolve(packed, parsed)
    registry.add_model(ModelSettings("n", "/n"))
    with pytest.raises(NotLoaded, match="n is not loaded yet"):
        ask(resolver, wrong)


def test_a_split_goes_on_where_it_was() -> None:
    """However often what keys mean is found out anew, each version gets its share."""
    registry = Registry()
    model = registry.add_model(ModelSettings("m", "/m"))
    model.labels["prod"] = ((1, 9), (2, 1))
    for number in (1, 2):
        version = registry.add_version(model, number, f"/m/{number}")
        version.signatures = (signature(A),)
        version.on["w"] = State.AVAILABLE
    resolver = Resolver(registry)
    prod = RequestKey("m", 0, "prod", "", (a,), True)
    given: Counter[int] = Counter()
    for _ in range(100):
        registry.epoch += 1
        split = ask(resolver, prod)
        assert isinstance(split, Split)
        given.update(dict(split.spreader.apportion(1)))
    assert given == {1: 90, 2: 10}


def test_many_keys_do_not_grow_without_bound() -> None:
    resolver, registry, version = serving()
    version.signatures = (SignatureSpec("serving_default", "predict", (OPEN,), (A,), True),)
    registry.epoch += 1
    seen = set()
    for i in range(10_000):
        found = resolver.resolve(b"%d" % i, key(whole((i,))))
        seen.add(found.spec.id)
    assert len(seen) == 10_000
    assert len(resolver.closed) >= 10_000 - 4096
    assert set(resolver.closed) < seen


def test_garbage_is_no_key() -> None:
    resolver, _, _ = serving()
    for packed in (b"", b"\xc1", b"\x90", b"\x91" * 50_000, bytes(1 << 17)):
        with pytest.raises(TfpoolError):
            resolver.parse(packed)
