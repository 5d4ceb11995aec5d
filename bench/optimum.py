"""The best placement there is, as a mixed integer linear program for HiGHS, and pools to put to it.

Of each servable it chooses the workers that hold it (whole numbers) and how its rows divide over them (free). Queues
are convex, so tangents bound them from below: the bound of the solver is one on the true cost too, and what is told as
the gap of a placement is never flattered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
from scipy.sparse import coo_array  # type: ignore[import-untyped]

from tfpool.placement.board import Facts
from tfpool.placement.cost import KNEE, WANTED, queue, slope
from tfpool.placement.snapshot import Demand, Hold, Replica, ServableView, Snapshot, WorkerView

TIGHT = 1.005
_TOUCHED = (0.0, *np.linspace(0.05, KNEE, 37).tolist(), 1.2, 1.6, 2.0, 3.0)


@dataclass(frozen=True)
class Optimum:
    """What the best placement found costs by the tangents (None: none was found), and a bound on all there are."""

    found: float | None
    bound: float

    @property
    def tight(self) -> bool:
        """Whether the bound is about reached, so that nothing better can be."""
        return self.found is not None and self.found <= self.bound * TIGHT + 1e-9


class _Program:
    """Rows of a sparse matrix, as they are written down."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.least: list[float] = []
        self.most: list[float] = []

    def add(self, terms: list[tuple[int, float]], least: float, most: float) -> None:
        for column, value in terms:
            self.rows.append(len(self.least))
            self.columns.append(column)
            self.values.append(value)
        self.least.append(least)
        self.most.append(most)

    def constraint(self, columns: int) -> LinearConstraint:
        matrix = coo_array((self.values, (self.rows, self.columns)), (len(self.least), columns))
        return LinearConstraint(matrix.tocsr(), np.array(self.least), np.array(self.most))


def optimum(snapshot: Snapshot, seconds: float, reached: float = np.inf) -> Optimum:
    """The least cost by the fast averages; ``reached`` is that of a placement that is known, so that no dearer ones are
    looked at. Servables with crashes are not its matter. Raises ValueError for them."""
    facts = Facts(snapshot)
    if any(view.crashes for view in facts.servables):
        raise ValueError("got a servable that crashes, expected none: their cost is not linear")
    count, width = len(facts.servables), len(facts.workers)
    on, part, gone, short = 0, count * width, 2 * count * width, 2 * count * width + count
    extra = short + count
    waits = extra + count
    columns = waits + width
    program = _Program()
    weights = np.zeros(columns)
    most = np.ones(columns)
    most[extra:] = np.inf
    for n, view in enumerate(facts.servables):
        cells = [n * width + w for w in range(width)]
        for w, cell in enumerate(cells):
            single = view.replicas[1] == 1  # then it does all the work where it is
            program.add([(part + cell, 1.0), (on + cell, -1.0)], 0.0 if single else -np.inf, 0.0)
            program.add([(gone + n, 1.0), (on + cell, 1.0)], -np.inf, 1.0)
            if not facts.may(n, w):
                most[on + cell] = 0.0
        program.add([*((part + cell, 1.0) for cell in cells), (gone + n, 1.0)], 1.0, 1.0)
        program.add([(on + cell, 1.0) for cell in cells], 0.0, view.replicas[1])
        need = facts.need[n]
        least = max(1, view.replicas[0])  # further ones cost; those of an absent servable are none
        program.add([*((on + cell, 1.0) for cell in cells), (extra + n, -1.0)], -np.inf, least)
        weights[extra + n] = facts.spread[n][0]
        program.add([*((on + cell, 1.0) for cell in cells), (short + n, max(1.0, need))], need, np.inf)
        weights[gone + n] = facts.absence(n)[0]
        weights[short + n] = WANTED * need
    for w, where in enumerate(facts.workers):
        if where.room is not None:
            other = where.held - sum(s.nbytes for s in facts.servables if where.name in s.on)
            terms = [(on + n * width + w, view.nbytes / (1 << 20)) for n, view in enumerate(facts.servables)]
            program.add(terms, -np.inf, (where.room - other) / (1 << 20))
        work = [facts.rates[0][n] * facts.seconds[n][w] for n in range(count)]
        for load in _TOUCHED:
            steep = slope(load)
            terms = [(part + n * width + w, steep * work[n]) for n in range(count) if work[n]]
            program.add([*terms, (waits + w, -1.0)], -np.inf, steep * load - queue(load))
        alone = []  # queues of several are longer than those of each alone
        for n, view in enumerate(facts.servables):
            cell = n * width + w
            if view.replicas[1] == 1:
                alone.append((on + cell, queue(work[n])))
            else:
                at = work[n] / min(view.replicas[1], width)
                alone += [(part + cell, slope(at) * work[n]), (on + cell, queue(at) - slope(at) * at)]
        program.add([*alone, (waits + w, -1.0)], -np.inf, 0.0)
        weights[waits + w] = 1.0
    if reached < np.inf:
        terms = [(column, weight) for column, weight in enumerate(weights.tolist()) if weight]
        program.add(terms, -np.inf, reached * (1 + 1e-6) + 1e-6)
    whole = np.zeros(columns)
    whole[on:part] = 1
    whole[gone:short] = 1
    result = milp(
        weights,
        integrality=whole,
        bounds=Bounds(np.zeros(columns), most),
        constraints=program.constraint(columns),
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    if result.mip_dual_bound is None and reached < np.inf:  # nor is a bound told where nothing was found in time
        return optimum(snapshot, seconds)
    bound = result.mip_dual_bound if result.mip_dual_bound is not None else 0.0
    return Optimum(result.fun, max(0.0, bound))


def make_pool(seed: int, servables: int | None = None, workers: int | None = None) -> Snapshot:
    """20 to 200 servables on 2 to 8 workers, where they are not told.

    There is memory for all of them or not, one device or two, replicas, pins, some that nobody asks for. They stand
    where the first worker by name had room, or nowhere.
    """
    random = Random(seed)
    width, count = workers or random.randint(2, 8), servables or random.randint(20, 200)
    names = [f"cpu{w}" for w in range(width)]
    fast = {name: random.choice((1.0, 1.0, 2.5)) if seed % 3 == 0 else 1.0 for name in names}
    sizes = [int(random.lognormvariate(4.0, 0.9) * (1 << 20)) for _ in range(count)]
    room = sum(sizes) / width * random.choice((0.6, 0.9, 1.1, 1.5, 3.0))
    rooms = {name: max(int(room * random.uniform(0.7, 1.3)), max(sizes)) for name in names}
    ranks = random.sample(range(1, count + 1), count)
    weights = [rank**-1.0 if random.random() < 0.95 else 0.0 for rank in ranks]
    work = random.uniform(0.3, 0.8) * sum(fast.values()) / sum(weights)
    free, views = dict(rooms), []
    for n in range(count):
        seconds = random.lognormvariate(-6.0, 1.0)
        rows = weights[n] * work / seconds
        pins = tuple(random.sample(names, max(1, width // 2))) if random.random() < 0.05 else ()
        home = next((name for name in pins or names if free[name] >= sizes[n]), None) if seed % 4 else None
        if home is not None:
            free[home] -= sizes[n]
        most = width if weights[n] * work > 0.4 else random.choice((1, 1, 2, width))
        on = {} if home is None else {home: Replica(Hold.SERVES, -1e6)}
        asked = Demand(rows / random.choice((1, 4, 32)), rows)
        load = 0.2 + sizes[n] / (300 << 20)
        view = ServableView(n + 1, f"m{n}", sizes[n], sizes[n], load, asked, asked)
        row_seconds = {name: seconds / fast[name] for name in names}
        replicas, wanted = (random.choice((0, 1)), most), random.random() < 0.5
        views.append(replace(view, row_seconds=row_seconds, replicas=replicas, pins=pins, on=on, wanted=wanted))
    pool = tuple(WorkerView(name, room=rooms[name], held=rooms[name] - free[name]) for name in names)
    return Snapshot(0.0, pool, tuple(views))
