"""A better placement of everything at once, where memory is short: a large neighbourhood search. Pure.

Several copies of a placement are torn down in part, at random, and built up again; the better ones are kept. The same
placement leads to the same search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfpool.placement.cost import WANTED, queues

_COPIES = 48
_TURNS = 600  # what a search takes, about: a turn brings one servable of each copy to a worker
_MOST_ROUNDS = 70
_WARMTH = 0.05  # what a copy may become worse by, at the beginning
_CULLED_EVERY = 8  # rounds: the best copies take the places of the worst
_TORN_OF_WORKERS = (0.3, 0.6, 1.0)
_TORN_ANYWHERE = (0.05, 0.15, 0.25)
_DISORDER = (0.1, 0.35, 0.7)
_SPLIT_BELOW = 0.12  # of a worker: with less to do a part is no use
_LARGE = 0.45
_STATE = ("on", "parts", "load", "queue", "free", "costs")


@dataclass(frozen=True, slots=True)
class Pack:
    """What is to be placed, one servable a row; ``on`` is where it is now: [servables, workers].

    ``work`` is the load that all of its work is to a worker (inf where it may not be): [servables, workers]. ``missed``
    is what it costs that it is nowhere, ``spread`` each replica beyond the ``least``, ``moving`` each that is brought
    in. ``base`` and ``free`` are the load and the bytes of the workers without all these.
    """

    on: np.ndarray
    work: np.ndarray
    nbytes: np.ndarray
    peak: np.ndarray
    missed: np.ndarray
    spread: np.ndarray
    moving: np.ndarray
    least: np.ndarray
    most: np.ndarray
    base: np.ndarray
    free: np.ndarray


def pack(facts: Pack, seed: int) -> np.ndarray:
    """The best placement that was found, like ``on``; that itself where there is no better one."""
    crowd = _Crowd(facts, seed)
    rounds = min(_MOST_ROUNDS, max(1, 3 * _TURNS // len(facts.nbytes)))
    for number in range(rounds):
        crowd.search(_WARMTH * (1 - number / rounds))
        if number % _CULLED_EVERY == _CULLED_EVERY - 1:
            crowd.cull()
    return crowd.best


class _Crowd:
    """``on``: [copies, servables, workers]; ``parts``: by how many replicas each servable is divided: [copies,
    servables]; ``load``, ``queue``, ``free``: [copies, workers]."""

    def __init__(self, facts: Pack, seed: int) -> None:
        self.facts, self.dice, self.rows = facts, np.random.default_rng(abs(seed)), np.arange(_COPIES)
        self.may = np.isfinite(facts.work)
        self.work = np.where(self.may, facts.work, 0.0)
        size = np.where(self.may.any(axis=1), facts.work.min(axis=1), 0.0)
        size = np.where(np.isfinite(size), size, 0.0)
        of_use = np.maximum(facts.least, 1 + (size / _SPLIT_BELOW).astype(int))
        self.most = np.maximum(1, np.minimum(np.minimum(facts.most, of_use), self.may.sum(axis=1)))
        self.few = np.clip(np.ceil(size / _LARGE).astype(int), 1, self.most)
        weight = facts.nbytes / max(1.0, float(facts.nbytes.max()))
        dense = facts.missed / np.maximum(weight, 1e-9)
        self.dense = np.sqrt(dense / max(1e-12, float(dense.max())))
        self.bulk = np.sqrt(weight + size / max(1e-9, float(size.max())))
        self.moving = np.where(facts.on, 0.0, facts.moving[:, None])
        parts = np.maximum(1, facts.on.sum(axis=1))
        self.on = np.repeat(facts.on[None], _COPIES, axis=0)
        self.parts = np.repeat(parts[None], _COPIES, axis=0)
        self.load = facts.base + (self.on * (self.work / parts[:, None])).sum(axis=1)
        self.queue = queues(self.load)
        self.free = facts.free - (self.on * facts.nbytes[:, None]).sum(axis=1)
        self.costs = self._cost()
        self.best, self.least = facts.on, float(self.costs[0]) - 1e-9

    def search(self, warmth: float) -> None:
        """Tear down some, build up, and go back where it became worse by more than ``warmth``, or less by chance."""
        before = {name: getattr(self, name).copy() for name in _STATE}
        self._build(self._tear())
        at = int(self.costs.argmin())
        if self.costs[at] < self.least:
            self.least, self.best = float(self.costs[at]), self.on[at].copy()
        worse = self.costs > before["costs"] * (1 + warmth * self.dice.random(_COPIES))
        for name, old in before.items():
            getattr(self, name)[worse] = old[worse]

    def cull(self) -> None:
        """The best quarter takes the place of the worst."""
        order, some = np.argsort(self.costs, kind="stable"), _COPIES // 4
        for name in _STATE:
            mine = getattr(self, name)
            mine[order[-some:]] = mine[order[:some]]

    def _tear(self) -> np.ndarray:
        """Takes out servables of two workers, or of any; returns those, and some of the others that are nowhere."""
        dice, there = self.dice, self.on.any(axis=2)
        two = np.zeros(self.load.shape, dtype=bool)
        for _ in range(2):
            two[self.rows, dice.integers(0, two.shape[1], _COPIES)] = True
        of_two = (self.on & two[:, None, :]).any(axis=2) & (dice.random(there.shape) < self._some(_TORN_OF_WORKERS))
        anywhere = dice.random(there.shape) < self._some(_TORN_ANYWHERE)
        out = np.where(dice.random((_COPIES, 1)) < 0.6, of_two, anywhere)
        gone = self.on & out[:, :, None]
        self.load -= (gone * (self.work[None] / self.parts[:, :, None])).sum(axis=1)
        self.free += (gone * self.facts.nbytes[None, :, None]).sum(axis=1)
        self.on &= ~out[:, :, None]
        self.queue = queues(self.load)
        return np.asarray(out | (~there & (dice.random(there.shape) < 0.5)))

    def _some(self, values: tuple[float, ...]) -> np.ndarray:
        return self.dice.choice(np.array(values), (_COPIES, 1))

    def _build(self, out: np.ndarray) -> None:
        """Bring in what is ``out`` ([copies, servables]): each copy has its order, and likes its workers to be full or
        does not care."""
        dice = self.dice
        self._divide(out)
        by_density = dice.random((_COPIES, 1))
        first = self.dense * by_density + self.bulk * (1 - by_density)
        first *= np.exp(self._some(_DISORDER) * dice.standard_normal(out.shape))
        order = np.argsort(np.where(out, -first, np.inf), axis=1, kind="stable")
        snug = 0.1 * np.maximum(0.0, dice.random((_COPIES, 1)) - 0.3)
        for turn in range(int(out.sum(axis=1).max())):
            item = order[:, turn]
            parts = np.where(out[self.rows, item], self.parts[self.rows, item], 0)
            for part in range(int(parts.max())):
                self._bring(item, parts, part, snug)
        self.costs = self._cost()

    def _divide(self, out: np.ndarray) -> None:
        """Draw how many replicas they shall have that may have several."""
        several = (self.most > 1) & out
        if several.any():
            drawn = 1 + (self.most * self.dice.random(out.shape)).astype(int)
            drawn = np.where(self.dice.random(out.shape) < 0.5, self.few, drawn)
            self.parts = np.where(several, drawn, self.parts)

    def _bring(self, item: np.ndarray, parts: np.ndarray, part: int, snug: np.ndarray) -> None:
        facts, rows = self.facts, self.rows
        share = self.work[item] / np.maximum(1, parts)[:, None]
        after = queues(self.load + share)
        dearer = after - self.queue + self.moving[item]
        left = self.free - facts.peak[item][:, None]
        able = (left >= 0) & self.may[item]
        if part:
            able &= ~self.on[rows, item]
        score = np.where(able, dearer + snug * (left / (facts.peak[item][:, None] + 1.0)), np.inf)
        where = score.argmin(axis=1)
        lacks = facts.missed[item] / np.maximum(1, parts)
        at = np.flatnonzero((part < parts) & able[rows, where] & (dearer[rows, where] < lacks))
        to, what = where[at], item[at]
        self.on[at, what, to] = True
        self.load[at, to] += share[at, to]
        self.queue[at, to] = after[at, to]
        self.free[at, to] -= facts.nbytes[what]

    def _cost(self) -> np.ndarray:
        facts, there = self.facts, self.on.sum(axis=2)
        short = np.where(there > 0, np.maximum(0, facts.least - there), 0)
        missing = (1 - there / self.parts) * facts.missed + WANTED * short
        extra = np.maximum(0, there - np.maximum(1, facts.least)) * facts.spread
        moved = (self.on * self.moving).sum(axis=(1, 2))
        found: np.ndarray = self.queue.sum(axis=1) + (missing + extra).sum(axis=1) + moved
        return found
