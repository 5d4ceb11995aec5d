"""One migration: a servable comes to a worker, and leaves another. One table, which the docs draw. Pure.

Bringing in a replica is a migration without a source, which ends when the replica serves.

``python -m tfpool.placement.migration`` prints the drawing of docs/placement.md.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """How far a migration is; the values are what users read."""

    PLANNED = "PLANNED"
    LOADING = "LOADING"
    WARMING = "WARMING"
    ROUTED = "ROUTED"
    DRAINING = "DRAINING"
    UNLOADING = "UNLOADING"
    DONE = "DONE"
    ABORTED = "ABORTED"


class Sign(Enum):
    """What is seen of a migration.

    The target begins to LOAD, to WARM, and SERVES. The source LEAVES: it is given nothing more, has ANSWERED what it
    was given, and is GONE; or nothing but the target was asked for (ALONE). The target is LOST, or the load FAILS; the
    source is LOST; or the servable is no longer wanted, or wanted elsewhere (WITHDRAWN).
    """

    LOADS = "target loads"
    WARMS = "target warms up"
    SERVES = "target serves"
    ALONE = "no source"
    LEAVES = "source gets no more"
    ANSWERED = "source has answered"
    GONE = "source is empty"
    TARGET_LOST = "target lost"
    FAILS = "load fails"
    SOURCE_LOST = "source lost"
    WITHDRAWN = "withdrawn"


OVER = frozenset({Phase.DONE, Phase.ABORTED})

TABLE: dict[tuple[Phase, Sign], Phase] = {
    (Phase.PLANNED, Sign.LOADS): Phase.LOADING,
    (Phase.PLANNED, Sign.SERVES): Phase.ROUTED,
    (Phase.LOADING, Sign.WARMS): Phase.WARMING,
    (Phase.LOADING, Sign.SERVES): Phase.ROUTED,
    (Phase.WARMING, Sign.SERVES): Phase.ROUTED,
    (Phase.ROUTED, Sign.ALONE): Phase.DONE,
    (Phase.ROUTED, Sign.LEAVES): Phase.DRAINING,
    (Phase.ROUTED, Sign.GONE): Phase.DONE,
    (Phase.DRAINING, Sign.ANSWERED): Phase.UNLOADING,
    (Phase.DRAINING, Sign.GONE): Phase.DONE,
    (Phase.UNLOADING, Sign.GONE): Phase.DONE,
    **{
        (phase, sign): Phase.ABORTED
        for phase in (Phase.PLANNED, Phase.LOADING, Phase.WARMING)
        for sign in (Sign.TARGET_LOST, Sign.FAILS, Sign.WITHDRAWN)
    },
    **{
        (phase, sign): Phase.ABORTED
        for phase in (Phase.ROUTED, Phase.DRAINING, Phase.UNLOADING)
        for sign in (Sign.TARGET_LOST, Sign.WITHDRAWN)
    },
    **{(phase, Sign.SOURCE_LOST): Phase.DONE for phase in (Phase.ROUTED, Phase.DRAINING, Phase.UNLOADING)},
}
"""Where a sign leads; what is not in it does not happen. While the target still loads, a lost source changes nothing:
the target is all the sooner needed."""


def following(phase: Phase, sign: Sign) -> Phase | None:
    """The phase after ``sign``; None where the sign means nothing."""
    return TABLE.get((phase, sign))


def mermaid() -> str:
    """A Mermaid state diagram of :data:`TABLE`; signs between the same two phases share an arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, sign), after in TABLE.items():
        arrows.setdefault((phase, after), []).append(sign.value)
    lines = [f"    {phase.value} --> {after.value}: {', '.join(signs)}" for (phase, after), signs in arrows.items()]
    ends = [f"    {phase.value} --> [*]" for phase in Phase if phase in OVER]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Phase.PLANNED.value}", *lines, *ends])


if __name__ == "__main__":
    print(mermaid())
