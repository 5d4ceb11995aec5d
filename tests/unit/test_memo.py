from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.repository import memo as module
from tfpool.repository.memo import Footprint, Memo

FULL = Memo(
    labels={"mnist": {"prod": "3:90,4:10", "canary": "4"}},
    shadows={"mnist": "4:2.5"},
    models={"new": {"base_path": "/models/new", "replicas": [1, 2]}},
    removed=["old"],
    unloaded=[("mnist", 2)],
    footprints={"00ff": Footprint(1000, 3000, 0.5)},
)
NAMES = st.text("abcäé_-.", min_size=1, max_size=5)
VERSIONS = st.integers(1, (1 << 63) - 1)
MEMOS = st.builds(
    Memo,
    labels=st.dictionaries(NAMES, st.dictionaries(NAMES, VERSIONS.map(str))),
    shadows=st.dictionaries(NAMES, VERSIONS.map("{}:5".format)),
    models=st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers() | st.text() | st.booleans())),
    removed=st.lists(NAMES),
    unloaded=st.lists(st.tuples(NAMES, VERSIONS)),
    footprints=st.dictionaries(
        NAMES, st.builds(Footprint, st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.floats(0, 1e9))
    ),
)
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_fields_as_they_are_written() -> None:
    assert FULL.to_fields() == {
        "labels": {"mnist": {"prod": "3:90,4:10", "canary": "4"}},
        "shadows": {"mnist": "4:2.5"},
        "models": {"new": {"base_path": "/models/new", "replicas": [1, 2]}},
        "removed": ["old"],
        "unloaded": [["mnist", 2]],
        "footprints": {"00ff": {"nbytes": 1000, "peak": 3000, "load_seconds": 0.5, "shared": 0}},
    }
    assert Memo.from_fields(FULL.to_fields()) == FULL
    assert Memo.from_fields({}) == Memo()


@given(MEMOS)
def test_through_json_and_back(memo: Memo) -> None:
    assert Memo.from_fields(json.loads(json.dumps(memo.to_fields()))) == memo


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([], "expected a table"),
        (None, "expected a table"),
        ({"labels": []}, "labels: got .*, expected a table"),
        ({"labels": {"m": "3"}}, "labels: got '3', expected a table"),
        ({"labels": {"m": {"prod": "3:"}}}, "labels: got '3:', expected a version"),
        ({"labels": {"a b": {}}}, "labels: got 'a b', expected 1 to 512 characters"),
        ({"shadows": {"m": "4"}}, "shadows: got '4', expected VERSION:PERCENT"),
        ({"models": {"m": 1}}, "models: got 1, expected a table"),
        ({"removed": "m"}, "removed: got 'm', expected a list"),
        ({"removed": [""]}, "removed: got '', expected 1 to 512"),
        ({"unloaded": [["m", 0]]}, "unloaded: got 0, expected a whole number from 1"),
        ({"unloaded": [["m"]]}, "unloaded: .*expected a model and a version"),
        ({"footprints": {"f": {"nbytes": 1, "peak": 2}}}, "footprints: .*expected nbytes, peak and load_seconds"),
        ({"footprints": {"f": {"nbytes": -1, "peak": 2, "load_seconds": 0}}}, "footprints: got -1"),
        ({"footprints": {"f": {"nbytes": 1, "peak": 2, "load_seconds": float("nan")}}}, "footprints: got nan"),
        ({"lables": {}}, "got 'lables', expected none but labels, shadows"),
    ],
)
def test_garbage_is_refused(fields: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        Memo.from_fields(fields)


@given(st.dictionaries(st.sampled_from(list(Memo().to_fields())), GARBAGE))
def test_any_garbage_is_refused_or_a_memo(fields: dict[str, Any]) -> None:
    try:
        memo = Memo.from_fields(fields)
    except InvalidArgument:
        return
    assert Memo.from_fields(memo.to_fields()) == memo


def test_the_newest_footprints_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOOTPRINTS_KEPT", 3)
    memo = Memo()
    for key in "abacd":
        memo.measured(key, Footprint(1, 1, 1.0))
    assert list(memo.footprints) == ["a", "c", "d"]
    fields = {"footprints": {key: {"nbytes": 1, "peak": 1, "load_seconds": 1} for key in "abcde"}}
    assert list(Memo.from_fields(fields).footprints) == ["c", "d", "e"]


def test_a_copy_stands_still() -> None:
    memo = Memo.from_fields(FULL.to_fields())
    copy = memo.copy()
    memo.labels["mnist"]["prod"] = "5"
    memo.shadows.clear()
    memo.models.pop("new")
    memo.removed.append("more")
    memo.unloaded.clear()
    memo.measured("new", Footprint(1, 1, 1.0))
    assert copy == FULL
