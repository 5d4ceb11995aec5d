"""The pool's errors in TensorFlow Serving's words: only those about what is not there are put otherwise."""

from __future__ import annotations

import pytest

from tfpool.broker.registry import Goal, Registry
from tfpool.client.examples import Target
from tfpool.errors import Code, NotFound, TfpoolError, Unavailable
from tfpool.gateway.tfs.describe import ServableState, versions
from tfpool.gateway.tfs.errors import translated
from tfpool.repository.states import State
from tfpool.settings import ModelSettings


@pytest.fixture
def registry() -> Registry:
    """m with version 1, which is unloaded, and version 2; the label old is on 1."""
    made = Registry()
    model = made.add_model(ModelSettings("m", "/m", labels=(("old", ((1, 1),)),)))
    model.sighted = True
    made.add_version(model, 1, "/m/1").goal = Goal.OFF
    made.add_version(model, 2, "/m/2").on["w"] = State.AVAILABLE
    return made


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        (Target("x", 0, "", "s"), Code.NOT_FOUND, "Servable not found for request: Latest(x)"),
        (Target("x", 3, "", ""), Code.NOT_FOUND, "Servable not found for request: Specific(x, 3)"),
        (Target("m", 3, "", ""), Code.NOT_FOUND, "Servable not found for request: Specific(m, 3)"),
        (Target("m", 1, "", ""), Code.NOT_FOUND, "Servable not found for request: Specific(m, 1)"),
        (Target("x", 0, "l", ""), Code.INVALID_ARGUMENT, "Unrecognized servable version label: l"),
        (Target("m", 0, "l", ""), Code.INVALID_ARGUMENT, "Unrecognized servable version label: l"),
    ],
)
def test_what_the_registry_says(registry: Registry, target: Target, code: Code, message: str) -> None:
    with pytest.raises(NotFound) as caught:
        registry.route(target.model, target.version, target.label)
    got = translated(caught.value, target)
    assert (got.code, got.message) == (code, message)


def test_other_errors_stay(registry: Registry) -> None:
    with pytest.raises(TfpoolError, match="unloaded") as caught:
        registry.route("m", 0, "old")
    assert translated(caught.value, Target("m", 0, "old", "")) is caught.value
    for error in (NotFound("m:2: Table not initialized"), NotFound("no model 'n'; there are m"), Unavailable("no")):
        assert translated(error, Target("m", 0, "", "")) is error


STATES = {
    "NEW": "START",
    "LOADING": "LOADING",
    "WARMING": "LOADING",
    "AVAILABLE": "AVAILABLE",
    "DRAINING": "UNLOADING",
    "UNLOADED": "END",
    "FAILED": "END",
}


def test_every_state_of_the_pool_has_one_of_theirs() -> None:
    assert STATES.keys() == {state.value for state in State}
    for state, expected in STATES.items():
        (got,) = versions(
            [{"version": 1, "state": state, "labels": [], "loaded": "serve", "error": None, "error_code": None}], "m"
        )
        assert got == (1, ServableState[expected], "OK", "")


def test_a_version_that_a_request_would_load_is_at_its_start() -> None:
    row = {
        "version": 1,
        "state": "UNLOADED",
        "labels": [],
        "loaded": Goal.ON_DEMAND.value,
        "error": None,
        "error_code": None,
    }
    assert versions([row], "m")[0].state is ServableState.START


def test_of_two_versions_of_a_number_the_newer_counts() -> None:
    leaving, coming = (
        {"version": 1, "state": state, "labels": [], "error": None, "error_code": None} for state in ("DRAINING", "NEW")
    )
    assert versions([leaving, coming], "m") == [(1, ServableState.START, "OK", "")]


def test_a_model_without_versions() -> None:
    with pytest.raises(NotFound, match="Could not find any versions of model m"):
        versions([{"version": 0, "state": "FAILED", "labels": [], "error": "gone", "error_code": "NOT_FOUND"}], "m")
