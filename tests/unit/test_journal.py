from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.errors import InvalidArgument
from tfpool.placement.journal import CutOff, Entry, Reader, from_fields, to_fields
from tfpool.placement.snapshot import (
    Demand,
    Hold,
    Inlined,
    Kind,
    Past,
    Replica,
    Rules,
    ServableView,
    Snapshot,
    Step,
    WorkerView,
)

HOT = ServableView(
    handle=7,
    name="hot:3",
    nbytes=1000,
    peak=1500,
    load_seconds=0.5,
    fast=Demand(20.0, 40.0),
    slow=Demand(10.0, 20.0),
    row_seconds={"cpu0": 0.002},
    replicas=(1, 2),
    pins=("cpu0", "cpu1"),
    on={"cpu0": Replica(Hold.SERVES, 12.5)},
    idle=0.25,
)
FORM = Inlined(500, 700, 1.5, 1.25)
COLD = ServableView(8, "cold:1", 300, 300, 0.1, wanted=False, idle=50.0)
WORKERS = (WorkerView("cpu0", room=4000, held=1000, busy=0.9), WorkerView("cpu1"))
PAST = Past(40.0, Kind.DROP, 8, "cpu1", "", 300)
STEP = Step(Kind.REPLICATE, 7, "hot:3", "", "cpu1", 1000, 4.0, 1.5, "cpu0 is 90 % busy")
ENTRY = Entry(1700000000.0, Snapshot(100.0, WORKERS, (HOT, COLD), (PAST,)), Rules(), STEP, 0.001, "begun")

WHOLE: dict[str, Any] = {
    "v": 1,
    "when": 1700000000.0,
    "took": 0.001,
    "rules": {
        "horizon": 60.0,
        "hysteresis": 2.0,
        "moves_per_minute": 60,
        "bytes_per_minute": 17179869184,
        "residue": 268435456,
        "idle": 300.0,
    },
    "snapshot": {
        "now": 100.0,
        "workers": [{"name": "cpu0", "room": 4000, "held": 1000, "busy": 0.9}, {"name": "cpu1"}],
        "servables": [
            {
                "handle": 7,
                "name": "hot:3",
                "nbytes": 1000,
                "peak": 1500,
                "load_seconds": 0.5,
                "fast": [20.0, 40.0],
                "slow": [10.0, 20.0],
                "row_seconds": {"cpu0": 0.002},
                "replicas": [1, 2],
                "pins": ["cpu0", "cpu1"],
                "on": {"cpu0": ["serves", 12.5]},
                "idle": 0.25,
            },
            {
                "handle": 8,
                "name": "cold:1",
                "nbytes": 300,
                "peak": 300,
                "load_seconds": 0.1,
                "wanted": False,
                "idle": 50.0,
            },
        ],
        "past": [[40.0, "drop", 8, "cpu1", "", 300]],
    },
    "step": {
        "kind": "replicate",
        "handle": 7,
        "name": "hot:3",
        "source": "",
        "target": "cpu1",
        "nbytes": 1000,
        "gain": 4.0,
        "cost": 1.5,
        "reason": "cpu0 is 90 % busy",
    },
    "outcome": "begun",
}


# -- what is written -----------------------------------------------------------------------------------------------


def test_a_whole_line() -> None:
    assert to_fields(ENTRY) == WHOLE
    assert from_fields(WHOLE) == ENTRY


def test_forms_are_told_where_there_are_any() -> None:
    on = {"cpu0": Replica(Hold.SERVES, 12.5, True), "cpu1": Replica(Hold.SERVES, 20.0)}
    hot = replace(HOT, on=on, inlined=FORM)
    step = Step(Kind.MAP, 7, "hot:3", "cpu0", "", 500, 0.0, 0.5, "memory is short")
    past = (Past(90.0, Kind.INLINE, 7, "", "cpu0", 500),)
    entry = replace(ENTRY, snapshot=replace(ENTRY.snapshot, servables=(hot, COLD), past=past), step=step)
    fields = to_fields(entry)
    row = fields["snapshot"]["servables"][0]
    assert row["inlined"] == [500, 700, 1.5, 1.25]
    assert row["on"] == {"cpu0": ["serves", 12.5, True], "cpu1": ["serves", 20.0]}
    assert (fields["step"]["kind"], fields["snapshot"]["past"][0][1]) == ("map", "inline")
    assert from_fields(json.loads(json.dumps(fields))) == entry
    gone = replace(entry, snapshot=replace(entry.snapshot, servables=(replace(hot, inlined=None), COLD)))
    assert to_fields(gone, entry)["snapshot"]["servables"] == [{"handle": 7, "inlined": None}]
    assert from_fields(to_fields(gone, entry), entry) == gone


def test_a_line_of_changes() -> None:
    """Ten seconds later: the hot one is on its way elsewhere, the cold one has only been idle for longer."""
    on = {**HOT.on, "cpu1": Replica(Hold.COMES, 105.0)}
    hot, cold = replace(HOT, fast=Demand(30.0, 60.0), on=on, movable=False), replace(COLD, idle=60.0)
    past = (PAST, Past(105.0, Kind.REPLICATE, 7, "", "cpu1", 1000))
    later = Entry(1700000010.0, Snapshot(110.0, WORKERS, (hot, cold), past), Rules())
    fields = to_fields(later, ENTRY)
    assert fields == {
        "v": 1,
        "when": 1700000010.0,
        "took": 0.0,
        "snapshot": {
            "now": 110.0,
            "workers": WHOLE["snapshot"]["workers"],
            "gone": [],
            "servables": [
                {
                    "handle": 7,
                    "fast": [30.0, 60.0],
                    "on": {"cpu0": ["serves", 12.5], "cpu1": ["comes", 105.0]},
                    "movable": False,
                    "idle": 0.25,
                }
            ],
            "forgot": 0,
            "past": [[105.0, "replicate", 7, "", "cpu1", 1000]],
        },
    }
    assert from_fields(fields, ENTRY) == later


def test_what_comes_goes_and_is_forgotten() -> None:
    fresh = replace(COLD, handle=9, name="fresh:1")
    later = Entry(1700000001.0, Snapshot(101.0, WORKERS, (replace(COLD, idle=51.0), fresh)), Rules(hysteresis=3.0))
    fields = to_fields(later, ENTRY)
    assert fields["rules"]["hysteresis"] == 3.0
    assert (fields["snapshot"]["gone"], fields["snapshot"]["forgot"], fields["snapshot"]["past"]) == ([7], 1, [])
    assert [row["handle"] for row in fields["snapshot"]["servables"]] == [9]
    assert from_fields(fields, ENTRY) == later


def test_another_order_makes_a_line_whole() -> None:
    turned = replace(ENTRY, snapshot=replace(ENTRY.snapshot, servables=(COLD, HOT)))
    fields = to_fields(turned, ENTRY)
    assert "gone" not in fields["snapshot"]
    assert from_fields(fields) == turned


def test_rules_that_become_the_defaults_again_are_written() -> None:
    before = replace(ENTRY, rules=Rules(horizon=5.0))
    assert from_fields(to_fields(ENTRY, before), before).rules == Rules()


def test_what_is_not_finite_is_a_text() -> None:
    never = replace(ENTRY, snapshot=replace(ENTRY.snapshot, servables=(replace(COLD, idle=float("inf")),)))
    line = json.dumps(to_fields(never), allow_nan=False)
    assert from_fields(json.loads(line)) == never


# -- through JSON and back -----------------------------------------------------------------------------------------

NAMES = st.text("abc0é:", min_size=1, max_size=4)
BYTES = st.integers(0, 1 << 62)
SECONDS = st.floats(0, 1e9)
MOMENTS = st.floats(-1e9, 1e9)
DEMANDS = st.just(Demand(0.0, 0.0)) | st.builds(Demand, SECONDS, SECONDS)
SERVABLES = st.builds(
    ServableView,
    handle=st.integers(0, 6),
    name=NAMES,
    nbytes=BYTES,
    peak=BYTES,
    load_seconds=SECONDS,
    fast=DEMANDS,
    slow=DEMANDS,
    row_seconds=st.dictionaries(NAMES, SECONDS, max_size=2),
    replicas=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    pins=st.lists(NAMES, max_size=2).map(tuple),
    on=st.dictionaries(NAMES, st.builds(Replica, st.sampled_from(Hold), MOMENTS, st.booleans()), max_size=2),
    wanted=st.booleans(),
    movable=st.booleans(),
    crashes=st.integers(0, 3),
    idle=SECONDS | st.just(float("inf")),
    inlined=st.none() | st.builds(Inlined, BYTES, BYTES, SECONDS, st.floats(0.5, 2.0)),
)
PASTS = st.builds(Past, MOMENTS, st.sampled_from(Kind), st.integers(0, 6), NAMES, st.just(""), BYTES)
SNAPSHOTS = st.builds(
    Snapshot,
    MOMENTS,
    st.lists(st.builds(WorkerView, NAMES, NAMES, room=st.none() | BYTES, open=st.booleans()), max_size=2).map(tuple),
    st.lists(SERVABLES, max_size=4, unique_by=lambda view: view.handle).map(tuple),
    st.lists(PASTS, max_size=3).map(tuple),
)
STEPS = st.builds(Step, st.sampled_from(Kind), BYTES, NAMES, NAMES, NAMES, BYTES, MOMENTS, MOMENTS, st.text())
ENTRIES = st.builds(
    Entry,
    SECONDS,
    SNAPSHOTS,
    st.builds(Rules, horizon=SECONDS, hysteresis=SECONDS),
    st.none() | STEPS,
    SECONDS,
    st.sampled_from(["", "begun", "refused"]),
)


@given(ENTRIES)
def test_a_whole_line_is_what_it_was(entry: Entry) -> None:
    assert from_fields(json.loads(json.dumps(to_fields(entry), allow_nan=False))) == entry


@given(ENTRIES, ENTRIES, st.sets(st.integers(0, 6)), st.floats(0, 1000))
def test_changes_are_what_they_were(before: Entry, other: Entry, kept: set[int], passed: float) -> None:
    """Some servables stay as they are, others are those of another entry; the idle time is kept to a millisecond."""
    now = before.snapshot.now + passed
    others = {view.handle: view for view in other.snapshot.servables}
    stay = [view if view.handle in kept else others.pop(view.handle, None) for view in before.snapshot.servables]
    servables = (*(view for view in stay if view is not None), *others.values())
    servables = tuple({view.handle: view for view in servables}.values())
    past = (*before.snapshot.past[1:], *other.snapshot.past)
    after = replace(other, snapshot=replace(other.snapshot, now=now, servables=servables, past=past))
    found = from_fields(json.loads(json.dumps(to_fields(after, before), allow_nan=False)), before)
    for got, expected in zip(found.snapshot.servables, servables, strict=True):
        assert got.idle == pytest.approx(expected.idle, abs=1.1e-3)
    idle = tuple(
        replace(got, idle=expected.idle) for got, expected in zip(found.snapshot.servables, servables, strict=True)
    )
    assert replace(found, snapshot=replace(found.snapshot, servables=idle)) == after


# -- what is refused -----------------------------------------------------------------------------------------------


def changed(**fields: object) -> dict[str, Any]:
    """The whole line with other fields of its snapshot."""
    return {**WHOLE, "snapshot": {**WHOLE["snapshot"], **fields}}


def servable(**fields: object) -> dict[str, Any]:
    return changed(servables=[{**WHOLE["snapshot"]["servables"][1], **fields}])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([], r"got \[\], expected a table"),
        ({}, "got version None of the journal, expected 1"),
        ({**WHOLE, "v": 2}, "got version 2 of the journal, expected 1"),
        ({"v": 1, "when": 1.0}, "snapshot: got None, expected a table"),
        ({**WHOLE, "when": -1.0}, "when: got -1.0, expected a number from 0"),
        ({**WHOLE, "wen": 1.0}, "got 'wen', expected none but when, took"),
        ({key: value for key, value in WHOLE.items() if key != "rules"}, "got no rules, expected one"),
        (changed(workers={}), r"snapshot: workers: got \{\}, expected a list"),
        (changed(workers=[{"name": ""}]), "snapshot: workers: 0: name: got '', expected a text"),
        (changed(gone=[]), "got changes, expected everything"),
        (servable(handle=-1), "snapshot: servables: 0: handle: got -1, expected a whole number"),
        (servable(nbytes=1.5), "nbytes: got 1.5, expected a whole number"),
        (servable(idle=float("nan")), "idle: got nan, expected a number"),
        (servable(fast=[1.0]), "fast: got .*, expected a list of 2"),
        (servable(on={"cpu0": ["sits", 1.0]}), "on: cpu0: got 'sits', expected one of serves, comes, goes"),
        (servable(on={"cpu0": ["serves"]}), "on: cpu0: got .*, expected a list of 3"),
        (servable(on={"cpu0": ["serves", 1.0, 2]}), "on: cpu0: got 2, expected true or false"),
        (servable(inlined=[500, 700, 1.5]), "inlined: got .*, expected a list of 4"),
        (servable(inlined=[500, 700, 1.5, 0.0]), "inlined: got 0.0, expected a number from 1e-09"),
        (servable(wanted=1), "wanted: got 1, expected true or false"),
        (servable(colour="red"), "got 'colour', expected none but handle, name"),
        ({**WHOLE, "step": {"kind": "load"}}, "step: got no handle, expected one"),
        ({**WHOLE, "step": {**WHOLE["step"], "kind": []}}, "step: kind: got .*, expected one of load, replicate"),
    ],
)
def test_anything_else_is_refused(fields: object, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        from_fields(fields)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["v", "snapshot", "step"]) | st.text(), inner),
        max_leaves=5,
    )
)
def test_garbage_is_refused(garbage: object) -> None:
    with pytest.raises(InvalidArgument):
        from_fields(garbage)
    with pytest.raises(InvalidArgument):
        from_fields({**WHOLE, "snapshot": garbage})


def test_a_reader_follows_the_lines() -> None:
    later = replace(ENTRY, snapshot=replace(ENTRY.snapshot, now=101.0), step=None, outcome="")
    later = replace(later, snapshot=replace(later.snapshot, servables=(HOT, replace(COLD, idle=51.0))))
    reader = Reader()
    assert reader.read(json.dumps(to_fields(ENTRY)) + "\n") == ENTRY
    assert reader.read(json.dumps(to_fields(later, ENTRY))) == later
    assert reader.lines == 2
    for line in ("", '{"v": 1', "[" * 100_000, '{"v": 1}'):
        with pytest.raises(InvalidArgument, match=r"^line "):
            reader.read(line)
    assert reader.lines == 6
    with pytest.raises(CutOff, match=r"^line 7: got 'cut', expected JSON"):
        reader.read("cut")
    with pytest.raises(InvalidArgument, match="line 8: got changes, expected everything"):
        reader.read(json.dumps(to_fields(later, later)))
    assert reader.read(json.dumps(to_fields(later))) == later
