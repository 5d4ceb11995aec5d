from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tfpool.repository import states
from tfpool.repository.states import TABLE, USEFULNESS, State, Step, following, mermaid

DOCS = Path(__file__).parents[2] / "docs" / "lifecycle.md"

BY_HAND = """
NEW        load      LOADING
LOADING    warm      WARMING
LOADING    loaded    AVAILABLE
WARMING    loaded    AVAILABLE
NEW        fail      FAILED
LOADING    fail      FAILED
WARMING    fail      FAILED
FAILED     retry     NEW
AVAILABLE  drain     DRAINING
LOADING    drain     DRAINING
WARMING    drain     DRAINING
DRAINING   keep      AVAILABLE
DRAINING   unloaded  UNLOADED
NEW        cancel    UNLOADED
FAILED     cancel    UNLOADED
UNLOADED   want      NEW
AVAILABLE  lost      NEW
LOADING    lost      NEW
WARMING    lost      NEW
DRAINING   lost      UNLOADED
"""


def test_the_whole_table() -> None:
    expected = {(a, step): b for a, step, b in map(str.split, BY_HAND.split("\n")[1:-1])}
    for state in State:
        for step in Step:
            after = following(state, step)
            assert (after and after.value) == expected.get((state.value, step.value)), (state, step)


def test_every_state_can_be_reached_and_left_and_every_step_taken() -> None:
    reached = {State.NEW}
    while more := {TABLE[a, step] for a, step in TABLE if a in reached} - reached:
        reached |= more
    assert reached == {a for a, _ in TABLE} == set(State)
    assert {step for _, step in TABLE} == set(Step)


def test_what_serves_is_most_useful() -> None:
    assert USEFULNESS[-1] is State.AVAILABLE
    assert len(USEFULNESS) == len(set(USEFULNESS)) == len(State)


def test_the_drawing_has_an_arrow_for_every_row() -> None:
    drawn = set()
    for line in mermaid().splitlines()[2:]:
        found = re.fullmatch(r"    (\w+) --> (\w+): (.+)", line)
        assert found, line
        drawn |= {(State(found[1]), Step(step), State(found[2])) for step in found[3].split(", ")}
    assert drawn == {(a, step, b) for (a, step), b in TABLE.items()}


def test_the_docs_hold_the_drawing_and_explain_every_word() -> None:
    text = DOCS.read_text()
    found = re.search(r"<!-- states -->\n```mermaid\n(.*?)\n```\n<!-- /states -->", text, re.DOTALL)
    assert found, "docs/lifecycle.md has no drawing between its markers"
    assert found[1] == mermaid(), "docs/lifecycle.md is behind: python -m tfpool.repository.states prints the drawing"
    tables = text.split("\n## ")[0]
    explained = set(re.findall(r"^\| (\w+) \|", tables, re.MULTILINE)) - {"state", "step"}
    assert explained == {state.value for state in State} | {step.value for step in Step}


def test_it_prints_the_drawing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", states.__name__], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == mermaid() + "\n"
