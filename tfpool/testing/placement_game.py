"""All policies on the same traces, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tfpool.placement.policies import Auto, Static
from tfpool.placement.snapshot import Rules
from tfpool.placement.tally import Outcome
from tfpool.placement.whatif import Game, Policy
from tfpool.testing.placement_policies import Greedy, Lru, Oracle
from tfpool.testing.traces import Trace

OURS, STATIC = "ours", "static"
POLICIES: Mapping[str, Callable[[Trace], Policy]] = {
    STATIC: lambda trace: Static(),
    "LRU": lambda trace: Lru(),
    "greedy": lambda trace: Greedy(),
    OURS: lambda trace: Auto(Rules()),
    "oracle": lambda trace: Oracle(trace.future),
}


def play(trace: Trace, policy: Policy) -> Outcome:
    """What a policy makes of a trace."""
    game = Game(trace.world, policy)
    for asked in trace.ticks():
        game.tick(asked)
    return game.outcome()
