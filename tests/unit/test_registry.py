from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.registry import Goal, Model, NotLoaded, Registry, State, Version, signature_index, some_names
from tfpool.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tfpool.repository.states import Step
from tfpool.settings import Loading, ModelSettings, Split
from tfpool.types import DType, ModelKey, SignatureSpec, TensorSpec

X = TensorSpec("x", DType.FLOAT, (-1, 4))


def spec(name: str) -> SignatureSpec:
    return SignatureSpec(name, "predict", (X,), (X,), True)


def make(*numbers: int, labels: dict[str, Split] | None = None, **options: Loading) -> tuple[Registry, Model]:
    """A model whose versions serve."""
    registry = Registry()
    model = registry.add_model(ModelSettings("m", "/m", **options))  # type: ignore[arg-type]
    model.labels = labels or {}
    model.sighted = True
    for number in numbers:
        serve(registry.add_version(model, number, f"/m/{number}"))
    return registry, model


def serve(version: Version, worker: str = "w") -> None:
    version.on[worker] = State.AVAILABLE
    version.described = version.proven = True


def fail(version: Version, error: Internal | ResourceExhausted) -> None:
    version.on["w"] = State.FAILED
    version.error = error


def version() -> Version:
    return Version(ModelKey("m", 1), "/m/1", ModelSettings("m", "/m"))


def one(registry: Registry, number: int = 0, label: str = "") -> int:
    """The only version that a request would reach."""
    ((found, _),) = registry.route("m", number, label)
    return found.key.version


# -- states --------------------------------------------------------------------------------------------------------


def test_a_version_is_as_good_as_its_best_worker() -> None:
    order = ["FAILED", "UNLOADED", "DRAINING", "NEW", "LOADING", "WARMING", "AVAILABLE"]
    assert sorted(order) == sorted(state.value for state in State)

    @given(st.lists(st.sampled_from(State), min_size=1, max_size=4))
    def check(states: list[State]) -> None:
        found = version()
        found.on = {f"w{i}": state for i, state in enumerate(states)}
        assert found.state.value == max((s.value for s in states), key=order.index)
        assert found.serving() == [f"w{i}" for i, state in enumerate(states) if state is State.AVAILABLE]
        assert found.held_by() == [f"w{i}" for i, state in enumerate(states) if state is not State.FAILED]

    check()


@pytest.mark.parametrize(
    ("goal", "described", "error", "state"),
    [
        (Goal.SERVE, False, False, "NEW"),
        (Goal.SERVE, True, False, "NEW"),
        (Goal.ON_DEMAND, False, False, "NEW"),
        (Goal.ON_DEMAND, True, False, "UNLOADED"),
        (Goal.OFF, True, False, "UNLOADED"),
        (Goal.SERVE, False, True, "FAILED"),
        (Goal.OFF, True, True, "FAILED"),
    ],
)
def test_what_a_version_is_that_no_worker_has(goal: Goal, described: bool, error: bool, state: str) -> None:
    found = version()
    found.goal, found.described, found.error = goal, described, Internal("x") if error else None
    assert found.state.value == state


def test_steps_that_mean_nothing_change_nothing() -> None:
    found = version()
    assert not found.step("w", Step.LOADED), "nobody knows of it there"
    found.on["w"] = State.NEW
    assert not found.step("w", Step.LOADED)
    assert found.step("w", Step.LOAD)
    assert found.step("w", Step.DRAIN)
    assert found.step("w", Step.UNLOADED)
    assert found.on == {}


# -- routes --------------------------------------------------------------------------------------------------------


def test_the_newest_that_has_served_is_meant() -> None:
    registry, model = make(1, 2)
    assert one(registry) == 2
    third = registry.add_version(model, 3, "/m/3")
    assert one(registry) == 2, "3 has never served"
    assert one(registry, 3) == 3, "but it may be waited for"
    serve(third)
    assert one(registry) == 3
    third.on["w"] = State.NEW
    assert one(registry) == 3, "its worker is being replaced"
    fail(third, Internal("torn"))
    assert one(registry) == 2
    model.versions[2].goal = Goal.OFF
    assert one(registry) == 1
    model.versions[1].goal = Goal.OFF
    with pytest.raises(FailedPrecondition, match="m:3 failed to load: torn"):
        registry.route("m", 0, "")
    third.goal, third.error = Goal.OFF, None
    third.on.clear()
    with pytest.raises(NotFound, match="m:3 is unloaded; `tfpool load m:3` loads it"):
        registry.route("m", 0, "")


def test_labels_lead_to_versions_and_weights() -> None:
    registry, model = make(1, 2, labels={"stable": ((1, 1),), "gone": ((9, 1),), "both": ((1, 9), (2, 1))})
    assert one(registry, label="stable") == 1
    assert [(v.key.version, weight) for v, weight in registry.route("m", 0, "both")] == [(1, 9), (2, 1)]
    with pytest.raises(NotFound, match=r"has no label 'canary'; it has both, gone, stable"):
        registry.route("m", 0, "canary")
    with pytest.raises(FailedPrecondition, match=r"label 'gone': model 'm' has no version 9; it has 1, 2"):
        registry.route("m", 0, "gone")
    with pytest.raises(InvalidArgument, match=r"got both version 2 and label 'stable', expected one"):
        registry.route("m", 2, "stable")
    fail(model.versions[1], Internal("torn"))
    assert one(registry, label="both") == 2, "who can has it all"
    model.versions[2].goal = Goal.OFF
    with pytest.raises(FailedPrecondition, match=r"label 'both': m:2 is unloaded"):
        registry.route("m", 0, "both")
    model.labels["both"] = ((1, 0), (9, 0), (2, 1))
    model.versions[2].goal = Goal.SERVE
    assert one(registry, label="both") == 2, "a weight of 0 is no part"


def test_who_is_not_there_is_named_with_who_is() -> None:
    registry, _ = make(1)
    with pytest.raises(NotFound, match=r"no model 'n'; there are m"):
        registry.route("n", 0, "")
    with pytest.raises(NotFound, match=r"'m' has no version 7; it has 1"):
        registry.route("m", 7, "")


def test_a_model_that_has_not_been_looked_for_is_waited_for() -> None:
    registry, model = make(labels={"stable": ((1, 1),)})
    model.sighted = False
    for number, label in ((0, ""), (1, ""), (0, "stable")):
        with pytest.raises(NotLoaded) as waits:
            registry.route("m", number, label)
        assert (waits.value.room, waits.value.version) == ("m", None)
    model.sighted = True
    with pytest.raises(Unavailable, match="'m' has no version"):
        registry.route("m", 0, "")
    model.error = NotFound("/m: no such directory")
    with pytest.raises(NotFound, match="/m: no such directory"):
        registry.route("m", 0, "")


def test_too_large_is_told_as_that() -> None:
    registry, model = make(1)
    fail(model.versions[1], ResourceExhausted("it takes 9 GiB"))
    with pytest.raises(ResourceExhausted, match="m:1 failed to load: it takes 9 GiB"):
        registry.route("m", 0, "")


@pytest.mark.parametrize(("preload", "goal"), [("preload", "serve"), ("lazy", "on demand"), ("explicit", "off")])
def test_when_a_version_is_loaded(preload: str, goal: str) -> None:
    _, model = make(1, preload=Loading(preload))
    assert model.versions[1].goal.value == goal


def test_every_change_raises_the_epoch_and_handles_are_never_reused() -> None:
    registry, model = make()
    seen = [registry.epoch]
    first = registry.add_version(model, 1, "/m/1")
    seen.append(registry.epoch)
    registry.retire(model, first)
    seen.append(registry.epoch)
    again = registry.add_version(model, 1, "/m/1")
    seen.append(registry.epoch)
    assert registry.versions() == [first, again]
    assert (model.versions, model.leaving) == ({1: again}, [first])
    registry.drop(first)
    seen.append(registry.epoch)
    assert seen == sorted(set(seen))
    assert again.handle != first.handle
    assert (registry.versions(), model.leaving) == ([again], [])
    registry.drop(first)


def test_versions_that_labels_and_shadows_hold() -> None:
    settings = ModelSettings("m", "/m", labels=(("a", ((1, 1), (2, 0))),), shadow=(5, 0.5))
    model = Model(settings, dict(settings.labels))
    assert model.labelled() == {1, 2, 5}
    assert (model.labels_of(1), model.labels_of(5)) == (["a"], [])


# -- signatures ----------------------------------------------------------------------------------------------------


def test_signatures_by_name_by_default_and_alone() -> None:
    found = version()
    found.signatures = (spec("a"), spec("serving_default"))
    assert signature_index(found, "") == 1
    assert signature_index(found, "a") == 0
    found.signatures = (spec("only"),)
    assert signature_index(found, "") == 0
    found.signatures = (spec("a"), spec("b"))
    found.skipped = {"s": "it is sparse"}
    with pytest.raises(InvalidArgument, match=r"no signature 'serving_default', so one must be named; it has a, b"):
        signature_index(found, "")
    with pytest.raises(InvalidArgument, match=r"no signature 'c'; it has a, b$"):
        signature_index(found, "c")
    with pytest.raises(InvalidArgument, match=r"no signature 's'; it has a, b; 's' cannot be served: it is sparse"):
        signature_index(found, "s")


def test_long_lists_of_names_are_cut() -> None:
    assert some_names([]) == "none"
    assert some_names(["b", "a"]) == "a, b"
    assert some_names(range(10)).endswith(" and 2 more")
