"""The single moves that a board allows, and what each would be worth. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfpool.placement.ground import NOWHERE, Ground, Items, pick
from tfpool.placement.snapshot import Kind


class Move(NamedTuple):
    """One thing to do to a servable: ``source`` lets go of it, ``target`` takes it (NOWHERE: none)."""

    kind: Kind
    servable: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Table:
    """What moves of one kind would be worth (seconds of waiting): [items, workers], -inf for what may not be.
    ``needed`` are the bytes that the worker lacks (0 and less: there is room), ``peak`` those that an item takes."""

    kind: Kind
    items: Items
    worth: np.ndarray
    needed: np.ndarray
    peak: np.ndarray

    def move(self, row: int, target: int) -> Move:
        source = int(self.items.source[row]) if self.kind is Kind.MIGRATE else NOWHERE
        return Move(self.kind, int(self.items.servable[row]), source, target)

    def best(self, worth: np.ndarray, most: int) -> Iterator[tuple[float, Move]]:
        """Up to ``most`` moves that are worth something by ``worth``, which stands for that of the table."""
        flat, width = worth.ravel(), worth.shape[1]
        count = min(most, int((flat > 0).sum()))
        picked = np.argpartition(-flat, count - 1)[:count] if count else np.empty(0, dtype=int)
        picked = picked[np.lexsort((picked, -flat[picked]))]
        for at in picked.tolist():
            yield float(flat[at]), self.move(*divmod(at, width))


def tables(ground: Ground, replicas: Items, may_go: Items, absent: Items) -> Iterator[Table]:
    """Of the kinds that there are: MIGRATE for what ``may_go``, REPLICATE, LOAD."""
    if len(may_go.servable):
        yield _table(ground, Kind.MIGRATE, may_go, ground.migrate(may_go))
    hot = ground.hot(replicas)
    if len(hot.servable):
        yield _table(ground, Kind.REPLICATE, hot, ground.replicate(hot))
    if len(absent.servable):
        yield _table(ground, Kind.LOAD, absent, ground.load_absent(absent))


def rested(ground: Ground, replicas: Items) -> Items:
    """The replicas that have been long enough where they are to leave."""
    places = zip(replicas.servable.tolist(), replicas.source.tolist(), strict=True)
    return pick(replicas, np.array([not ground.restraint.rests(n, w) for n, w in places], dtype=bool))


def _table(ground: Ground, kind: Kind, items: Items, gains: np.ndarray) -> Table:
    owed = ground.owed(items) if kind is not Kind.MIGRATE else np.zeros(len(items.servable), dtype=bool)
    peak = ground.peak[items.servable]
    return Table(kind, items, ground.worth(gains, items, owed), peak[:, None] - ground.free, peak)
