"""What leaves for want of memory: the pool's own choice beside LRU, and beside a bound on any, in virtual time."""

from __future__ import annotations

from bench.caches import Stock, least_seconds, play
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from bench.scenarios.zipf import EXPONENT, zipf
from tfpool.placement.eviction import Gdsf
from tfpool.testing.placement_policies import LruCache

MODELS = (100, 1000)
SHARES = (0.1, 1 / 3, 2 / 3)  # of the bytes of all models; with memory for all of them nothing leaves
REQUESTS, QUICK_REQUESTS = 100, 10  # a model

_BESIDE_LRU = "seconds of loads, beside LRU"


def _named(models: int, share: float, what: str) -> str:
    return f"{models:,} models, memory for {100 * share:.0f} %: {what}"


TARGETS = {_named(MODELS[-1], share, _BESIDE_LRU): Target(1.0) for share in SHARES}


def measure(settings: Settings) -> Outcome:
    """One cache for all models, with the same loads whoever decides. Each repeat draws models and requests anew."""
    sheet = Sheet(TARGETS)
    for number in settings.repeats():
        for models in MODELS:
            stock = Stock.of(models, number)
            picks = zipf(models, models * (QUICK_REQUESTS if settings.quick else REQUESTS), number)
            for share in SHARES:
                settings.progress.say(_named(models, share, f"{len(picks):,} requests"))
                _add(sheet, share, stock, picks)
    return sheet.outcome()


def _add(sheet: Sheet, share: float, stock: Stock, picks: list[int]) -> None:
    models, room = len(stock.nbytes), max(round(share * stock.total), *stock.nbytes)
    ours, lru = play(Gdsf(), stock, picks, room), play(LruCache(), stock, picks, room)
    a_request = 1e3 / len(picks)
    spent = a_request * ours.seconds(stock, picks)
    told = {"evictions": ours.evictions, "lru_evictions": lru.evictions, "room": room, "of": stock.total}
    cold, its = (100 * played.loads / len(picks) for played in (ours, lru))
    sheet.cost(_named(models, share, "cold requests, beside LRU"), "%", cold, its, told)
    sheet.cost(_named(models, share, _BESIDE_LRU), "ms/req", spent, a_request * lru.seconds(stock, picks))
    bound = a_request * least_seconds(stock, picks, room)
    sheet.cost(_named(models, share, "seconds of loads, beside the least of any"), "ms/req", spent, bound)


SCENARIO = Scenario(
    "evictions",
    f"up to {MODELS[-1]:,} models, memory for some, Zipf({EXPONENT}), in virtual time: what leaves, beside LRU",
    measure,
    targets=TARGETS,
    experiment=6,
)
