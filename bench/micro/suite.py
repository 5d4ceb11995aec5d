"""All that the guard measures, by group: ratios of ours to a roofline, of which less is better.

Each repeat of a group of pairs has a process of its own: where things happen to lie in memory is then drawn anew.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from statistics import median

from bench.children import Channel, Child
from bench.micro import gateway, null, planner, scheduler, slots, wire
from bench.micro.pair import Pair
from bench.scenario import Settings

Found = dict[str, list[float]]

PAIRS: Mapping[str, Callable[[], Sequence[Pair]]] = {
    "scheduler": scheduler.pairs,
    "wire": wire.pairs,
    "slots": slots.pairs,
    "gateway": gateway.pairs,
    "planner": planner.pairs,
}
NULL = "null path"
GROUPS = (*PAIRS, NULL)


def absent() -> Mapping[str, str]:
    """Groups that cannot be measured here, and why."""
    return {} if find_spec("tensorflow") else {NULL: "TensorFlow is not installed"}


def group_of(name: str) -> str:
    """The group of an entry."""
    return name.partition(": ")[0]


def pairs(settings: Settings, groups: Sequence[str]) -> Found:
    """The ratios of groups of pairs. Raises ChildFailed."""
    found: Found = {}
    for _ in settings.repeats():
        for group in groups:
            settings.progress.say(group)
            with Child(work, group) as child:
                _add(found, group, child.hear())
    return found


def work(channel: Channel, group: str) -> None:
    """A child: says the ratios of a group, by pair."""
    pairs = PAIRS[group]()
    gc.collect()
    gc.freeze()  # as the broker does
    gc.set_threshold(50_000, 20, 20)
    channel.say({pair.name: pair.ratio() for pair in pairs})


def null_path(settings: Settings) -> tuple[Found, float]:
    """The ratios of the null path, and how many cores others kept busy in most of the repeats.

    Raises ChildFailed and WrongAnswer.
    """
    found: Found = {}
    others = []
    for repeat in null.repeats(settings):
        _add(found, NULL, repeat.ratios)
        others.append(repeat.others)
    return found, median(others)


def _add(found: Found, group: str, ratios: Mapping[str, float]) -> None:
    for name, ratio in ratios.items():
        found.setdefault(f"{group}: {name}", []).append(ratio)
