"""A noisy neighbour: one worker, two models, one of them asked for five times what the worker can do."""

from __future__ import annotations

import numpy as np

from bench import pool
from bench.arrivals import poisson
from bench.open import Stream
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

FACTOR = 5.0
SHARE = 0.2  # of the worker's time, that the victim asks for
DEADLINE_SECONDS = 1.0
ROWS = 32  # a request of the neighbour
IN_FLIGHT = 64
_MODEL = "deep"
_FIGURE = "the victim's answers within p99 alone and a batch of the neighbour"

TARGETS = {_FIGURE: Target(99.0, on="ours"), "the victim's failures": Target(0.0, on="ours")}


def measure(settings: Settings) -> Outcome:
    """One worker, a client process each; Poisson. A batch of the neighbour is the median of what they took."""
    sheet = Sheet(TARGETS)
    samples, window = settings.models.samples[_MODEL], settings.window
    paths = dict.fromkeys(("victim", "neighbour"), settings.models.paths[_MODEL])
    with (
        pool.serve(settings, paths, workers=1) as served,
        Stream(served, "victim", samples) as victim,
        Stream(served, "neighbour", samples, ROWS) as neighbour,
    ):
        settings.progress.say("what is the most")
        loud = FACTOR * neighbour.capacity(IN_FLIGHT, window)
        rate = SHARE * victim.capacity(1, window)
        for number in settings.repeats():
            random = np.random.default_rng(number)
            settings.progress.say("the victim alone")
            alone = victim.send(poisson(rate, window, random), window, DEADLINE_SECONDS)
            settings.progress.say("the victim beside its neighbour")
            neighbour.begin(poisson(loud, window, random), window, DEADLINE_SECONDS)
            beside = victim.send(poisson(rate, window, random), window, DEADLINE_SECONDS)
            noise = neighbour.collect()
            batch = served.client().stats()["models"]["neighbour"]["run_us"]["p50"] / 1e3
            allowed = alone.ms(0.99) + batch
            told = {"alone": alone.told(), "beside": beside.told(), "neighbour": noise.told(), "batch_ms": batch}
            sheet.rate(_FIGURE, "%", beside.share(allowed / 1e3), detail=told)
            sheet.cost("the victim's p99, beside alone", "ms", beside.ms(0.99), alone.ms(0.99))
            sheet.cost("a batch of the neighbour", "ms", batch)
            sheet.cost("the victim's failures", "", beside.failed)
            sheet.rate("the neighbour's answers in time", "req/s", noise.on_time(DEADLINE_SECONDS) / window)
    return sheet.outcome()


SCENARIO = Scenario(
    "neighbour",
    f"one worker; a model is asked for {FACTOR:g} times what it can do, beside one at {100 * SHARE:g} % load",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=8,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 3},
)
