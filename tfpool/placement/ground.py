"""A board as arrays, and what single changes to it would gain: all of them at once, with numpy. Pure.

Gains are requests that no longer wait, by the fast and the slow averages (the first axis of what is told twice). They
are never flattered, for the work of other servables stays where it is; but for crashers, they are those of real moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfpool.placement.board import Board
from tfpool.placement.cost import KNEE, LOADING, WANTED, near_crashers, queues
from tfpool.placement.restraint import Restraint, agreed

NOWHERE = -1


class Items(NamedTuple):
    """What could come to a worker, one a row: a replica that stands at ``source``, or an absent servable (NOWHERE).
    ``share`` is the load of a replica there, or the rows a second of an absent one: [2, items]."""

    servable: np.ndarray
    source: np.ndarray
    share: np.ndarray


class Ground:
    """``load``, ``queue``: [2, workers]; ``seconds``, ``may``: [servables, workers]; others by servable or worker."""

    def __init__(self, board: Board, restraint: Restraint) -> None:
        facts = board.facts
        self.board, self.restraint = board, restraint
        self.load = np.array(board.load)
        self.queue = queues(self.load)
        self.loading = 1 + queues(np.minimum(self.load.max(axis=0) + LOADING, KNEE))
        self.crashers = np.array(board.crashers, dtype=float)
        self.seconds = np.array(facts.seconds)
        self.free = np.array(board.free)
        self.peak = np.array([view.peak for view in facts.servables], dtype=float)
        self.nbytes = np.array([view.nbytes for view in facts.servables], dtype=float)
        self.crashes = np.array([view.crashes > 0 for view in facts.servables], dtype=float)
        self.single = np.array([len(workers) == 1 for workers in board.on], dtype=bool)
        self.load_seconds = np.array([view.load_seconds for view in facts.servables])
        self.may = np.ones((len(facts.servables), len(facts.workers)), dtype=bool)
        plain = all(where.open and not where.kept_for for where in facts.workers)
        for number, view in enumerate(facts.servables):
            if view.pins or not plain:
                self.may[number] = [facts.may(number, worker) for worker in range(len(facts.workers))]
            for worker in board.on[number]:
                self.may[number, worker] = False

    # -- what there is -----------------------------------------------------------------------------------------

    def replicas(self) -> Items:
        """Those that are not to be left alone."""
        board = self.board
        still = board.facts.still
        fast: list[float] = []
        slow: list[float] = []
        places = [(n, w) for n, workers in enumerate(board.on) if not still[n] for w in workers]
        for number, (first, second) in enumerate(board.share):
            if not still[number]:
                fast += first
                slow += second
        return Items(
            np.array([n for n, _ in places], dtype=int),
            np.array([w for _, w in places], dtype=int),
            np.array([fast, slow], dtype=float),
        )

    def absent(self) -> Items:
        """Those that serve nowhere, and are not to be left alone."""
        facts = self.board.facts
        absent = [n for n, workers in enumerate(self.board.on) if not workers and not facts.still[n]]
        rates = [[rates[n] for n in absent] for rates in facts.rates]
        return Items(np.array(absent, dtype=int), np.full(len(absent), NOWHERE), np.array(rates, dtype=float))

    def hot(self, replicas: Items) -> Items:
        """Of each servable that may have another replica, the one whose worker has most to do."""
        facts, on, busy = self.board.facts, self.board.on, self.load[0]
        rows: dict[int, int] = {}
        for row, (servable, worker) in enumerate(
            zip(replicas.servable.tolist(), replicas.source.tolist(), strict=True)
        ):
            if len(on[servable]) >= facts.servables[servable].replicas[1]:
                continue
            if servable not in rows or busy[worker] > busy[replicas.source[rows[servable]]]:
                rows[servable] = row
        return pick(replicas, np.array(list(rows.values()), dtype=int))

    # -- what it would gain: [2, items, workers] ---------------------------------------------------------------

    def migrate(self, items: Items) -> np.ndarray:
        """A replica goes to another worker."""
        arrival = self._arrival(items.share[:, :, None] * self._slower(items), items)
        gains: np.ndarray = self.departure(items)[:, :, None] - arrival
        return gains

    def replicate(self, items: Items) -> np.ndarray:
        """Another worker takes part of the work of a replica."""
        slower = self._slower(items)
        source = self.load[:, items.source][:, :, None]
        given = np.clip((source - self.load[:, None, :]) / (1 + slower), 0.0, items.share[:, :, None])
        relief = self.queue[:, items.source][:, :, None] - queues(source - given)
        owed = self.owed(items)
        each = np.array([self.board.facts.spread[n] for n in items.servable]).T
        extra = np.where(owed, -WANTED, each)
        gains: np.ndarray = relief - self._arrival(given * slower, items) - extra[:, :, None]
        return gains

    def load_absent(self, items: Items) -> np.ndarray:
        """An absent servable is loaded."""
        facts = self.board.facts
        missed = np.array([facts.absence(n) for n in items.servable]).T + WANTED * self.owed(items)
        arrival = self._arrival(items.share[:, :, None] * self.seconds[items.servable], items)
        gains: np.ndarray = missed[:, :, None] - arrival
        return gains

    def _slower(self, items: Items) -> np.ndarray:
        """[items, workers]: how many times as long each worker takes as the one where a replica stands."""
        seconds = self.seconds[items.servable]
        times: np.ndarray = seconds / seconds[np.arange(len(seconds)), items.source][:, None]
        return times

    def _arrival(self, more: np.ndarray, items: Items) -> np.ndarray:
        loads = self.load[:, None, :]
        dearer: np.ndarray = queues(loads + more) - self.queue[:, None, :]
        if self.crashes.any():
            count = self.crashers[None, None, :]
            now = near_crashers(count, loads)
            dearer += near_crashers(count + self.crashes[items.servable][None, :, None], loads + more) - now
        return dearer

    def departure(self, items: Items) -> np.ndarray:
        """[2, items]: a replica leaves, and its work with it."""
        loads = self.load[:, items.source]
        cheaper: np.ndarray = self.queue[:, items.source] - queues(loads - items.share)
        if self.crashes.any():
            count = self.crashers[items.source]
            then = near_crashers(count - self.crashes[items.servable], loads - items.share)
            cheaper += near_crashers(count, loads) - then
        return cheaper

    # -- what it would be worth: [items, workers] --------------------------------------------------------------

    def owed(self, items: Items) -> np.ndarray:
        """[items]: whether the servable shall have a replica more than it has, whatever is asked of it."""
        on = self.board.on
        return np.array([len(on[n]) < self.board.least(n) for n in items.servable.tolist()], dtype=bool)

    def worth(self, gains: np.ndarray, items: Items, owed: np.ndarray) -> np.ndarray:
        """Seconds of waiting that are saved, less what it takes (nothing, for what is ``owed``); -inf where a worker
        may not be given an item."""
        rules = self.restraint.rules
        takes = np.where(owed[:, None], 0.0, self.takes(items))
        worth: np.ndarray = agreed(gains[0], gains[1]) * rules.horizon - rules.hysteresis * takes
        return np.where(self.may[items.servable], worth, -np.inf)

    def takes(self, items: Items) -> np.ndarray:
        """Seconds of waiting that loading an item would bring to each worker."""
        takes: np.ndarray = self.load_seconds[items.servable][:, None] * self.loading
        return takes


def pick(items: Items, rows: np.ndarray) -> Items:
    """Some of the items."""
    return Items(items.servable[rows], items.source[rows], items.share[:, rows])
