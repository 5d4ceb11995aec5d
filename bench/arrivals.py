"""When requests come: at random, and in bursts."""

from __future__ import annotations

import numpy as np

from tfpool.wire.tensors import Array

BURST = 10.0  # how much more often requests come in a burst
BURST_SHARE = 0.1  # of the time
BURST_SECONDS = 0.2  # on average


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Array:
    """Moments, increasing, of ``rate`` requests a second."""
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def bursts(rate: float, seconds: float, random: np.random.Generator) -> Array:
    """Moments, increasing, of ``rate`` requests a second on average: a Poisson process of two rates, whose states
    last as long as chance has it (a two-state MMPP)."""
    quiet = rate / (1 + (BURST - 1) * BURST_SHARE)
    found: list[Array] = []
    begun, bursting = 0.0, bool(random.random() < BURST_SHARE)
    while begun < seconds:
        lasting = BURST_SECONDS if bursting else BURST_SECONDS * (1 / BURST_SHARE - 1)
        span = min(random.exponential(lasting), seconds - begun)
        found.append(begun + poisson(quiet * (BURST if bursting else 1.0), span, random))
        begun, bursting = begun + span, not bursting
    return np.concatenate(found)
