"""The state of one version on one worker: one table, which the docs draw. Pure.

``python -m tfpool.repository.states`` prints the drawing of docs/lifecycle.md.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a version is, on a worker; the values are the texts that users read."""

    NEW = "NEW"
    LOADING = "LOADING"
    WARMING = "WARMING"
    AVAILABLE = "AVAILABLE"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


class Step(Enum):
    """What happens to a version on a worker."""

    LOAD = "load"
    WARM = "warm"
    LOADED = "loaded"
    FAIL = "fail"
    RETRY = "retry"
    DRAIN = "drain"
    KEEP = "keep"
    UNLOADED = "unloaded"
    WANT = "want"
    LOST = "lost"
    CANCEL = "cancel"


USEFULNESS = (
    State.FAILED,
    State.UNLOADED,
    State.DRAINING,
    State.NEW,
    State.LOADING,
    State.WARMING,
    State.AVAILABLE,
)
"""States from the least useful to the most: a version is what it is on the worker where it is most useful."""

TABLE: dict[tuple[State, Step], State] = {
    (State.NEW, Step.LOAD): State.LOADING,
    (State.NEW, Step.FAIL): State.FAILED,
    (State.NEW, Step.CANCEL): State.UNLOADED,
    (State.LOADING, Step.WARM): State.WARMING,
    (State.LOADING, Step.LOADED): State.AVAILABLE,
    (State.LOADING, Step.FAIL): State.FAILED,
    (State.LOADING, Step.DRAIN): State.DRAINING,
    (State.LOADING, Step.LOST): State.NEW,
    (State.WARMING, Step.LOADED): State.AVAILABLE,
    (State.WARMING, Step.FAIL): State.FAILED,
    (State.WARMING, Step.DRAIN): State.DRAINING,
    (State.WARMING, Step.LOST): State.NEW,
    (State.AVAILABLE, Step.DRAIN): State.DRAINING,
    (State.AVAILABLE, Step.LOST): State.NEW,
    (State.DRAINING, Step.KEEP): State.AVAILABLE,
    (State.DRAINING, Step.UNLOADED): State.UNLOADED,
    (State.DRAINING, Step.LOST): State.UNLOADED,
    (State.FAILED, Step.RETRY): State.NEW,
    (State.FAILED, Step.CANCEL): State.UNLOADED,
    (State.UNLOADED, Step.WANT): State.NEW,
}
"""Where a step leads; what is not in it does not happen."""


def following(state: State, step: Step) -> State | None:
    """The state after ``step``; None where the step means nothing."""
    return TABLE.get((state, step))


def mermaid() -> str:
    """A Mermaid state diagram of :data:`TABLE`; steps between the same two states share an arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, step), after in TABLE.items():
        arrows.setdefault((state, after), []).append(step.value)
    lines = [f"    {state.value} --> {after.value}: {', '.join(steps)}" for (state, after), steps in arrows.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.NEW.value}", *lines])


if __name__ == "__main__":
    print(mermaid())
