from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.registry import Registry, State, Version, signature_index, some_names
from tfpool.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from tfpool.settings import ModelSettings
from tfpool.types import DType, ModelKey, SignatureSpec, TensorSpec

X = TensorSpec("x", DType.FLOAT, (-1, 4))


def spec(name: str) -> SignatureSpec:
    return SignatureSpec(name, "predict", (X,), (X,), True)


def make(*numbers: int, labels: tuple[tuple[str, int], ...] = ()) -> Registry:
    registry = Registry()
    model = registry.add_model(ModelSettings("m", "/m", labels=labels))
    for number in numbers:
        serve(registry.add_version(model, number, f"/m/{number}"))
    return registry


def serve(version: Version, worker: str = "w") -> None:
    version.signatures = (spec("serving_default"),)
    for what in ("load", "warming", "loaded"):
        assert version.step(worker, what)


def version() -> Version:
    return Version(ModelKey("m", 1), "/m/1", 1, ModelSettings("m", "/m"))


ARROWS = {
    ("PENDING", "load"): "LOADING",
    ("FAILED", "load"): "LOADING",
    ("LOADING", "warming"): "WARMING",
    ("LOADING", "loaded"): "AVAILABLE",
    ("WARMING", "loaded"): "AVAILABLE",
    ("LOADING", "failed"): "FAILED",
    ("WARMING", "failed"): "FAILED",
    ("PENDING", "failed"): "FAILED",
    ("AVAILABLE", "unload"): "UNLOADING",
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("what", ["load", "warming", "loaded", "failed", "unload", "nonsense"])
def test_the_state_table(state: State, what: str) -> None:
    one = version()
    one.on["w"] = state
    following = ARROWS.get((state.value, what))
    assert one.step("w", what) == (following is not None)
    assert one.on["w"].value == (following or state.value), "a late message changes nothing"


def test_a_worker_that_is_not_known_is_pending() -> None:
    one = version()
    assert one.step("w", "load")
    assert not one.step("other", "loaded")
    assert "other" not in one.on


@given(st.lists(st.sampled_from(State), max_size=4))
def test_a_version_is_as_good_as_its_best_worker(states: list[State]) -> None:
    one = version()
    one.on = {f"w{i}": state for i, state in enumerate(states)}
    order = ["FAILED", "UNLOADING", "PENDING", "LOADING", "WARMING", "AVAILABLE"]
    assert one.state.value == (max((s.value for s in states), key=order.index) if states else "PENDING")
    assert one.serving() == [f"w{i}" for i, state in enumerate(states) if state is State.AVAILABLE]


def test_the_newest_that_serves_is_meant() -> None:
    registry = make(1, 2)
    assert registry.resolve("m", 0, "").key.version == 2
    registry.add_version(registry.models["m"], 3, "/m/3")
    assert registry.resolve("m", 0, "").key.version == 2, "3 is not loaded yet"
    assert registry.resolve("m", 1, "").key.version == 1


def test_labels_lead_to_versions() -> None:
    registry = make(1, 2, labels=(("stable", 1), ("gone", 9)))
    assert registry.resolve("m", 0, "stable").key.version == 1
    with pytest.raises(NotFound, match=r"has no label 'canary'; it has gone, stable"):
        registry.resolve("m", 0, "canary")
    with pytest.raises(NotFound, match=r"has no version 9 loaded; it has 1, 2"):
        registry.resolve("m", 0, "gone")
    with pytest.raises(InvalidArgument, match=r"got both version 2 and label 'stable', expected one"):
        registry.resolve("m", 2, "stable")


def test_who_is_not_there_is_named_with_who_is() -> None:
    registry = make(1)
    with pytest.raises(NotFound, match=r"no model 'n'; there are m"):
        registry.resolve("n", 0, "")
    with pytest.raises(NotFound, match=r"'m' has no version 7 loaded; it has 1"):
        registry.resolve("m", 7, "")


def test_a_model_without_versions_tells_why() -> None:
    registry = make()
    with pytest.raises(Unavailable, match="'m' has no version loaded"):
        registry.resolve("m", 0, "")
    registry.models["m"].error = NotFound("/m: no such directory")
    with pytest.raises(NotFound, match="/m: no such directory"):
        registry.resolve("m", 0, "")


def test_a_version_that_cannot_serve_tells_why() -> None:
    registry = make()
    one = registry.add_version(registry.models["m"], 1, "/m/1")
    with pytest.raises(Unavailable, match=r"m:1 is not loaded yet \(PENDING\)"):
        registry.resolve("m", 0, "")
    one.step("w", "load")
    with pytest.raises(Unavailable, match=r"m:1 is not loaded yet \(LOADING\)"):
        registry.resolve("m", 1, "")
    one.step("w", "failed")
    one.error = Internal("out of luck")
    with pytest.raises(FailedPrecondition, match="m:1 failed to load: out of luck"):
        registry.resolve("m", 0, "")


def test_requests_may_wait_for_a_version_whose_worker_is_being_replaced() -> None:
    registry = make(1)
    one = registry.models["m"].versions[1]
    one.on["w"] = State.PENDING
    assert registry.resolve("m", 0, "") is one


def test_every_change_raises_the_epoch_and_handles_are_never_reused() -> None:
    registry = make()
    model, seen = registry.models["m"], [registry.epoch]
    first = registry.add_version(model, 1, "/m/1")
    seen.append(registry.epoch)
    registry.drop_version(first)
    seen.append(registry.epoch)
    again = registry.add_version(model, 1, "/m/1")
    seen.append(registry.epoch)
    assert seen == sorted(set(seen))
    assert again.handle != first.handle
    assert registry.versions() == [again]
    registry.drop_version(first)
    registry.drop_version(again)
    assert registry.versions() == []


def test_signatures_by_name_by_default_and_alone() -> None:
    one = version()
    one.signatures = (spec("a"), spec("serving_default"))
    assert signature_index(one, "") == 1
    assert signature_index(one, "a") == 0
    one.signatures = (spec("only"),)
    assert signature_index(one, "") == 0
    one.signatures = (spec("a"), spec("b"))
    one.skipped = {"s": "it is sparse"}
    with pytest.raises(InvalidArgument, match=r"no signature 'serving_default', so one must be named; it has a, b"):
        signature_index(one, "")
    with pytest.raises(InvalidArgument, match=r"no signature 'c'; it has a, b$"):
        signature_index(one, "c")
    with pytest.raises(InvalidArgument, match=r"no signature 's'; it has a, b; 's' cannot be served: it is sparse"):
        signature_index(one, "s")


def test_long_lists_of_names_are_cut() -> None:
    assert some_names([]) == "none"
    assert some_names(["b", "a"]) == "a, b"
    assert some_names(range(10)).endswith(" and 2 more")
