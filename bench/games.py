"""Games in virtual time: many models, requests of one pattern, and the share that each rule answers in time.

Load 1 is what the workers can run one by one. Models differ in speed and in what a batch saves them; the first are
asked for most. A rule of the grid is taken at its best for each game, as if somebody had known what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import log, sqrt

import numpy as np

from bench.arrivals import bursts, poisson
from bench.children import Channel
from bench.crowd import zipf_shares
from bench.rules import Aimd, MakeRule, grid
from bench.virtual import Model, Ours, Request, play
from tfpool.wire.tensors import Array

MODELS, WORKERS = 20, 2
DEADLINES: Mapping[str, tuple[float, ...]] = {"2x": (2.0,), "5x": (5.0,), "10x": (10.0,), "mixed": (2.0, 5.0, 10.0)}
SIZES, WAITS = (4, 16, 64), (0.0, 0.5, 2.0)
QUICK_SIZES, QUICK_WAITS = (8, 64), (0.0, 1.0)
ENOUGH = 0.99
OURS, AIMD = "ours", "AIMD"
_STEPS = 7
_LEAST, _MOST = 0.02, 4.0  # loads between which the greatest that is borne is looked for
_L1 = (0.5e-3, 5e-3)  # seconds of a run of one row
_FIXED = (0.2, 0.9)  # of these, the share that does not grow with the batch

Arrivals = Callable[[float, float, np.random.Generator], Array]


def apart(arrivals: Arrivals, rate: float, seconds: float, random: np.random.Generator) -> list[Array]:
    """Moments by model: each has its own quiet and busy times."""
    return [arrivals(rate * share, seconds, random) for share in zipf_shares(MODELS)]


def together(arrivals: Arrivals, rate: float, seconds: float, random: np.random.Generator) -> list[Array]:
    """Moments by model: all are busy at the same time."""
    moments = arrivals(rate, seconds, random)
    models = random.choice(MODELS, len(moments), p=zipf_shares(MODELS))
    return [moments[models == model] for model in range(MODELS)]


PATTERNS: Mapping[str, Callable[[float, float, np.random.Generator], list[Array]]] = {
    "poisson": partial(apart, poisson),
    "bursts": partial(apart, bursts),
    "surges": partial(together, bursts),
}


@dataclass(frozen=True)
class Game:
    """What all rules are put to: a pattern and deadlines, by their names."""

    pattern: str
    deadlines: str
    seconds: float
    seed: int

    def models(self) -> list[Model]:
        """Models of all speeds."""
        random = np.random.default_rng([self.seed, 0])
        l1 = np.exp(random.uniform(log(_L1[0]), log(_L1[1]), MODELS))
        fixed = l1 * random.uniform(*_FIXED, MODELS)
        return [Model.of(f"m{n}", n, float(a), float(b - a)) for n, (a, b) in enumerate(zip(fixed, l1, strict=True))]

    def requests(self, models: Sequence[Model], load: float) -> list[Request]:
        """In the order of their arrival."""
        random = np.random.default_rng([self.seed, 1])
        found = []
        for number, moments in enumerate(PATTERNS[self.pattern](load * capacity(models), self.seconds, random)):
            times = models[number].seconds(1) * random.choice(DEADLINES[self.deadlines], len(moments))
            found += [Request(number, *pair) for pair in zip(moments.tolist(), (moments + times).tolist(), strict=True)]
        return sorted(found, key=lambda request: request.arrived)

    def rules(self, models: Sequence[Model], quick: bool) -> dict[str, MakeRule]:
        """Ours, AIMD and the grid, by name."""
        objectives = [min(DEADLINES[self.deadlines]) * model.seconds(1) for model in models]
        sizes, waits = (QUICK_SIZES, QUICK_WAITS) if quick else (SIZES, WAITS)
        return {
            OURS: partial(Ours, models, WORKERS),
            AIMD: partial(Aimd, objectives, WORKERS),
            **grid(models, WORKERS, sizes, waits),
        }


def capacity(models: Sequence[Model]) -> float:
    """Requests a second that the workers can run one by one."""
    shares = zipf_shares(len(models))
    return WORKERS / sum(share * model.seconds(1) for share, model in zip(shares, models, strict=True))


def shares(game: Game, load: float, quick: bool) -> dict[str, float]:
    """Percent that each rule answers in time of the same requests."""
    models = game.models()
    requests = game.requests(models, load)
    rules = game.rules(models, quick)
    return {name: 100 * play(make(), models, requests, game.seed).share for name, make in rules.items()}


def borne(game: Game, quick: bool) -> dict[str, float]:
    """The greatest load at which each rule answers 99 % in time, to a few percent."""
    models = game.models()
    requests = cache(partial(game.requests, models))
    found = {}
    for name, make in game.rules(models, quick).items():
        low, high = _LEAST, _MOST
        for _ in range(_STEPS):
            load = sqrt(low * high)
            if play(make(), models, requests(load), game.seed).share >= ENOUGH:
                low = load
            else:
                high = load
        found[name] = low
    return found


def best(values: Mapping[str, float]) -> str:
    """The rule of the grid with the highest value."""
    return max((name for name in values if name not in (OURS, AIMD)), key=lambda name: values[name])


def judge(channel: Channel) -> None:
    """A child: told a game and loads, says the shares at each load, and the load that is borne, all by rule."""
    while (order := channel.hear()) is not None:
        words, loads, quick = order
        game = Game(*words)
        channel.say([[shares(game, load, quick) for load in loads], borne(game, quick)])
