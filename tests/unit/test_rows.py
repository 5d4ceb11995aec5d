from __future__ import annotations

from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.registry import Crash, Goal, Model, Registry, State
from tfpool.broker.rows import detailed_rows, model_rows, version_row, worker_row
from tfpool.errors import FailedPrecondition, NotFound
from tfpool.repository.states import Step
from tfpool.settings import ModelSettings, WorkerSettings
from tfpool.types import DType, SignatureSpec, TensorSpec

X = TensorSpec("x", DType.FLOAT, (-1, 4))
FORESEEN = SignatureSpec("foreseen", "predict", (X,), (TensorSpec("y", DType.STRING, None),))


def make(*numbers: int) -> tuple[Registry, Model]:
    registry = Registry()
    model = registry.add_model(ModelSettings("m", "/m", labels=(("stable", ((1, 1),)), ("prod", ((1, 9), (2, 1))))))
    for number in numbers:
        version = registry.add_version(model, number, f"/m/{number}")
        version.on["w"] = State.AVAILABLE
    return registry, model


def test_a_row_for_each_version_and_for_those_that_leave() -> None:
    registry, model = make(2, 1)
    rows = model_rows(model)
    assert [(row["name"], row["version"], row["state"], row["labels"]) for row in rows] == [
        ("m", 1, "AVAILABLE", ["prod", "stable"]),
        ("m", 2, "AVAILABLE", ["prod"]),
    ]
    old = model.versions[1]
    registry.retire(model, old)
    old.step("w", Step.DRAIN)
    again = registry.add_version(model, 1, "/m/1")
    rows = model_rows(model)
    assert [(row["version"], row["state"], row["labels"]) for row in rows] == [
        (1, "DRAINING", []),
        (1, "NEW", ["prod", "stable"]),
        (2, "AVAILABLE", ["prod"]),
    ]
    assert again.handle != old.handle


def test_a_model_without_versions_has_a_row_too() -> None:
    _, model = make()
    (row,) = model_rows(model)
    assert (row["version"], row["state"], row["error"]) == (0, "NEW", None)
    model.sighted = True
    assert model_rows(model)[0]["state"] == "UNLOADED"
    model.error = NotFound("/m: no such directory")
    (row,) = model_rows(model)
    assert (row["state"], row["error"]) == ("FAILED", "/m: no such directory")


def test_what_is_known_of_a_version() -> None:
    _, model = make(1)
    version = model.versions[1]
    version.on["v"], version.on["u"] = State.FAILED, State.LOADING
    version.memory_bytes, version.peak_bytes, version.load_seconds = 5, 7, 0.5
    version.goal, version.error = Goal.ON_DEMAND, FailedPrecondition("torn")
    version.crashes, version.isolated = (Crash(1.0, 0), Crash(2.0, 1)), "w"
    assert version_row(model, version) == {
        "name": "m",
        "version": 1,
        "state": "AVAILABLE",
        "workers": ["u", "w"],
        "labels": ["prod", "stable"],
        "memory_bytes": 5,
        "peak_bytes": 7,
        "load_seconds": 0.5,
        "loaded": "on demand",
        "error": "torn",
        "error_code": "FAILED_PRECONDITION",
        "crashes": 2,
        "isolated": True,
    }


def test_details() -> None:
    _, model = make(1)
    version = model.versions[1]
    version.foreseen, version.skipped = (FORESEEN,), {"odd": "it is sparse"}
    (row,) = detailed_rows(model, {"requests": 3}, None)
    (signature,) = row["signatures"]
    assert signature["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]
    assert signature["outputs"] == [{"name": "y", "dtype": "string", "shape": None}]
    assert row["skipped_signatures"] == {"odd": "it is sparse"}
    assert row["label_splits"] == {"stable": "1", "prod": "1:9,2:1"}
    assert (row["base_path"], row["meters"], row["shadow"]) == ("/m", {"requests": 3}, None)
    assert row["batching"]["max_batch_size"] == 128
    version.signatures = (SignatureSpec("loaded", "", (X,), (X,)),)
    assert detailed_rows(model, {}, None)[0]["signatures"][0]["name"] == "loaded", "what was loaded is certain"
    model.versions.clear()
    assert detailed_rows(model, {}, None)[0]["signatures"] == []


def test_workers() -> None:
    registry, model = make(1, 2)
    model.versions[2].on["w"] = State.FAILED
    link = Link(WorkerSettings("w", cpus=(1,), threads=1, memory=9), WorkerState.READY, pid=7)
    row = worker_row(link, registry.versions())
    assert (row["models"], row["state"], row["memory"]["budget"], row["pid"]) == (["m:1"], "READY", 9, 7)
