"""The scenarios, one a file; a new one is added here."""

from __future__ import annotations

from bench.scenario import Scenario
from bench.scenarios import (
    beside,
    clients,
    coldstart,
    cycles,
    decisions,
    evictions,
    faults,
    forms,
    gap,
    gateway,
    goodput,
    hops,
    hot,
    many,
    models,
    moves,
    neighbour,
    null,
    overload,
    placement,
    rotate,
    soak,
    start,
    swap,
    tensors,
    traffic,
    zipf,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        null,
        models,
        tensors,
        clients,
        start,
        hops,
        soak,
        swap,
        beside,
        zipf,
        cycles,
        decisions,
        goodput,
        traffic,
        overload,
        neighbour,
        faults,
        gap,
        placement,
        hot,
        rotate,
        moves,
        forms,
        many,
        coldstart,
        evictions,
        gateway,
    )
}
